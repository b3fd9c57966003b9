import pytest

from starling_train.config.fields import UserError
from starling_train.data.nectar import Answer, RankedRow
from starling_train.data.ranked import conversations, distinct, ranks, split_by_order, taken, with_an_order


def answers(*ranks: float) -> list[Answer]:
    return [Answer(f"text {i}", "m", rank) for i, rank in enumerate(ranks)]


def test_places_close_gaps_and_share_ties():
    assert ranks(answers(1.0, 2.0, 2.0, 5.0, 7.5)) == [1, 2, 2, 3, 4]
    assert ranks(answers(0.1, 0.2)) == [1, 2]


def test_rows_without_an_order_are_counted():
    every_kind = ((1, 2), (), (1,), (3, 3), (1, 1, 2))
    rows = [RankedRow([], answers(*ranks)) for ranks in every_kind]
    assert with_an_order(rows, "file") == ([rows[0], rows[4]], rows[1:4])
    with pytest.raises(UserError, match=r"^data\.path: file: all 3 rows"):
        with_an_order(rows[1:4], "file")


def test_conversations_end_with_each_answer():
    row = RankedRow([{"role": "user", "content": "Hi"}], answers(1, 2))
    assert [c[-1] for c in conversations(row)] == [{"role": "assistant", "content": f"text {i}"} for i in range(2)]
    assert all(c[:-1] == row.messages for c in conversations(row))


def ids(conversation):
    """A token a character, and one in front."""
    if conversation[0]["role"] == "system":
        raise UserError("no system message")
    return [0, *map(ord, "".join(f"[{message['role']}]{message['content']}" for message in conversation))]


def said(*texts: str) -> RankedRow:
    return RankedRow([{"role": "user", "content": "Hi"}], [Answer(text, "m", i) for i, text in enumerate(texts)])


def test_answers_of_the_same_last_tokens_are_left_out():
    end = "the same end of forty characters, or so."
    rows = [said(f"A {end}", f"B {end}", "other"), said("a", "b"), said(f"A {end}", f"B {end}")]
    assert len(end) == 40 and distinct(rows, ids, 43) == (rows, 0)
    shorter, count = distinct(rows, ids, 42)  # one of them is the BOS
    assert count == 2 and shorter[1] is rows[1]
    assert [[answer.text for answer in row.answers] for row in shorter] == [
        [f"A {end}", "other"],
        ["a", "b"],
        [f"A {end}"],
    ]
    assert split_by_order(shorter) == (shorter[:2], shorter[2:])


def test_rows_that_a_template_refuses_are_named():
    rows = [
        said("a"),
        RankedRow([{"role": "system", "content": "x"}, *said("a").messages], said("a").answers, where="f:2"),
    ]
    assert taken(rows, ids) == ([rows[0]], {"f:2": "no system message"})


def stripping(conversation: list[dict]) -> list[int]:
    """A template that leaves the reasoning out of answers, as DeepSeek's does."""
    *others, last = conversation
    return ids([*others, {**last, "content": last["content"].split("</think>")[-1].strip()}])


def uncased(conversation: list[dict]) -> list[int]:
    return ids([{**message, "content": message["content"].lower()} for message in conversation])


def test_answers_that_a_template_or_a_tokenizer_makes_equal_are_left_out():
    thought, other = "<think>\nFirst.\n</think>\n\nYes.", "<think>\nAnother way.\n</think>\n\nYes."
    rows = [said(thought, other, "No."), said("Yes.", thought), said("a", "b")]
    assert distinct(rows, ids, 500) == (rows, 0)
    shorter, count = distinct(rows, stripping, 500)
    assert [[answer.text for answer in row.answers] for row in shorter] == [[thought, "No."], ["Yes."], ["a", "b"]]
    assert count == 2 and shorter[2] is rows[2]
    cased = [said("Yes, it is.", "YES, it is.", "Yes, it is!")]
    assert distinct(cased, ids, 500) == (cased, 0)
    shorter, count = distinct(cased, uncased, 500)
    assert count == 1 and [answer.text for answer in shorter[0].answers] == ["Yes, it is.", "Yes, it is!"]


def test_a_template_that_refuses_a_plain_conversation_is_not_asked_again():
    def refusing(conversation: list[dict]) -> list[int]:
        if conversation[0]["content"] == "Hello?":
            raise UserError("no")
        return stripping(conversation)

    rows = [said("<think>\na\n</think>\n\nYes.", "Yes.")]
    assert distinct(rows, refusing, 500)[1] == 1
