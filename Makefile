# Everything a newcomer runs. Each target installs what it needs into $(VENV) first.
#   make demo      train KGRec on ml-100k and print a table of metrics
#   make test      run the test suite
#   make compat    run it again with the same binary under an older torch
#   make test-integrations  run the tests inside hopwise and RecBole, and against torch_scatter and PyG,
#                  each in an environment of its own
#   make lint      ruff, mypy, clang-format
#   make docs      build the pages into build/docs, warnings being errors
#   make build     rebuild the native library after a change in csrc/

PYTHON ?= python3
VENV ?= .venv
COMPAT_VENV ?= .venv-compat
COMPAT_TORCH ?= 2.13.0
HOPWISE_VENV ?= .venv-hopwise
RECBOLE_VENV ?= .venv-recbole
SCATTER_VENV ?= .venv-scatter
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
EPOCHS ?= 30
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test wheel compat test-integrations lint format build install data clean
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
	$(PIP) install --no-build-isolation -e ".[train,test]"
	@touch $@

install build: $(VENV)/.installed

# RecBole's wheel carries ml-100k with its knowledge graph; nothing of RecBole is imported.
$(VENV)/.data: | $(BIN)/python
	$(PIP) install --no-deps recbole==1.2.1
	@touch $@

data: $(VENV)/.data

demo: $(VENV)/.installed $(VENV)/.data
	@echo "Training KGRec on ml-100k for $(EPOCHS) epochs: about two minutes on two cores."
	$(BIN)/kgrec-fast train ml-100k --recbole-items --epochs $(EPOCHS)

test: $(VENV)/.installed $(VENV)/.data
	$(BIN)/python -m pytest

# The library is one binary for every torch from 2.10 on: the one built above, for other environments.
wheel: $(VENV)/.installed
	rm -rf build/compat
	KGREC_FAST_CUDA=0 $(PIP) wheel --no-deps --no-build-isolation -w build/compat .
	mkdir -p build/compat/run && cp -r tests csrc benchmarks docs README.md pyproject.toml build/compat/run/

# $(call with_wheel,VENV,EXTRAS): an environment with that wheel and an older torch. The wheel is
# installed again for itself: its version may be the one that is there.
define with_wheel
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip --disable-pip-version-check -q install -U pip
	$(1)/bin/python -m pip --disable-pip-version-check -q install \
	  torch==$(COMPAT_TORCH) "$$(ls $(CURDIR)/build/compat/*.whl)[$(2)]"
	$(1)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
	  --force-reinstall build/compat/*.whl
endef
comma := ,

compat: wheel
	$(call with_wheel,$(COMPAT_VENV),train$(comma)test)
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps recbole==1.2.1
	cd build/compat/run && $(CURDIR)/$(COMPAT_VENV)/bin/python -m pytest tests/ops tests/nn tests/models tests/pytorch tests/test_graph.py

test-integrations: wheel
	$(call with_wheel,$(HOPWISE_VENV),train$(comma)test$(comma)hopwise)
	cd build/compat/run && $(CURDIR)/$(HOPWISE_VENV)/bin/python -m pytest \
	  tests/integrations/test_framework_*.py tests/integrations/test_hopwise_*.py
	$(call with_wheel,$(RECBOLE_VENV),train$(comma)test$(comma)recbole)
	cd build/compat/run && $(CURDIR)/$(RECBOLE_VENV)/bin/python -m pytest \
	  tests/integrations/test_framework_*.py tests/integrations/test_recbole_*.py
	$(call with_wheel,$(SCATTER_VENV),train$(comma)test$(comma)bench)
	@echo "Compiling torch_scatter, which is built against one torch: some five minutes ..."
	$(SCATTER_VENV)/bin/python -m pip --disable-pip-version-check -q install setuptools wheel
	$(SCATTER_VENV)/bin/python -m pip --disable-pip-version-check -q install \
	  --no-build-isolation torch_scatter==2.1.2
	cd build/compat/run && $(CURDIR)/$(SCATTER_VENV)/bin/python -m pytest \
	  tests/integrations/test_against_torch_scatter.py

$(VENV)/.lint: | $(BIN)/python
	$(PIP) install "ruff>=0.8" "mypy>=1.13" "clang-format>=18"
	@touch $@

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kgrec_fast benchmarks
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) install "sphinx>=8" "myst-nb>=1.3" "furo>=2024.8" "sphinx-click>=6" "sphinx-copybutton>=0.5"
	@touch $@

.PHONY: docs
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs
	@echo "Open build/docs/index.html"

clean:
	rm -rf build dist *.egg-info kgrec_fast/*.so $(VENV) $(COMPAT_VENV) $(HOPWISE_VENV) $(RECBOLE_VENV) $(SCATTER_VENV)
