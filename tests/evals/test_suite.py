"""Work that a journal remembers, and what all suites share."""

import pytest

from starling_train.evals.suite import Progress, complete, in_turn, unique
from starling_train.files.journal import Journal

KEYS = ["a", "b", "c", "b", "d"]


def completed(tmp_path, made: list[list[int]], fails_at: int | None = None, at_a_time: int = 2, sizes=None):
    """(rows, lines that were told)."""
    said: list[str] = []

    def make(indices):
        made.append(indices)
        for index in indices:
            if index == fails_at:
                raise KeyboardInterrupt
            yield {"value": index}

    def progress(total, done):
        return Progress(said.append, "suite", "rows", total, done)

    with Journal(tmp_path, "work", {"of": 1}) as journal:
        return complete(journal, KEYS, make, progress, at_a_time, sizes), said


def test_what_is_missing_is_made_in_groups_and_kept_as_it_comes(tmp_path):
    made: list[list[int]] = []
    with pytest.raises(KeyboardInterrupt):
        completed(tmp_path, made, fails_at=2)
    assert made == [[0, 3], [2, 4]]  # equal keys are one piece of work
    rows, said = completed(tmp_path, made)
    assert made[2:] == [[2, 4]]
    assert [row["value"] for row in rows] == [0, 3, 2, 3, 4]
    assert said[0] == "suite: 2 of 4 rows are there from an earlier start" and said[-1].startswith("suite: 4 of 4 rows")
    assert (
        completed(tmp_path, made) == (rows, ["suite: 4 of 4 rows are there from an earlier start"]) and len(made) == 3
    )


def test_progress_counts_the_items_of_each_row(tmp_path):
    _, said = completed(tmp_path, [], sizes=[64, 64, 64, 64, 7])
    assert said[-1].startswith("suite: 199 of 199 rows")


def test_groups_take_turns_and_ids_are_made_unique():
    assert in_turn([["a", "b", "c"], ["d"], ["e", "f"]], 4) == ["a", "b", "d", "e"]
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
