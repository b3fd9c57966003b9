"""What the `main` of every training command does before its first step and after its last."""

import json
from collections.abc import Callable
from typing import TypeVar

from starling_train.config.run import RunConfig
from starling_train.run import summary
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime

C = TypeVar("C", bound=RunConfig)


def start(config: C, describe: Callable[[C], str], train: Callable[[C, RunDirectory, Runtime], None]) -> None:
    """Describe the run (dry_run=true), say that it is finished, or train."""
    run = RunDirectory(config)
    if config.dry_run:
        print(describe(config))
        return
    if run.is_finished():
        print(f"{run.path} is finished, nothing to do; its report: {run.report}")
        return
    from starling_train.rollout.vllm import engine  # once the configuration is known to be right

    runtime = Runtime.of(config.cluster, config.seed)
    with runtime.fails_together(), run.owned(runtime):
        train(config, run, runtime)
        engine.close()
    if runtime.is_main:
        print(summary.in_words(json.loads(run.summary.read_text()), run))
        print(f"report: {run.report.resolve()}")
