# Two commands for users: `make repro` and `make test`. Both install what they need into .venv first.
SHELL := /bin/bash
PYTHON3 ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
PORT ?= 4200
PROFILE ?= full
# seconds since 1970, to tell how long a target took
STARTED := $(shell date +%s)
# processes that run tests: one more than cores, as many tests wait for servers
TESTERS := $(shell echo $$(( $$(nproc) + 1 )))

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# nothing here reports home
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export TOKENIZERS_PARALLELISM := false

.PHONY: help repro full dashboard check test lint types format lock install clean

help:
	@echo "make repro   install, then run the pipeline and print the results (7 to 19 minutes on 2 cores the first time)"
	@echo "make test    install, then lint, check types and run every test (about 15 minutes on 2 cores)"
	@echo "make check   the fast loop while you work: lint, types and the quick tests (at most 3 minutes on 2 cores)"
	@echo "make full    the paper's setting on GPUs: check this machine, set params.yaml and data.dvc, run (PROFILE=full-3b; docs/full-scale.md)"
	@echo "make dashboard   the same in Prefect's dashboard on this machine: watch, cancel, schedule (PORT=4200)"
	@echo "make format  put the code into its one format"
	@echo "make lock    resolve the dependencies of pyproject.toml again into infra/requirements.lock"
	@echo "make clean   remove .venv and caches; results and the DVC cache stay"

repro: $(INSTALLED)
	@echo "== Running the pipeline: corpus, 13 checkpoints, 14 evaluations, report. 7 to 19 minutes on 2 cores; what is up to date is skipped."
	@med-r1 reproduce
	@echo "== make repro took $$(( $$(date +%s) - $(STARTED) )) s, install included"
	@med-r1 report

full: $(INSTALLED)
	@! git rev-parse --git-dir > /dev/null 2>&1 || git var GIT_COMMITTER_IDENT > /dev/null \
	|| { echo "error: git does not know who commits the settings of this run: set git config user.name and user.email"; exit 1; }
	@echo "== Setting the profile $(PROFILE); stops here if a run cannot finish on this machine"
	@med-r1 profile $(PROFILE)
	@echo "== Fetching the corpus; resumes where it stopped"
	@med-r1 fetch
	@echo "== Keeping both in git, so that results say which commit made them, and can be published"
	@files=$$(ls params.yaml data.dvc infra/released.dvc 2> /dev/null); git add $$files; \
	git diff --quiet HEAD -- $$files || git commit --quiet --message "Profile $(PROFILE)" -- $$files \
	|| echo "git kept nothing: results will be marked as made from a changed working tree"
	@echo "== Running the pipeline, a training on each GPU; what is up to date is skipped, what was killed goes on"
	@med-r1 reproduce
	@med-r1 report

dashboard: $(INSTALLED)
	@med-r1 dashboard --port $(PORT)

check: $(INSTALLED) lint
	@echo "== Types, and the tests that are not marked slow: at most 3 minutes on 2 cores"
	@mypy > .mypy.log 2>&1 & types=$$!; \
	python -m pytest -q -m "not slow" --numprocesses $(TESTERS); code=$$?; \
	wait $$types || { cat .mypy.log; exit 1; }; exit $$code

# the cores are busy with tests; threads of one test would only wait for each other
test check: export OMP_NUM_THREADS := 1
test check: export OMP_WAIT_POLICY := PASSIVE

test: $(INSTALLED) lint
	@echo "== Types, and all tests, about 15 minutes on 2 cores"
	@mypy > .mypy.log 2>&1 & types=$$!; \
	python -m pytest -q --numprocesses $(TESTERS); code=$$?; \
	wait $$types || { cat .mypy.log; exit 1; }; exit $$code

lint: $(INSTALLED)
	@echo "== Lint"
	@ruff check .
	@ruff format --check .
	@lint-imports

types: $(INSTALLED)
	@echo "== Types, about a minute"
	@mypy

format: $(INSTALLED)
	@ruff check --fix .
	@ruff format .

install: $(INSTALLED)

$(INSTALLED): infra/requirements.lock pyproject.toml
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON3=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== Installing into $(VENV) what infra/requirements.lock pins, about a minute (4 GB to download the first time)"
	@test -x $(VENV)/bin/python || $(PYTHON3) -m venv $(VENV)
	@python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@uv pip sync --quiet --require-hashes --compile-bytecode infra/requirements.lock
	@uv pip install --quiet --no-deps --no-build-isolation --offline --editable .
	@touch $@

lock:
	@test -x $(VENV)/bin/uv || { $(PYTHON3) -m venv $(VENV) && python -m pip install --quiet "uv>=0.5"; }
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra dev pyproject.toml -o infra/requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .scratch
