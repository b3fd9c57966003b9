"""Numbers that are not finite, and memory that runs out, in the middle of a run."""

import json

import pytest
import torch

from starling_train import ppo
from starling_train.models.reward.model import RewardModel
from starling_train.report import page


@pytest.fixture
def run(small_run, tmp_path, monkeypatch):
    """Runs ppo in a fresh directory; gives the run's directory."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} and {i}?"}) + "\n" for i in range(40)))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str):
        # no stand-ins for answers are scored: the tests count how often the reward model is asked
        monkeypatch.setattr("sys.argv", ["ppo", *small_run, f"data.path={prompts}", "reward.probe=false", *arguments])
        ppo.main()
        return tmp_path / "run"

    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_score_that_is_not_finite_leaves_its_answer_out(run, monkeypatch):
    plain = RewardModel.score_ids
    calls = []

    def odd(self, encoded, *rest):
        scores = plain(self, encoded, *rest)
        calls.append(len(scores))
        if len(calls) == 3:  # before the first step comes an evaluation
            scores[5] = float("nan")
        return scores

    monkeypatch.setattr(RewardModel, "score_ids", odd)
    directory = run("optim.learning_rate=1e-3")
    metrics = lines(directory / "metrics.jsonl")
    assert [row.get("reward/unscored") for row in metrics] == [None, 0, 1, 0]
    assert all(row["optim/skipped"] == 0 for row in metrics[1:])
    (skipped,) = lines(directory / "skipped.jsonl")
    assert skipped["step"] == 2 and skipped["reason"] == "score"
    assert [message["role"] for message in skipped["conversation"]] == ["user", "assistant"]


def test_only_odd_scores_end_the_run_with_the_state_saved(run, monkeypatch, capsys, tmp_path):
    plain, calls = RewardModel.score_ids, []

    def odd(self, encoded, *rest):
        calls.append(1)
        return [float("inf")] * len(encoded) if len(calls) == 3 else plain(self, encoded, *rest)

    monkeypatch.setattr(RewardModel, "score_ids", odd)
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: reward: none of 8 scores")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]


def test_an_odd_log_prob_leaves_its_answer_out_and_the_kl_target_goes_on(run, monkeypatch):
    from starling_train.training.ppo import experience

    plain, calls = experience.forward_all, []

    def odd(*given):
        found = plain(*given)
        calls.append(1)
        if len(calls) == 2:
            found[2][4, 0] = float("nan")  # of the reference
        return found

    monkeypatch.setattr(experience, "forward_all", odd)
    directory = run("algorithm.kl.target=1.0", "algorithm.kl.horizon=20", "evaluation.every=0", "checkpoint.every=1")
    metrics = lines(directory / "metrics.jsonl")
    assert [row["optim/left_out"] for row in metrics] == [0, 1, 0]
    assert [row["optim/skipped"] for row in metrics] == [0, 0, 0]
    assert len({row["kl/coefficient"] for row in metrics}) == 3  # numbers, and the target still pulls
    (skipped,) = lines(directory / "skipped.jsonl")
    assert skipped["step"] == 2 and skipped["reason"] == "forward"


def test_many_skipped_updates_in_a_row_end_the_run_with_the_state_saved(run, monkeypatch, capsys, tmp_path):
    from starling_train.training.ppo import experience

    whiten, calls = experience.whiten, []

    def odd(values, mask, of):
        calls.append(1)
        return whiten(values, mask, of) * (1.0 if len(calls) == 1 else float("nan"))

    monkeypatch.setattr(experience, "whiten", odd)
    with pytest.raises(SystemExit) as stopped:
        run("algorithm.steps=30", "evaluation.every=0")
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: optim: ") and "optim.learning_rate" in line and "skipped.jsonl" in line
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["optim/skipped"] for row in metrics] == [0, 4, 4, 4]
    assert (tmp_path / "run" / "checkpoints" / f"step_{metrics[-1]['step']:06d}" / "state.json").is_file()
    skipped = lines(tmp_path / "run" / "skipped.jsonl")
    assert {row["reason"] for row in skipped} == {"update"}


def test_out_of_memory_goes_on_with_less_and_a_resume_remembers(run, monkeypatch, tmp_path, capsys):
    """Scoring, drawing and the update each run out of memory once."""
    from starling_train.rollout import slots
    from starling_train.training.ppo import experience, update

    def refuse_once(module, name):
        plain, refused = getattr(module, name), []

        def call(*arguments, **named):
            if not refused:
                refused.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return plain(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    refuse_once(experience, "forward_all")
    refuse_once(slots, "_Decoder")
    refuse_once(update, "_micro_batches")
    refuse_once(RewardModel, "_score_ids")
    directory = run("checkpoint.every=1")
    (state,) = (
        json.loads((path / "state.json").read_text()) for path in (directory / "checkpoints").glob("step_000003")
    )
    assert state["budgets"].keys() == {
        "algorithm.tokens_per_microbatch", "rollout.slots", "reward.tokens_per_batch"
    }  # fmt: skip
    assert capsys.readouterr().out.count("out of memory") >= 3


@pytest.mark.parametrize("mini_batch,saved", [(1, ["step_000001"]), (2, [])])
def test_out_of_memory_in_an_update_saves_the_last_step_unless_something_was_applied(
    run, monkeypatch, capsys, tmp_path, mini_batch, saved
):
    """In the second of three steps, of four mini-batches each."""
    from starling_train.training.local import LocalOptimizer

    plain, calls = LocalOptimizer._norm, []

    def refuse(self, *given):
        calls.append(1)
        if len(calls) == 4 + mini_batch:
            raise RuntimeError("CUDA driver error: out of memory")
        return plain(self, *given)

    monkeypatch.setattr(LocalOptimizer, "_norm", refuse)
    with pytest.raises(SystemExit) as stopped:
        run("evaluation.every=0")
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: optim: out of memory in the optimizer's step (CUDA driver error")
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/*")] == saved


def test_out_of_memory_anywhere_else_is_one_line_and_the_state_is_saved(run, monkeypatch, capsys, tmp_path):
    from starling_train.training.ppo import experience

    plain, calls = experience.whiten, []

    def refuse(*given):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return plain(*given)

    monkeypatch.setattr(experience, "whiten", refuse)
    with pytest.raises(SystemExit) as stopped:
        run("evaluation.every=0")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory (cuDNN error: CUDNN_STATUS_ALLOC")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001"]


def test_the_page_is_written_at_each_evaluation_and_after_a_stop(run, monkeypatch, tmp_path):
    """After the evaluations of steps 0 and 2; then, since step 3 cannot be scored, once more as the run ends."""
    written = []
    write = page.write

    def seen(directory):
        written.append(len(lines(directory / "metrics.jsonl")))
        return write(directory)

    def odd(self, encoded, *rest):
        calls.append(1)
        return [float("inf")] * len(encoded) if len(calls) > 4 else plain(self, encoded, *rest)

    plain, calls = RewardModel.score_ids, []
    monkeypatch.setattr(page, "write", seen)
    monkeypatch.setattr(RewardModel, "score_ids", odd)
    with pytest.raises(SystemExit) as stopped:
        run("evaluation.every=2", "checkpoint.every=1")
    assert stopped.value.code == 2 and written == [1, 3, 3]
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Not finished, 2 of 3 steps so far" in text and "Go on from the last checkpoint" in text


def test_a_fault_in_the_page_does_not_end_a_run(run, monkeypatch, capsys):
    written = []
    write = page.write

    def broken(directory):
        written.append((directory / "summary.json").exists())
        if not written[-1]:
            raise ValueError("a number that nobody expected")
        return write(directory)

    monkeypatch.setattr(page, "write", broken)
    directory = run("evaluation.every=3")
    assert written == [False, False, True] and "Finished, 3 of 3 steps" in (directory / "report.html").read_text()
    said = "report.html could not be written (ValueError: a number that nobody expected); the run goes on without it"
    assert capsys.readouterr().out.count(said) == 2
