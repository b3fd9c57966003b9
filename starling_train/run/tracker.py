"""Where metrics go beside the run's own files, by `logging`: a row of TRACKERS each, over accelerate's trackers."""

import io
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from starling_train.config.fields import without_secrets
from starling_train.config.sections import TrackingConfig
from starling_train.files import json_lines, whole
from starling_train.files.json_lines import JsonRow, strict

WANDB_ID, MLFLOW_ID, TRACKIO_NAME = "wandb_id.txt", "mlflow_id.txt", "trackio_name.txt"


@dataclass(frozen=True)
class TrackedRun:
    """What every tracker is told of a run.

    path: its directory.
    settings: its resolved configuration.
    metrics: its metrics.jsonl, of which a tracker that is new to the run gets what is there already.
    logged: the last step in that file, -1 if there is none.
    wandb_id: from its newest checkpoint, None before there is one.
    """

    name: str
    path: Path
    settings: JsonRow
    metrics: Path
    logged: int = -1
    wandb_id: str | None = None

    def known(self, file: str) -> str | None:
        """Return what an earlier start has written to a small file of the run's directory."""
        path = self.path / file
        return path.read_text().strip() or None if path.is_file() else None

    def remember(self, file: str, value: str) -> None:
        """Write such a file: a run that ends before its first checkpoint goes on in the same run of its tracker."""
        whole.write_text(self.path / file, f"{value}\n")


class Tracker(Protocol):
    """One tracker of one run; made with the settings and the run. A stopped run goes on in the same run of its tracker.

    last: the last step that it holds already, -1 for none.
    """

    last: int

    def log(self, metrics: JsonRow) -> None:
        """Send the metrics of one step."""

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        """Send the responses to held-out prompts, rows of samples.jsonl."""

    def finish(self, report: Path | None) -> None:
        """Close it. report: the page of a run that is done; None if the run has stopped."""


class WandbTracker:
    """Weights & Biases: every metric, the settings, a table of samples per evaluation, the report as an artifact.

    API keys are left to wandb's own login. id: of its run.
    """

    def __init__(self, config: TrackingConfig, run: TrackedRun):
        from accelerate.tracking import WandBTracker

        known = run.wandb_id or run.known(WANDB_ID)
        self._tracker = WandBTracker(
            config.project,
            name=run.name,
            dir=run.path,
            config=run.settings,
            id=known,
            resume="allow",
            mode=wandb_mode(config),
            entity=config.entity,
            tags=config.tags or None,
        )
        self._tracker.start()
        self._run: Any = self._tracker.tracker
        self.id: str = self._run.id
        # offline nobody can be asked: what a killed run has handed over, wandb's own process has written
        self.last = self._run.step - 1 if self._run.resumed else (run.logged if known else -1)
        run.remember(WANDB_ID, self.id)

    def log(self, metrics: JsonRow) -> None:
        self._tracker.log(strict(metrics), step=metrics["step"])

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        columns, data = _table(rows)
        self._tracker.log_table("samples", columns=columns, data=data, step=step)

    def finish(self, report: Path | None) -> None:
        if report is None:
            self._run.finish(exit_code=1)
            return
        import wandb

        artifact = wandb.Artifact(f"report-{self.id}", type="report")
        artifact.add_file(str(report))
        self._run.log_artifact(artifact)
        self._tracker.finish()


class TensorboardTracker:
    """Event files in the run's folder `tensorboard`: metrics, and as text the settings and the samples."""

    def __init__(self, config: TrackingConfig, run: TrackedRun):
        from accelerate.tracking import TensorBoardTracker

        is_known = any((run.path / "tensorboard").glob("events.out.*"))
        # the last step may not have reached the file: it is written again, and TensorBoard drops what there is of it
        again = max(run.logged, 0)
        self.last = again - 1 if is_known else -1
        more = {"purge_step": again} if is_known else {}
        self._tracker = TensorBoardTracker("tensorboard", run.path, **more)
        self._tracker.start()
        self._writer: Any = self._tracker.tracker
        self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(run.settings, sort_keys=False)}```")

    def log(self, metrics: JsonRow) -> None:
        self._tracker.log(_numbers(metrics), step=metrics["step"])

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        text = "\n\n".join(f"```json\n{json.dumps(strict(row), ensure_ascii=False, indent=1)}\n```" for row in rows)
        self._tracker.log({"samples": text}, step=step)

    def finish(self, report: Path | None) -> None:
        self._tracker.finish()


class MlflowTracker:
    """MLflow: every metric, the settings as parameters, samples and report as artifacts.

    Goes to MLFLOW_TRACKING_URI, or into a database in the run's folder `mlflow`.
    """

    def __init__(self, config: TrackingConfig, run: TrackedRun):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent that nobody asked for
        import mlflow
        from accelerate.tracking import MLflowTracker

        for name in ("mlflow", "alembic"):  # which tell of every table of a new database
            logging.getLogger(name).setLevel(logging.WARNING)
        artifacts = None
        if has_local_mlflow():
            folder = (run.path / "mlflow").resolve()
            folder.mkdir(exist_ok=True)
            artifacts = str(folder / "artifacts")
            with _environment_kept("MLFLOW_TRACKING_URI"):
                mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        known = run.known(MLFLOW_ID)
        self._tracker = MLflowTracker(config.project, artifacts, run_id=known, run_name=run.name)
        self._tracker.start()
        self._mlflow, self.last = mlflow, -1
        run_id = self._tracker.tracker.info.run_id
        run.remember(MLFLOW_ID, run_id)
        if known:
            history = mlflow.MlflowClient().get_metric_history(run_id, "episodes")  # which every step has
            self.last = max((metric.step for metric in history), default=-1)
        else:  # parameters cannot change later
            self._tracker.store_init_configuration(dict(_flat(run.settings)))
        mlflow.set_tags(dict.fromkeys(config.tags, "true"))

    def log(self, metrics: JsonRow) -> None:
        self._tracker.log(_numbers(metrics), step=metrics["step"])

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        lines = b"".join(json_lines.to_line(strict(row), ascii_only=False) for row in rows)
        self._mlflow.log_text(lines.decode(), f"samples/step_{step:06d}.jsonl")

    def finish(self, report: Path | None) -> None:
        if report is None:
            self._mlflow.end_run("KILLED")
            return
        self._tracker.log_artifact(str(report))
        self._tracker.finish()


class TrackioTracker:
    """Trackio: every metric, the settings, a table of samples per evaluation; where TRACKIO_DIR or its default says."""

    def __init__(self, config: TrackingConfig, run: TrackedRun):
        from accelerate.tracking import TrackioTracker as Tracker

        # its runs are known by name, and two directories may hold runs of one name
        known = run.known(TRACKIO_NAME)
        name = known or f"{run.name}-{secrets.token_hex(3)}"
        self._tracker = Tracker(config.project, name=name, config=run.settings, resume="allow")
        with redirect_stdout(io.StringIO()):  # several lines of instructions
            self._tracker.start()
        run.remember(TRACKIO_NAME, name)
        self.last = run.logged if known else -1

    def log(self, metrics: JsonRow) -> None:
        self._tracker.log(_numbers(metrics), step=metrics["step"])

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        import trackio

        columns, data = _table(rows)
        self._tracker.log({"samples": trackio.Table(columns=columns, data=data)}, step=step)

    def finish(self, report: Path | None) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()  # and not the tracker's own, after which the package closes the run again at exit


# by logging.trackers; each takes (config, run)
TRACKERS: dict[str, Callable[[TrackingConfig, TrackedRun], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


class Trackers:
    """All trackers of a run. One that fails is reported in one line and then left out: the run goes on without it.

    Steps that a tracker holds already are not sent again, and one that is new to the run gets the earlier ones first.
    wandb_id: of the W&B run, for later starts; None if there has never been one.
    """

    def __init__(self, config: TrackingConfig, run: TrackedRun, say: Callable[[str], object]):
        self._say, self._trackers = say, dict[str, Tracker]()
        names = requested(config)
        if names:
            from accelerate import PartialState

            PartialState()  # without which its trackers' own log lines are errors
        for name in names:
            with self._outliving(name):
                tracker = TRACKERS[name](config, run)
                self._trackers[name] = tracker
                for row in json_lines.read(run.metrics) if run.logged > tracker.last else ():
                    self._log(tracker, row or {"step": -1})
        wandb = self._trackers.get("wandb")
        self.wandb_id = wandb.id if isinstance(wandb, WandbTracker) else run.wandb_id

    def log(self, metrics: JsonRow) -> None:
        """Send the metrics of one step."""
        for name, tracker in list(self._trackers.items()):
            with self._outliving(name):
                self._log(tracker, metrics)

    def log_samples(self, step: int, rows: Sequence[JsonRow]) -> None:
        """Send the responses of one evaluation, ahead of its metrics."""
        for name, tracker in list(self._trackers.items()):
            with self._outliving(name):
                if rows and step > tracker.last:
                    tracker.log_samples(step, rows)

    def finish(self, report: Path | None = None) -> None:
        """Close all; closed ones stay closed. report: the page of a run that is done."""
        for name, tracker in list(self._trackers.items()):
            with self._outliving(name):
                tracker.finish(report)
        self._trackers.clear()

    @staticmethod
    def _log(tracker: Tracker, metrics: JsonRow) -> None:
        if metrics["step"] > tracker.last:
            tracker.log(metrics)
            tracker.last = metrics["step"]

    @contextmanager
    def _outliving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service or its package raises, it is not worth a run
            self._trackers.pop(name, None)
            what = without_secrets((str(error).strip().splitlines() or [""])[0])[:300]
            self._say(f"{name}: no longer followed by it, the run goes on ({type(error).__name__}: {what})")


def requested(config: TrackingConfig) -> list[str]:
    """List the trackers that the settings ask for."""
    names = [name for name in TRACKERS if name in config.trackers or name == "wandb"]
    return [name for name in names if name != "wandb" or wandb_mode(config) != "disabled"]


def wandb_mode(config: TrackingConfig) -> str:
    """Return disabled, offline or online: `logging.wandb`, or what WANDB_MODE says where only `trackers` names it."""
    if config.wandb != "disabled" or "wandb" not in config.trackers:
        return config.wandb
    mode = os.environ.get("WANDB_MODE", "online")
    return {"dryrun": "offline"}.get(mode, mode if mode in ("disabled", "offline") else "online")


def has_local_mlflow() -> bool:
    """Return whether MLflow's runs go into the run's directory: no server or other place is set."""
    return not os.environ.get("MLFLOW_TRACKING_URI")


@contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Leave a variable of the environment as it is, whatever a package sets it to."""
    before = os.environ.get(name)
    yield
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before


def _numbers(metrics: JsonRow) -> dict[str, float]:
    """Return what can be drawn over the steps: finite numbers."""
    return {
        key: value
        for key, value in metrics.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _table(rows: Sequence[JsonRow]) -> tuple[list[str], list[list[Any]]]:
    """Return columns and cells; what is neither a number nor a text is written as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[strict(row).get(column) for column in columns] for row in rows]
    plain = str | int | float | None
    return columns, [[c if isinstance(c, plain) else json.dumps(c, default=str) for c in row] for row in cells]


def _flat(values: JsonRow, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
