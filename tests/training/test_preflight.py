"""What a run is checked for before it begins: packages, a login, and room in the device's memory."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from starling_train.config.fields import UserError
from starling_train.config.sections import TrackingConfig
from starling_train.planning.memory import MemoryPlan
from starling_train.run import machine
from starling_train.training import preflight


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """No login of W&B's, and nowhere that MLflow would send to."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL", "WANDB_CONFIG_DIR",
                     "WANDB_MODE", "MLFLOW_TRACKING_URI"):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def installed(*packages: str):
    """`find_spec` where only these packages are installed; a folder of any name in the working directory is seen."""

    def find(name: str) -> SimpleNamespace | None:
        folder = SimpleNamespace(origin=None) if (Path.cwd() / name).is_dir() else None
        return SimpleNamespace(origin=f"{name}.py") if name in packages else folder

    return find


def test_a_login_is_found_where_wandb_looks(no_login, tmp_path, monkeypatch):
    online, offline = TrackingConfig(wandb="online"), TrackingConfig(wandb="offline")
    monkeypatch.setattr(machine, "find_spec", installed("wandb"))
    preflight.check_trackers(offline)
    for config in (online, TrackingConfig(trackers=["wandb"])):
        with pytest.raises(UserError, match=r"^logging.wandb: online, but there is no login"):
            preflight.check_trackers(config)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "a" * 40 + "\n")
    preflight.check_trackers(online)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no login"):
        preflight.check_trackers(online)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    preflight.check_trackers(online)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"wandb": "offline"}, "logging.wandb: wandb not installed; pip install 'starling-train[wandb]', or use logg"),
        ({"trackers": ["tensorboard"]}, "logging.trackers: tensorboard not installed; pip install 'starling-train[ten"),
        (
            {"trackers": ["trackio"]},
            "logging.trackers: trackio not installed; pip install 'starling-train[trackio]', or",
        ),
        (
            {"trackers": ["mlflow"]},
            "logging.trackers: mlflow and sqlalchemy not installed; pip install 'starling-train[ml",
        ),
    ],
)
def test_a_package_that_is_missing_is_told_with_the_line_that_installs_it(
    no_login, tmp_path, monkeypatch, settings, says
):
    (tmp_path / "trackio").mkdir()  # no package, though Python would import it
    monkeypatch.setattr(machine, "find_spec", installed("alembic"))
    with pytest.raises(UserError) as told:
        preflight.check_trackers(TrackingConfig(**settings))
    assert str(told.value).startswith(says)
    monkeypatch.setattr(
        machine, "find_spec", installed("wandb", "tensorboard", "trackio", "mlflow", "sqlalchemy", "alembic")
    )
    preflight.check_trackers(TrackingConfig(**settings))


def test_a_server_of_mlflows_needs_no_database_here(no_login, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", installed("mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    preflight.check_trackers(TrackingConfig(trackers=["mlflow"]))


def test_a_plan_larger_than_the_gpu_is_refused_and_a_tight_one_is_told(capsys):

    plan = MemoryPlan({"policy weights": 14e9, "hidden states below": 8e9}, {"KV cache": 5e9}, {"activations": 30e9})
    preflight.check_memory(plan, 80e9)
    assert capsys.readouterr().err == ""
    preflight.check_memory(plan, 24e9)
    assert capsys.readouterr().err.startswith("warning: the plan's peak is 52.0 GB, the GPU has 24.0 GB")
    with pytest.raises(UserError, match=r"^cluster.device: the run holds 14.0 GB .*the GPU has 12.0 GB; lower"):
        preflight.check_memory(plan, 12e9)
