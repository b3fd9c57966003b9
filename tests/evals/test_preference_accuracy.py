"""Pair accuracy of a reward model: hand-counted pairs, the forms of a preference set, and real ranked answers."""

import json

import pytest

from starling_train.config.fields import UserError
from starling_train.data import preferences
from starling_train.data.rows.dropped import Dropped
from starling_train.evals import preference


def length(conversations):
    return [float(len(messages[-1]["content"])) for messages in conversations]


def test_the_forms_of_a_preference_set(tmp_path):
    talk = [{"role": "user", "content": "hi"}]
    rows = [
        {"prompt": "hi", "chosen": "hello there", "rejected": "go"},
        {"prompt": talk, "chosen": [*talk, {"role": "assistant", "content": "no"}], "rejected": "longer"},
        {"prompt": "\n\nHuman: hi\n\nAssistant: ",
         "answers": [{"answer": "abc", "rank": 2}, {"answer": "abcd", "rank": 1}, {"answer": "a", "rank": 3},
                     {"answer": "", "rank": 4}, {"answer": "abcd", "rank": 5}]},
        {"prompt": "hi", "chosen": "", "rejected": "b"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    ]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dropped = Dropped()
    comparisons = preferences.load(path, dropped=dropped)
    assert all(messages[0] == talk[0] for row in comparisons for messages in row.conversations)
    result = preference.evaluate(comparisons, length)
    assert (result.right, result.pairs) == (5.0, 6)
    assert result.by_distance == {1.0: (4.0, 5), 2.0: (1.0, 1)}
    assert str(dropped) == f"1 without two answers of different rank (first {path}:4)"


@pytest.mark.parametrize(
    "line,says",
    [
        ('{"prompt": "hi"}', "pairs.jsonl: no comparison in it"),
        ('{"prompt": "hi", "chosen": "a", "rejected": 3}', "pairs.jsonl:1: `rejected` is not an answer"),
        ('{"prompt": "hi", "answers": [{"answer": "a"}]}', "pairs.jsonl: no comparison in it"),
        ('{"prompt": "hi", "answers": [{"answer": "a", "rank": NaN}]}', "pairs.jsonl: no comparison in it"),
        ('{"prompt": "hi", "answers": [{"answer": "a", "rank": true}]}', "pairs.jsonl:1: a `rank` is True"),
        (
            '{"prompt": "hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}',
            "no comparison in it",
        ),
        ("nonsense", "pairs.jsonl:1: not JSON"),
        ("[" * 50_000, "pairs.jsonl:1: JSON that cannot be read"),
        ("1" * 9000, "pairs.jsonl:1: JSON that cannot be read"),
        ("", "no usable row is left"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=says):
        preferences.load(tmp_path / "pairs.jsonl")


def test_real_rows(data_dir):
    comparisons = preferences.load(data_dir / "nectar")
    result = preference.evaluate(comparisons, length)
    assert result.pairs > 3000 and 0.5 < result.accuracy < 1  # longer answers were preferred, not always
