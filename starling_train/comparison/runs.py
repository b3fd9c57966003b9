"""The runs of a comparison: one for each strategy and seed, each a command line of `ppo`."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from starling_train.comparison.children import Child
from starling_train.config.compare import OWN, CompareConfig
from starling_train.config.fields import UserError, given
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_ppo
from starling_train.run.directory import RunDirectory


@dataclass
class StrategyRun:
    """One strategy with one seed: its settings, the process that runs it, and whether it is finished."""

    config: PpoConfig
    child: Child
    finished: bool


def find_runs(
    config: CompareConfig,
    directory: Path,
    arguments: list[str],
    configuration: Callable[[list[str]], PpoConfig],
    quoted: Callable[[str], str],
) -> list[StrategyRun]:
    """Return all requested runs, seed by seed. Raises UserError, also for a directory with runs of other settings.

    config: the command's configuration.
    directory: of all runs.
    arguments: this command's own; a run has these, then the strategy's.
    configuration: reads a command line as the run will read it, once for each strategy, so that a finished run need not
        be started to be known.
    quoted: writes a value so that a command line reads it back.
    """
    section, layers = config.compare, count_layers(config)
    given = [argument for argument in arguments if not argument.lstrip("+~").startswith(OWN)]
    lines = {}
    for strategy in section.only or section.strategies:
        own = [re.sub("=LAYERS$", f"={layers}", override) for override in section.strategies[strategy]]
        line = [*given, *own, f"name={quoted(f'{config.name}_{strategy}')}"]
        lines[strategy] = (line, check_settings(strategy, own, configuration(line)))
    runs = []
    for seed in range(section.first_seed, section.first_seed + section.seeds):
        for strategy, (line, settings) in lines.items():
            path = directory / "runs" / strategy / f"seed_{seed}"
            whole = ["starling_train.ppo", *line, f"seed={seed}", f"run_dir={quoted(str(path))}"]
            child = Child(f"{strategy}/seed_{seed}", whole, directory / "logs" / f"{strategy}_seed_{seed}.log")
            settings = replace(settings, seed=seed, run_dir=str(path))
            runs.append(StrategyRun(settings, child, RunDirectory(settings).is_finished()))
    return runs


def check_settings(strategy: str, own: list[str], settings: PpoConfig) -> PpoConfig:
    """Check and return the settings of a strategy. Raises UserError, which names the strategy for its own keys."""
    try:
        check_ppo(settings)
    except UserError as error:
        keys = tuple(f"{override.lstrip('+~').partition('=')[0]}:" for override in own)
        raise UserError(f"compare.strategies.{strategy}: {error}" if str(error).startswith(keys) else error) from error
    return settings


def count_layers(config: CompareConfig) -> int:
    """Return how many of the last layers are freeze.top_percent of all: about as many parameters."""
    from starling_train.planning import shapes

    shape = shapes.find(config.model.path, "model.path", shapes.KNOWN_POLICIES, config.model.path)
    return max(1, int(shape.layers * config.freeze.top_percent / 100))


def look_over(missing: list[StrategyRun], is_dry: bool) -> None:
    """Check what a run checks before it trains, for one run of each strategy. Raises UserError."""
    from starling_train.evals.held_out import HeldOut
    from starling_train.models.source import ModelSource
    from starling_train.run.runtime import Runtime
    from starling_train.training import policy
    from starling_train.training.ppo import inputs

    first = {run.child.name.partition("/")[0]: run.config for run in reversed(missing)}
    if not first:
        return
    config = missing[0].config
    if is_dry:
        inputs.describe(config)
        return
    runtime = Runtime.of(config.cluster)
    source = ModelSource.open(config.model.path, "model.path", config.model.revision)
    for settings in first.values():
        inputs.check_run(settings, source, Path(given(settings.run_dir)), runtime)
    chat = policy.load_chat(source, config.model)  # from here on, the checks that are the same for all
    policy.check_lengths(config, source.policy_config, chat)
    HeldOut.from_config(config, inputs.load_data(config, chat, admits=True).held_out, chat)


def describe(runs: list[StrategyRun]) -> None:
    """Print what each strategy trains, and the command line of each run that is not finished."""
    from starling_train.models.source import ModelSource
    from starling_train.training.ppo import inputs

    model = runs[0].config.model
    source = ModelSource.open(model.path, "model.path", model.revision, weights=False)
    for strategy, config in {run.child.name.partition("/")[0]: run.config for run in runs}.items():
        table, _ = inputs.planned(config, source)
        print(f"{strategy}: trains {table.parameters_trained:,} parameters")
    for run in runs:
        line = shlex.join(["python", "-m", *run.child.arguments])
        print(f"{run.child.name}: {'finished' if run.finished else line}")
