"""What a reward model will refuse or cut is known before the first step: dropped and counted, or told."""

import json
import time

import pytest
import torch
from reward_checkpoints import SIZE, small_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.rewards import directory

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "{% for m in messages %}{{ m.role + '\n' + m.content }}<|im_end|>{% endfor %}"
)


def ask(*contents: str, system: str = "") -> list[dict]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = LlamaConfig(**SIZE, max_position_embeddings=2048, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = small_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(folder)
    return folder


def settings(folder, **more) -> RewardConfig:
    return RewardConfig(kind="sequence_classification", path=str(folder), **more)


def test_what_the_template_refuses_is_known_with_its_reason(classifier):
    prompts = [ask("a"), ask("b", system="x"), ask("c", "d", "e"), ask("f", system="y")]
    admission = directory.admit(settings(classifier), prompts, [{}] * 4)
    assert sorted(admission.refused) == [1, 3] and admission.lines == []
    (line,) = admission.described(prompts)
    assert line.startswith("first refused by the reward side: 'b': ") and "no system message here" in line
    with pytest.raises(UserError, match=r"refuses all 2 prompts: .*no system message here"):
        directory.admit(settings(classifier), prompts[1::2], [{}] * 2)


def test_what_will_be_cut_is_counted_to_the_token(classifier):
    tokenizer = small_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    prompts = [ask("x" * count) for count in range(1, 120, 7)]
    lengths = [
        len(tokenizer.apply_chat_template([*p, {"role": "assistant", "content": "Yes."}])["input_ids"]) for p in prompts
    ]
    for limit in (40, 77, 90, 130):
        expected = sum(length > limit for length in lengths)
        admission = directory.admit(settings(classifier, max_length=limit), prompts, [{}] * len(prompts))
        assert admission.refused == {} and len(admission.lines) == (expected > 0)
        if expected:
            begins = f"{expected} of {len(prompts)} prompts are longer than reward.max_length={limit}, "
            assert admission.lines[0].startswith(begins)


def test_of_many_long_ones_some_are_measured(classifier, monkeypatch):
    monkeypatch.setattr("starling_train.rewards.admission.MEASURED", 10)
    prompts = [ask("x" * (100 if index % 2 else 300)) for index in range(100)]
    (line,) = directory.admit(settings(classifier, max_length=200), prompts, [{}] * 100).lines
    assert line.startswith("about 50 of 100 ")


def test_ten_thousand_prompts_take_seconds(classifier):
    prompts = [ask(f"What is {index} and why? " * 8) for index in range(10_000)]
    began = time.process_time()
    directory.admit(settings(classifier, max_length=2048), prompts, [{}] * len(prompts))
    assert time.process_time() - began < 10


def test_a_run_drops_what_is_refused_and_tells_what_is_cut(classifier, small_run, run_command, tmp_path):
    rows = [{"messages": ask(f"What is {i} and {i}?", system="Be brief." if i % 5 == 0 else "")} for i in range(25)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [one for one in small_run if not one.startswith("reward.path")]
    done = run_command(
        "ppo", *own, "data.path=prompts.jsonl", "reward=sequence_classification", f"reward.path={classifier}",
        "reward.max_length=30", "algorithm.steps=1", "evaluation.every=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "14 training prompts, 6 held out; dropped: 5 refused by the reward side" in done.stdout
    assert "first refused by the reward side: 'What is 0 and 0?': " in done.stdout
    assert "20 of 25 prompts are longer than reward.max_length=30" in done.stdout
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["reward/truncated_prompts"] == 8 and row["reward/truncated_answers"] <= 8
