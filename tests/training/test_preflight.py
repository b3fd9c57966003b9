"""What a run is checked for before it begins: a login, and room in the device's memory."""

import pytest

from starling_train.config.fields import UserError
from starling_train.planning.memory import MemoryPlan
from starling_train.training import preflight


def test_a_login_is_found_where_wandb_looks(tmp_path, monkeypatch):

    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    preflight.check_tracker("offline")
    with pytest.raises(UserError, match="no login"):
        preflight.check_tracker("online")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "a" * 40 + "\n")
    preflight.check_tracker("online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no login"):
        preflight.check_tracker("online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    preflight.check_tracker("online")
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logging.wandb: wandb is not installed; pip install wandb"):
        preflight.check_tracker("offline")


def test_a_plan_larger_than_the_gpu_is_refused_and_a_tight_one_is_told(capsys):

    plan = MemoryPlan({"policy weights": 14e9, "hidden states below": 8e9}, {"KV cache": 5e9}, {"activations": 30e9})
    preflight.check_memory(plan, 80e9)
    assert capsys.readouterr().err == ""
    preflight.check_memory(plan, 24e9)
    assert capsys.readouterr().err.startswith("warning: the plan's peak is 52.0 GB, the GPU has 24.0 GB")
    with pytest.raises(UserError, match=r"^cluster.device: the run holds 14.0 GB .*the GPU has 12.0 GB; lower"):
        preflight.check_memory(plan, 12e9)
