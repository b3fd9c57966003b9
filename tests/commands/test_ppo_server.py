"""`ppo` with a served reward model: the same run, through a restart of the server, and a clean end when it is lost."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml
from fault_process import Started
from reward_server import Scripted, Served, honest

from starling_train import ppo


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {i} and {i}?"}) + "\n" for i in range(40)))
    return f"data.path={path}"


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def of_training(run: Path) -> list[dict]:
    """Metrics that do not depend on the clock."""
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "throughput/", "memory/"))} for r in rows(run)]


@pytest.fixture
def train(small_run, prompts, tmp_path, monkeypatch, capsys):
    """Runs ppo in this process against a server; gives exit code and stderr."""

    def run(port: int, *changes: str) -> tuple[int, str]:
        served = ["reward=server", f"reward.url=http://127.0.0.1:{port}", "reward.patience_s=0.3"]
        served += ["algorithm.steps=2", "evaluation.every=2", "checkpoint.every=0"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["ppo", *small_run, prompts, *served, *changes])
        code = 0
        try:
            ppo.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_a_server_lost_while_scoring_or_evaluating_loses_nothing(train, tmp_path):
    """With checkpoint.every=0: what is there after the loss was saved because of it. 8 prompts a step, 6 held out."""
    run = tmp_path / "run"
    with Scripted() as server:
        assert train(server.server_port, "run_dir=straight")[0] == 0

    def answer_until(scored: int, evaluated: int):
        def answer(request: dict) -> tuple[int, object]:
            count = len(request["conversations"])
            left[count] = left.get(count, 1000) - 1
            return honest(request) if left[count] >= 0 else (503, {"error": "gone"})

        left = {8: scored, 6: evaluated}
        return answer

    # of the first step the answers are scored, then three kinds of stand-ins; lost among these, it begins again
    for scored, evaluated, step in ((2, 1, 0), (4, 1, 1), (1, 0, 2)):
        with Scripted(answer=answer_until(scored, evaluated)) as server:
            code, error = train(server.server_port)
        assert code == 2
        last = error.splitlines()[-1]
        assert last.startswith("error: reward.url: http://127.0.0.1:") and "503: gone" in last
        assert (run / "checkpoints" / f"step_{step:06d}").is_dir() or not step  # step 0 is the beginning itself
        assert [row["step"] for row in rows(run)] == ([0, 1] if step else [0])
    with Scripted() as server:
        assert train(server.server_port)[0] == 0
    assert of_training(run) == of_training(tmp_path / "straight")
    assert json.loads((run / "summary.json").read_text())["finished"]


def test_no_server_at_the_start_writes_nothing(train, tmp_path):
    with Scripted() as server:
        port = server.server_port
    code, error = train(port)
    assert code == 2 and "gave no scores for 0.3 s" in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_step_and_restarted_10_s_later(small_models, small_run, prompts, tmp_path):
    """The run goes on and is the run of the reward model in the process itself."""
    settings = [*small_run, prompts, "algorithm.steps=8", "reward.max_length=13"]  # too short for some answers
    done = Started("ppo", [*settings, "run_dir=straight"], tmp_path)
    assert done.wait(280) == 0, done.error()

    model = [f"reward.path={small_models / 'reward'}", "reward.dtype=float32", "reward.max_length=13"]
    with Served(*model) as first:
        port = first.port
        served = ["reward=server", f"reward.url={first.url}", "reward.token_env=null"]
        process = Started("ppo", [*settings, *served], tmp_path)
        process.wait_until(lambda: len(lines(tmp_path / "run")) > 2, pause=0.01)
        first.process.send(signal.SIGKILL)
    killed_at = len(lines(tmp_path / "run"))
    time.sleep(10)
    assert process.running and len(lines(tmp_path / "run")) <= killed_at + 1
    with Served(*model, port=port) as second:
        assert second.url
        assert process.wait(280) == 0, process.error()
    assert "trying again" in process.error() and "answers again" in process.error()
    got, expected = of_training(tmp_path / "run"), of_training(tmp_path / "straight")
    assert [row["step"] for row in got] == list(range(9))
    assert sum(row["reward/truncated_answers"] for row in got[1:]) > 0  # the server tells of them
    for row, other in zip(got, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)


def lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []


@pytest.mark.slow
def test_a_run_says_when_another_server_answers(train, tmp_path):
    """What the server tells is in config.yaml and the report; a resumed run that finds another one says so.

    Slow: a whole run, started twice.
    """
    run = tmp_path / "run"
    with Scripted() as server:
        server.told = {"/health": {"kind": "starling_7b", "version": "1", "max_length": 2048}}
        code, error = train(server.server_port, "algorithm.steps=1", "evaluation.every=0")
        assert (code, error) == (0, "")
        first = yaml.safe_load((run / "config.yaml").read_text())["reward_server"]
        assert first.items() >= {"kind": "starling_7b", "max_length": 2048}.items()
        assert "(version 1, kind starling_7b, max_length 2048)" in (run / "report.html").read_text()

        server.told = {"/health": {"kind": "starling_7b", "version": "1", "max_length": 512}}
        code, error = train(server.server_port, "algorithm.steps=2", "evaluation.every=0")
    assert code == 0 and error.count("another server than the one that scored earlier steps (max_length 2048, now") == 1
    assert yaml.safe_load((run / "config.yaml").read_text())["reward_server"]["earlier"] == [first]
    assert "after 1 other in earlier starts" in (run / "report.html").read_text()
