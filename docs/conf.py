"""The documentation site: Markdown pages by MyST, the reference by autodoc, in the theme Furo.

``make docs`` builds it into build/docs, warnings being errors.
"""

from __future__ import annotations

import kgrec_fast

project = "kgrec_fast"
author = "the kgrec_fast developers"
release = version = kgrec_fast.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]

# Pages. Links to sections are made as code hosts make them; the outputs of the tutorial are those
# in its file, which tests/test_tutorial.py runs anew.
myst_heading_anchors = 3
nb_execution_mode = "off"

# Reference. `x` in a docstring links to x where there is such an object, and is code otherwise.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 72
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
