"""`rm.kind=sequence_classification`: it writes a plain classifier, which transformers and TRL score the same."""

import json
import math

import pytest
import torch
from reward_checkpoints import SIZE, small_tokenizer
from test_rm import arguments, metrics, rows, run_here, weights, without_times  # noqa: F401 (rows is a fixture)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from starling_train.models.reward.model import load_reward_model

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KIND = "rm.kind=sequence_classification"
SHORT = ("rm.epochs=1", "evaluation.every=0")
ASKED = [
    [{"role": "user", "content": f"How is {i}?"}, {"role": "assistant", "content": f"{word} " * i}]
    for i, word in enumerate(("good", "fine", "weak", "bad"), 1)
]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A small Llama that is tied, with ChatML and, as SmolLM2 has it, the end of turn for padding."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = small_tokenizer()
    tokenizer.chat_template, tokenizer.pad_token, tokenizer.eos_token = CHATML, "<|im_end|>", "<|im_end|>"
    torch.manual_seed(0)
    config = LlamaConfig(**SIZE, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=4, eos_token_id=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


@pytest.fixture(scope="session")
def trained(base, rows, tmp_path_factory):  # noqa: F811
    """The directory of a run from it."""
    folder = tmp_path_factory.mktemp("trained")
    return run_here(folder, arguments(base, rows, KIND, "evaluation.every=3"))


def plain(directory, asked, side: str, size: int) -> list[float]:
    """As transformers' documentation scores with a classifier."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    scores = []
    for start in range(0, len(asked), size):
        inputs = tokenizer.apply_chat_template(
            asked[start : start + size], return_tensors="pt", return_dict=True, padding=True
        )
        with torch.no_grad():
            scores += model(**inputs).logits[:, 0].tolist()
    return scores


def ours(directory, asked=ASKED) -> list[float]:
    return load_reward_model("sequence_classification", directory, dtype="float32", max_length=500).score(asked)


@pytest.mark.parametrize(("side", "size"), [("right", 4), ("left", 4), ("left", 3), ("right", 1)])
def test_transformers_scores_it_the_same_whatever_the_padding(trained, side, size):
    expected = ours(trained / "reward")
    assert len(set(expected)) == 4 and plain(trained / "reward", ASKED, side, size) == pytest.approx(expected, abs=1e-5)


def test_trl_scores_it_the_same(trained):
    """The lines by which GRPOTrainer and RLOOTrainer load a reward model and ask it."""
    from trl.data_utils import apply_chat_template

    model = AutoModelForSequenceClassification.from_pretrained(trained / "reward", num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained / "reward")
    assert tokenizer.pad_token_id is not None
    model.config.pad_token_id = tokenizer.pad_token_id
    texts = [apply_chat_template({"messages": messages}, tokenizer)["text"] for messages in ASKED]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        found = model.eval()(**inputs).logits[:, 0].tolist()
    assert found == pytest.approx(ours(trained / "reward"), abs=1e-5)


def test_what_is_written_says_what_it_is(trained):
    reward = trained / "reward"
    config = json.loads((reward / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and "problem_type" not in config
    assert AutoConfig.from_pretrained(reward).num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(reward)
    assert config["pad_token_id"] == tokenizer.pad_token_id == tokenizer.unk_token_id  # no conversation ends with it
    assert tokenizer.chat_template == CHATML
    ids = tokenizer.apply_chat_template(ASKED[0])["input_ids"]
    assert tokenizer.pad_token_id not in ids and tokenizer.decode(ids[-3:]).split() == ["<|im_end|>"]


def test_it_learns_from_the_loss_of_scores_that_are_all_equal(trained):
    found = metrics(trained)
    assert found[0]["eval/kwise_loss"] == pytest.approx(
        sum(math.log(math.factorial(k)) / (k - 1) for k in (3, 4, 5)) / 3, abs=0.25
    )
    assert found[0]["eval/preference_accuracy"] == 0.5
    assert found[-1]["eval/kwise_loss"] < found[0]["eval/kwise_loss"]


def test_a_stopped_run_goes_on_as_if_nothing_had_been(base, rows, trained, tmp_path):  # noqa: F811
    from functools import partial

    from fault_process import Started, kill_in_call

    argv = arguments(base, rows, KIND, "evaluation.every=3")
    killed = Started("rm", argv, tmp_path, prepare=partial(kill_in_call, "training.reward_model.update", "update", 4))
    assert killed.wait() == -9
    resumed = Started("rm", argv, tmp_path)
    assert resumed.wait() == 0, resumed.error()
    assert without_times(metrics(tmp_path / "run")) == without_times(metrics(trained))
    assert weights(tmp_path / "run") == weights(trained)
    assert ours(tmp_path / "run" / "reward") == ours(trained / "reward")


def test_it_starts_from_a_classifier_too_whose_head_goes_on(rows, trained, tmp_path):  # noqa: F811
    argv = arguments(trained, rows, KIND, *SHORT, "optim.learning_rate=0", base="reward")
    again = run_here(tmp_path, argv)
    assert ours(again / "reward") == ours(trained / "reward")


def test_a_selection_trains_alone_and_is_exported(base, rows, tmp_path, monkeypatch):  # noqa: F811
    from safetensors.torch import load_file

    from starling_train import export

    argv = arguments(base, rows, KIND, *SHORT, "freeze=last_layers", "freeze.last_layers=1", "freeze.norms=false")
    run = run_here(tmp_path, argv)
    before, after = (load_file(f) for f in (base / "llama" / "model.safetensors", run / "reward" / "model.safetensors"))
    changed = {name for name, tensor in after.items() if name in before and not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("model.layers.1.") for name in changed)
    assert set(after) - set(before) == {"score.weight"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["export", f"run_dir={run}", "output=exported"])
    export.main()
    assert ours(tmp_path / "exported") == ours(run / "reward")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "library_name: transformers" in card and "AutoModelForSequenceClassification" in card


SHAPES = {
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "gemma2": (Gemma2Config, {"head_dim": 8, "sliding_window": 16}),
    "phi3": (Phi3Config, {}),
}


def make_base(folder, name: str, kind, settings: dict) -> None:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    tokenizer.chat_template = CHATML
    config = kind(**SIZE | settings, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


@pytest.mark.parametrize("name", SHAPES)
def test_other_families_are_written_the_same(rows, tmp_path, name):  # noqa: F811
    make_base(tmp_path, name, *SHAPES[name])
    run = run_here(tmp_path, arguments(tmp_path, rows, KIND, *SHORT, base=name))
    expected = ours(run / "reward")
    assert len(set(expected)) == 4
    for side in ("right", "left"):
        assert plain(run / "reward", ASKED, side, 4) == pytest.approx(expected, abs=1e-5)


def test_a_tokenizer_that_others_would_read_otherwise_is_refused_first(rows, tmp_path, capsys):  # noqa: F811
    """transformers makes every tokenizer of a Qwen2 a Qwen2's, whatever tokenizer.json says."""
    make_base(tmp_path, "qwen2", Qwen2Config, {})
    with pytest.raises(SystemExit):
        run_here(tmp_path, arguments(tmp_path, rows, KIND, base="qwen2"))
    assert capsys.readouterr().err.startswith("error: rm.tokenizer: transformers' Qwen2Tokenizer makes other ids than ")
    assert not (tmp_path / "run").exists()


def test_what_cannot_become_a_classifier_is_refused(base, rows, tmp_path, capsys):  # noqa: F811
    from transformers import BertConfig, MambaConfig

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": SIZE["vocab_size"]}
    MambaConfig(**sizes).save_pretrained(tmp_path / "mamba")
    BertConfig(**sizes, intermediate_size=32).save_pretrained(tmp_path / "bert")
    for name, said in (("mamba", "no sequence classifier of type 'mamba'"), ("bert", "no linear head `score`")):
        small = AutoTokenizer.from_pretrained(base / "llama")
        small.save_pretrained(tmp_path / name)
        with pytest.raises(SystemExit):
            run_here(tmp_path, arguments(tmp_path, rows, KIND, base=name))
        assert said in capsys.readouterr().err
