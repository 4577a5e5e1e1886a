# Everything starts here; `make help` lists it. GNU make, a POSIX shell and Python 3.11 or newer are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The build that the tests ran on. pyproject.toml allows a wider range, for people who bring their own torch.
TORCH := torch==2.13.0

# Importing trl takes 18 s from source and 8 s compiled. pip would compile on one core; some packages ship files that
# no Python 3 compiles, which is no error.
unexport PYTHONDONTWRITEBYTECODE
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install install-full test test-full quickstart clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-22s %s\n", $$1, $$2 }'

quickstart: install  ## train the tiny recipe, all stages, and write its report (no GPU needed)
	@$(BIN)/qwq-rl run recipes/tiny
	@echo "The report: $(CURDIR)/runs/tiny/report.html"

install: $(VENV)/.installed  ## set up .venv; a step inside the targets below

install-full: $(VENV)/.installed-full  ## the optional parts too (deepspeed, serving, tracking)

test: install  ## lint, types and the fast tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow"

# PYTEST="-m slow" leaves out what `make test` has just run.
test-full: install-full  ## every test, the slow ones too; PYTEST="-m slow" for those alone
	$(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST)

clean:  ## remove caches and builds; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@sh .ci/venv $(PYTHON) $(VENV)
	@sh .ci/which-torch $(BIN)/pip $(TORCH)
	@echo "Installing into $(VENV): two minutes where the downloads are quick."
	$(BIN)/pip install --quiet --no-compile "$(TORCH)" -e ".[dev]"
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-full: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-compile "$(TORCH)" -e ".[full]"
	@$(COMPILE)
	@touch $@
