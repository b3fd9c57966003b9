"""The file of the reference's log-probabilities: whose they are, what a kill leaves, and damage that is told."""

import json
import math

import pytest

from starling_train.config.fields import UserError
from starling_train.data.pairs import PairedRow
from starling_train.files.json_lines import JsonLines
from starling_train.training.dpo import reference
from starling_train.training.dpo.reference import Reference, chunks, read

WHO = {"base": "a" * 64, "data": "b" * 64, "dtype": "float32", "max_length": 64}


def rows(count: int = 7) -> list[PairedRow]:
    asked = [{"role": "user", "content": "Hi"}]
    return [PairedRow(index, asked, ["a", "b", "c"], [(0, 1), (0, 2), (1, 2)]) for index in range(count)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 3)


def compute(given: list[PairedRow]) -> list[list[float]]:
    return [[-row.index - i / 3 for i in range(3)] for row in given]


@pytest.fixture
def file(tmp_path):
    """Of a pass that was done."""
    path = tmp_path / "reference.jsonl"
    reference = Reference(chunks(rows()), WHO, [])
    reference.complete(compute, JsonLines(path), lambda line: None)
    assert reference.is_complete
    return path


def test_the_numbers_come_back_exactly(file):
    wanted = chunks(rows())
    assert [len(piece) for piece in wanted] == [3, 3, 1]
    again = Reference(wanted, WHO, read(file, WHO, wanted))
    assert again.is_complete
    kept, lost = again.usable(rows())
    assert [row.reference for row in kept] == compute(rows()) and lost == 0
    again.complete(pytest.fail, JsonLines(file), pytest.fail)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_after_a_kill_only_what_is_missing_is_computed(file, left):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:left]) + lines[left][:20])  # and half of the next line
    wanted, done = chunks(rows()), []
    reference = Reference(wanted, WHO, read(file, WHO, wanted))
    assert not reference.is_complete
    reference.complete(lambda given: done.append(given) or compute(given), JsonLines(file), lambda line: None)
    assert done == wanted[left - 1 :]
    assert file.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "changed,says",
    [
        ({"base": "c" * 64}, "of another model"),
        ({"data": "c" * 64}, "of other data or another tokenizer"),
        ({"dtype": "bfloat16"}, "of other settings"),
        ({"max_length": 65}, "of other settings"),
    ],
)
def test_the_numbers_of_something_else_are_refused(file, changed, says):
    with pytest.raises(UserError, match=f"^run_dir: .*{says}.*another run_dir$"):
        read(file, WHO | changed, chunks(rows()))


def line(number: int, **values):
    """A change of a line's JSON."""

    def change(lines: list[str]) -> None:
        lines[number] = json.dumps(json.loads(lines[number]) | values)

    return change


@pytest.mark.parametrize(
    "number,spoil",
    [
        (1, lambda lines: lines.__setitem__(0, "{}")),
        (1, lambda lines: lines.__setitem__(0, "[1]")),
        (2, lambda lines: lines.__setitem__(1, lines[1].replace("-0.333", "-0.334"))),
        (2, lambda lines: lines.__setitem__(1, "nonsense")),
        (2, lambda lines: lines.pop(1)),
        (3, line(2, logprobs=[[1.0]])),
        (3, line(2, sha256="")),
        (4, lambda lines: lines.append(lines[3])),
        (3, lambda lines: lines.__setitem__(2, "[" * 100_000)),
    ],
)
def test_a_damaged_line_is_named(file, number, spoil):
    lines = file.read_text().splitlines()
    spoil(lines)
    file.write_text("".join(f"{text}\n" for text in lines))
    damaged = 5 if len(lines) == 5 else number
    with pytest.raises(
        UserError, match=rf"^run_dir: line {damaged} of .*reference.jsonl is damaged; put the file back"
    ):
        read(file, WHO, chunks(rows()))


def test_pairs_without_a_finite_number_are_left_out(tmp_path):
    def odd(given):
        return [[-1.0, math.nan if row.index == 1 else -2.0, -math.inf if row.index < 3 else -3.0] for row in given]

    reference = Reference(chunks(rows(4)), WHO, [])
    path = tmp_path / "reference.jsonl"
    reference.complete(odd, JsonLines(path), lambda line: None)
    again = Reference(chunks(rows(4)), WHO, read(path, WHO, chunks(rows(4))))
    for found in (reference, again):
        kept, lost = found.usable(rows(4))
        assert [row.pairs for row in kept] == [[(0, 1)], [], [(0, 1)], [(0, 1), (0, 2), (1, 2)]] and lost == 7
        # an answer that is in no pair is not computed either: its gradient would be not a number
        assert [row.answers for row in kept] == [["a", "b"], [], ["a", "b"], ["a", "b", "c"]]
        assert [row.reference for row in kept] == [[-1.0, -2.0], [], [-1.0, -2.0], [-1.0, -2.0, -3.0]]
    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_rows_that_no_step_trains_on_are_left_as_they_are():
    reference = Reference(chunks(rows(2)), WHO, [compute(rows(2))])
    kept, lost = reference.usable(rows(3))
    assert lost == 0 and kept[2] == rows(3)[2]


def test_a_run_that_has_trained_cannot_compute_them(file):
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    wanted = chunks(rows())
    reference = Reference(wanted, WHO, read(file, WHO, wanted))
    reference.check_complete(0, file)
    with pytest.raises(UserError, match=r"^run_dir: .*reference.jsonl is not whole, and cannot be computed"):
        reference.check_complete(1, file)


def test_it_says_how_far_it_is_where_that_is_far():
    said: list[str] = []

    class Log:
        def write(self, rows): ...

    Reference(chunks(rows(60)), WHO, []).complete(compute, Log(), said.append)
    assert (
        len(said) == 10 and said[0].endswith("2 of 20 parts are done") and said[-1].endswith("20 of 20 parts are done")
    )
