# World Models, the course. `make help` says what there is.

PYTHON ?= python3
BUDGET ?= laptop

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# The venv comes first, so that notebooks, kernels and whatever they start use it and nothing else.
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" JUPYTER_PREFER_ENV_PATH=1

.DEFAULT_GOAL := help
.PHONY: help course test test-ui lint lab sync clean

help:  ## this list
	@echo "usage: make TARGET [BUDGET=smoke|laptop|full] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile

course: $(INSTALLED)  ## run the whole course at BUDGET (default laptop); interrupted, it resumes
	$(RUN) $(BIN)/wm course --budget $(BUDGET)

test: $(INSTALLED)  ## run all tests, and every notebook at budget smoke
	$(RUN) WM_BUDGET=smoke $(BIN)/python -m pytest --durations=10 -n 2 \
		--no-loadscope-reorder --nbmake --nbmake-kernel=python3 --nbmake-timeout=300 notebooks tests

test-ui: $(INSTALLED)  ## run every notebook in JupyterLab, in a real browser
	$(BIN)/python tests/ui/chromium.py
	$(RUN) $(BIN)/python -m pytest --durations=10 -n 2 --no-loadscope-reorder tests/ui

lint: $(INSTALLED)  ## review code, notebooks and documents (wm vet)
	$(BIN)/wm vet

lab: $(INSTALLED)  ## open the first notebook in JupyterLab
	$(RUN) $(BIN)/jupyter lab notebooks/00_start_here.ipynb

# Not `jupytext --sync`: that takes the newer file, and an .ipynb that was only touched would undo an edit of its .py.
sync: $(INSTALLED)  ## bring each .ipynb in line with its .py
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

clean:  ## remove build/ and caches; .venv/ and runs/ stay
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		"$(PYTHON) is Python %d.%d, the course needs 3.11 to 3.13: make ... PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	@touch $@
