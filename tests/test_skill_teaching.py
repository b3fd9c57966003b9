"""`benchmarks/skill/teach.py` on a tiny model of random weights with SmolLM2's tokenizer and template."""

import json
import sys
from pathlib import Path

import pytest
import real_model
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback

from starling_train.evals.function_calling.cases import Case, conversation

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "skill"))
import cases
import teach


@pytest.fixture
def model(tmp_path, pytestconfig) -> Path:
    tokenizer = real_model.tokenizer(pytestconfig)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True}
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids))
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def arguments(model: Path, out: Path):
    chat = model.parent / "prompts.jsonl"
    chat.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(4)))
    sizes = ["--training", "16", "--answers", "4", "--batch", "8", "--learning-rate", "0.01", "--threads", "1"]
    return teach.parsed([str(model), str(out), "--chat", str(chat), *sizes, "--save-minutes", "0"])


class Stop(TrainerCallback):
    """A signal behind the second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.slow  # TRL's imports take 10 s; that teaching can be stopped without another result
def test_stopped_and_continued_it_is_the_model_of_one_go(model, tmp_path, monkeypatch, capsys):
    teach.main(arguments(model, tmp_path / "whole"))
    made = teach.trainer

    def stopping(*given):
        trainer = made(*given)
        trainer.add_callback(Stop())
        return trainer

    monkeypatch.setattr(teach, "trainer", stopping)
    with pytest.raises(KeyboardInterrupt):
        teach.main(arguments(model, tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(teach, "trainer", made)
    teach.main(arguments(model, tmp_path / "parts"))
    assert "continues from" in capsys.readouterr().out and not (tmp_path / "parts.teaching").exists()
    whole, parts = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    before = AutoModelForCausalLM.from_pretrained(model)
    assert whole.dtype == torch.bfloat16
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert not torch.equal(whole.lm_head.weight.float(), before.lm_head.weight)


def test_another_setting_does_not_continue(model, tmp_path):
    path = tmp_path / "out.teaching" / "settings.json"
    chosen = arguments(model, tmp_path / "out")
    teach.keep_settings(path, chosen)
    chosen.learning_rate = 0.5
    with pytest.raises(SystemExit, match="begun with another learning_rate"):
        teach.keep_settings(path, chosen)


def test_prompts_are_the_suites_and_the_answer_alone_has_labels(pytestconfig):
    from starling_train.data.chat import Chat

    chat = Chat.checked(real_model.tokenizer(pytestconfig), "model")
    (row,), (case,) = teach.case_rows(chat, 1, 0), cases.draw_cases("training", 1)
    asked = Case("", case.kind, [{"role": "user", "content": case.request}], case.functions, None)
    prompt = chat.prompt(conversation(asked))
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    answer = row["labels"][len(prompt) :]
    assert answer == row["input_ids"][len(prompt) :] and answer[-1] == chat.end_of_turn
    assert chat.text(answer) == case.answer
