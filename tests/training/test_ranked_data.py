"""What `rm` does with rows that its template refuses, and with answers that it would cut to the same tokens."""

import json
from types import SimpleNamespace

import pytest
from reward_checkpoints import small_tokenizer

from starling_train.config.fields import UserError
from starling_train.config.rm import RmConfig
from starling_train.training.reward_model.inputs import load_data

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)


def row(better, worse, system=None):
    asked = [{"role": "user", "content": "Hi"}]
    return {"prompt": asked, "chosen": better, "rejected": worse} | ({"system": system} if system else {})


@pytest.fixture
def load(tmp_path):
    """Reads rows as `rm.kind=sequence_classification` would on a base with that template."""
    tokenizer = small_tokenizer()
    tokenizer.chat_template = NO_SYSTEM

    def read(*rows, max_length=500):
        config = RmConfig()
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config.data.path, config.data.eval_prompts = str(file), 1
        config.rm.kind, config.rm.max_length = "sequence_classification", max_length
        return load_data(config, SimpleNamespace(tokenizer=tokenizer))

    return read


def questions(count):
    rows = [row(f"good {i}", f"bad {i}") for i in range(count)]
    return [one | {"prompt": [{"role": "user", "content": f"How is {i}?"}]} for i, one in enumerate(rows)]


def test_rows_that_the_template_refuses_are_counted_and_the_first_is_named(load, tmp_path):
    data = load(*questions(3), row("a", "b", "Be brief."))
    assert len(data.training) + len(data.held_out) == 3
    where = f"first {tmp_path / 'rows.jsonl'}:4"
    assert "1 refused by the template" in data.report and "no system here" in data.report and where in data.report
    with pytest.raises(UserError, match=r"refuses all rows, .*rows.jsonl:1 first: .*no system here.*give other rows"):
        load(row("a", "b", "Be brief."))


def test_answers_that_are_cut_to_the_same_tokens_are_counted(load):
    end = " word" * 60
    rows = [*questions(3), row(f"good{end}", f"bad{end}")]
    assert "left out" not in load(*rows).report
    report = load(*rows, max_length=30).report
    assert "1 left out: the same last 30 tokens" in report and "1 without two answers of different rank" in report
    with pytest.raises(UserError, match=r"rm.max_length: the last 30 tokens of all answers are the same; raise it"):
        load(rows[-1], max_length=30)
