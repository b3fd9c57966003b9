"""Damaged checkpoints: never loaded as good, always a message that names the file, always the one before used."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.files.identity import Identity
from starling_train.run import manifest
from starling_train.run.checkpoints import FILES, Checkpoints, known_base
from starling_train.run.state import TrainState

BASE = Identity("0" * 64, {"model.safetensors": {"stat": ["/m", 1], "sha256": "1" * 64}})
NAMES = (*FILES, manifest.NAME)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((20, 3), float(step)), "b": torch.full((7,), step, dtype=torch.bfloat16)}


def state(step: int) -> TrainState:
    moments = {"count": 8, "mean": 0.5, "squares": 2.0}
    return TrainState(
        step, 8 * step, {"kl": {"coefficient": 0.1}, "scores": moments}, 1.5, "abc", best_score=0.5, best_step=1
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder, 2, BASE)
    for step in (1, 2):
        checkpoints.save(tensors(step), tensors(-step), state(step))
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def damage(path: Path, chance: random.Random) -> str:
    """Something that a disk, a full one, a copy that was cut off or a hand does to a file."""
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    kind = chance.choice(
        ("flip", "flip", "flip", "truncate", "truncate", "delete", "zeros", "longer", "empty", "folder")
    )
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del content[place:]
    elif kind == "zeros":
        end = min(len(content), place + 1 + chance.randrange(64))
        if not any(content[place:end]):
            content[place] = 1
        else:
            content[place:end] = bytes(end - place)
    elif kind == "longer":
        content += bytes([chance.randrange(256)])
    elif kind == "empty":
        content.clear()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "delete":
        path.write_bytes(content)
    return kind


@pytest.mark.parametrize("seed", range(200))
def test_damage_at_a_random_place_is_found(copy, capsys, seed):
    chance = random.Random(seed)
    path = copy / "step_000002" / NAMES[seed % len(NAMES)]
    kind = damage(path, chance)
    found = Checkpoints(copy, 2, BASE).newest()
    message = capsys.readouterr().err
    assert found.state == state(1), kind
    assert torch.equal(found.trainable["w"], tensors(1)["w"]) and torch.equal(found.optimizer["w"], tensors(-1)["w"])
    assert message.count("\n") == 1 and "step_000002" in message and path.name in message and "step_000001" in message


@pytest.mark.parametrize("name", NAMES)
def test_every_single_byte_of_a_file_counts(copy, capsys, name):
    path = copy / "step_000002" / name
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(manifest.Damaged, match=name):
            manifest.verify(path.parent, FILES)
    path.write_bytes(content)
    assert manifest.verify(path.parent, FILES).step == 2


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda values: values.pop("episodes"), "episodes"),
        (lambda values: values.update(step="2"), "wrong step"),
        (lambda values: values.update(step=3), "step 3"),
        (lambda values: values.update(step=True), "wrong step"),
        (lambda values: values.update(algorithm={"kl": 1}), "algorithm"),
        (lambda values: values.update(algorithm=[]), "algorithm"),
        (lambda values: values.update(algorithm={"kl": {"coefficient": None}}), "algorithm"),
        (lambda values: values.update(unlogged=3), "unlogged"),
        (lambda values: values.update(more=1), "more"),
        (lambda values: values.clear(), "lacks"),
    ],
)
def test_json_of_other_content_is_found_though_its_checksum_is_right(copy, capsys, change, said):
    folder = copy / "step_000002"
    values = json.loads((folder / "state.json").read_text())
    change(values)
    (folder / "state.json").write_text(json.dumps(values))
    manifest.write(folder, 2, BASE, FILES)
    assert Checkpoints(copy, 2, BASE).newest().state.step == 1
    message = capsys.readouterr().err
    assert "state.json" in message and said in message


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '"x"', '{"content": {}, "sha256": ""}', '{"content": 3}'])
def test_a_manifest_of_other_content_is_found(copy, capsys, text):
    (copy / "step_000002" / "manifest.json").write_text(text)
    assert Checkpoints(copy, 2, BASE).newest().state.step == 1
    assert "manifest.json" in capsys.readouterr().err


def test_files_that_are_no_safetensors_are_found_though_their_checksum_is_right(copy, capsys):
    (copy / "step_000002" / "optimizer.safetensors").write_bytes(b"\0" * 100)
    manifest.write(copy / "step_000002", 2, BASE, FILES)
    assert Checkpoints(copy, 2, BASE).newest().state.step == 1
    assert "safetensors" in capsys.readouterr().err


def test_a_renamed_folder_and_a_foreign_file_are_found(copy, capsys):
    shutil.copytree(copy / "step_000001", copy / "step_000007")
    (copy / "step_000002" / "notes.txt").write_text("mine")
    (copy / "step_000001" / ".hidden").write_text("the system's")
    assert Checkpoints(copy, 2, BASE).newest().state.step == 1
    message = capsys.readouterr().err
    assert "step_000007: manifest.json is that of step 1" in message and "notes.txt" in message


def test_what_is_named_otherwise_is_no_checkpoint(copy):
    shutil.copytree(copy / "step_000002", copy / "step_000009.bak")
    (copy / "step_000010").write_text("")
    assert Checkpoints(copy, 2, BASE).newest().state.step == 2


def test_without_a_whole_one_a_run_does_not_start_again(copy):
    for step in (1, 2):
        (copy / f"step_{step:06d}" / "state.json").unlink()
    with pytest.raises(UserError, match=r"run_dir: none .*step_000002: state\.json is missing; .*step_000001: state"):
        Checkpoints(copy, 2, BASE).newest()


def test_damaged_ones_do_not_push_out_a_whole_one(copy, capsys):
    for step in (3, 4):
        shutil.copytree(copy / "step_000002", copy / f"step_{step:06d}")
    checkpoints = Checkpoints(copy, 2, BASE)
    assert checkpoints.newest().state.step == 2
    checkpoints.save(tensors(3), tensors(-3), state(3))  # in the place of a damaged one
    assert sorted(path.name for path in copy.iterdir()) == ["step_000002", "step_000003"]
    again = Checkpoints(copy, 2, BASE)
    assert again.newest().state == state(3)
    (copy / "step_000003" / "optimizer.safetensors").write_bytes(b"")  # while the run goes on
    again.save(tensors(4), tensors(-4), state(4))
    again.save(tensors(5), tensors(-5), state(5))
    assert sorted(path.name for path in copy.iterdir()) == ["step_000004", "step_000005"]


def test_a_good_checkpoint_is_not_written_again(copy):
    checkpoints = Checkpoints(copy, 2, BASE)
    checkpoints.newest()
    before = (copy / "step_000002").stat().st_ino
    checkpoints.save(tensors(9), tensors(9), state(2))
    assert (copy / "step_000002").stat().st_ino == before


def test_one_that_is_newer_than_the_metrics_would_leave_a_gap(copy, capsys):
    assert Checkpoints(copy, 2, BASE).newest(logged=1).state.step == 1
    assert "metrics.jsonl, which ends with step 1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"newer than metrics\.jsonl, which is empty"):
        Checkpoints(copy, 2, BASE).newest(logged=-1)


def test_leftovers_of_a_kill_are_removed(copy):
    shutil.copytree(copy / "step_000002", copy / ".step_000003.partial")
    shutil.copytree(copy / "step_000001", copy / ".step_000000.old")
    assert Checkpoints(copy, 2, BASE).newest().state.step == 2
    assert sorted(path.name for path in copy.iterdir()) == ["step_000001", "step_000002"]


def test_what_is_known_of_the_base_model_comes_from_an_intact_manifest(copy, tmp_path):
    (copy / "step_000002" / "manifest.json").write_text("{}")
    assert known_base(copy) == BASE.files
    assert known_base(tmp_path / "none") == {}
