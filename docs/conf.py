"""The documentation site: Markdown pages by MyST, the reference by autodoc, in the theme Furo.

``make docs`` builds it into build/docs, warnings being errors.
"""

from __future__ import annotations

import os
from typing import Any

from docutils import nodes
from sphinx import addnodes

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

smartquotes = False  # they would make dashes of the options of commands

# Reference. `x` in a docstring links to x where there is such an object, and is code otherwise.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 72
napoleon_numpy_docstring = False

highlight_language = "none"  # what says no language is no Python

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def formulas_as_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list) -> None:
    """Keeps indented formulas in docstrings line by line, as Markdown does.

    reStructuredText takes an indented paragraph for a quotation, and fills its lines.
    """
    result: list[str] = []
    text = ""  # the last line that was not empty
    for line in lines:
        begins = line.startswith("    ") and result and not result[-1]
        if begins and not text.startswith(("    ", "..")):
            result += ["::", ""]
        result.append(line)
        text = line or text
    lines[:] = result


def without_tensors(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, result: str
) -> tuple[str, str] | None:
    """Leaves out how a graph is put together: graphs are made by `from_edges`."""
    return ("", "") if what == "class" and hasattr(obj, "from_edges") else None


def dashes(app: Any, doctree: nodes.document) -> None:
    """Sets dashes between the name of an argument and what is said of it."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))  # noqa: RUF001


def pages_outside_as_files(app: Any, doctree: nodes.document) -> None:
    """Links to Markdown outside of docs/ give the file, as links to sources do."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link.get("refdomain") == "doc" and link["reftarget"] not in app.env.found_docs:
            target = f"{link['reftarget']}.md"
            if (app.srcdir / target).is_file():
                file = addnodes.download_reference("", "", *link.children, refdoc=link["refdoc"])
                file["reftarget"] = f"/{os.path.relpath(target, app.srcdir)}"
                link.replace_self(file)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", formulas_as_code)
    app.connect("autodoc-process-signature", without_tensors)
    app.connect("doctree-read", dashes)
    # Before Sphinx collects the files to copy.
    app.connect("doctree-read", pages_outside_as_files, priority=400)
