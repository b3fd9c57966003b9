"""Scans: what they measure, that they stream, and that an interrupted one ends in the same file."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_directories import check_scan, list_matrices, scan
from safetensors.torch import load_file, save_file

from starling_train.config.fields import UserError
from starling_train.config.sections import FreezeConfig
from starling_train.core import spectrum
from starling_train.models.source import ModelSource
from starling_train.selection import scans
from starling_train.selection.records import write_records
from starling_train.selection.scan import read_ahead
from starling_train.selection.scan_journal import ScanJournal, content_hash


@pytest.fixture
def model(tmp_path, tiny_mistral):
    directory = tmp_path / "model"
    tiny_mistral(layers=3).save_pretrained(directory)
    return directory


def test_scores_are_those_of_the_weights(model):
    tensors, records = load_file(model / "model.safetensors"), scan(model)
    assert len(records) == 21
    for module, record in records.items():
        weight = tensors[f"{module}.weight"]
        score = spectrum.snr(weight)
        assert record.shape == tuple(weight.shape) and record.dialect == "spectrum"
        assert {key: getattr(record, key) for key in vars(score)} == vars(score)


def test_list_without_weights(model):
    scanned = {module: (r.type, r.shape) for module, r in scan(model).items()}
    (model / "model.safetensors").unlink()
    listed = list_matrices(model)
    assert {module: (r.type, r.shape) for module, r in listed.items()} == scanned
    assert all(record.snr is None for record in listed.values())


def test_half_precision(model):
    tensors = load_file(model / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, model / "model.safetensors")
        name = "model.layers.1.mlp.up_proj"
        # the weights as they are stored, not as they were before rounding
        assert scan(model)[name].snr == spectrum.snr(tensors[f"{name}.weight"].to(dtype)).snr


def test_progress_and_dialect(model):
    seen = []
    records = scan(model, dialect="laserrmt", on_progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(i, 21) for i in range(1, 22)]
    assert [step[2] for step in seen] == list(records.values())
    assert {record.dialect for record in records.values()} == {"laserrmt"}


def test_reading_ahead_keeps_order_and_bounds_memory():
    loaded, used = [], []
    for item in read_ahead([5, 3, 8, 1], lambda x: (loaded.append(x), x)[1]):
        time.sleep(0.02)
        used.append(item)
        assert len(loaded) <= len(used) + 1  # never more than one ahead
    assert used == loaded == [5, 3, 8, 1]
    assert list(read_ahead([], lambda x: x)) == []
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda x: 1 / x))


def test_every_cut_of_the_journal_ends_in_the_same_file(model, tmp_path):
    journal_path, whole, resumed = tmp_path / "journal", tmp_path / "whole.json", tmp_path / "resumed.json"
    write_records(scan(model, journal=ScanJournal(journal_path)), whole)
    full = journal_path.read_bytes()
    for cut in [0, 1, len(full), *random.Random(0).sample(range(len(full)), 12)]:
        journal_path.write_bytes(full[:cut])
        journal = ScanJournal(journal_path)
        write_records(scan(model, journal=journal), resumed)
        assert resumed.read_bytes() == whole.read_bytes()
        assert sorted(journal_path.read_text().splitlines()) == sorted(full.decode().splitlines())
        assert journal.changed == []


def test_what_is_done_is_not_done_again(model, tmp_path, monkeypatch):
    records = scan(model, journal=ScanJournal(tmp_path / "journal"))
    monkeypatch.setattr(spectrum, "gram", None)  # any computation would fail
    assert scan(model, journal=ScanJournal(tmp_path / "journal")) == records
    # a finished scan serves as well as the journal
    assert scan(model, journal=ScanJournal(tmp_path / "other", records.values())) == records


def test_a_changed_checkpoint_is_noticed(model, tmp_path):
    before = scan(model, journal=ScanJournal(tmp_path / "journal"))
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    tensors[f"{name}.weight"][0, 0] += 0.5
    save_file(tensors, model / "model.safetensors")
    journal = ScanJournal(tmp_path / "journal")
    after = scan(model, journal=journal)
    assert journal.changed == [name]
    assert after[name].snr != before[name].snr
    assert {m: r for m, r in after.items() if m != name} == {m: r for m, r in before.items() if m != name}
    # and back again: the journal is keyed by content, so the first result is still there
    tensors[f"{name}.weight"][0, 0] -= 0.5


def test_another_dialect_is_scanned_again(model, tmp_path):
    scan(model, journal=ScanJournal(tmp_path / "journal"))
    again = scan(model, dialect="gavish_donoho", journal=ScanJournal(tmp_path / "journal"))
    assert again == scan(model, dialect="gavish_donoho")


def test_content_hash_sees_type_shape_and_values():
    zeros = torch.zeros(2, 3)
    hashes = [content_hash(t) for t in (zeros, zeros.T.contiguous(), zeros.half(), zeros + 1)]
    assert len(set(hashes)) == 4 and content_hash(zeros.clone()) == hashes[0]


def test_infinite_scores_come_back(tmp_path):
    from starling_train.selection.records import Record, read_records

    score = spectrum.snr(torch.diag(torch.tensor([3.0, 3.0, 3.0, 2.9])), "laserrmt")
    record = Record("model.layers.0.mlp.up_proj", "mlp.up_proj", (4, 4), **vars(score), dialect="laserrmt")
    write_records({record.module: record}, tmp_path / "snr.json")
    content = json.loads((tmp_path / "snr.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content[record.module]["snr"] is None
    assert read_records(tmp_path / "snr.json") == {record.module: record}
    assert read_records(tmp_path / "snr.json")[record.module].snr == float("inf")
    finite = replace(record, snr=1.5, raw=4.5)
    write_records({record.module: finite}, tmp_path / "snr.json")
    assert read_records(tmp_path / "snr.json") == {record.module: finite}


@pytest.mark.faults
def test_killed_ten_times_ends_in_the_same_file(tmp_path):
    """Ten SIGKILLs at random moments; matrices are large enough that the scan takes seconds."""
    generator = torch.Generator().manual_seed(0)
    model = tmp_path / "model"
    model.mkdir()
    names = [f"model.layers.{i}.mlp.{n}_proj.weight" for i in range(24) for n in ("gate", "up", "down")]
    save_file({n: torch.randn(640, 640, generator=generator).bfloat16() for n in names}, model / "model.safetensors")

    def start(run_dir: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "starling_train.snr", f"model.path={model}", f"run_dir={run_dir}"]
        root = Path(__file__).parents[2]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    assert start(tmp_path / "whole").wait() == 0
    killed, rng = 0, random.Random(0)
    while killed < 10:
        process = start(tmp_path / "killed")
        lines = 6 * killed + rng.randrange(1, 7)  # later each time: what is done is printed again
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "snr.json").exists()
    assert start(tmp_path / "killed").wait() == 0
    for name in ("snr.json", "snr_results_model.json", "unfrozen.yaml", "target_modules.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "killed" / "snr.partial.jsonl").exists()


def test_a_resumed_scan_of_a_zero_matrix_is_the_same(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].zero_()
    save_file(tensors, model / "model.safetensors")
    first = scan(model, journal=ScanJournal(tmp_path / "journal"))
    assert scan(model, journal=ScanJournal(tmp_path / "journal")) == first


def test_another_version_of_the_scan_finds_nothing_of_the_old(monkeypatch):
    old = content_hash(torch.ones(2, 3))
    monkeypatch.setattr(spectrum, "VERSION", spectrum.VERSION + 1)
    assert content_hash(torch.ones(2, 3)) != old


def test_a_change_is_told_even_after_an_interrupted_scan(model, tmp_path):
    before = scan(model)
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"  # the first to be scanned
    tensors[f"{name}.weight"][0, 0] += 0.5
    save_file(tensors, model / "model.safetensors")
    scan(model, journal=ScanJournal(tmp_path / "journal", before.values()))  # and killed before it wrote a result
    journal = ScanJournal(tmp_path / "journal")
    scan(model, journal=journal)
    assert journal.changed == [name]


def test_the_journal_survives_a_kill_while_it_is_rewritten(model, tmp_path, monkeypatch):
    scan(model, journal=ScanJournal(tmp_path / "journal"))
    whole = (tmp_path / "journal").read_bytes()
    write = Path.write_bytes

    def killed(path, content):
        write(path, content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        ScanJournal(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == whole


def test_lines_that_are_no_records_are_passed_over(model, tmp_path):
    records = scan(model, journal=ScanJournal(tmp_path / "journal"))
    whole = (tmp_path / "journal").read_text()
    wrong = ["3", "null", "[]", "{}", '{"module": "a"}', '{"module": "a", "snr": 1, "type": "t", "content": 3}']
    (tmp_path / "journal").write_text("\n".join([*wrong, whole]))
    assert scan(model, journal=ScanJournal(tmp_path / "journal")) == records
    assert (tmp_path / "journal").read_text() == whole


def test_a_scan_of_other_weights_or_another_dialect(model, tmp_path, tiny_mistral):
    records = scan(model)
    assert check_scan(model, records, "spectrum", "x.json") == ""
    with pytest.raises(UserError, match=r"^freeze\.dialect: laserrmt, but x\.json was scanned as spectrum; set"):
        check_scan(model, records, "laserrmt", "x.json")
    tiny_mistral(layers=3, seed=1).save_pretrained(tmp_path / "other")
    assert "x.json is of other weights than" in check_scan(tmp_path / "other", records, "spectrum", "x.json")
    published = {m: replace(r, content=None, dialect=None) for m, r in records.items()}
    assert check_scan(tmp_path / "other", published, "laserrmt", "x.json") == ""
    (model / "model.safetensors").unlink()
    assert check_scan(model, records, "spectrum", "x.json") == ""


def test_a_gpu_that_is_slow_in_float64_is_told_before_the_scan(tmp_path, tiny_mistral, monkeypatch, capsys):
    """The scan itself runs on the CPU: only what torch says of the GPU is made up."""
    tiny_mistral(layers=1).save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(scans, "scan_model", lambda source, **how: {})
    assert scans.scan_or_list(FreezeConfig(), ModelSource.open(str(tmp_path), "model.path"), "cuda") == {}
    told = capsys.readouterr().err
    assert told.startswith("note: NVIDIA GeForce RTX 4090 computes float64 at 1/64") and told.count("\n") == 1
    scans.scan_or_list(FreezeConfig(), ModelSource.open(str(tmp_path), "model.path"), "cpu")
    assert capsys.readouterr().err == ""
