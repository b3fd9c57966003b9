"""The `laser` command on the toy: lower rank at no loss, a log that says how, files that others can read."""

import json
import math
import shutil
import signal

import pytest
import torch
from fault_process import Started
from laser_runs import MARGIN, MATRICES, TOY, finish, start, tries
from model_directories import load_causal_lm, load_tokenizer
from safetensors.torch import load_file

from starling_train.core import rank_reduction, spectrum
from starling_train.data import preferences
from starling_train.data.chat import Chat
from starling_train.evals import perplexity
from starling_train.models.budget import Budget
from starling_train.rank_search import margin


def replayed(base, run) -> dict[str, torch.Tensor]:
    """The base model's tensors with the log's accepted tries done again."""
    weights = load_file(base / "model.safetensors")
    for row in tries(run):
        if row["accepted"]:
            matrix = weights[f"{row['module']}.weight"]
            weights[f"{row['module']}.weight"] = rank_reduction.truncate(matrix, row["rank"]).matrix(matrix.dtype)
    return weights


@pytest.fixture(scope="module")
def by_perplexity(toy, tmp_path_factory):
    return finish(tmp_path_factory.mktemp("perplexity"), "laser.factored=true")


@pytest.fixture(scope="module")
def by_margin(toy, tmp_path_factory):
    return finish(tmp_path_factory.mktemp("margin"), *MARGIN)


@pytest.mark.parametrize("which", ["by_perplexity", "by_margin"])
def test_the_log_replays_to_the_same_model(which, toy, request):
    run = request.getfixturevalue(which)
    rows = tries(run)
    assert [row["step"] for row in rows] == list(range(1, MATRICES + 1))
    assert [row["raw_snr"] for row in rows] == sorted(row["raw_snr"] for row in rows)
    assert len({row["module"] for row in rows}) == MATRICES
    expected, written = replayed(toy / "policy", run), load_file(run / "model" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, written[name]), name
    base = load_file(toy / "policy" / "model.safetensors")
    changed = {f"{row['module']}.weight" for row in rows if row["accepted"]}
    assert {name for name in base if not torch.equal(base[name], written[name])} == changed != set()
    for row in rows:
        assert row["rank"] == spectrum.snr(base[f"{row['module']}.weight"]).rank
        if row["accepted"]:
            found = torch.linalg.matrix_rank(written[f"{row['module']}.weight"].double(), rtol=1e-6)
            assert found == row["rank"] < row["rank_before"]


def test_perplexity_does_not_rise_and_the_model_loads_anywhere(by_perplexity, toy):
    """The numbers of the summary are those of the model that was written, on the same text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = json.loads((by_perplexity / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["tries"] == MATRICES and 0 < summary["accepted"] < MATRICES
    assert summary["judging"]["after"] <= summary["judging"]["before"]
    assert summary["judging"]["count"] == summary["held_out"]["count"] == 24
    AutoTokenizer.from_pretrained(by_perplexity / "model")
    model = AutoModelForCausalLM.from_pretrained(by_perplexity / "model").eval()
    tokenizer = load_tokenizer(toy / "policy")
    documents = perplexity.load(toy / "nectar")
    before = load_causal_lm(toy / "policy", dtype="float32")
    windows = perplexity.cut(documents, Chat(tokenizer), 512)
    measured = [perplexity.evaluate(one, windows, Budget("b", 8192)) for one in (before, model)]
    # 1300 documents of which 48 were seen by the run
    assert measured[1].perplexity <= measured[0].perplexity * 1.001
    last = tries(by_perplexity)[-1]
    assert summary["judging"]["after"] == (last["after"] if last["accepted"] else last["before"])


def test_preferred_answers_do_not_become_less_likely(by_margin, toy):
    summary = json.loads((by_margin / "summary.json").read_text())
    assert summary["accepted"] > 0 and summary["measure"] == "preference_margin" and summary["unit"] == "pairs"
    assert summary["judging"]["after"] >= summary["judging"]["before"] > 0
    tokenizer = load_tokenizer(toy / "policy")
    pairs, _ = margin.pairs(preferences.load(toy / "nectar")[:300], Chat(tokenizer), 512)
    found = [
        margin.evaluate(load_causal_lm(place, dtype="float32"), pairs, Budget("b", 8192))
        for place in (toy / "policy", by_margin / "model")
    ]
    assert found[1].mean >= found[0].mean - 0.002


def test_factors_hold_fewer_numbers_and_compute_the_same(by_perplexity):
    from starling_train.models.factored import load_factored

    summary = json.loads((by_perplexity / "summary.json").read_text())
    accepted = [row for row in tries(by_perplexity) if row["accepted"]]
    saved = sum(max(0, row["parameters"] - row["factored_parameters"]) for row in accepted)
    assert summary["parameters_saved_by_factors"] == saved == summary["parameters"] - summary["parameters_factored"] > 0
    dense = load_causal_lm(by_perplexity / "model", dtype="float32").eval()
    thin = load_factored(by_perplexity / "factored", dtype="float32")
    assert sum(parameter.numel() for parameter in thin.parameters()) == summary["parameters_factored"]
    ids = torch.arange(300, 340)[None]
    torch.testing.assert_close(thin(ids).logits, dense(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_report_has_every_try(by_perplexity):
    page = (by_perplexity / "report.html").read_text()
    rows = tries(by_perplexity)
    assert all(f"<code>{row['module'].removeprefix('model.')}</code>" in page for row in rows)
    assert f"Finished, {sum(row['accepted'] for row in rows)} of {MATRICES} tries kept" in page
    assert page.count('<svg class="chart"') == 1
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_a_finished_run_does_nothing(by_perplexity):
    before = {path: path.stat().st_mtime_ns for path in by_perplexity.rglob("*")}
    process = Started("laser", ["run_dir=run", *TOY, "laser.factored=true"], by_perplexity.parent)
    assert process.wait() == 0 and "is finished, nothing to do" in process.out()
    assert {path: path.stat().st_mtime_ns for path in by_perplexity.rglob("*")} == before
    assert not (by_perplexity / "accepted").exists() and not list(by_perplexity.rglob(".*"))


def test_other_weights_settings_or_data_are_another_run(by_margin, toy, tmp_path):
    shutil.copytree(toy / "policy", tmp_path / "policy")
    weights = [f"model.path={tmp_path / 'policy'}"]
    process = start(tmp_path, *MARGIN, *weights)
    process.wait_until(lambda: (process.run / "tries.jsonl").exists())
    process.send(signal.SIGKILL)
    process.wait()
    tensors = load_file(tmp_path / "policy" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    again = start(tmp_path, *MARGIN, *weights)
    assert again.wait() == 2 and "was begun with other weights" in again.error()
    other = start(tmp_path, "laser.measure=perplexity", *weights)
    assert other.wait() == 2 and "holds a run with other settings (laser.measure)" in other.error()
    shutil.copyfile(toy / "policy" / "model.safetensors", tmp_path / "policy" / "model.safetensors")
    begun = json.loads((process.run / "start.json").read_text())
    (process.run / "start.json").write_text(json.dumps(begun | {"data": "other"}))
    data = start(tmp_path, *MARGIN, *weights)
    assert data.wait() == 2 and "was begun with other text or pairs" in data.error()


def test_a_dry_run_says_what_would_be_tried(run_command, toy, tmp_path):
    done = run_command("laser", *TOY, "dry_run=true", "laser.types=[mlp.down_proj]")
    assert done.returncode == 0, done.stderr
    assert "would try 2 of 14 matrices" in done.stdout and "perplexity on 24 windows" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_half_precision_and_plain_text(small_models, tmp_path):
    """Judged in bfloat16, truncated and written in the checkpoint's own float32."""
    (tmp_path / "text.txt").write_text("Hello hello. " * 30)
    arguments = [
        f"model.path={small_models / 'policy'}", f"perplexity.path={tmp_path / 'text.txt'}", "cluster.device=cpu",
        "laser.layers=[1]", "laser.window=32", "laser.percent=50", "run_dir=run",
    ]  # fmt: skip
    process = Started("laser", arguments, tmp_path)
    assert process.wait() == 0, process.error()
    assert "held out" in process.out()
    expected = replayed(small_models / "policy", process.run)
    written = load_file(process.run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in expected.items())
    assert written["model.norm.weight"].dtype == torch.float32
    assert len(tries(process.run)) == 3 and all(math.isfinite(row["after"]) for row in tries(process.run))
