"""The `compare` command on the toy: what it starts, what it does not start again, and what comes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from starling_train import compare
from starling_train.cli import configuration
from starling_train.config.fields import UserError
from starling_train.report import compare_page

ROOT = Path(__file__).parents[2]
TWO = ["+recipe=debug", "compare.only=[snr,random]"]


def by_hand(directory, strategy, seed, gain=2.0, loss=4.0):
    """A finished run of the debug recipe's two steps."""
    return write_finished(directory / "runs" / strategy / f"seed_{seed}", seed, gain, loss)


def write_finished(run, seed, gain, loss):
    run.mkdir(parents=True)
    rows = [
        {"step": step, "eval/score_mean": gain * step / 2 + 0.1 * seed, "eval/function_calling": 90.0 - loss * step / 2}
        for step in (0, 1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"finished": True, "steps": 2, "trainable": {"parameters": 1000}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "report.html").touch()
    return run


@pytest.fixture
def command(toy, tmp_path, monkeypatch, capsys):
    """Runs compare here, without a process of its own; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["compare", *arguments])
        code = 0
        try:
            compare.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def no_run_starts(monkeypatch):
    monkeypatch.setattr(
        "starling_train.comparison.children._start", lambda child: pytest.fail(f"{child.name} was started")
    )


def test_a_dry_run_lists_the_runs_and_what_they_train_and_writes_nothing(command, tmp_path, no_run_starts):
    code, out, error = command("+recipe=debug", "compare.seeds=2", "dry_run=true", "algorithm.steps=3")
    assert (code, error) == (0, "") and not list(tmp_path.iterdir())
    lines = out.splitlines()
    assert lines[0] == "12 runs in runs/debug-compare, 0 of them finished"
    trains = dict(line.split(": trains ") for line in lines[1:7])
    assert list(trains) == ["snr", "lowest", "random", "last_layers", "lora", "none"]
    counts = {name: int(text.split()[0].replace(",", "")) for name, text in trains.items()}
    assert counts["lora"] < counts["snr"] == counts["lowest"] == counts["random"] == counts["last_layers"]
    assert counts["none"] == max(counts.values())
    assert lines[7].startswith("snr/seed_0: python -m starling_train.ppo +recipe=debug algorithm.steps=3 ")
    assert lines[18].startswith("none/seed_1: ") and lines[18].endswith(
        "seed=1 'run_dir='\"'\"'runs/debug-compare/runs/none/seed_1'\"'\"''"
    )
    assert "compare.seeds" not in "".join(lines[7:]) and "freeze.last_layers=1 " in lines[10]


def test_over_a_recipe_with_adapters_the_plain_strategies_have_none(command, no_run_starts):
    code, out, error = command("+recipe=toy_lora", "compare.seeds=1", "dry_run=true")
    assert (code, error) == (0, "")
    plain = command("+recipe=toy", "compare.seeds=1", "dry_run=true")[1]
    assert [line for line in out.splitlines() if "trains" in line] == [
        line for line in plain.splitlines() if "trains" in line
    ]


def test_what_is_finished_is_not_run_again_but_compared(command, tmp_path, no_run_starts):
    place = tmp_path / "a b, it's"
    for seed in range(3):
        by_hand(place, "snr", seed)
        by_hand(place, "random", seed, loss=6.0)
        by_hand(place, "old", seed, gain=1.0)
    (by_hand(place, "old", 10) / "summary.json").unlink()
    code, out, error = command(*TWO, "compare.seeds=3", 'run_dir="a b, it\'s"')
    assert (code, error) == (0, "")
    assert out.startswith("6 runs in a b, it's, 6 of them finished\nAt equal reward (+1.00)\n| strategy |")
    found = json.loads((place / "compare.json").read_text(), parse_constant=pytest.fail)
    assert [side["strategy"] for side in found["sides"]] == ["snr", "old", "random"]
    assert found["level"] == 1.0 and found["notes"] == [
        "old seed 10 is not finished, and is left out.",
        "Equal reward is the most that old seed 0 reached (+1.00); the median run reached +2.00.",
    ]
    by_name = {side["strategy"]: side for side in found["sides"]}
    # random loses 6 for 2, so 3 for 1; old 4 for 1
    assert by_name["random"]["at_level"]["eval/function_calling"]["mean"] == pytest.approx(-3.0)
    assert by_name["old"]["at_level"]["eval/function_calling"]["mean"] == pytest.approx(-4.0)
    assert (place / "compare.png").stat().st_size > 5000 and "At equal reward (+1.00)" in out


def test_more_seeds_and_more_steps_are_still_to_do(command, tmp_path):
    for strategy in ("snr", "random"):
        by_hand(tmp_path / "runs" / "debug-compare", strategy, 0)
    _, out, _ = command(*TWO, "compare.seeds=2", "dry_run=true")
    assert "4 runs in runs/debug-compare, 2 of them finished" in out
    assert "snr/seed_0: finished\n" in out and "snr/seed_1: python" in out
    _, out, _ = command(*TWO, "compare.seeds=1", "algorithm.steps=3", "dry_run=true")
    assert "2 runs in runs/debug-compare, 0 of them finished" in out


def test_runs_with_other_settings_are_refused(command, tmp_path, no_run_starts):
    run = by_hand(tmp_path / "there", "snr", 0)
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "optim": {"learning_rate": 5.0}}))
    code, out, error = command(*TWO, "compare.seeds=1", "run_dir=there")
    assert (code, out) == (2, "") and error.count("\n") == 1
    assert error.startswith("error: run_dir: there/runs/snr/seed_0 holds a run with other settings (")


def test_without_a_run_of_the_reference_there_is_no_comparison_yet(command, tmp_path, no_run_starts):
    by_hand(tmp_path / "there", "random", 0)
    code, out, _ = command("+recipe=debug", "compare.only=[random]", "compare.seeds=1", "run_dir=there")
    assert code == 0 and "no comparison yet: no run of snr" in out
    assert not (tmp_path / "there" / "compare.json").exists()


def test_a_run_that_fails_leaves_the_comparison_of_the_others(command, tmp_path, monkeypatch):
    by_hand(tmp_path / "there", "snr", 0)

    def run(children, **more):
        raise UserError(f"{children[0].name} failed")

    monkeypatch.setattr("starling_train.comparison.children.run", run)
    code, out, error = command(*TWO, "compare.seeds=1", "run_dir=there")
    assert code == 2 and error == "error: random/seed_0 failed\n" and "At the last step" in out
    assert (tmp_path / "there" / "compare.md").is_file()


def test_what_finished_runs_did_not_measure_is_told_before_others_train(command, tmp_path, no_run_starts):
    by_hand(tmp_path / "there", "snr", 0)
    code, _, error = command(*TWO, "compare.seeds=2", "run_dir=there", "compare.skills=[eval/length_mean]")
    assert code == 2 and error.count("\n") == 1
    assert "there/runs/snr/seed_0/metrics.jsonl has no eval/length_mean; leave it out of compare.skills" in error


SEARCH = ("compare.search=[0.001,0.004]", "compare.search_seeds=2", "compare.seeds=2")


def test_a_dry_run_lists_the_search_and_the_runs_that_follow_it(command, tmp_path, no_run_starts):
    code, out, error = command(*TWO, *SEARCH, "dry_run=true")
    assert (code, error) == (0, "") and not list(tmp_path.iterdir())
    lines = out.splitlines()
    assert lines[0] == "8 runs of the search for learning rates in runs/debug-compare, 0 of them finished"
    assert lines[1] == "4 runs in runs/debug-compare, 0 of them finished"
    named = dict(line.split(": ", 1) for line in lines[4:])
    assert list(named)[:4] == [
        f"search/{name}/{rate}/seed_1000" for name in ("snr", "random") for rate in (0.001, 0.004)
    ]
    assert " optim.learning_rate=0.004 " in named["search/random/0.004/seed_1001"]
    assert "search/random/0.004/seed_1001'" in named["search/random/0.004/seed_1001"] and len(named) == 12
    # of the search only the reward counts, at the last step
    measured = " evaluation.every=2 'evaluation.suites=[]' 'guard.skills=[]' "
    assert all((measured in line) == name.startswith("search/") for name, line in named.items())
    assert named["random/seed_1"].startswith(
        "after the search, with optim.learning_rate as found there: python -m starling_train.ppo +recipe=debug "
    )


def test_each_strategy_runs_with_the_rate_that_the_search_found(command, tmp_path, monkeypatch):
    """What trains is replaced: a run gains most with 0.001 of snr, with 0.004 of random."""
    started = []

    def train(children, at_once, say):
        started.append(children)
        for child in children:
            run = Path(child.arguments[-1].partition("run_dir=")[2].strip("'"))
            rate = [float(a.partition("=")[2]) for a in child.arguments if a.startswith("optim.learning_rate=")][-1]
            gain = 3.0 if rate == {"snr": 0.001, "random": 0.004}[run.parts[2]] else 1.0
            write_finished(run, int(run.name.removeprefix("seed_")), gain, 2.0)
            (run / "config.yaml").write_text(yaml.safe_dump({"optim": {"learning_rate": rate}}))

    monkeypatch.setattr("starling_train.comparison.children.run", train)
    monkeypatch.setattr("starling_train.run.directory.RunDirectory._refuse_other_settings", lambda *_: None)
    # a rate of the strategy's own gives way
    own = "compare.strategies.random=['freeze.method=random','freeze.adapter=null','optim.learning_rate=0.5']"
    code, out, error = command(*TWO, *SEARCH, own, "run_dir=there")
    assert (code, error) == (0, ""), error
    assert [len(children) for children in started] == [8, 4]
    assert [child.name for child in started[1]] == ["snr/seed_0", "random/seed_0", "snr/seed_1", "random/seed_1"]
    assert configuration(started[1][1].arguments[1:]).optim.learning_rate == 0.004
    assert "snr: learning rate 0.001, by the search\nrandom: learning rate 0.004, by the search\n" in out
    text = (tmp_path / "there" / "compare.md").read_text()
    assert "| random | 1,000 | 0.004 | 2 | +3.00 ± 0.00 |" in text and "| snr | 1,000 | 0.001 | 2 |" in text
    assert "| snr | 0.001 (chosen) | +3.00 | +3.00 | +3.00 |" in text and "| snr | 0.004 | +1.00 |" in text
    assert "snr runs with the smallest learning rate that was tried (0.001)" in text
    found = json.loads((tmp_path / "there" / "compare.json").read_text(), parse_constant=pytest.fail)
    assert [(one["strategy"], one["rate"]) for one in found["search"]["tried"] if one["is_chosen"]] == [
        ("random", 0.004), ("snr", 0.001),
    ]  # fmt: skip
    page = compare_page.render(tmp_path / "there")
    assert "Search for learning rates" in page and "0.004 (chosen)" in page
    again = command(*TWO, *SEARCH, own, "run_dir=there")
    assert again[0] == 0 and started[2:] == [[]] and "4 runs in there, 4 of them finished" in again[1]


@pytest.mark.faults
def test_real_runs_that_are_stopped_and_started_again(toy, tmp_path):
    arguments = [*TWO, "compare.seeds=1", "algorithm.steps=1", "evaluation.every=1", "run_dir=a b,c"]
    arguments[-1] = "run_dir='a b,c'"
    place = tmp_path / "a b,c"

    def start(*more):
        return subprocess.Popen(
            [sys.executable, "-m", "starling_train.compare", *arguments, *more],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    first = start()
    end = time.monotonic() + 120
    while not (place / "runs" / "snr" / "seed_0" / "config.yaml").exists() and time.monotonic() < end:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    out, error = first.communicate(timeout=120)
    assert first.returncode == 143, (out, error)
    assert "snr/seed_0: started" in out and "random/seed_0" not in out and not (place / "compare.json").exists()
    assert not (place / "runs" / "snr" / "seed_0" / "policy").exists()

    out, error = start().communicate(timeout=300)
    assert "2 runs in a b,c, 0 of them finished" in out and "random/seed_0: done" in out and error == ""
    found = json.loads((place / "compare.json").read_text(), parse_constant=pytest.fail)
    assert [side["strategy"] for side in found["sides"]] == ["snr", "random"]
    for strategy in ("snr", "random"):
        run = place / "runs" / strategy / "seed_0"
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [0, 1] and (run / "report.html").exists()

    out, error = start().communicate(timeout=120)
    assert "2 of them finished" in out and "started" not in out and error == ""
    out, error = start("freeze.top_percent=100").communicate(timeout=120)
    assert "other settings (freeze.top_percent)" in error
