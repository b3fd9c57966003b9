"""The runs of a comparison: one for each strategy and seed, each a command line of `ppo`."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starling_train.comparison.children import Child
from starling_train.config.compare import OWN, CompareConfig
from starling_train.config.fields import UserError, given
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_ppo
from starling_train.run.directory import RunDirectory

RATE = "optim.learning_rate"


@dataclass
class StrategyRun:
    """One strategy with one seed: its settings, the process that runs it, and whether it is finished.

    is_known: False where its learning rate is still searched.
    """

    strategy: str
    config: PpoConfig
    child: Child
    finished: bool
    is_known: bool = True


class CommandLines:
    """The command lines of a comparison's runs. Raises UserError for a mistake in the settings of any strategy.

    config: the command's configuration.
    directory: of all runs.
    arguments: this command's own; a run has these, then the strategy's.
    configuration: reads a command line as the run will read it, so that a finished run need not be started to be known.
    quoted: writes a value so that a command line reads it back.
    """

    def __init__(
        self,
        config: CompareConfig,
        directory: Path,
        arguments: list[str],
        configuration: Callable[[list[str]], PpoConfig],
        quoted: Callable[[str], str],
    ):
        self._section, self._name, self._directory = config.compare, config.name, directory
        self._configuration, self._quoted = configuration, quoted
        self._given = [argument for argument in arguments if not argument.lstrip("+~").startswith(OWN)]
        self._lines: dict[tuple[str, ...], tuple[list[str], PpoConfig]] = {}
        section, layers = config.compare, count_layers(config)
        # skills do not count in the search, and measuring them may take longer than training does
        suites = [suite for suite in config.evaluation.suites if section.reward.startswith(f"eval/{suite}")]
        self._of_search = [
            f"evaluation.every={config.algorithm.steps}", f"evaluation.suites=[{','.join(suites)}]", "guard.skills=[]",
        ]  # fmt: skip
        self.strategies = {
            strategy: [re.sub("=LAYERS$", f"={layers}", override) for override in section.strategies[strategy]]
            for strategy in section.only or section.strategies
        }

    def search(self) -> list[StrategyRun]:
        """Return the runs of the search for learning rates, seed by seed; none where nothing is searched."""
        section = self._section
        lines = {
            (name, rate): self._line(name, rate, self._of_search) for name in self.strategies for rate in section.search
        }
        return [
            self._run(name, *line, f"search/{name}/{rate!r}/seed_{seed}", seed)
            for seed in section.searched_seeds()
            for (name, rate), line in lines.items()
        ]

    def compared(self, rates: dict[str, float] | None = None) -> list[StrategyRun]:
        """Return the runs that are compared, seed by seed. Raises UserError for a directory with other settings.

        rates: the learning rates that the search has found, if it has ended.
        """
        is_known = not self._section.search or rates is not None
        lines = {name: self._line(name, (rates or {}).get(name)) for name in self.strategies}
        return [
            self._run(name, *line, f"runs/{name}/seed_{seed}", seed, is_known)
            for seed in self._section.compared_seeds()
            for name, line in lines.items()
        ]

    def _line(self, strategy: str, rate: float | None, more: Sequence[str] = ()) -> tuple[list[str], PpoConfig]:
        """Return a strategy's command line, but for seed and directory, and its settings, which take time to read.

        strategy: its name.
        rate: its learning rate; None: as it is.
        more: further settings.
        """
        key = (strategy, repr(rate), *more)
        if key not in self._lines:
            own = [*self.strategies[strategy], *([f"{RATE}={rate!r}"] if rate is not None else [])]
            line = [*self._given, *own, *more, f"name={self._quoted(f'{self._name}_{strategy}')}"]
            self._lines[key] = line, check_settings(strategy, own, self._configuration(line))
        return self._lines[key]

    def _run(
        self, strategy: str, line: list[str], settings: PpoConfig, where: str, seed: int, is_known: bool = True
    ) -> StrategyRun:
        """Make a run.

        strategy: its name.
        line: its command line, but for seed and directory.
        settings: likewise.
        where: its directory within that of the comparison.
        seed: its seed.
        is_known: whether its learning rate is.
        """
        path, name = self._directory / where, where.removeprefix("runs/")
        whole = ["starling_train.ppo", *line, f"seed={seed}", f"run_dir={self._quoted(str(path))}"]
        child = Child(name, whole, self._directory / "logs" / f"{name.replace('/', '_')}.log")
        settings = replace(settings, seed=seed, run_dir=str(path))
        finished = is_known and RunDirectory(settings).is_finished()
        return StrategyRun(strategy, settings, child, finished, is_known)


def missing(runs: list[StrategyRun]) -> list[StrategyRun]:
    """Return the runs that are not finished."""
    return [run for run in runs if not run.finished]


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


def look_over(runs: list[StrategyRun], is_dry: bool) -> None:
    """Check what a run checks before it trains, for one run of each strategy. Raises UserError."""
    from starling_train.evals.held_out import HeldOut
    from starling_train.models.source import ModelSource
    from starling_train.rewards import kinds
    from starling_train.run.runtime import Runtime
    from starling_train.training import policy
    from starling_train.training.ppo import inputs

    first = {run.strategy: run.config for run in reversed(runs)}
    if not first:
        return
    config = runs[-1].config  # the search's runs, which come first, measure no skills
    if is_dry:
        inputs.describe(config)
        return
    runtime = Runtime.of(config.cluster)
    source = ModelSource.open(config.model.path, "model.path", config.model.revision)
    for settings in first.values():
        inputs.check_run(settings, source, Path(given(settings.run_dir)), runtime)
    chat = policy.load_chat(source, config.model)  # from here on, the checks that are the same for all
    policy.check_lengths(config, source.policy_config, chat)
    HeldOut.from_config(config, inputs.load_data(config, chat, kinds.everyone).held_out, chat)


def describe(runs: list[StrategyRun]) -> None:
    """Print what each strategy trains, and the command line of each run that is not finished."""
    from starling_train.models.source import ModelSource
    from starling_train.training.ppo import inputs

    model = runs[0].config.model
    source = ModelSource.open(model.path, "model.path", model.revision, weights=False)
    for strategy, config in {run.strategy: run.config for run in runs}.items():
        table, _ = inputs.planned(config, source)
        print(f"{strategy}: trains {table.parameters_trained:,} parameters")
    for run in runs:
        line = shlex.join(["python", "-m", *run.child.arguments])
        after = "" if run.is_known else f"after the search, with {RATE} as found there: "
        print(f"{run.child.name}: {'finished' if run.finished else after + line}")
