"""What every training command does around its steps: log, evaluate when it is time, save, and end well."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig
from starling_train.config.sections import CheckpointConfig, FreezeConfig
from starling_train.files.identity import Identity
from starling_train.files.json_lines import JsonLines, NoLines, strict
from starling_train.run import skipped
from starling_train.run.checkpoints import Beside, Checkpoints, identify_base
from starling_train.run.console import Console
from starling_train.run.directory import RunDirectory
from starling_train.run.records import Clock
from starling_train.run.runtime import Runtime
from starling_train.run.signals import StopRequest, leave_saved
from starling_train.run.state import TrainState
from starling_train.run.tracker import TRACKERS
from starling_train.selection import freeze, unfrozen_yaml
from starling_train.selection.scan import Record
from starling_train.selection.scans import write_scan
from starling_train.training.optimizer import Optimizer
from starling_train.training.policy import SCORED
from starling_train.training.zero import ZeroOptimizer

Evaluate = Callable[[], dict[str, float]]


class Keeper:
    """Keeps the records and the state of a run of `steps` steps.

    watched: the held-out metric whose largest value is the best so far. `console`, `stop` and `skipped_log` are for the
    command to use.
    """

    def __init__(
        self,
        config: PpoConfig | RmConfig | DpoConfig,
        run: RunDirectory,
        runtime: Runtime,
        optimizer: Optimizer | ZeroOptimizer,
        checkpoints: Checkpoints,
        state: TrainState,
        metrics_log: JsonLines | NoLines,
        steps: int,
        watched: str,
    ):
        self._config, self._run, self._runtime, self._state = config, run, runtime, state
        self._optimizer, self._checkpoints, self._metrics_log = optimizer, checkpoints, metrics_log
        self._steps, self._watched = steps, watched
        self._fruitless, self._applied = 0, optimizer.applied
        self.skipped_log = run.log(run.skipped, state.logged)
        wandb = config.logging.wandb if runtime.is_first else "disabled"
        self._tracking = TRACKERS[wandb](wandb, config.name, run.path, run.settings, state.tracker)
        state.tracker = self._tracking.id
        self.stop = StopRequest(config.checkpoint.grace_s, runtime)
        self.console = Console(steps, state.step, is_quiet=not runtime.is_first)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, a signal or a user's error ends the run with the state saved, if what is in memory is of one step."""
        saved = leave_saved(self.stop, self.keep, lambda: self._checkpoints.saved, self.console.say)
        with self.stop, self.console, saved:
            yield

    def begin(self, evaluate: Evaluate) -> None:
        """Before the first step of this start: the evaluation of step 0, or one that an earlier start still owes."""
        state = self._state
        if state.step:
            self.console.say(f"resumed after step {state.step}")
            if state.unlogged:
                self._record(state.unlogged | evaluate())
                state.unlogged = {}
        elif self._config.evaluation.every:
            self._record({"step": 0, "episodes": 0} | evaluate())

    def end_step(self, metrics: dict[str, Any], clock: Clock, evaluate: Evaluate) -> None:
        """After a step, with the state already that of the step: evaluate, log and save what is due.

        clock: started with the step. Raises UserError, with the state saved, after too many steps in a row in which no
        update was applied.
        """
        state, every, step = self._state, self._config.evaluation.every, self._state.step
        last = step == self._steps
        if every and (last or step % every == 0):
            state.unlogged = strict(metrics)
            metrics |= evaluate()
            state.unlogged = {}
        state.seconds += clock.total()
        self._record(metrics, left_s=state.seconds / step * (self._steps - step))
        if last or (self._config.checkpoint.every and step % self._config.checkpoint.every == 0):
            self._save()
        self._fruitless = self._fruitless + 1 if self._optimizer.applied == self._applied else 0
        self._applied = self._optimizer.applied
        if self._fruitless >= skipped.STEPS_IN_A_ROW:
            self.keep()
            raise skipped.too_many(self._run.skipped)

    def keep(self) -> None:
        """Save the state of the last finished step, and say so."""
        if self._state.step:
            self._save()
            self.console.say(f"state saved after step {self._state.step}; run the same command to go on")

    def finish(self) -> None:
        """All steps are done: close the tracker."""
        self._tracking.finish()

    def _record(self, metrics: dict[str, Any], left_s: float | None = None) -> None:
        self._metrics_log.write([metrics])
        self._state.note(metrics["step"], metrics.get(self._watched))
        self._tracking.log(metrics)
        self.console.step(metrics, left_s)

    def _save(self) -> None:
        self.console.phase("saving")
        # under ZeRO all processes put the tensors together
        tensors = self._optimizer.trainable_tensors(), self._optimizer.state_tensors()
        if self._runtime.is_first:
            self._checkpoints.save(*tensors, self._state)


class Trained(Protocol):
    """What a selection gave: names selected, scan, table."""

    selected: list[str]
    records: dict[str, Record]
    table: freeze.FreezeTable


def begin(config: FreezeConfig, run: RunDirectory, runtime: Runtime, trained: Trained) -> None:
    """Make the run's directory, with its configuration and what was selected. The first process does."""
    if not runtime.is_first:
        return
    run.create()
    if config.method in SCORED:
        write_scan(trained.records, run.path)
    unfrozen_yaml.write_unfrozen_yaml(
        trained.selected, trained.records, run.path / "unfrozen.yaml", trained.table.names
    )


def open_checkpoints(
    config: CheckpointConfig, run: RunDirectory, base: Path | Identity, runtime: Runtime, beside: Beside | None = None
) -> Checkpoints:
    """The run's checkpoints, of the model in the directory `base`, or known as that. beside: see `Checkpoints`."""
    if isinstance(base, Path):
        base = runtime.from_first(lambda: identify_base(run.checkpoints, base))
    return Checkpoints(run.checkpoints, config.keep, base, beside)


def describe(optimizer: Optimizer | ZeroOptimizer, runtime: Runtime, zero_stage: int) -> str:
    """What runs where, as it is and not as it was asked for. zero_stage: the one that was."""
    here = optimizer.state_bytes() if optimizer.engine is None else optimizer.bytes_here()
    how = "whole" if optimizer.engine is None else f"ZeRO stage {optimizer.engine.zero_optimization_stage()}"
    if optimizer.engine is None and zero_stage:
        how += f": cluster.zero_stage={zero_stage} has no effect in one process"
    return f"{runtime.describe()}; optimizer state in each process: {here / 1e9:.3g} GB ({how})"


def restore(
    checkpoints: Checkpoints, optimizer: Optimizer | ZeroOptimizer, logged: int, runtime: Runtime
) -> TrainState | None:
    """Load the newest intact checkpoint into trainable parameters and optimizer; None if there is none.

    The first process chooses it. logged: the last step in metrics.jsonl. Raises UserError if no checkpoint can be
    used, or if it is of other tensors.
    """
    found = checkpoints.newest(logged) if runtime.is_first else None
    step = runtime.from_first(lambda: found and found.state.step)
    if step is not None and found is None:
        found = checkpoints.at(step)
    if found is None:
        if logged > 0 and runtime.is_first:
            print(
                f"no checkpoint was saved before the run ended: it starts again, and the steps up to {logged}, which "
                "metrics.jsonl has already, are computed again",
                file=sys.stderr,
            )
        return None
    shapes = {name: (t.shape, t.dtype) for name, t in found.trainable.items()}
    if shapes != optimizer.shapes() or not optimizer.fits(found.optimizer):
        raise UserError(
            "run_dir: its checkpoint trained other tensors than this selection; give the same freeze.* settings, "
            "or another run_dir"
        )
    optimizer.load(found.trainable, found.optimizer)
    return found.state
