"""`report`: the page of any command's directory at any time, and of several runs over one another, without a model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import write_made_up
from synthetic_run import write_lines, write_run
from test_evaluation import bench, written
from test_page import Page

from starling_train import cli
from starling_train.comparison.curves import Curve
from starling_train.comparison.strategies import compare
from starling_train.config.evaluate import EvaluateConfig
from starling_train.config.evaluate import check as check_evaluate
from starling_train.config.export import ExportConfig
from starling_train.files.json_lines import to_line
from starling_train.report import comparison, first_screen, overlay
from starling_train.report.__main__ import main
from starling_train.report.read_run import read
from starling_train.run.directory import RunDirectory


def report(capsys, *arguments: str) -> str:
    """The page that the command writes, from the path that it prints."""
    main(arguments)
    (path,) = re.findall(r"^report: (.*)$", capsys.readouterr().out, re.M)
    with open(path, encoding="utf-8") as file:
        return file.read()


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A good run and one with a fault, under the same folder. Tests only read them."""
    folder = tmp_path_factory.mktemp("runs")
    return write_made_up(folder / "good"), write_made_up(folder / "kl_blow_up", "kl_blow_up")


def test_it_loads_no_model_and_draws_without_matplotlib(tmp_path):
    run = write_run(tmp_path / "run", steps=2, every=1)
    code = "import sys; from starling_train.report.__main__ import main; main(sys.argv[1:])\n"
    code += "print(sorted({'torch', 'transformers', 'matplotlib', 'hydra'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [f"report: {run / 'report.html'}", "[]"], done.stderr


def test_every_command_of_its_document_runs(two, tmp_path, capsys, monkeypatch):
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    lines = re.findall(r"^    starling report (.*?)(?: +#.*)?$", document, re.M)
    assert len(lines) == 3
    (tmp_path / "runs").mkdir()
    for name, run in zip(("toy", "other"), two, strict=True):
        shutil.copytree(run, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        report(capsys, *line.split())
    assert Path("runs/runs-report.html").is_file() and Path("both.html").is_file()
    assert (tmp_path / "runs" / "toy" / "report.html").is_file() and "runs/runs-report.html" in document


def test_a_run_that_a_kill_has_left(tmp_path, capsys):
    run = write_run(tmp_path / "run", steps=20, every=5)
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "rew')
    page = Page(report(capsys, str(run)))
    assert "Not finished, 20 of 20 steps so far" in page.text and "Judgement" in page.text
    assert "metrics.jsonl: 1 of 22 lines" in page.text


def test_a_search_of_laser_an_evaluation_and_a_scan(tmp_path, capsys):
    search = tmp_path / "laser"
    search.mkdir()
    row = {"step": 1, "module": "model.layers.0.mlp.up_proj", "before": 2.0, "after": 1.5, "accepted": True}
    write_lines(search / "tries.jsonl", [row])
    assert "1 of 1 tries kept" in report(capsys, str(search))
    assert "6.30 of 10" in report(capsys, str(written(tmp_path / "eval", bench())))
    scan = tmp_path / "scan"
    scan.mkdir()
    (scan / "snr.json").write_text(json.dumps({"model.layers.0.mlp.up_proj": {"snr": 2.5, "type": "mlp.up_proj"}}))
    assert ">2.5</td>" in report(capsys, str(scan))


def test_several_runs_share_each_plot(two, capsys):
    page = report(capsys, *map(str, two))
    parsed = Page(page)
    assert (two[0].parent / "runs-report.html").is_file()
    curves = re.findall(r'data-label="(good|kl_blow_up)"', page)
    assert curves.count("good") == curves.count("kl_blow_up") > 20
    assert {"reward", "kl", "length", "policy", "value"} <= set(parsed.plots())
    assert "Bad: far from the reference (KL)" in parsed.text and "Good: 13 of 13" in parsed.text
    assert "All settings are the same" in parsed.text  # but for their names
    (row,) = re.findall(r"<tr><td>KL to the reference</td>(.*?)</tr>", page)
    assert [float(value) for value in re.findall(r'value="([^"]*)"', row)] == [6.2, 114.9]


def test_what_differs_in_their_settings_is_a_table(two, tmp_path, capsys):
    other = write_made_up(tmp_path / "other")
    config = (other / "config.yaml").read_text().replace("coefficient: 0.01", "coefficient: 0.1")
    (other / "config.yaml").write_text(config + "token: sesame\n")
    page = report(capsys, str(two[0]), str(other), f"output={tmp_path / 'both.html'}")
    (table,) = re.findall(r"Where their settings differ</h2>(.*?)</section>", page, re.S)
    rows = {
        re.findall(r"<code>(.*?)</code>", row)[0]: re.findall(r"<code>(.*?)</code>", row)[1:]
        for row in table.split("<tr>")[2:]
    }
    assert rows == {"algorithm.kl.coefficient": ["0.01", "0.1"], "token": ["–", "***"]}
    assert (tmp_path / "both.html").is_file()
    names = overlay.labels([read(two[0]), read(other)])
    assert len(set(names)) == 2 and all(name.startswith("good (") for name in names)


def test_a_directory_of_compare(tmp_path, capsys):
    for strategy in ("snr", "none"):
        for seed in (0, 1):
            write_made_up(tmp_path / "runs" / strategy / f"seed_{seed}")
    assert "No comparison yet" in report(capsys, str(tmp_path))
    curves = [Curve(s, i, 10, [0, 2], [0.0, 2.0 + i], {"eval/function_calling": [0.0, x - i]}, {}, [])
              for s, x in (("snr", -1.0), ("none", -9.0)) for i in (0, 1)]  # fmt: skip
    compared = compare(curves, "snr")
    comparison.write(tmp_path, "demo", curves, compared, json.dumps(compared.to_json()))
    page = report(capsys, str(tmp_path))
    assert "<td>snr</td><td class=num>10</td><td class=num>2</td>" in page
    assert "data:image/png;base64," in page and "At equal reward" in page
    assert len(set(re.findall(r'data-label="(snr, seed 0|snr, seed 1|none, seed 0|none, seed 1)"', page))) == 4
    assert page.count("<td>none</td><td class=num>1</td><td class=num>2</td>") == 1  # every run


def test_a_comparison_of_a_former_version_is_read(tmp_path, capsys):
    write_made_up(tmp_path / "runs" / "snr" / "seed_0")
    interval = {"mean": -2.0, "half": 1.0, "count": 3}
    nothing = {"mean": None, "half": None, "count": 0}
    of = {"eval/function_calling": interval}
    sides = [
        {"strategy": name, "trained": 10, "reward": interval, "skills": of, "at_level": of, "steps_to_level": interval}
        for name in ("snr", "none")
    ]
    known = [{"strategy": "none", "of": "eval/function_calling", "value": value} for value in (interval, nothing)]
    former = {"reference": "snr", "level": 1.5, "sides": sides, "notes": ["As it was."]}
    former |= {"equal_steps": known[:1], "equal_reward": known[1:]}
    (tmp_path / "compare.json").write_text(json.dumps(former))
    page = report(capsys, str(tmp_path))
    assert "At equal reward (+1.50), function calling: snr is not comparable with none (no seed has both)." in page
    assert "3 seeds: snr is better than none (+2.00, +1.00 to +3.00)." in page and "As it was." in page
    assert "Every run" not in page and "At equal KL" not in page


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sides": [], "level": null}', '{"sides": [1]}'])
def test_a_broken_comparison_breaks_no_page(tmp_path, capsys, content):
    write_made_up(tmp_path / "runs" / "snr" / "seed_0")
    (tmp_path / "compare.json").write_text(content)
    assert "Curves" in report(capsys, str(tmp_path))


def test_mistakes_are_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", steps=0, every=1, slim=True)
    assert "nowhere is not a directory" in refused(capsys, str(tmp_path / "nowhere"))
    assert "holds none of config.yaml" in refused(capsys, str(tmp_path))
    assert "--fast: no such option" in refused(capsys, str(run), "--fast")
    assert "colour=red: no such option" in refused(capsys, str(run), "colour=red")
    assert "neither true nor false" in refused(capsys, str(run), "dry_run=maybe")
    assert "is a directory" in refused(capsys, str(run), f"output={tmp_path}")
    assert "make it first" in refused(capsys, str(run), f"output={tmp_path / 'x' / 'y.html'}")
    assert "no directory is given" in refused(capsys, "dry_run=true")
    main(["--version"])
    assert capsys.readouterr().out.startswith("starling ")
    main([str(run), "dry_run=true"])
    assert "(not written)" in capsys.readouterr().out and not (run / "report.html").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0 and "Usage: " in capsys.readouterr().out


def test_what_to_do_next_can_be_typed(two, monkeypatch):
    """Every command of the page is one that its command's own configuration takes."""
    run = read(two[0])
    lines = [line for _, line in first_screen.next_steps(run, [])]
    assert [re.match(r"starling (\w+)|\w+", line)[1] for line in lines] == [
        "export",
        "evaluate",
        None,
        "report",
    ]
    import shlex

    monkeypatch.chdir(two[0].parent)
    settings = cli.configuration(shlex.split(lines[0])[2:], ExportConfig, "export")
    assert (settings.run_dir, settings.output) == (str(two[0]), f"{two[0]}/export")
    settings = cli.configuration(shlex.split(lines[1])[2:], EvaluateConfig, "evaluate")
    check_evaluate(settings)
    assert (settings.model.path, settings.suites) == (f"{two[0]}/policy", ["function_calling"])
    assert settings.function_calling.path == "data/bfcl"
    assert lines[2] == f"vllm serve {two[0]}/policy"


def test_paths_that_a_shell_and_hydra_would_read_otherwise(tmp_path):
    import shlex

    for path in ("my runs/a", "a=b,c", "it's", "[x]", "{y: 1}", "a\\'b"):
        (argument,) = shlex.split(first_screen.argument("run_dir", path))
        assert cli.configuration([argument, "output=x"], ExportConfig, "export").run_dir == path


def test_next_steps_of_a_bad_run_an_unfinished_one_and_a_reward_model(two, tmp_path):
    from starling_train.report.judgement import verdict

    bad = read(two[1])
    lines = [line for _, line in first_screen.next_steps(bad, verdict.findings(bad))]
    assert lines[0] == "starling ppo +recipe=small name=kl_blow_up-2 ..."
    assert not any(line.startswith("vllm") or "checkpoint=" in line for line in lines)
    for step in ("step_000030", "step_000040"):
        (two[1] / "checkpoints" / step).mkdir(parents=True)
    lines = [line for _, line in first_screen.next_steps(bad, verdict.findings(bad))]
    assert lines[1].endswith(" checkpoint=step_000030")
    (two[1] / "summary.json").rename(tmp_path / "summary.json")
    words, line = first_screen.next_steps(read(two[1]), [])[0]
    (tmp_path / "summary.json").rename(two[1] / "summary.json")
    assert "same command again" in words and line == "starling ppo +recipe=small name=kl_blow_up"
    (tmp_path / "config.yaml").write_text("rm: {kind: starling_34b}\n")
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "rm/loss": 1.0}])
    lines = [line for _, line in first_screen.next_steps(read(tmp_path), [])]
    assert f"reward=starling_34b reward.path={tmp_path}/reward" in lines[-1]


def test_first_screen_names_recipe_model_reward_and_date(two, capsys):
    text = Page(report(capsys, str(two[0]))).text
    for part in (
        "recipe small",
        "started 29 November 2026, 01:44 UTC",
        "openchat/openchat-3.5-0106",
        "Starling-RM-7B-alpha",
    ):
        assert part in text


def test_a_start_is_noted_once_a_step_and_without_passwords(tmp_path, monkeypatch):
    from starling_train.config.ppo import PpoConfig

    config = PpoConfig(run_dir=str(tmp_path / "run"))
    run = RunDirectory(config)
    monkeypatch.setattr("sys.argv", ["ppo", "+recipe=toy", "reward.url=http://me:secret@host/x"])
    with run.owned():
        run.create()
        run.note_start(0)
        run.note_start(0)
        run.note_start(7)
    rows = [json.loads(line) for line in (run.path / "starts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 7]
    assert rows[0]["arguments"] == ["+recipe=toy", "reward.url=http://***@host/x"]
    assert first_screen.recipe(read(run.path)) == "toy" and "resumed once" in first_screen.status(read(run.path))


def test_a_run_extended_beyond_its_summary_is_not_finished(tmp_path):
    run = write_run(tmp_path / "run", steps=4, every=2, slim=True)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(to_line({"step": 5, "kl/reference": 1.0}))
    assert "Not finished, 5 of 4" in first_screen.status(read(run))
