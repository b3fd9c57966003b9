"""`ppo` with rloo and grpo: whole runs without a critic, and what they must have in common with those that have one."""

import json
import re
from pathlib import Path

import pytest
import torch
from cut_run import cut_after_the_first_step
from safetensors.torch import load_file

from starling_train import compare, export, plan, ppo
from starling_train.models.reward.model import RewardModel

# three responses to each of three prompts, in mini-batches of five and of four
GROUPS = [
    "algorithm.prompts_per_step=3", "algorithm.responses_per_prompt=3", "algorithm.minibatches=2", "algorithm.steps=2",
    "evaluation.every=2", "checkpoint.every=1", "reward.probe=false", "optim.learning_rate=1e-3",
]  # fmt: skip
OF_VALUES = re.compile("Value fit|value/|critic explains")  # a chart, a row of the metrics' table, a judgement


@pytest.fixture(scope="module")
def arguments(small_run, tmp_path_factory) -> list[str]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} and {i}?"}) + "\n" for i in range(40)))
    return [*small_run, f"data.path={prompts}", *GROUPS]


@pytest.fixture
def run(arguments, tmp_path, monkeypatch):
    """Runs ppo in an empty directory; gives the run's directory."""
    monkeypatch.chdir(tmp_path)

    def call(*more: str) -> Path:
        monkeypatch.setattr("sys.argv", ["ppo", *arguments, *more])
        ppo.main()
        return tmp_path / "run"

    return call


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A run of an algorithm in one go; made when first asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr("sys.argv", ["ppo", *arguments, f"algorithm={name}", *GROUPS])
                ppo.main()
            made[name] = folder / "run"
        return made[name]

    return of


def lines(path: Path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def untimed(run: Path) -> list[dict]:
    clock = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in lines(run / "metrics.jsonl")]


EACH = pytest.mark.parametrize("name", ["grpo", pytest.param("rloo", marks=pytest.mark.slow)])


@EACH
def test_a_run_measures_all_but_values(finished, name):
    rows = lines(finished(name) / "metrics.jsonl")
    assert [row["episodes"] for row in rows] == [0, 3, 6]
    for row in rows[1:]:
        assert not any(key.startswith("value/") for key in row)
        assert ("policy/kl_loss" in row) == (name == "grpo")
        assert row["policy/ratio_first"] < 1e-4 and row["optim/skipped"] == row["optim/left_out"] == 0
        assert row["optim/gradient_norm"] > 0 and row["policy/entropy"] > 0
        assert None not in row.values()
    assert rows[1]["kl/reference"] == 0 != rows[2]["kl/reference"]  # of the starting policy


@EACH
def test_nothing_of_a_critic_is_saved_and_only_the_selection_moved(finished, name, small_models):
    run = finished(name)
    saved = load_file(run / "checkpoints" / "step_000002" / "trainable.safetensors")
    assert len(saved) == 14 and all(key.startswith("policy.") for key in saved)  # two of four of each of seven types
    base, policy = (load_file(folder / "model.safetensors") for folder in (small_models / "policy", run / "policy"))
    moved = {f"policy.{key}" for key, tensor in policy.items() if not torch.equal(tensor, base[key])}
    assert moved == saved.keys()


@EACH
def test_the_report_has_no_chart_and_no_judgement_of_values(finished, name):
    text = (finished(name) / "report.html").read_text()
    assert f"<strong>{name.upper()}</strong>" in text and not OF_VALUES.search(text)
    assert ("penalty in the loss" in text) == (name == "grpo")


@EACH
def test_the_model_card_names_the_algorithm_and_its_groups(finished, name, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["export", f"run_dir={finished(name)}", f"output={tmp_path / 'model'}"])
    export.main()
    card = (tmp_path / "model" / "README.md").read_text().splitlines()
    assert f"| algorithm | `{name}` |" in card and "| prompts | 6, 3 responses to each |" in card
    assert f"- {name}" in card


@EACH
def test_a_resume_is_exact(finished, name, arguments, tmp_path, monkeypatch):
    """Of a run as a kill after its first checkpoint leaves it."""
    cut_after_the_first_step(finished(name), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ppo", *arguments, f"algorithm={name}", *GROUPS])
    ppo.main()
    for file in ("checkpoints/step_000002/trainable.safetensors", "checkpoints/step_000002/optimizer.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (finished(name) / file).read_bytes()
    assert untimed(tmp_path / "run") == untimed(finished(name))


def test_a_response_without_a_score_leaves_the_others_of_its_group_to_learn_from(run, monkeypatch):
    plain, calls = RewardModel.score_ids, []

    def odd(self, encoded, *rest):
        scores = plain(self, encoded, *rest)
        calls.append(1)
        if len(calls) == 2:  # before the first step comes an evaluation
            scores[4] = float("nan")
        return scores

    monkeypatch.setattr(RewardModel, "score_ids", odd)
    directory = run("algorithm=rloo", *GROUPS)
    rows = lines(directory / "metrics.jsonl")
    assert [(row["reward/unscored"], row["optim/left_out"], row["optim/skipped"]) for row in rows[1:]] == [
        (1, 1, 0), (0, 0, 0)
    ]  # fmt: skip
    (skipped,) = lines(directory / "skipped.jsonl")
    assert (skipped["step"], skipped["reason"]) == (1, "score")


def test_a_run_goes_on_where_every_response_was_cut(run, small_models):
    """Longer than the updates that may be skipped in a row: nothing is learned, and nothing is a fault."""
    cut = ["algorithm=grpo", *GROUPS, "algorithm.drop_truncated=true", "rollout.max_new_tokens=1", "algorithm.steps=4",
           "rollout.min_new_tokens=1", "evaluation.every=0"]  # fmt: skip
    directory = run(*cut)
    rows = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["response/limit_fraction"] == 1 and row["optim/gradient_norm"] == 0
        assert row["optim/skipped"] == row["optim/left_out"] == 0 and row["policy/loss"] is None
        assert row["reward/score_mean"] is not None and row["kl/reference"] == 0
    assert not (directory / "skipped.jsonl").exists() or not lines(directory / "skipped.jsonl")
    base, policy = (
        load_file(folder / "model.safetensors") for folder in (small_models / "policy", directory / "policy")
    )
    assert all(torch.equal(tensor, base[key]) for key, tensor in policy.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["algorithm=rloo", "freeze.adapter=lora", "freeze.lora.rank=4", "freeze.method=none"],
        ["algorithm=grpo", "algorithm.ratio=sequence_mean", "algorithm.clip=3e-4", "algorithm.clip_high=4e-4"],
        ["algorithm=grpo", "algorithm.scale_by_group=false", "algorithm.loss_mean=length", "model.dtype=bfloat16"],
        ["algorithm=grpo", "algorithm.loss_mean=tokens", "algorithm.kl.coefficient=0", "algorithm.clip_high=0.28"],
        ["algorithm=grpo", "algorithm.kl.estimator=k2", "algorithm.epochs=3", "algorithm.kl.stop=0.1", "rollout=hf"],
        ["algorithm=rloo", "algorithm.minibatches=9", "reward.scale=none", "freeze=none", "algorithm.length_penalty=1"],
        ["algorithm=grpo", "cluster.offload=optimizer"],
        ["algorithm=ppo", "algorithm.responses_per_prompt=2", "algorithm.kl.where=loss", "algorithm.kl.estimator=k3"],
    ],
    ids=" ".join,
)
def test_other_settings_run(run, changes):
    """Two steps of each: adapters, GSPO, Dr. GRPO, DAPO, several epochs, as many mini-batches as responses."""
    own = {change.split("=")[0] for change in changes}
    directory = run(*changes[:1], *(part for part in GROUPS if part.split("=")[0] not in own), *changes[1:])
    rows = lines(directory / "metrics.jsonl")
    assert len(rows) == 3 and all(row["optim/skipped"] == 0 and row["policy/ratio_first"] < 1e-2 for row in rows[1:])
    assert any(row["optim/gradient_norm"] > 0 for row in rows[1:])


@pytest.mark.slow
def test_the_kl_target_pulls_at_a_penalty_in_the_loss(run):
    more = [
        "algorithm.kl.target=0.01", "algorithm.kl.horizon=9", "algorithm.steps=4", "algorithm.minibatches=1",
        "optim.learning_rate=0.02",
    ]  # fmt: skip
    rows = lines(run("algorithm=grpo", *GROUPS, *more) / "metrics.jsonl")[1:]
    assert rows[0]["policy/kl_loss"] == pytest.approx(0, abs=1e-6) and all(
        row["policy/kl_loss"] > 0 for row in rows[1:]
    )
    expected = [0.04]
    for row in rows[:-1]:  # nine episodes of a horizon of nine: by the whole error, of a fifth at most
        expected.append(expected[-1] * (1 + min(max(row["kl/reference"] / 0.01 - 1, -0.2), 0.2)))
    assert [row["kl/coefficient"] for row in rows] == pytest.approx(expected) and expected[1] == pytest.approx(0.032)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_out_of_memory_goes_on_with_less(run, monkeypatch, capsys, name):
    """Scoring, drawing and the update each run out of memory once."""
    from starling_train.rollout import slots
    from starling_train.training.ppo import experience, update

    def refuse_once(module, function):
        plain, refused = getattr(module, function), []

        def call(*arguments, **named):
            if not refused:
                refused.append(1)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return plain(*arguments, **named)

        monkeypatch.setattr(module, function, call)

    refuse_once(experience, "forward_all")
    refuse_once(slots, "_Decoder")
    refuse_once(update, "_micro_batches")
    directory = run(f"algorithm={name}", *GROUPS)
    state = json.loads((directory / "checkpoints" / "step_000002" / "state.json").read_text())
    assert {"algorithm.tokens_per_microbatch", "rollout.slots"} <= state["budgets"].keys()
    assert sum("out of memory" in line for line in capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
def test_a_guard_raises_the_coefficient_of_the_penalty_in_the_loss(run, tmp_path):
    (tmp_path / "text.txt").write_text(
        " ".join(f"The quick fox number {i} jumps over the lazy dog." for i in range(40))
    )
    guarded = [
        "evaluation.suites=[perplexity]", f"evaluation.perplexity.path={tmp_path / 'text.txt'}",
        "evaluation.perplexity.window=32", "guard.skills=[eval/perplexity:0.01]", "guard.then=anchor",
        "optim.learning_rate=0.02", "algorithm.steps=6",
    ]  # fmt: skip
    rows = lines(run("algorithm=grpo", *GROUPS, *guarded) / "metrics.jsonl")
    lost = [row["step"] for row in rows if row.get("guard/kept") == 0]
    assert lost and lost[0] < 6
    after = rows[lost[0] + 1]
    assert after["kl/coefficient"] == after["guard/coefficient"] == 0.08 > rows[1]["kl/coefficient"] == 0.04
    # back at the model that it went back to: the KL is that of the step after it
    assert after["kl/reference"] < rows[lost[0]]["kl/reference"]


@EACH
def test_it_is_described_and_planned_without_a_critic(arguments, toy, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)

    def said(command, *more: str) -> str:
        monkeypatch.setattr("sys.argv", [command.__name__, *arguments, f"algorithm={name}", *GROUPS, *more])
        command.main()
        return capsys.readouterr().out

    described = said(ppo, "dry_run=true")
    assert f"{name}, 2 steps of 3 prompts of 3 responses each, up to 12 new tokens" in described
    assert "critic" not in described
    planned = said(plan)
    assert "3 prompts of 3 responses each" in planned and "critic" not in planned
    compared = said(compare, "dry_run=true", "compare.skills=[eval/length_mean]", "compare.only=[snr,none]")
    assert compared.count("snr") and not list(tmp_path.iterdir())
