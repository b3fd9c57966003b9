"""Pairs from ranked answers, and their token ids in Openchat's template."""

import openchat_tokenizer
import pytest

from starling_train.data import openchat, pairs
from starling_train.data.chat import Chat
from starling_train.data.nectar import Answer, RankedRow

ASKED = [{"role": "user", "content": "Hi"}]


def row(*ranks: float) -> RankedRow:
    return RankedRow(ASKED, [Answer(f"{chr(97 + i)}", "m", rank) for i, rank in enumerate(ranks)])


def texts(paired: pairs.PairedRow) -> list[str]:
    """`ab` for answer a above answer b."""
    return [paired.answers[i] + paired.answers[j] for i, j in paired.pairs]


def test_best_against_worst():
    found = pairs.make([row(1, 2, 3), row(1, 2), row(1, 1, 2, 2)], "best_worst", 0)
    assert [texts(paired) for paired in found] == [["ac"], ["ab"], ["ad"]]
    assert [paired.answers for paired in found] == [["a", "c"], ["a", "b"], ["a", "d"]]  # nothing else is computed
    assert [paired.index for paired in found] == [0, 1, 2]


def test_all_pairs_leave_out_ties():
    found = pairs.make([row(1, 2, 3), row(1, 1, 2), row(1, 2, 2, 3)], "all", 0)
    assert [texts(paired) for paired in found] == [["ab", "ac", "bc"], ["ac", "bc"], ["ab", "ac", "ad", "bd", "cd"]]
    assert len(texts(pairs.make([row(*range(7))], "all", 0)[0])) == 21


def test_best_against_one_below_it_drawn_once_by_the_seed():
    rows = [row(1, 1, 2, 3, 4) for _ in range(60)]
    drawn = [texts(paired)[0] for paired in pairs.make(rows, "best_random", 3)]
    assert set(drawn) == {"ac", "ad", "ae"}  # never b, which is as good as a
    assert drawn == [texts(paired)[0] for paired in pairs.make(rows, "best_random", 3)]
    assert drawn != [texts(paired)[0] for paired in pairs.make(rows, "best_random", 4)]
    assert drawn[:9] == [texts(paired)[0] for paired in pairs.make(rows[:9], "best_random", 3)]


def test_a_row_with_fewer_pairs_has_only_their_answers_and_numbers():
    whole = pairs.PairedRow(5, ASKED, ["a", "b", "c"], [(0, 1), (0, 2), (1, 2)], [-1.0, -2.0, -3.0])
    fewer = whole.only([(0, 2)])
    assert (fewer.answers, fewer.pairs, fewer.reference, fewer.index) == (["a", "c"], [(0, 1)], [-1.0, -3.0], 5)
    assert (whole.only([]).answers, whole.only([]).pairs) == ([], [])


@pytest.fixture(scope="module")
def tokenizer():
    return openchat_tokenizer.build()


@pytest.mark.parametrize("answer", ["Hello there.", " led by a space", ":) a colon", "", "two\nlines<|end_of_turn|>"])
def test_prompt_and_answer_are_the_conversation_and_end_with_the_end_of_turn(tokenizer, answer):
    conversation = [*ASKED, {"role": "assistant", "content": answer}]
    prompt, response, cut = pairs.encode(conversation, Chat(tokenizer), 100)
    assert prompt == openchat.encode(ASKED, tokenizer) and not cut
    assert prompt + response == openchat.encode(conversation, tokenizer, add_generation_prompt=False)
    assert response[-1] == openchat.end_of_turn_id(tokenizer) and response.count(response[-1]) == 1
    assert openchat.decode(response, tokenizer) == answer


def test_a_long_answer_loses_its_end(tokenizer):
    conversation = [*ASKED, {"role": "assistant", "content": "one two three four five"}]
    prompt, whole, _ = pairs.encode(conversation, Chat(tokenizer), 100)
    again, response, cut = pairs.encode(conversation, Chat(tokenizer), len(prompt) + 3)
    assert (again, response, cut) == (prompt, whole[:3], True)
    assert not pairs.encode(conversation, Chat(tokenizer), len(prompt) + len(whole))[2]


class Joining:
    """Stands for a tokenizer that has a token of the prompt's last character and the answer's first."""

    bos_token_id = 0

    def convert_tokens_to_ids(self, text):
        return 1

    def __call__(self, text, **_):
        joined = text.replace(": b", "\x07")
        return type("Ids", (), {"input_ids": [ord(character) for character in joined]})


def test_where_the_tokenizer_joins_prompt_and_answer_the_answer_begins_with_the_joint_token():
    prompt, response, _ = pairs.encode([*ASKED, {"role": "assistant", "content": "bc"}], Chat(Joining()), 1000)
    assert response == [7, ord("c"), 1]
    assert "".join(map(chr, prompt)).endswith("Assistant")
