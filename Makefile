# VENV=DIR puts the environment into DIR, or uses the one that is there.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.starling_train
export HF_HUB_OFFLINE ?= 1

.PHONY: help install demo test test-slow check wheel

help:       ## what there is
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP)  ## the environment, pinned by constraints.txt
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	HF_HUB_OFFLINE=0 $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(STAMP)

demo: $(STAMP)  ## train the toy from its reward model in minutes, and print where the report is
	$(RUN) -m starling_train.ppo +recipe=toy

test: $(STAMP)  ## the CPU test suite
	$(RUN) -m pytest -m 'not slow'

test-slow: $(STAMP)  ## what takes minutes: whole toy runs
	$(RUN) -m pytest -m slow

check: $(STAMP)  ## lint and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

wheel: $(STAMP)  ## dist/*.whl
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
