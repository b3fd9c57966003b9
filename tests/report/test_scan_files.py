"""Files of a scan: which of them go, and what they are called."""

import pytest
from model_directories import source

from starling_train.models.source import ModelSource
from starling_train.report import scan
from starling_train.selection.records import Record, write_records
from starling_train.selection.scan_file import slug_of


def test_the_name_of_the_model(tmp_path):
    (tmp_path / "my-model").mkdir()
    assert slug_of(source(tmp_path / "my-model")) == "my-model"
    # the directory of a hub id's snapshot is called by its commit
    snapshot = ModelSource(tmp_path / "0a1b", "model.path", "openchat/openchat-3.5-0106")
    assert slug_of(snapshot) == "openchat-openchat-3.5-0106"


def test_an_earlier_scan_gives_way_to_its_journal(tmp_path):
    record = Record("model.layers.0.mlp.up_proj", "mlp.up_proj", (2, 2), snr=1.0, content="ab")
    write_records({record.module: record}, tmp_path / "snr.json")
    ours = ("unfrozen.yaml", "snr_results_m.json", f"spectrum_{record.module}.png")
    theirs = ("spectrum_of_light.png", "snr_results_other.json", "notes.json")
    for name in (*ours, *theirs):
        (tmp_path / name).write_text("")
    scan.retire(tmp_path, "m")
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "snr.partial.jsonl"}
    assert record.module in (tmp_path / "snr.partial.jsonl").read_text()


@pytest.mark.filterwarnings("error")
def test_a_matrix_of_zeros_is_drawn(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 6)}, tmp_path / "model.safetensors")
    figure = scan.draw_spectrum(source(tmp_path), "model.layers.0.mlp.up_proj", "spectrum", "cpu")
    scan.heatmap.save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size
