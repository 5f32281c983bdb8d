# Every target makes the environment that it needs: .venv, with this package and its development tools, installed once.
# Options:  PYTHON=python3.12   the Python that .venv is made from (3.10 or newer)
#           VENV=path           another place for the environment
#           N=4                 tests at a time
#           ARGS="..."          passed on: `make demo ARGS="--help"`, `make test ARGS="-k style"`
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
N ?= 2
ARGS ?=
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(N) --dist loadgroup --durations 8

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu test-matrix lab export clean readme docs docs-check
.DELETE_ON_ERROR:

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-11s %s\n", $$1, $$2}'

demo: $(READY) ## The embedded benchmark, 3 seeds: a table, an affinity heat map and a task tree, in runs/
	$(BIN)/hipro_demo $(ARGS)

test: $(READY) ## Every notebook and every test (under ten minutes on 2 cores)
	$(PYTEST) $(ARGS)

test-slow: $(READY) ## What is flagged slow: cells that really train
	$(PYTEST) --slow -m slow $(ARGS)

test-gpu: $(READY) ## What is flagged gpu: needs a CUDA device
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "make test-gpu: torch sees no CUDA device on this machine"; exit 1; }
	$(PYTEST) -n 1 --gpu -m gpu $(ARGS)

test-matrix: $(READY) ## The tests as other machines would run them; ARGS="--help" says how
	$(BIN)/python tools/matrix.py --jobs $(N) $(ARGS)

lab: $(READY) ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

export: $(READY) ## nbs/ -> hipro_nb/
	$(BIN)/nbdev_export

clean: $(READY) ## Strips from the notebooks what does not belong in a commit (outputs stay)
	$(BIN)/nbdev_clean

readme: $(READY) ## Fills the generated parts of nbs/index.ipynb and renders README.md from it
	$(BIN)/python tools/readme.py

docs: $(READY) readme ## The site, into _docs/ (needs Quarto)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto (https://quarto.org/docs/get-started/), which pip does not install."; \
	  echo "Without it, 'make test ARGS=\"-k docs\"' checks that the notebooks process and that links and references resolve."; exit 1; }
	touch README.md
	PATH="$$(cd "$(BIN)" && pwd):$$PATH" nbdev_docs

docs-check: $(READY) ## Opens every page of _docs/ in Chromium (needs it, and playwright); ARGS="--sheet site.png" shows them
	$(BIN)/python tools/check_site.py $(ARGS)

$(READY): settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer with venv and ensurepip found; name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing hipro_nb and its tools into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@
