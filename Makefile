# Everything runs from .venv, which the targets make themselves. On the machine: python >= 3.11 and make.
#   make run      real PostgreSQL and Valkey under .data/, web and worker; prints the URL
#   make test     the whole suite          make lint   ruff, mypy, import-linter
# The first of these that is supported.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && exit; done; \
	echo python3)
PORT ?= 8000
DATA ?= .data

# The suite starts hundreds of processes: what they import is compiled once, also where the caller's own Python is told
# to leave nothing behind.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# The lock is one list for every extra; what to install is said by the extras, at which version by the lock. What is
# deployed has hashes besides: see `lock`.
# setuptools warns of every editable install. Python compiles what is imported; of what is installed that is a part.
INSTALL := PYTHONWARNINGS=ignore $(PIP) install --no-compile -c requirements-dev.txt
BROWSER_FLAGS ?=

# Stamps: pip runs again only when what it reads has changed.
VENV_STAMP := $(VENV)/.made
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
BROWSER_STAMP := $(VENV)/.installed-browser
PIP_INPUTS := pyproject.toml clients/python/pyproject.toml requirements.txt requirements-dev.txt

.PHONY: install run test test-chaos test-model test-soak test-redis test-redis-log test-fresh test-fresh-readme \
	test-browser test-proxy test-contract test-image lint format bench lock clean
.DEFAULT_GOAL := help
# All of it is in one .venv.
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Runtail needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)." \
			"Say which one to use: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# setuptools and flit_core first: they build the editable installs, and the few dependencies that come without a wheel,
# from the pinned version instead of a download of its own each time.
define INSTALL_ALL
	@echo "Installing into $(VENV); this takes up to a minute, once."
	$(INSTALL) setuptools flit_core
	$(INSTALL) --no-build-isolation -e
endef

# Each is whole by itself, and what has more has the others, too: pip takes long to look at what is there already.
$(RUN_STAMP): $(VENV_STAMP) $(PIP_INPUTS)
	$(INSTALL_ALL) '.[embedded]' -e clients/python
	@touch $@

$(DEV_STAMP): $(VENV_STAMP) $(PIP_INPUTS)
	$(INSTALL_ALL) '.[embedded,dev,bench]' -e clients/python
	@touch $(RUN_STAMP) $@

$(BROWSER_STAMP): $(VENV_STAMP) $(PIP_INPUTS)
	$(INSTALL_ALL) '.[embedded,dev,bench,browser]' -e clients/python
	@touch $(RUN_STAMP) $(DEV_STAMP) $@

install: $(RUN_STAMP)

run: $(RUN_STAMP)
	@$(BIN)/runtail dev --port $(PORT) --data $(DATA)

# Most tests wait for something to happen: several files at a time take a third of the time.
TEST_JOBS ?= 6

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Twenty rounds of kill -9 under 200 runs; make test-chaos ARGS='--chaos-seed 7' plays another seed.
test-chaos: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/chaos -s --chaos-rounds 20 --chaos-runs 200 $(ARGS)

# Half an hour of agents that misbehave beside a hundred honest runs; make test-soak ARGS='--soak-seconds 120' less.
test-soak: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/soak -s $(ARGS)

# Every interleaving of the long scenarios, and 500 orders on the real stores and on a live server.
# RUNTAIL_MODEL_SEED picks others.
test-model: $(DEV_STAMP)
	RUNTAIL_MODEL_LONG=1 RUNTAIL_MODEL_EXAMPLES=$${RUNTAIL_MODEL_EXAMPLES:-500} \
		$(BIN)/python -m pytest tests/model tests/test_external_machine.py -s $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 clients/python/runtail
	$(BIN)/lint-imports

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench ARGS='fanout --windows 1000': see docs/benchmarks.md. Needs gcc.
bench: $(DEV_STAMP)
	$(BIN)/runtail bench $(ARGS)

# Needs a chromium on PATH (or CHROMIUM=/path/to/it); Playwright's own download is not used.
test-browser: $(BROWSER_STAMP)
	$(BIN)/python -m pytest tests/browser $(ARGS)

# schemathesis makes requests by the OpenAPI document, for about 90 s. RUNTAIL_CONTRACT_SEED picks others.
test-contract: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/contract $(ARGS)

# Needs an nginx on PATH or in /usr/sbin.
test-proxy: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/proxy $(ARGS)

# What speaks to Redis itself, on a Redis: everything else runs on the Valkey of the wheel. Needs a redis-server on PATH.
REDIS_SERVER ?= redis-server
# The log itself. Windows and the feed over it take minutes more.
REDIS_LOG_SUITES := $(patsubst %,tests/test_%.py,event_log log_reader log_writer leases ownership)
REDIS_SUITES := $(REDIS_LOG_SUITES) $(patsubst %,tests/test_%.py,tail hub feed)
test-redis-log: REDIS_SUITES := $(REDIS_LOG_SUITES)
test-redis-log: test-redis
test-redis: $(DEV_STAMP)
	RUNTAIL_REDIS_SERVER=$(REDIS_SERVER) $(BIN)/python -m pytest -n 3 --dist loadfile \
		$(REDIS_SUITES) $(ARGS)

# A bare Debian 13 in a folder: its `make run` with the README's lines, and the whole suite. Needs root and debootstrap.
test-fresh-readme: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/fresh/test_readme.py --timeout 600 $(ARGS)

test-fresh: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/fresh --timeout 3600 $(ARGS)

# The image, built by buildah on a base made from Debian's packages. Needs root, buildah and debootstrap.
test-image: $(DEV_STAMP)
	$(BIN)/python -m pytest tests/image --timeout 600 $(ARGS)

# requirements-dev.txt locks every extra, and is pip's constraints: those may have no hashes, because pip then asks for
# the hash of our own folders too. requirements.txt is the deployment's part of it, with the hash of every file for all
# supported Pythons and platforms (what Heroku and the image install), requirements-build.txt what builds the image.
RESOLVE := $(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --fork-strategy fewest

lock: $(VENV_STAMP)
	$(PIP) install --upgrade pip uv
	rm -f $(VENV)/pylock.*toml
	printf 'setuptools\nflit_core\n' | $(RESOLVE) --all-extras -o $(VENV)/pylock.dev.toml pyproject.toml -
	cp $(VENV)/pylock.dev.toml $(VENV)/pylock.toml  # uv keeps to the versions that it finds there
	$(RESOLVE) -o $(VENV)/pylock.toml pyproject.toml
	$(BIN)/python tools/lock.py $(VENV)/pylock.dev.toml $(VENV)/pylock.toml

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
