"""Trackers of a run, with the real packages and without a network: what each holds, also after a stop and a resume.

Slow: W&B's own process twice, and MLflow's database.
"""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from starling_train.config.sections import TrackingConfig
from starling_train.files.json_lines import to_line
from starling_train.run import tracker
from starling_train.run.tracker import TRACKERS, TrackedRun, Trackers

SETTINGS = {"seed": 3, "model": {"path": "base"}, "optim": {"betas": [0.9, 0.95]}}
SAMPLES = [
    {"step": 0, "prompt": "Two and two?", "response": "4 | four", "score": 0.5, "ended": True},
    {"step": 0, "prompt": "Hi", "response": "Hello\n", "score": float("nan"), "gold": 1.0},
]
STEPS = [
    {"step": 0, "episodes": 0, "eval/score_mean": 0.25},
    {"step": 1, "episodes": 8, "reward/score_mean": 0.5, "kl/reference": float("nan")},
    {"step": 2, "episodes": 16, "reward/score_mean": 0.75, "kl/reference": 1.5},
    {"step": 3, "episodes": 24, "reward/score_mean": 1.0, "kl/reference": 2.5},
]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No logins, no other places, nothing in the home directory."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)


class Run:
    """A run directory; `start` begins or goes on with its trackers as a session does."""

    def __init__(self, path: Path):
        self.path, self.said = path, []
        path.mkdir()

    def start(self, config: TrackingConfig, wandb_id: str | None = None) -> Trackers:
        metrics = self.path / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        last = rows[-1]["step"] if rows else -1
        return Trackers(config, TrackedRun("run", self.path, SETTINGS, metrics, last, wandb_id), self.said.append)

    def step(self, trackers: Trackers, number: int) -> None:
        """One step's row into metrics.jsonl, unless it is there, then to the trackers: the order of a session."""
        metrics, row = self.path / "metrics.jsonl", {k: v if v == v else None for k, v in STEPS[number].items()}
        line = to_line(row)
        if not metrics.exists() or line not in metrics.read_bytes():
            with metrics.open("ab") as file:
                file.write(line)
        trackers.log(STEPS[number])

    def stopped_and_resumed(self, config: TrackingConfig) -> None:
        """Steps 0 to 2, a stop, then again from step 2 on, as after a checkpoint of step 1; the report at the end."""
        trackers = self.start(config)
        trackers.log_samples(0, SAMPLES)
        for number in (0, 1, 2):
            self.step(trackers, number)
        trackers.finish()
        trackers = self.start(config, trackers.wandb_id)
        for number in (2, 3):
            self.step(trackers, number)
        (self.path / "report.html").write_text("<h1>run</h1>")
        trackers.finish(self.path / "report.html")
        assert self.said == []


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "run")


def offline(**more) -> TrackingConfig:
    return TrackingConfig(wandb="offline", project="words", **more)


def test_without_trackers_nothing_is_imported_or_written(run):
    trackers = run.start(TrackingConfig())
    trackers.log(STEPS[0])
    trackers.log_samples(0, SAMPLES)
    trackers.finish()
    assert trackers.wandb_id is None and list(run.path.iterdir()) == []


@pytest.fixture
def begun(monkeypatch) -> list:
    """What wandb.init was given, and the real runs that it gave."""
    wandb = pytest.importorskip("wandb", reason="wandb is an extra")
    real, calls = wandb.init, []

    def init(**arguments):
        calls.append((arguments, real(**arguments)))
        return calls[-1][1]

    monkeypatch.setattr(wandb, "init", init)
    return calls


def wandb_records(folder: Path) -> list:
    """Every record in the offline files of a run's W&B folder, in the order of the starts."""
    from wandb.proto import wandb_internal_pb2

    records = []
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        for data in log_records(file.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(data)
    return records


def log_records(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of LevelDB's log format, behind W&B's own header of 7 bytes: a CRC, a length, a type, the bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # a block's end that has no room for a record
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(records: list) -> list[dict]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.mark.slow
def test_offline_wandb_holds_every_step_once_the_samples_and_the_report(run, begun):
    run.stopped_and_resumed(offline(entity="us", tags=["first", "toy"]))
    arguments, first = begun[0]
    assert len(begun) == 2 and begun[1][1].id == first.id
    assert (run.path / "wandb_id.txt").read_text().strip() == first.id
    expected = {"project": "words", "name": "run", "entity": "us", "tags": ["first", "toy"], "config": SETTINGS}
    assert expected.items() <= arguments.items()
    records = wandb_records(run.path / "wandb")
    rows = history(records)
    measured = [{k: v for k, v in row.items() if not k.startswith(("_", "samples"))} for row in rows]
    assert measured == [{k: v if v == v else None for k, v in row.items()} for row in STEPS]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["samples/_type"] == "table-file" and rows[0]["samples/nrows"] == 2
    (table,) = (run.path / "wandb").glob("offline-run-*/files/media/table/samples*.json")
    assert json.loads(table.read_text())["data"][0] == [0, "Two and two?", "4 | four", 0.5, True, None]
    artifacts = [record.request.log_artifact.artifact for record in records if record.HasField("request")]
    artifacts += [record.artifact for record in records if record.HasField("artifact")]
    assert [(one.type, one.name) for one in artifacts if one.type == "report"] == [("report", f"report-{first.id}")]


def test_wandb_goes_on_in_its_run_from_a_checkpoint_and_after_an_end_before_the_first(run, begun):
    ids = set()
    for known in (None, None, "from1checkpoint"):
        trackers = run.start(offline(), known)
        ids.add(trackers.wandb_id)
        trackers.finish()
    assert len(ids) == 2 and begun[0][1].id == begun[1][1].id and begun[2][0]["id"] == "from1checkpoint"
    # switched off for a while, the id stays with the run
    assert run.start(TrackingConfig(), "from1checkpoint").wandb_id == "from1checkpoint"


@pytest.mark.parametrize(
    ("wandb", "trackers", "variable", "mode"),
    [
        ("disabled", [], "online", "disabled"),
        ("offline", [], "online", "offline"),
        ("offline", ["wandb"], None, "offline"),
        ("disabled", ["wandb"], None, "online"),
        ("disabled", ["wandb"], "offline", "offline"),
        ("disabled", ["wandb"], "dryrun", "offline"),
        ("disabled", ["wandb", "mlflow"], "disabled", "disabled"),
    ],
)
def test_the_mode_of_wandb(wandb, trackers, variable, mode, monkeypatch):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    config = TrackingConfig(wandb=wandb, trackers=trackers)
    assert tracker.wandb_mode(config) == mode
    assert ("wandb" in tracker.requested(config)) == (mode != "disabled")


def test_tensorboard_holds_every_step_once(run):
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.stopped_and_resumed(TrackingConfig(trackers=["tensorboard"]))
    held = EventAccumulator(str(run.path / "tensorboard"))
    held.Reload()
    assert set(held.Tags()["scalars"]) == {"episodes", "eval/score_mean", "reward/score_mean", "kl/reference"}
    assert [(one.step, one.value) for one in held.Scalars("reward/score_mean")] == [(1, 0.5), (2, 0.75), (3, 1.0)]
    assert [(one.step, one.value) for one in held.Scalars("kl/reference")] == [(2, 1.5), (3, 2.5)]
    texts = {tag: held.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0] for tag in ("samples", "config")}
    assert b"4 | four" in texts["samples"] and b"betas" in texts["config"]


@pytest.mark.slow
def test_mlflow_holds_every_step_once_the_settings_the_samples_and_the_report(run):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is an extra")
    pytest.importorskip("alembic", reason="a database of mlflow's needs it")
    run.stopped_and_resumed(TrackingConfig(trackers=["mlflow"], project="words", tags=["toy"]))
    client = mlflow.MlflowClient(f"sqlite:///{run.path / 'mlflow' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert found.info.run_id == (run.path / "mlflow_id.txt").read_text().strip()
    assert found.info.run_name == "run" and found.info.status == "FINISHED" and found.data.tags["toy"] == "true"
    assert found.data.params == {"seed": "3", "model.path": "base", "optim.betas": "[0.9, 0.95]"}
    scores = client.get_metric_history(found.info.run_id, "reward/score_mean")
    assert [(one.step, one.value) for one in scores] == [(1, 0.5), (2, 0.75), (3, 1.0)]
    assert {"episodes", "eval/score_mean", "kl/reference", "reward/score_mean"} == set(found.data.metrics)
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(run.path)
    assert (artifacts / "report.html").read_text() == "<h1>run</h1>"
    samples = [json.loads(line) for line in (artifacts / "samples" / "step_000000.jsonl").read_text().splitlines()]
    assert samples == [SAMPLES[0], SAMPLES[1] | {"score": None}]


def test_trackio_holds_every_step_once(run, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="trackio is an extra")
    for module in (trackio.sqlite_storage, trackio.utils, trackio.media.utils, trackio):
        for name in ("TRACKIO_DIR", "MEDIA_DIR"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / "trackio")
    run.stopped_and_resumed(TrackingConfig(trackers=["trackio"], project="words"))
    name = (run.path / "trackio_name.txt").read_text().strip()
    assert name.startswith("run-")
    with sqlite3.connect(tmp_path / "trackio" / "words.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step, id").fetchall()
    assert {row[0] for row in rows} == {name}
    held = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, row) for step, row in held if "samples" not in row] == [
        (row["step"], {k: v for k, v in row.items() if k != "step" and v == v}) for row in STEPS
    ]
    (samples,) = (row["samples"] for _, row in held if "samples" in row)
    assert "4 | four" in json.dumps(samples)


class Broken:
    """A tracker whose service is gone after some calls."""

    last = -1

    def __init__(self, calls: int):
        self.calls, self.closed = calls, False

    def log(self, metrics):
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("http://me:hunter2@host/api refused\nmore of it")

    def log_samples(self, step, rows):
        raise AssertionError("left out by then")

    def finish(self, report):
        self.closed = True


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(run, monkeypatch):
    broken, whole = Broken(calls=1), Broken(calls=99)
    made = {"mlflow": lambda *run: broken, "trackio": lambda *run: whole, "tensorboard": lambda *run: 1 / 0}
    monkeypatch.setattr(tracker, "TRACKERS", made)
    trackers = run.start(TrackingConfig(trackers=list(made)))
    assert run.said == ["tensorboard: no longer followed by it, the run goes on (ZeroDivisionError: division by zero)"]
    for number in (0, 1, 2, 3):
        run.step(trackers, number)
    assert run.said[1:] == [
        "mlflow: no longer followed by it, the run goes on (ConnectionError: http://***@host/api refused)"
    ]
    monkeypatch.setattr(whole, "log_samples", lambda step, rows: None)
    trackers.log_samples(4, SAMPLES)
    trackers.finish()
    assert whole.calls == 95 and whole.closed and not broken.closed and len(run.said) == 2


def test_a_tracker_that_is_new_to_a_run_gets_the_steps_before_it(run, monkeypatch):
    got = []
    late = Broken(calls=99)
    monkeypatch.setattr(late, "log", lambda metrics: got.append(metrics["step"]))
    trackers = run.start(TrackingConfig())
    for number in (0, 1):
        run.step(trackers, number)
    monkeypatch.setattr(tracker, "TRACKERS", {"mlflow": lambda *run: late})
    trackers = run.start(TrackingConfig(trackers=["mlflow"]))
    assert got == [0, 1]
    for number in (1, 2):
        run.step(trackers, number)
    assert got == [0, 1, 2]


def test_every_tracker_of_the_table_says_what_it_is():
    assert all(made.__doc__ for made in TRACKERS.values())
