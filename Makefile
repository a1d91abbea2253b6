# Everything a newcomer runs. Each target installs what it needs into $(VENV) first.
#   make demo      train KGRec on ml-100k and print a table of metrics
#   make test      run the test suite
#   make compat    run most of it with the wheel made here, under an older torch
#   make test-matrix  the same under each torch and Python that is supported: hours
#   make wheel     an sdist and a wheel in dist/; wheel-check audits them, and puts what can be
#                  handed out into wheelhouse/
#   make test-integrations  run the tests inside hopwise and RecBole, and against torch_scatter and PyG,
#                  each in an environment of its own
#   make sanitize  run the tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer:
#                  a quarter of an hour on two cores, and nothing should run beside it
#   make lint      ruff, mypy, clang-format
#   make docs      build the pages into build/docs, warnings being errors
#   make build     rebuild the native library after a change in csrc/

PYTHON ?= python3
VENV ?= .venv
COMPAT_VENV ?= .venv-compat
COMPAT_TORCH ?= 2.13.0
COMPAT_TESTS ?= tests/ops tests/nn tests/models tests/pytorch tests/test_graph.py tests/test_symbols.py
MATRIX_VENV ?= .venv-matrix
MATRIX_TESTS ?= $(COMPAT_TESTS) tests/data tests/training tests/acceleration tests/test_library.py
# Python/torch: every torch that is supported, and every Python with the newest of them.
MATRIX ?= 3.11/2.10.0 3.11/2.11.0 3.11/2.13.0 3.11/2.14.1 3.10/2.14.1 3.12/2.14.1 3.13/2.14.1
HOPWISE_VENV ?= .venv-hopwise
RECBOLE_VENV ?= .venv-recbole
SCATTER_VENV ?= .venv-scatter
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
EPOCHS ?= 30
WHEEL_CUDA ?= 0
OUTSIDE := libtorch*.so libc10*.so libcuda*.so.*
MODULES := $(shell find kgrec_fast -name '*.py')
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test wheel wheel-check compat test-matrix test-integrations sanitize lint style types format docs \
  build install data clean FORCE
.DELETE_ON_ERROR:

$(BIN)/python:
	@command -v c++ >/dev/null || { echo "A C++ compiler is needed: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip "setuptools>=77" wheel

# torch comes first: the extension is built against the one that is going to be used.
$(VENV)/.torch: | $(BIN)/python
	@echo "Installing torch into $(VENV) ..."
	$(PIP) install "torch>=2.10" numpy ninja
	@touch $@

$(VENV)/.installed: $(SOURCES) | $(VENV)/.torch
	@echo "Building kgrec_fast (two to five minutes on two cores, CUDA kernels included) ..."
	KGREC_FAST_WERROR=1 $(PIP) install --no-build-isolation -e ".[train,test]"
	@touch $@

install build: $(VENV)/.installed

# RecBole's wheel carries ml-100k with its knowledge graph; nothing of RecBole is imported.
$(VENV)/.data: | $(BIN)/python
	$(PIP) install --no-deps recbole==1.2.1
	@touch $@

data: $(VENV)/.data

demo: $(VENV)/.installed $(VENV)/.data
	@echo "Training KGRec on ml-100k for $(EPOCHS) epochs: about a minute on two cores."
	$(BIN)/kgrec-fast train ml-100k --recbole-items --epochs $(EPOCHS)

test: $(VENV)/.installed $(VENV)/.data
	$(BIN)/python -m pytest

# What `python -m build` makes: an sdist, and from it the wheel. The library is one binary for every
# torch from 2.10 and every Python from 3.10 on; that of CUDA is one for each CUDA, so left out.
dist/.made: $(SOURCES) $(MODULES) README.md LICENSE MANIFEST.in | $(VENV)/.installed $(VENV)/.package
	rm -rf dist
	KGREC_FAST_CUDA=$(WHEEL_CUDA) $(BIN)/python -m build --no-isolation
	@touch $@

wheel: dist/.made

# auditwheel names the wheel after the oldest Linux that it runs on, and would take in what it
# needs of others; torch and CUDA stay outside. The wheels that it makes are those to hand out.
wheel-check: wheel
	rm -rf wheelhouse
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair -w wheelhouse $(foreach x,$(OUTSIDE),--exclude '$(x)') dist/*.whl
	$(BIN)/abi3audit --strict --summary wheelhouse/*.whl
	$(BIN)/check-wheel-contents wheelhouse/*.whl
	$(BIN)/twine check --strict dist/*.tar.gz wheelhouse/*.whl

# The sources that tests read, without the package, so that they import the one that is installed.
build/run: FORCE
	rm -rf $@ && mkdir -p $@
	cp -r tests csrc benchmarks docs README.md pyproject.toml $@

# $(call with_wheel,VENV,EXTRAS): an environment with that wheel and another torch. The wheel is
# installed again for itself: its version may be the one that is there.
define with_wheel
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip --disable-pip-version-check -q install -U pip
	$(1)/bin/python -m pip --disable-pip-version-check -q install \
	  torch==$(COMPAT_TORCH) "$$(ls $(CURDIR)/dist/*.whl)[$(2)]"
	$(1)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
	  --force-reinstall dist/*.whl
endef
comma := ,

compat: wheel build/run
	$(call with_wheel,$(COMPAT_VENV),train$(comma)test)
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps recbole==1.2.1
	cd build/run && $(CURDIR)/$(COMPAT_VENV)/bin/python -m pytest $(COMPAT_TESTS)

# One environment at a time, some six GB each; a Python that is not there is said in the table.
test-matrix: wheel
	@failed=0; table=; for entry in $(MATRIX); do \
	  version=$${entry%/*} torch=$${entry#*/} python=; \
	  for found in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
	    if $$found -c "" 2>/dev/null; then python=$$found; break; fi; \
	  done; \
	  rm -rf $(MATRIX_VENV); \
	  if [ -z "$$python" ]; then result="not run, there is no such Python here"; \
	  elif $(MAKE) --no-print-directory compat PYTHON=$$python COMPAT_TORCH=$$torch \
	    COMPAT_VENV=$(MATRIX_VENV) COMPAT_TESTS="$(MATRIX_TESTS)"; then result=passed; \
	  else result=FAILED; failed=1; fi; \
	  table="$$table\nPython $$version, torch $$torch: $$result"; \
	done; rm -rf $(MATRIX_VENV); printf "$$table\n"; exit $$failed

test-integrations: wheel build/run
	$(call with_wheel,$(HOPWISE_VENV),train$(comma)test$(comma)hopwise)
	cd build/run && $(CURDIR)/$(HOPWISE_VENV)/bin/python -m pytest \
	  tests/integrations/test_framework_*.py tests/integrations/test_hopwise_*.py
	$(call with_wheel,$(RECBOLE_VENV),train$(comma)test$(comma)recbole)
	cd build/run && $(CURDIR)/$(RECBOLE_VENV)/bin/python -m pytest \
	  tests/integrations/test_framework_*.py tests/integrations/test_recbole_*.py
	$(call with_wheel,$(SCATTER_VENV),train$(comma)test$(comma)bench)
	@echo "Compiling torch_scatter, which is built against one torch: some five minutes ..."
	$(SCATTER_VENV)/bin/python -m pip --disable-pip-version-check -q install setuptools wheel
	$(SCATTER_VENV)/bin/python -m pip --disable-pip-version-check -q install \
	  --no-build-isolation torch_scatter==2.1.2
	cd build/run && $(CURDIR)/$(SCATTER_VENV)/bin/python -m pytest \
	  tests/integrations/test_against_torch_scatter.py

# Leaks are not looked for: what Python and torch keep to the end is theirs. Output is not captured,
# for a report ends the process.
SANITIZE_TESTS ?= tests/ops
LIBRARY_OF = $$($(CXX) -print-file-name=$(1))
sanitize: $(VENV)/.installed build/run
	KGREC_FAST_SANITIZE=1 KGREC_FAST_CUDA=0 $(BIN)/python setup.py -q build --build-base build/sanitized
	cd build/run && LD_PRELOAD="$(call LIBRARY_OF,libasan.so) $(call LIBRARY_OF,libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$$(echo $(CURDIR)/build/sanitized/lib*)" \
	  $(CURDIR)/$(BIN)/python -m pytest --capture=no $(SANITIZE_TESTS)

# The tools of a group in pyproject.toml.
$(VENV)/.lint $(VENV)/.docs $(VENV)/.package: $(VENV)/.%: | $(BIN)/python
	$(PIP) install --group $*
	@touch $@

CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

lint: style types

style: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

# mypy reads torch's types, and those of whatever else is imported.
types: $(VENV)/.lint $(VENV)/.installed
	$(BIN)/mypy kgrec_fast benchmarks

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

docs: $(VENV)/.docs $(VENV)/.installed
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "Open build/docs/index.html"

clean:
	rm -rf build dist wheelhouse *.egg-info kgrec_fast/*.so $(VENV) $(COMPAT_VENV) $(MATRIX_VENV) \
	  $(HOPWISE_VENV) $(RECBOLE_VENV) $(SCATTER_VENV)
