"""Which model a directory holds: every byte counts, and a file is read again only if it may have changed."""

import json
import os

import pytest

from starling_train.files import identity

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in (A, B):
        (tmp_path / name).write_bytes(bytes(3 << 20))
    write_index(tmp_path, A, B)
    return tmp_path


def write_index(directory, *shards):
    named = {f"tensor of {shard}": shard for shard in shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were read."""
    names, real = [], identity.sha256
    monkeypatch.setattr(identity, "sha256", lambda path: names.append(path.name) or real(path))
    return names


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1")


@pytest.mark.parametrize("place", [0, 1_500_000, (3 << 20) - 1])
def test_a_byte_anywhere_makes_another_model(model, place):
    before = identity.identify(model)
    flip(model / B, place)
    assert identity.identify(model).sha256 != before.sha256


def test_configuration_and_names_count_and_other_files_do_not(model):
    before = identity.identify(model).sha256
    (model / "README.md").write_text("x")
    assert identity.identify(model).sha256 == before
    (model / "model.fp16.safetensors").write_bytes(b"weights that no reader opens")
    assert identity.identify(model).sha256 == before
    (model / A).rename(model / "c.safetensors")
    write_index(model, "c.safetensors", B)
    renamed = identity.identify(model).sha256
    (model / "config.json").write_text("{ }")
    assert len({before, renamed, identity.identify(model).sha256}) == 3


def test_a_file_is_read_again_only_if_it_may_have_changed(model, hashed):
    first = identity.identify(model)
    assert sorted(hashed) == ["config.json", A, B]
    hashed.clear()
    assert identity.identify(model, first.files) == first and hashed == []
    times = (model / B).stat()
    flip(model / B, 1_500_000)
    os.utime(model / B, ns=(times.st_atime_ns, times.st_mtime_ns))  # as cp -p and rsync -t do
    assert identity.identify(model, first.files).sha256 != first.sha256
    assert hashed == [B]


def test_another_directory_is_read_whatever_is_known(model, tmp_path_factory, hashed):
    known = identity.identify(model).files
    other = tmp_path_factory.mktemp("other")
    for path in model.iterdir():
        os.link(path, other / path.name)
    hashed.clear()
    assert identity.identify(other, known).sha256 == identity.identify(model).sha256
    assert sorted(set(hashed)) == ["config.json", A, B]
