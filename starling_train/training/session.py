"""What every training command does around its steps: log, evaluate when due, save, and end well."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError, given
from starling_train.config.guard import measures
from starling_train.config.ppo import PpoConfig
from starling_train.config.run import RunConfig
from starling_train.config.sections import FreezeConfig, TrackingConfig
from starling_train.files import disk
from starling_train.files.identity import Identity
from starling_train.files.json_lines import strict
from starling_train.models.budget import Budget, RunBudgets
from starling_train.rewards import server_facts, terms
from starling_train.rewards.scorer import Scorer
from starling_train.rollout.kept_steps import KEEPER
from starling_train.run import skipped, summary
from starling_train.run.checkpoints import Checkpoint, Checkpoints, ExtraFiles, identify_base
from starling_train.run.console import Console
from starling_train.run.directory import RunDirectory
from starling_train.run.records import Clock
from starling_train.run.runtime import Runtime
from starling_train.run.signals import StopRequest, leave_saved
from starling_train.run.state import TrainState
from starling_train.run.tracker import TrackedRun, Trackers
from starling_train.selection import freeze, scans, unfrozen_yaml
from starling_train.selection.records import Record
from starling_train.selection.select import SCORED
from starling_train.training.guard import Guard
from starling_train.training.measured import Measured
from starling_train.training.optimizer import Optimizer

Evaluate = Callable[[], Measured]


class Trainee(Protocol):
    """The network, partly trainable: names selected, scan, table.

    base: the directory of the model it started as, or its identity. extra_files: see `Checkpoints`.
    """

    @property
    def model(self) -> nn.Module: ...
    @property
    def selected(self) -> list[str]: ...
    @property
    def records(self) -> dict[str, Record]: ...
    @property
    def table(self) -> freeze.FreezeTable: ...
    @property
    def base(self) -> Path | Identity: ...
    @property
    def extra_files(self) -> ExtraFiles | None: ...


class Resumable(Protocol):
    """What later steps depend on, as plain numbers."""

    def state_dict(self) -> dict[str, float]: ...
    def load_state_dict(self, state: dict[str, float]) -> None: ...


Thing = TypeVar("Thing", bound=Resumable)


@dataclass
class Step:
    """One step under way. number: counted from 1.

    metrics: what metrics.jsonl gets of it. skipped: rows for skipped.jsonl, on the first process.
    """

    number: int
    metrics: dict[str, Any]
    skipped: list[dict[str, Any]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    episodes: int = 0

    def count(self, episodes: int, samples: int, tokens: int) -> None:
        """Record what the step, on all processes, consumed (prompts) and produced or learned from (answers, tokens)."""
        self.episodes = episodes
        self.metrics |= {"episodes": self.metrics["episodes"] + episodes} | self.clock.metrics(samples, tokens)


class Session:
    """The records and the state of a run of `total` steps; restored from the newest checkpoint, if there is one.

    Used as a context: within it the run's directory is written to, and a signal or a user's error ends the run with the
    state saved, unless an update was interrupted.

    best: the held-out metric whose largest value is the best so far.
    write_report: writes the page of a run's directory; called after each evaluation, at the end and after a stop.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        runtime: Runtime,
        optimizer: Optimizer,
        trainee: Trainee,
        total: int,
        best: str,
        write_report: Callable[[Path], object],
    ):
        self._config, self._run, self._runtime, self._optimizer = config, run, runtime, optimizer
        self._trainee, self._best, self.total, self._write_report = trainee, best, total, write_report
        base = trainee.base
        if isinstance(base, Path):
            directory = base
            base = runtime.on_first(lambda: identify_base(run.checkpoints, directory))
        self._checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep, base, trainee.extra_files)
        self._metrics_log = run.log(run.metrics)
        self.state = restore(self._checkpoints, optimizer, self._metrics_log.last, runtime) or TrainState()
        disk.check_room(run.path, config.checkpoint, optimizer.saved_bytes(), trainee.model)
        self._stop = StopRequest(config.checkpoint.grace_s, runtime)
        self._console = Console(total, self.state.step, is_quiet=not runtime.is_main)
        self.say = self._console.say
        self._budgets = RunBudgets(self.state.budgets, self.say)
        self._remembered: dict[str, Resumable] = {}
        self._guard = Guard(None, {})
        self._fruitless = 0

    def __enter__(self) -> "Session":
        run, state = self._run, self.state
        with ExitStack() as stack:
            stack.push(self._report_a_stop)
            stack.enter_context(KEEPER.across_rollouts())
            stack.enter_context(self._stop)  # before the first file: a run that has begun ends as a run does
            if self._runtime.is_main:
                write_selection(self._config.freeze, run, self._trainee)
                run.note_start(state.step)
            self._samples_log = run.log(run.samples, state.logged)
            self._cases_log = run.log(run.cases)
            self._skipped_log = run.log(run.skipped, state.logged)
            tracking = self._config.logging if self._runtime.is_main else TrackingConfig()
            tracked = TrackedRun(
                self._config.name, run.path, run.settings, run.metrics, self._metrics_log.last, state.tracker
            )
            self._trackers = Trackers(tracking, tracked, self.say)
            state.tracker = self._trackers.wandb_id
            stack.enter_context(self._console)
            stack.enter_context(leave_saved(self._stop, self._keep, lambda: self._checkpoints.saved or 0, self.say))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        try:
            return self._exit.__exit__(*error)
        finally:
            self._trackers.finish()  # of a run that has stopped: `finish` closes those of one that is done

    def budget(self, key: str, amount: int) -> Budget:
        """Make a budget that stays lowered in later starts. key: the configuration's."""
        return self._budgets.add(key, amount)

    def follow(self, scorer: Scorer) -> None:
        """Include the budgets of what gives scores, and notice in a resumed run that something of it has changed."""
        for name, one in terms.parts(scorer).items():
            if one.budget is not None:
                self._budgets.follow(one.budget)
            if one.mark is not None:
                self.remember(f"reward {name}" if name else "reward", one.mark)
        if scorer.facts and self._runtime.is_main:
            kept, line = server_facts.succeeding(self._run.written(server_facts.KEPT), scorer.facts)
            self._run.settings[server_facts.KEPT] = kept
            if line:
                print(line, file=sys.stderr, flush=True)

    def remember(self, name: str, thing: Thing) -> Thing:
        """Keep the state of something that later steps depend on; a resumed run goes on with it."""
        if name in self.state.algorithm:
            thing.load_state_dict(self.state.algorithm[name])
        self._remembered[name] = thing
        return thing

    def watch(self, config: PpoConfig | DpoConfig, own: Callable[[], float] = lambda: 0.0) -> Guard:
        """Make the run's guard, which judges every evaluation; a resumed run goes on with it.

        own: returns the KL coefficient that the run has without the guard.
        """
        self._guard = guard = Guard(config.guard, measures(config.evaluation), own)
        if guard.is_active:
            self.remember("guard", guard)
            for first in guard.firsts:
                self.remember(f"guard {first.metric}", first)
        if guard.goes_back:  # the best checkpoint that keeps the skills is one more
            what = self._config.checkpoint, self._optimizer.saved_bytes(), self._trainee.model
            disk.check_room(self._run.path, *what, more=1)
            self._checkpoints.pinned = self.state.best_step
        return guard

    def steps(self, evaluate: Evaluate) -> Iterator[Step]:
        """Yield step after step; between two steps: evaluate, log and save what is due."""
        state = self.state
        self.say(self._trainee.table.render())
        self.say(describe(self._optimizer, self._runtime, self._config.cluster.zero_stage))
        if state.step:
            self.say(f"resumed after step {state.step}")
            if state.unlogged:
                self._record(state.unlogged | self._evaluated(evaluate))
                if self._guard.is_stopped:  # the checkpoint has the weights before the guard went back
                    self._checkpoints.saved = None
                    self._save()
        elif self._config.evaluation.every:
            self._record({"step": 0, "episodes": 0} | self._evaluated(evaluate))
            if self._checkpoints.pinned == 0:
                self._save()
        while state.step < self.total and not self._guard.is_stopped:
            number = state.step + 1
            self._step = Step(number, {"step": number, "episodes": state.episodes} | self._guard.metrics())
            applied = self._optimizer.applied
            yield self._step
            self._end(self._step, evaluate)
            # without an update because there was nothing to learn from is another matter than with all of them skipped
            self._stop_if_fruitless(self._optimizer.applied > applied or not self._step.metrics["optim/skipped"])

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Run what changes nothing that is kept: a signal leaves at once. All processes have all weights, to read."""
        with self._stop.abandonable(), self._optimizer.gathered():
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Run a part of the step, shown while it runs; its seconds are `time/<name>_s`."""
        self._console.phase(name)
        yield
        self._step.clock.lap(name)

    @contextmanager
    def updating(self, train_policy: bool = True) -> Iterator[None]:
        """Run what changes a checkpoint's content: an update is completed if that fits into checkpoint.grace_s.

        Until the optimizer has applied something, the state of the last step can still be saved.
        """
        applied = self._optimizer.applied
        with self._stop.updating(lambda: self._optimizer.applied > applied or not self._stop.is_alone):
            rate = self._optimizer.set_rates(self._step.number, self.total, train_policy)
            self._step.metrics["optim/learning_rate"] = rate
            with self.phase("update"):
                yield
            KEEPER.after_update()

    def finish(
        self,
        command: str,
        write_model: Callable[[], object],
        planned_gb: float | None,
        baseline_gb: float,
    ) -> None:
        """Write, after the last step, the model and the report.

        command: the command's name.
        write_model: called on the first process alone, with all weights gathered.
        planned_gb: peak memory that was planned, if it was.
        baseline_gb: memory that the process held before it read anything: no plan counts it.
        """
        runtime, run = self._runtime, self._run
        self.say(summary.peak_in_words(planned_gb, runtime.peak_memory_gb() - baseline_gb))
        self._console.phase("writing the model")
        with self._stop.finishing(), self._optimizer.gathered():
            if runtime.is_main:
                write_model()
        if runtime.is_main:
            table = self._trainee.table
            guard = self._guard.summary(self.state.step, self.state.best_step)
            text = summary.to_json(self._config, run, table.counts(), self.state, runtime, command, planned_gb, guard)
            # the page of the run under way: beside a summary it would count as the last one
            run.report.unlink(missing_ok=True)
            run.write("summary.json", text)
            self._write_report(run.path)
        self._trackers.finish(run.report)

    def _evaluated(self, evaluate: Evaluate) -> dict[str, float]:
        self._console.phase("evaluating")
        with self.abandonable():
            measured = evaluate()
        rows = [{"step": self.state.step} | sample for sample in measured.samples]
        self._samples_log.write(rows)
        if measured.cases:
            self._cases_log.write([{"step": self.state.step} | measured.cases])
        self._trackers.log_samples(self.state.step, rows)
        return measured.metrics | self._guard.judge(measured, self._runtime)

    def _end(self, step: Step, evaluate: Evaluate) -> None:
        """Log and save a step that is done. Samples, cases, metrics, checkpoint: in this order no kill leaves a gap."""
        state, every = self.state, self._config.evaluation.every
        self._skipped_log.write(step.skipped)
        step.metrics["memory/peak_gb"] = self._runtime.peak_memory_gb()
        state.step, state.episodes = step.number, state.episodes + step.episodes
        state.budgets = self._budgets.synchronise(self._runtime)
        state.algorithm = self._states()
        is_last = step.number == self.total
        if every and (is_last or step.number % every == 0):
            state.unlogged = strict(step.metrics)
            step.metrics |= self._evaluated(evaluate)
        state.seconds += step.clock.total()
        self._record(step.metrics, left_s=state.seconds / step.number * (self.total - step.number))
        save_every = self._config.checkpoint.every
        is_pinned = self._checkpoints.pinned == step.number
        if is_last or is_pinned or self._guard.is_stopped or (save_every and step.number % save_every == 0):
            self._save()

    def _states(self) -> dict[str, dict[str, float]]:
        return {name: thing.state_dict() for name, thing in self._remembered.items()}

    def _stop_if_fruitless(self, is_fine: bool) -> None:
        """Raise UserError, with the state saved, after too many steps in a row in which every update was skipped."""
        self._fruitless = 0 if is_fine else self._fruitless + 1
        if self._fruitless >= skipped.STEPS_IN_A_ROW:
            self._keep()
            raise skipped.too_many(self._run.skipped)

    def _keep(self) -> None:
        """Save the state of the last finished step, and say so."""
        if self.state.step:
            self._save()
            self.say(f"state saved after step {self.state.step}; run the same command to go on")
        else:
            self.say("stopped before the end of the first step, nothing is saved; run the same command to start again")

    def _record(self, metrics: dict[str, Any], left_s: float | None = None) -> None:
        self._metrics_log.write([metrics])
        if metrics.get("guard/kept", 1):  # the best is one that keeps the skills
            self.state.note(metrics["step"], metrics.get(self._best))
        if self._guard.goes_back:
            if self.state.best_step is None:  # without a finite score the start is the best there is
                self.state.best_step = metrics["step"]
            self._checkpoints.pinned = self.state.best_step
            if not metrics.get("guard/kept", 1):
                self._go_back()
        self.state.unlogged, self.state.algorithm = {}, self._states()  # from here on this step is what is saved
        for line in self._guard.news(self.state.best_step):
            self.say(line)
        self._trackers.log(metrics)
        self._console.step(metrics, left_s)
        if self._runtime.is_main and any(key.startswith("eval/") for key in metrics):
            self._write_page()

    def _go_back(self) -> None:
        """Load weights and moments of the best checkpoint that kept the skills."""
        step = given(self.state.best_step)
        self._runtime.on_first(lambda: self._checkpoints.verify(step))
        checkpoint = self._checkpoints.at(step)
        self._optimizer.load(checkpoint.trainable, checkpoint.optimizer)

    def _write_page(self) -> None:
        """Write the page of a run that is not finished. What is wrong with it must not end the run."""
        try:
            self._write_report(self._run.path)
        except OSError:
            raise  # a full disk: metrics and checkpoints fail next, and the command says so
        except Exception as error:
            self.say(f"report.html could not be written ({type(error).__name__}: {error}); the run goes on without it")

    def _report_a_stop(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the page once more where the run ends early: a signal, a user's error, a fault."""
        if kind is not None and self._runtime.is_main and self.state.step:
            self._write_page()

    def _save(self) -> None:
        self._console.phase("saving")
        tensors = self._optimizer.trainable_tensors(), self._optimizer.state_tensors()
        if self._runtime.is_main:
            self._checkpoints.save(*tensors, self.state)
        else:  # under ZeRO all processes put each tensor together
            self._checkpoints.take_part(*tensors)


def write_selection(config: FreezeConfig, run: RunDirectory, trainee: Trainee) -> None:
    """Make the run's directory, with its configuration and what was selected."""
    run.create()
    if config.method in SCORED:
        scans.write_scan(trainee.records, run.path)
    path = run.path / "unfrozen.yaml"
    unfrozen_yaml.write_unfrozen_yaml(trainee.selected, trainee.records, path, trainee.table.names)


def describe(optimizer: Optimizer, runtime: Runtime, zero_stage: int) -> str:
    """Describe device, processes and the ZeRO stage in effect, which may differ from the one requested."""
    note = (
        f"; cluster.zero_stage={zero_stage} has no effect in one process" if zero_stage and runtime.world == 1 else ""
    )
    return f"{runtime.describe()}; optimizer state in each process: {optimizer.describe()}{note}"


def restore(checkpoints: Checkpoints, optimizer: Optimizer, logged: int, runtime: Runtime) -> TrainState | None:
    """Load the newest intact checkpoint into trainable parameters and optimizer; None if there is none.

    The first process chooses it, and alone compares its bytes with its manifest. logged: the last step in
    metrics.jsonl. Raises UserError, on all processes, if no checkpoint can be used, or if it is of other tensors.
    """
    read: list[Checkpoint | None] = []

    def choose() -> int | None:
        read.append(checkpoints.newest(logged))
        return read[0].state.step if read[0] else None

    step = runtime.on_first(choose)  # hashes gigabytes
    if not read:
        read.append(None if step is None else checkpoints.at(step))
    (checkpoint,) = read
    if checkpoint is None:
        if logged > 0 and runtime.is_main:
            print(
                f"no checkpoint was saved before the run ended: it starts again, and the steps up to {logged}, which "
                "metrics.jsonl has already, are computed again",
                file=sys.stderr,
            )
        return None
    if not optimizer.fits(checkpoint.trainable, checkpoint.optimizer):
        raise UserError(
            "run_dir: its checkpoint trained other tensors than this selection; give the same freeze.* settings, "
            "or another run_dir"
        )
    optimizer.load(checkpoint.trainable, checkpoint.optimizer)
    return checkpoint.state
