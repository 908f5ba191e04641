# Every task of the project. Needs make, a Python with venv, and a package index for the first `make setup`.
.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage errors check readme docs lock clean

VENV := .venv
BIN  := $(VENV)/bin
# Notebooks and tests call the installed commands by name, as a user would.
RUN  := PATH="$(abspath $(BIN)):$$PATH"
say  := @printf '==> %s\n'

# A name on PATH may be a shim of a version that is not installed, or a Python without venv: only running it tells.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c '$(USABLE)' >/dev/null 2>&1 && { echo "$$name"; break; }; done)

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Create .venv and install the locked requirements and this package (PYTHON= chooses the Python)

$(BIN)/python:
	@"$(PYTHON)" -c '$(USABLE)' >/dev/null 2>&1 || { echo "No usable Python: '$(PYTHON)'." \
	"Install Python 3.11, 3.12 or 3.13 with its venv module, or name one: make setup PYTHON=/path/to/python" >&2; exit 1; }
	$(say) "create $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(VENV)

# The stamp makes every later `make` skip the installation until one of these files changes.
$(VENV)/.installed: environments/all.lock settings.ini setup.py pyproject.toml | $(BIN)/python
	$(say) "install the requirements of environments/all.lock (some minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r environments/all.lock
	$(say) "install notebook_to_prod"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup ## Run the whole journey, from a notebook to a served and watched model
	@$(RUN) n2p demo
	@echo "n2p is in $(BIN): source $(BIN)/activate"

test: setup ## Run the notebooks, the linters and the tests
	@# Hundreds of processes import the package, and would compile it each time where PYTHONDONTWRITEBYTECODE is set.
	@$(BIN)/python -m compileall -q notebook_to_prod
	$(say) "nbdev-test"
	@$(RUN) nbdev-test
	$(say) "ruff check"
	@$(RUN) ruff check --quiet
	$(say) "ruff format --check"
	@$(RUN) ruff format --quiet --check $(wildcard tests benchmarks docs setup.py)
	$(say) "lint-imports"
	@$(RUN) lint-imports --no-logo
	$(say) "mypy"
	@$(RUN) mypy --no-error-summary
	$(say) "pytest"
	@$(RUN) pytest -q -n 2 --dist loadfile

coverage: setup ## Run the tests and list the modules with lines that none of them runs; fail under nine lines in ten
	@rm -f .coverage .coverage.*
	@# A test that looks at all that a process says may hear the measurement, too, and fail.
	-@$(RUN) coverage run -m pytest -q -n 2 --dist loadfile
	@$(RUN) coverage combine -q
	@$(RUN) coverage report

errors: setup ## Run the tests and list the places that make an error of ours and that none of them comes to
	@rm -f .errors
	-@$(RUN) N2P_TEST_ERRORS="$(abspath .errors)" pytest -q -n 2 --dist loadfile
	@$(BIN)/python tests/raised.py .errors
	@rm -f .errors

check: setup ## Export, clean and render; fail if that changed or added a file; then test
	$(say) "nbdev-export"
	@$(RUN) nbdev-export --skip-folder-re '^[_.]|^examples$$'
	$(say) "nbdev-clean"
	@$(RUN) nbdev-clean
	@$(MAKE) --no-print-directory readme
	$(say) "git diff"
	@git diff --exit-code
	@new="$$(git ls-files --others --exclude-standard)"; test -z "$$new" || { echo "not in git: $$new" >&2; exit 1; }
	@$(MAKE) --no-print-directory test

readme: setup ## Write README.md from nbs/index.ipynb
	$(say) "write README.md"
	@$(BIN)/python docs/render.py readme
	@$(BIN)/python docs/render.py record

docs: setup ## Build the documentation into site/: tutorial, guides, reference, notebooks
	$(say) "write the pages: guides, reference, notebooks"
	@$(BIN)/python docs/render.py pages
	$(say) "build site/ (two minutes)"
	@$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "Read it: open site/index.html in a browser"

# all.lock first: core.lock is constrained to it, so both name the same version of a package.
# Versions stay as they are unless a requirement asks for another; `make lock UPGRADE=--upgrade` takes the newest.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --python $(BIN)/python --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command 'make lock' $(UPGRADE)

lock: | $(BIN)/uv ## Regenerate environments/*.lock from settings.ini (UPGRADE=--upgrade for the newest versions)
	$(say) "resolve environments/all.lock"
	@$(COMPILE) --extra all -o environments/all.lock
	$(say) "resolve environments/core.lock"
	@$(COMPILE) --constraint environments/all.lock -o environments/core.lock

# Not through `setup`: a lock that no longer installs must not be in the way of making a new one.
$(BIN)/uv:
	@$(MAKE) --no-print-directory setup

clean: ## Remove what the tasks made, except .venv and the store .n2p
	@rm -rf build dist site _docs .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.* .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
