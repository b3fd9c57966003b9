import pytest

from starling_train.run.tracker import TRACKERS, NoTracker


def test_disabled_tracks_nothing(tmp_path):
    nothing = TRACKERS["disabled"]("disabled", "run", tmp_path, {}, None)
    nothing.log({"step": 1})
    nothing.finish()
    assert isinstance(nothing, NoTracker) and nothing.id is None and list(tmp_path.iterdir()) == []


def test_offline_wandb_writes_beside_the_run_and_keeps_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an extra")
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = TRACKERS["offline"]("offline", "run", tmp_path, {"seed": 0}, None)
    first.log({"step": 1, "x": float("nan")})
    first.finish()
    for known in (first.id, None):  # from a checkpoint, and after an end before the first one
        again = TRACKERS["offline"]("offline", "run", tmp_path, {"seed": 0}, known)
        again.finish()
        assert again.id == first.id
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 3
