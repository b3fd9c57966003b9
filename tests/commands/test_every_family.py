"""Every family of models through the real commands: two steps at learning rate 0 must change nothing at all.

Two families run with the other tests; the whole table takes minutes (`make test-families`). It buys the certainty that
what one room learned about a family is known in all of them: names, shapes, heads, tied tensors, files.
"""

import json
import math

import families
import pytest
import torch
from fault_process import Started
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from starling_train.data.chat import Chat
from starling_train.models.source import ModelSource

FAST = ("gemma2", "qwen3_moe")
EVERY = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.families) for name in families.FAMILIES
]  # fmt: skip
NO_CLASSIFIER = ("granite", "olmoe", "cohere")  # transformers has none of these types
COMMON = ["model.dtype=float32", "cluster.device=cpu", "cluster.threads=1", "freeze.top_percent=50"]
TEXT = "Some words to be predicted, and then a few more of them, which are longer than the window. " * 3


class Family:
    """One family's directory, data, and the runs of the commands on it."""

    def __init__(self, name: str, root, reward):
        self.name, self.root, self.reward = name, root, reward
        self.base = families.write(name, root / "base")
        prompts = [{"prompt": f"What is {i} and {i}{' and then' * (i % 5)}?"} for i in range(12)]
        answers = [{"answer": text, "model": "m", "rank": float(rank)} for rank, text in enumerate(("good", "bad"), 1)]
        ranked = [{"prompt": f"Which {i}?", "answers": answers} for i in range(6)]
        for file, rows in (("prompts", prompts), ("ranked", ranked)):
            (root / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / "text.txt").write_text(TEXT)

    def run(self, command: str, *arguments: str) -> str:
        process = Started(command, [*arguments], self.root, self.root / f"{command}.said")
        code = process.wait(300)
        assert code == 0, (self.name, command, process.error()[-3000:], process.out()[-2000:])
        return process.out()

    def train(self, command: str, *arguments: str) -> list[dict]:
        of_policies = [] if command == "rm" else ["rollout.max_new_tokens=8", "data.max_prompt_tokens=128"]
        self.run(
            command, *COMMON, f"model.path={self.base}", f"run_dir={command}", "optim.learning_rate=0",
            "evaluation.every=2", "checkpoint.every=2", "data.eval_prompts=2", *of_policies, *arguments,
        )  # fmt: skip
        lines = (self.root / command / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def check_same_model(self, directory) -> None:
        """The model that was written loads, and has the base model's logits."""
        ids = torch.tensor([[1, 17, 23, 5, 90, 14]])
        with torch.no_grad():
            written, base = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (directory, self.base))
            assert torch.equal(written(ids).logits, base(ids).logits)
        assert not set(base.state_dict()) ^ set(written.state_dict())

    def nats(self) -> float:
        """Of a token of the text, by the plain forward, in windows of 32 tokens that share one."""
        chat = Chat(ModelSource(self.base, "model.path").tokenizer)
        ids = chat.plain(TEXT)
        model, sums = AutoModelForCausalLM.from_pretrained(self.base).eval(), []
        for start in range(0, len(ids) - 1, 31):
            part = torch.tensor([ids[start : start + 32]])
            with torch.no_grad():
                logprobs = model(part).logits[0, :-1].double().log_softmax(-1)
            sums += logprobs.gather(-1, part[0, 1:, None]).flatten().tolist()
        return -sum(sums) / len(sums)


@pytest.mark.parametrize("name", EVERY)
def test_every_command_at_learning_rate_0(name, tmp_path, small_models):
    family = Family(name, tmp_path, small_models / "reward")

    # snr: its names are the loaded model's
    family.run("snr", f"model.path={family.base}", "cluster.device=cpu", "freeze.top_percent=50", "run_dir=snr")
    parameters = dict(AutoModelForCausalLM.from_pretrained(family.base).named_parameters())
    records = json.loads((tmp_path / "snr/snr.json").read_text())
    holders = {record.get("holder") or f"{module}.weight" for module, record in records.items()}
    matrices = {n for n, p in parameters.items() if ".layers." in f".{n}" and p.ndim > 1}
    assert holders <= set(parameters) and matrices <= holders

    # ppo: ratios are 1 (the metric is their largest distance from it), KL is 0, and the policy is still the base model
    metrics = family.train(
        "ppo", f"reward.path={family.reward}", "reward.dtype=float32", "data.path=prompts.jsonl", "algorithm.steps=2",
        "algorithm.prompts_per_step=4", "algorithm.minibatches=2", "freeze.scan=snr/snr.json",
        "algorithm.tokens_per_microbatch=64",
    )  # fmt: skip
    steps = [row for row in metrics if "policy/ratio_first" in row]
    assert len(steps) == 2
    for row in steps:
        assert row["policy/ratio_first"] < 1e-5 and row["policy/clip_fraction"] == 0
        assert row["kl/reference"] == pytest.approx(0, abs=1e-6) and abs(row["policy/approx_kl"]) < 1e-6
    family.check_same_model(tmp_path / "ppo/policy")

    # dpo: chosen and rejected are as likely as under the reference
    metrics = family.train(
        "dpo", "data.path=ranked.jsonl", "dpo.prompts_per_step=2", "dpo.epochs=1", "dpo.max_length=256",
        "evaluation.responses=2", "freeze.scan=snr/snr.json",
    )  # fmt: skip
    steps = [row for row in metrics if "dpo/loss" in row]
    assert len(steps) == 2
    for row in steps:
        assert row["dpo/loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(row["dpo/margin"]) < 1e-4
    family.check_same_model(tmp_path / "dpo/policy")

    # export: of the checkpoint
    family.run("export", "run_dir=ppo", "output=exported")
    family.check_same_model(tmp_path / "exported")

    # evaluate: the plain forward's perplexity
    family.run(
        "evaluate", "suites=[perplexity]", f"model.path={family.base}", "model.dtype=float32", "cluster.device=cpu",
        "perplexity.path=text.txt", "perplexity.window=32", "run_dir=evaluated",
    )  # fmt: skip
    results = tmp_path / "evaluated/evaluation.json"
    measured = json.loads(results.read_text())["results"][0]["result"]
    assert measured["nats"] == pytest.approx(family.nats(), abs=1e-5)

    # laser: two matrices of each family at lower rank
    family.run(
        "laser", f"model.path={family.base}", "model.dtype=float32", "cluster.device=cpu", "laser.measure=perplexity",
        "perplexity.path=text.txt", "laser.window=32", "laser.samples=6", "laser.percent=25", "laser.factored=true",
        "run_dir=laser",
    )  # fmt: skip
    AutoModelForCausalLM.from_pretrained(tmp_path / "laser/model")


@pytest.mark.parametrize("name", EVERY)
def test_a_classifier_on_every_family_at_learning_rate_0(name, tmp_path, small_models):
    """A head of zeros tells no two answers apart, and the written classifier holds the base's decoder."""
    if name in NO_CLASSIFIER:
        pytest.skip("transformers has no classifier of this type")
    family = Family(name, tmp_path, small_models / "reward")
    if name == "qwen2.5":  # transformers rebuilds a Qwen's tokenizer from its vocabulary, which only its kind survives
        families.qwen_tokenizer().save_pretrained(family.base)
    rows = family.train(
        "rm", "rm.kind=sequence_classification", "data.path=ranked.jsonl", "rm.prompts_per_step=2",
        "rm.max_length=256", "rm.epochs=1",
    )  # fmt: skip
    steps = [row for row in rows if "rm/loss" in row]
    assert len(steps) == 2 and all(row["rm/loss"] == pytest.approx(math.log(2), abs=1e-6) for row in steps)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm/reward")
    assert classifier.config.num_labels == 1
    for ours, base in zip(
        classifier.base_model.parameters(),
        AutoModelForCausalLM.from_pretrained(family.base).base_model.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, base)
