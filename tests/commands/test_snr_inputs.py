"""What the `snr` command checks around a scan."""

import pytest
import torch
from model_directories import source

from starling_train import snr
from starling_train.config.fields import UserError
from starling_train.config.sections import ModelConfig
from starling_train.config.snr import SnrConfig
from starling_train.run.runtime import device_kind
from starling_train.selection.records import Record


def test_a_run_directory_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match=r"^run_dir: .*file is a file"):
            snr.run_directory(SnrConfig(run_dir=str(run)))
    assert snr.run_directory(SnrConfig(run_dir=str(tmp_path / "new"))) == tmp_path / "new"


def test_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_kind("auto") == "cpu"
    with pytest.raises(UserError, match=r"^cluster\.device: no CUDA"):
        device_kind("cuda")


def test_weights_are_asked_for_where_they_are_needed(tmp_path, tiny_mistral):
    tiny_mistral(layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    config = SnrConfig(model=ModelConfig(path=str(tmp_path)), spectra=["model.layers.0.mlp.up_proj"], dry_run=True)
    assert len(snr.list_matrices(config, source(tmp_path))) == 7
    config.dry_run = False
    with pytest.raises(UserError, match=r"has no weights .* a scan needs them"):
        snr.list_matrices(config, source(tmp_path))
    config.freeze.scan = "x.json"
    with pytest.raises(UserError, match=r"has no weights .* spectra needs them"):
        snr.list_matrices(config, source(tmp_path))
    config.spectra = []
    assert len(snr.list_matrices(config, source(tmp_path))) == 7


def test_the_compared_scan_is_told_in_its_own_name():
    other = {f"model.layers.{i}.x": Record(f"model.layers.{i}.x", "x", snr=1.0 + i) for i in range(4)}
    config = SnrConfig(compare="o.json")
    assert snr.select_other(config, other) == ["model.layers.3.x"]
    config.freeze.max_trainable = 10
    with pytest.raises(UserError, match=r"^compare: o\.json: model\.layers\.3\.x has no shape"):
        snr.select_other(config, other)
    config.freeze.method = "none"
    assert snr.select_other(config, other) == list(other)
