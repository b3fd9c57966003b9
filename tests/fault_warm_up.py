"""What every command does first, done once in the process that those of the tests are forked from."""

import gc

import yaml_once

from starling_train import cli
from starling_train.config.dpo import DpoConfig

yaml_once.install()
cli.configuration(["+recipe=toy", "run_dir=run", "evaluation.suites=[]"])  # recipes read, Hydra's grammar at work
cli.configuration(["+recipe=toy_dpo"], DpoConfig, "dpo")
gc.collect()
gc.freeze()
