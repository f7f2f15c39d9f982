# Everything here sets itself up: a .venv from pyproject.toml and constraints.txt. Needs Python 3.11 or 3.12 and the package registry.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
DEMO ?= demo
# test files go to so many processes, each with a Ray of its own if it needs one
JOBS ?= 2
BIN := .venv/bin
READY := .venv/ready
# whole files, in the order of tests/conftest.py
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test slow lint bench campaign clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "crosspair needs Python 3.11 or 3.12 (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[cpu,demo,dev]'
	# pip compiles on one core; where PYTHONDONTWRITEBYTECODE is set, every process would compile all that it imports. Some files are templates.
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	$(BIN)/python -m pip check
	touch $@

demo: $(READY)
	$(BIN)/crosspair demo --out $(DEMO)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# with SLOW=1 what takes minutes too: what both have in common is made once
test: lint
	$(PYTEST) $(if $(SLOW),-m 'not campaign')

slow: $(READY)
	$(PYTEST) -m slow

bench: $(READY)
	$(BIN)/python -m benchmarks

campaign: $(READY)
	$(BIN)/python -m campaigns
	$(BIN)/pytest -m campaign --timeout=1800

clean:
	rm -rf .venv demo runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
