# VENV=DIR puts the environment into DIR, or uses the one that is there.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.starling_train
export HF_HUB_OFFLINE ?= 1
# empty is off: what one process has compiled, the others do not compile again
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install demo toy test test-slow test-faults test-processes test-slurm test-families check lint types conf wheel

help:       ## what there is
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP)  ## the environment, pinned by constraints.txt
$(STAMP): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	HF_HUB_OFFLINE=0 $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(STAMP)

demo: $(STAMP)  ## train the toy from its reward model in minutes, and print where the report is
	$(RUN) -m starling_train.ppo +recipe=toy

# two processes of one thread each: tiny tensors gain nothing from a second thread, and lose much; a file stays in one
# process, which makes the runs that its tests share once
test: $(STAMP) toy  ## the CPU test suite; PYTEST_ADDOPTS=--durations=25 for what takes long
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m 'not slow and not faults and not processes and not slurm and not families' -n 2 --dist loadfile

toy: $(STAMP)
	@$(RUN) -m starling_train.toy

# two side by side, for a run uses one core; -rP shows the figures that they print
test-slow: $(STAMP) toy  ## what takes minutes: whole runs
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m 'slow and not faults and not families' -n 2 --dist loadfile -rP

test-faults: $(STAMP) toy  ## runs killed, stopped and started again, dozens of times; STARLING_FAULT_RUNS=5 for fewer
	STARLING_EXAMPLES=1000 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/faults \
		tests/selection/test_scan.py tests/commands/test_compare.py -n 2 --dist loadfile

test-processes: $(STAMP) toy  ## several processes under DeepSpeed, one killed, the network between two hosts cut
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m processes

test-families: $(STAMP) toy  ## every family of models through every command, the recipe toy_rm, benchmarks/gpu.sh; minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/commands/test_every_family.py tests/commands/test_rm_toy.py \
		tests/test_gpu_benchmark.py -n 2

test-slurm: $(STAMP) toy  ## the scripts of slurm/ on a real Slurm with two nodes on this machine (root; minutes)
	$(RUN) -m pytest -m slurm -s

check: lint types  ## lint, format and types

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(STAMP)
	$(RUN) -m mypy

conf: $(STAMP)  ## conf/*.yaml from the dataclasses of starling_train/config
	$(RUN) -m starling_train.config.conf_files

wheel: $(STAMP)  ## dist/*.whl
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
