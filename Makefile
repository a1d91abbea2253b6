# Everything a newcomer runs. Each target installs what it needs into $(VENV) first.
#   make demo      train KGRec on ml-100k and print a table of metrics
#   make test      run the test suite
#   make compat    run it again with the same binary under an older torch
#   make lint      ruff, mypy, clang-format
#   make build     rebuild the native library after a change in csrc/

PYTHON ?= python3
VENV ?= .venv
COMPAT_VENV ?= .venv-compat
COMPAT_TORCH ?= 2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
EPOCHS ?= 30
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: demo test compat lint format build install data clean
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

# The library is one binary for every torch from 2.10 on: the one built above, another torch.
compat: $(VENV)/.installed $(VENV)/.data
	$(PYTHON) -m venv $(COMPAT_VENV)
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install -U pip
	rm -rf build/compat
	KGREC_FAST_CUDA=0 $(PIP) wheel --no-deps --no-build-isolation -w build/compat .
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install \
	  torch==$(COMPAT_TORCH) "$$(ls $(CURDIR)/build/compat/*.whl)[train,test]"
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps \
	  --force-reinstall build/compat/*.whl
	$(COMPAT_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps recbole==1.2.1
	mkdir -p build/compat/run && cp -r tests csrc benchmarks pyproject.toml build/compat/run/
	cd build/compat/run && $(CURDIR)/$(COMPAT_VENV)/bin/python -m pytest tests/ops tests/nn tests/models tests/test_graph.py

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

clean:
	rm -rf build dist *.egg-info kgrec_fast/*.so $(VENV) $(COMPAT_VENV)
