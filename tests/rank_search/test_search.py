"""The greedy search on a real checkpoint: what is kept, what is put back, and what survives a kill."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_directories import load_causal_lm, scan, source
from safetensors.torch import load_file

from starling_train.config.fields import UserError
from starling_train.files.json_lines import JsonLines
from starling_train.rank_search import search
from starling_train.rank_search import search as rank_search
from starling_train.rank_search.search import Search, SearchJudge
from starling_train.run.signals import StopRequest
from starling_train.selection.records import Record


@pytest.fixture(scope="module")
def checkpoint(small_models):
    return small_models / "policy"


@pytest.fixture(scope="module")
def candidates(checkpoint):
    return rank_search.order(scan(checkpoint), [], [0, 2], [], 100.0)[0][:6]


def made(checkpoint, candidates, run, measures, factors=False) -> Search:
    """A search whose measure is what a list says: decisions are the test's, everything else is real."""
    values = iter(measures)
    model = load_causal_lm(checkpoint, dtype="float32")
    judge = SearchJudge("perplexity", lambda: next(values), lambda after, before: after <= before)
    run.mkdir(exist_ok=True)
    return Search(model, source(checkpoint), candidates, judge, 10.0, run, factors)


def go(search: Search, tries: int = 100) -> list[dict]:
    """Make at most so many tries, as a run that is then killed."""
    rows = []
    with StopRequest(10.0) as stop:
        for row in search.go_on(JsonLines(search.run / rank_search.LOG), stop):
            rows.append(row)
            if len(rows) == tries:
                break
    return rows


MEASURES = [9.0, 9.5, 9.0, math.nan, math.inf, 8.0]
KEPT = [True, False, True, False, False, True]


def expected(checkpoint, candidates) -> dict[str, torch.Tensor]:
    """The checkpoint with the kept matrices truncated, by numpy."""
    weights = load_file(checkpoint / "model.safetensors")
    for record, kept in zip(candidates, KEPT, strict=True):
        if kept:
            u, s, vt = np.linalg.svd(weights[record.parameter].double().numpy(), full_matrices=False)
            k = int((s > record.threshold).sum())
            weights[record.parameter] = torch.from_numpy((u[:, :k] * s[:k]) @ vt[:k]).float()
    return weights


def same(model, weights) -> None:
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)


def test_what_is_not_worse_stays_and_everything_else_is_as_it_was(checkpoint, candidates, tmp_path):
    search = made(checkpoint, candidates, tmp_path / "run", MEASURES)
    rows = go(search)
    assert [row["accepted"] for row in rows] == KEPT
    assert [row["before"] for row in rows] == [10.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    assert [row["raw_snr"] for row in rows] == sorted(record.raw for record in candidates)
    assert all(row["rank"] < row["rank_before"] == min(row["shape"]) for row in rows)
    same(search.model, expected(checkpoint, candidates))
    start = load_file(checkpoint / "model.safetensors")
    reduced = {record.parameter for record, kept in zip(candidates, KEPT, strict=True) if kept}
    for name, tensor in search.model.state_dict().items():
        assert torch.equal(tensor, start[name]) == (name not in reduced), name
    assert search.current() == 8.0
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (search.run / "tries.jsonl").open()]
    assert [line["after"] for line in lines] == [9.0, 9.5, 9.0, None, None, 8.0]


@pytest.mark.parametrize("tries", range(1, 6))
def test_a_search_goes_on_where_it_was_left_and_comes_out_the_same(checkpoint, candidates, tmp_path, tries):
    straight = made(checkpoint, candidates, tmp_path / "straight", MEASURES)
    go(straight)
    go(made(checkpoint, candidates, tmp_path / "run", MEASURES[:tries]), tries)
    log = tmp_path / "run" / "tries.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": ')  # a kill in the middle of a line
    again = made(checkpoint, candidates, tmp_path / "run", MEASURES[tries:])
    go(again)
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    timeless = [[row | {"seconds": 0} for row in search.rows()] for search in (straight, again)]
    assert timeless[0] == timeless[1]


def test_a_lost_matrix_is_made_again_and_another_one_is_told(checkpoint, candidates, tmp_path):
    straight = made(checkpoint, candidates, tmp_path / "run", MEASURES)
    go(straight)
    files = sorted((tmp_path / "run" / "accepted").iterdir())
    assert len(files) == 3
    files[0].unlink()
    files[1].write_bytes(b"half")
    again = made(checkpoint, candidates, tmp_path / "run", [])
    assert go(again) == []
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    files[2].unlink()
    other = [replace(record, rank=record.rank - 1) for record in candidates]
    with pytest.raises(UserError, match="does not compute the same"):
        go(made(checkpoint, other, tmp_path / "run", []))


def test_a_log_of_other_matrices_is_refused(checkpoint, candidates, tmp_path):
    go(made(checkpoint, candidates, tmp_path / "run", MEASURES), 2)
    with pytest.raises(UserError, match=r"run_dir: .*tries\.jsonl has tries of other matrices"):
        go(made(checkpoint, candidates[::-1], tmp_path / "run", []))


def test_factors_are_kept_where_they_are_smaller(checkpoint, candidates, tmp_path):
    search = made(checkpoint, candidates, tmp_path / "run", MEASURES, factors=True)
    go(search)
    for row, record in search.accepted().values():
        found = search.matrix(row, record)
        assert ("left" in found) == (row["factored_parameters"] < row["parameters"])
        if "left" in found:
            torch.testing.assert_close(found["left"] @ found["right"], found["matrix"], atol=1e-6, rtol=0)


def record(name: str, raw: float, rank: int = 2) -> Record:
    return Record(f"model.layers.{name}", name.split(".", 1)[1], (4, 8), raw=raw, rank=rank)


RECORDS = {
    found.module: found
    for found in (
        record("0.mlp.up_proj", 3.0),
        record("0.mlp.down_proj", 1.0),
        record("1.mlp.up_proj", math.inf, rank=4),
        record("1.mlp.down_proj", 2.0),
        record("2.mlp.up_proj", 0.5, rank=0),
    )
}


def names(records: list[Record]) -> list[str]:
    return [found.module.removeprefix("model.layers.") for found in records]


def test_the_lowest_raw_ratio_is_tried_first():
    everything, left_out = rank_search.order(RECORDS, [], [], [], 100.0)
    assert names(everything) == ["0.mlp.down_proj", "1.mlp.down_proj", "0.mlp.up_proj"]
    assert left_out == 2  # one would lose nothing, one everything
    assert names(rank_search.order(RECORDS, [], [], [], 40.0)[0]) == ["0.mlp.down_proj"]
    assert names(rank_search.order(RECORDS, [], [0], [], 100.0)[0]) == ["0.mlp.down_proj", "0.mlp.up_proj"]
    assert names(rank_search.order(RECORDS, [], [0], ["mlp.up_proj"], 100.0)[0]) == ["0.mlp.up_proj"]
    module = "model.layers.1.mlp.down_proj"
    assert names(rank_search.order(RECORDS, [module], [], [], 100.0)[0]) == ["1.mlp.down_proj"]
    assert search.count_requested(RECORDS, [], [0], [], 50.0) == 1
    with pytest.raises(UserError, match=r"laser\.percent: 10 % of 5"):
        search.count_requested(RECORDS, [], [], [], 10.0)
    with pytest.raises(UserError, match="both sides of the threshold"):
        rank_search.order(RECORDS, [], [2], [], 100.0)
