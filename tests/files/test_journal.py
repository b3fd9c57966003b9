"""What is kept of a suite: nothing lost but half a line, nothing of something else, one writer."""

import errno
import json
import os

import pytest

from starling_train.config.fields import UserError
from starling_train.files.journal import Journal

WHAT = {"suite": "mt_bench", "model": {"sha256": "ab"}, "limits": (1, 2)}


def lines(journal: Journal) -> list[dict]:
    return [json.loads(line) for line in journal.path.read_bytes().splitlines()]


def test_rows_come_back_and_are_not_written_twice(tmp_path):
    with Journal(tmp_path, "answers", WHAT) as journal:
        journal.add("1", {"text": "é\n\u2028"})
        journal.add("1", {"text": "other"})
        assert lines(journal) == [
            {"identity": json.loads(json.dumps(WHAT))},
            {"id": "1", "text": "é\n\u2028"},
        ]  # before it is closed
    with Journal(tmp_path, "answers", WHAT) as again:
        assert again.path == journal.path and again.rows == {"1": {"text": "é\n\u2028"}}
        again.add("2", {"text": ""})
    assert len(lines(journal)) == 3


def test_another_identity_is_another_file(tmp_path):
    with Journal(tmp_path, "answers", WHAT) as first, Journal(tmp_path, "answers", WHAT | {"suite": "x"}) as second:
        first.add("1", {})
        assert second.rows == {} and first.path != second.path


@pytest.mark.parametrize("left", [1, 5, -1])
def test_a_line_that_a_kill_cut_in_half_is_removed(tmp_path, left):
    with Journal(tmp_path, "answers", WHAT) as journal:
        journal.add("1", {"a": 1})
        whole = journal.path.read_bytes()
        journal.add("2", {"a": 2})
    journal.path.write_bytes(whole + journal.path.read_bytes()[len(whole) :][:left])
    with Journal(tmp_path, "answers", WHAT) as again:
        assert again.rows == {"1": {"a": 1}}
        again.add("2", {"a": 3})
    assert lines(journal)[1:] == [{"id": "1", "a": 1}, {"id": "2", "a": 3}]


def test_half_of_the_first_line_is_a_new_file(tmp_path):
    with Journal(tmp_path, "answers", WHAT) as journal:
        whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:7])
    with Journal(tmp_path, "answers", WHAT):
        assert journal.path.read_bytes() == whole


@pytest.mark.parametrize("number,line", [(1, '{"identity": {}}'), (1, "[]"), (2, "nonsense"), (2, "{}"), (2, "[1]")])
def test_a_damaged_line_is_named(tmp_path, number, line):
    with Journal(tmp_path, "answers", WHAT) as journal:
        journal.add("1", {})
    there = journal.path.read_text().splitlines()
    there[number - 1] = line
    journal.path.write_text("\n".join(there) + "\n")
    with pytest.raises(UserError, match=rf"^run_dir: line {number} of .*answers-\w+\.jsonl is damaged"):
        Journal(tmp_path, "answers", WHAT).__enter__()


def test_one_process_at_a_time(tmp_path):
    with Journal(tmp_path, "answers", WHAT) as journal:
        with pytest.raises(UserError, match=r"^run_dir: another process writes to "):
            Journal(tmp_path, "answers", WHAT).__enter__()
        journal.add("1", {})
    with Journal(tmp_path, "answers", WHAT) as journal:
        assert list(journal.rows) == ["1"]


def test_a_row_behind_whose_write_a_signal_raises_is_not_written_again(tmp_path, monkeypatch):
    write = os.write

    def interrupted(file: int, line: bytes) -> int:
        write(file, line)
        raise SystemExit(143)

    with Journal(tmp_path, "answers", WHAT) as journal:
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(SystemExit):
            journal.add("1", {"a": 1})
        monkeypatch.setattr(os, "write", write)
        journal.add("1", {"a": 1})
        journal.add("2", {"a": 2})
    assert lines(journal)[1:] == [{"id": "1", "a": 1}, {"id": "2", "a": 2}]


def test_a_full_disk_leaves_no_half_of_a_row(tmp_path, monkeypatch):
    write = os.write

    def full(file: int, line: bytes) -> int:
        if line.startswith(b"{"):
            return write(file, line[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path, "answers", WHAT) as journal:
        journal.add("1", {"a": 1})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left") as told:
            journal.add("2", {"a": 2})
        assert told.value.filename == str(journal.path)
        monkeypatch.setattr(os, "write", write)
        journal.add("2", {"a": 3})
    assert lines(journal)[1:] == [{"id": "1", "a": 1}, {"id": "2", "a": 3}]
