"""What `evaluate` measured, on the page: true to evaluation.json, safe, beside a run and on its own."""

import json
from pathlib import Path

import pytest
from synthetic_run import HOSTILE, write_run
from test_page import Page, rendered

from starling_train.report import evaluation
from starling_train.report.plots import radar
from starling_train.report.read_run import read

CATEGORIES = ("writing", "roleplay", "math", "coding")


def bench(model: str = "/models/starling", judge: str = "gpt-4", scores: tuple = (8.5, 7.25, 4.0, 5.5)) -> dict:
    parts = [{"category": name, "score": score} for name, score in zip(CATEGORIES, scores, strict=True)]
    return {
        "identity": {"suite": "mt_bench", "model": {"path": model, "sha256": "ab"}, "judge": {"model": judge}},
        "result": {"score": 6.3, "by_category": parts, "judge": {"model": judge}},
        "shown": {
            "lines": [[f"judge {judge}", "6.30 of 10", 158], [f"math, judge {judge}", "4.00 of 10", 20]],
            "notes": ["2 of 160 judgments failed: 2 no rating in the reply"],
        },
        "made": {"seconds": 61.5, "device": "CPU, 1 threads", "version": "0.1"},
    }


OLD = {  # as a version wrote it that knew models by a guess
    "identity": {"suite": "preference", "model": {"path": "/models/rm", "fingerprint": "cd"}},
    "result": {"accuracy": 0.8125, "pairs": 16, "by_distance": []},
    "made": {"seconds": 1.0},
}


def written(path: Path, *entries: dict) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "evaluation.json").write_text(json.dumps({"results": list(entries)}))
    return path


def test_a_directory_of_its_own_has_nothing_missing(tmp_path):
    page = rendered(written(tmp_path / "eval", bench(), OLD))
    for text in ("6.30 of 10", "judge gpt-4", "158", "2 of 160 judgments failed", "/models/starling", "0.8125"):
        assert text in page.text
    assert page.plots() == ["radar"]
    for text in ("What is missing", "How training went", "Not finished", "No step"):
        assert text not in page.text
    assert "evaluation report" in page.text and page.text.index("0.8125") < page.text.index(
        "6.30 of 10"
    )  # newest first


def test_beside_a_run_it_is_a_section_more(tmp_path):
    run = write_run(tmp_path / "run", slim=True)
    before = rendered(run)
    after = rendered(written(run, bench()))
    assert "Evaluation" in after.text and "radar" in after.plots() and "How training went" in after.text
    assert [plot for plot in after.plots() if plot != "radar"] == before.plots()
    assert "evaluation.json" not in before.text  # nothing is missing where it was not used


def test_hostile_names_and_numbers_are_text(tmp_path):
    entry = bench(model=HOSTILE.replace("\x00", ""), judge=HOSTILE)
    entry["shown"]["lines"] += [[HOSTILE, HOSTILE, HOSTILE], "no line", [1]]
    entry["shown"]["notes"] += [HOSTILE, "key_token: hunter2", 3]
    page = rendered(written(tmp_path / "eval", entry))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 1 and "img" not in names
    assert "hunter2" not in page.text


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "{}", '{"results": 3}', '{"results": [1, {}, {"identity": 1, "result": {}}]}', "\x00"],
)
def test_a_broken_file_breaks_no_page(tmp_path, content):
    run = write_run(tmp_path / "run", slim=True)
    (run / "evaluation.json").write_text(content)
    page = rendered(run)
    assert "How training went" in page.text and "radar" not in page.plots()


@pytest.mark.parametrize(
    "change",
    [
        {"by_category": None},
        {"by_category": [1, "x", {}]},
        {"by_category": [{"category": "math", "score": None}]},
        {"by_category": [{"category": c, "score": 5} for c in ("a", "b")]},
        {"judge": "x"},
    ],
)
def test_a_result_of_another_shape_breaks_no_page(tmp_path, change):
    entry = bench()
    entry["result"] |= change
    entry["made"], entry["shown"] = [], {"lines": 3, "notes": {}}
    rendered(written(tmp_path / "eval", entry))


def test_the_radar_has_a_curve_a_result_on_one_axis_a_category():
    curves = {"a": dict(zip(CATEGORIES, (1, 2, 3, 4), strict=True)), "b": {"writing": 5.0, "stem": 6.0}}
    svg = radar.radar_svg(curves)
    page = Page(svg)
    for name in (*CATEGORIES, "stem", "a", "b"):
        assert name in page.text
    assert svg == radar.radar_svg(curves)  # the same files give the same bytes
    assert radar.radar_svg({"a": {"math": 1.0, "stem": 2.0}}) == ""


def test_scores_without_a_rating_are_left_out(tmp_path):
    entry = bench(scores=(8.5, None, 4.0, 5.5))
    run = read(written(tmp_path / "eval", entry))
    assert evaluation.category_scores(run.evaluation[0]) == {"writing": 8.5, "math": 4.0, "coding": 5.5}
