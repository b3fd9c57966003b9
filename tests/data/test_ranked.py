import pytest

from starling_train.config.fields import UserError
from starling_train.data.nectar import Answer, RankedRow
from starling_train.data.ranked import conversations, ranks, with_an_order


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
