"""Loading Nectar-like files: turns, ranked answers, what is dropped and why, and messages for wrong files."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling_train.config.fields import UserError
from starling_train.data.nectar import Answer, Nectar, RankedRow, load, normalise, write_parquet
from starling_train.data.rows.marked_text import parse_prompt

USER, ASSISTANT = "user", "assistant"
ONE_TURN = "\n\nHuman: Hi there\n\nAssistant: "


def turns(*contents):
    return [{"role": (USER, ASSISTANT)[i % 2], "content": text} for i, text in enumerate(contents)]


def raw_row(prompt=ONE_TURN, answers=("a", "b"), **columns):
    ranked = [{"answer": text, "model": f"m{i}", "rank": float(i + 1)} for i, text in enumerate(answers)]
    return {"prompt": prompt, "answers": ranked, "source": ["s"], "good_natured": True} | columns


def parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompt_text_becomes_turns():
    text = "\n\nHuman: One\n\ntwo \n\nAssistant:  Yes\n\nHuman: And?\n\nAssistant: "
    assert parse_prompt(text) == turns("One\n\ntwo", "Yes", "And?")
    assert parse_prompt("\n\nHuman: Hi\n\nAssistant:\n\nHuman: Still?\n\nAssistant:") == turns("Hi", "", "Still?")
    assert parse_prompt("Say Human: x") == turns("Say Human: x")


def test_answers_are_sorted_best_first(tmp_path):
    row = raw_row()
    row["answers"] = [
        {"answer": text, "model": text.upper(), "rank": rank} for text, rank in zip("cab", (3.0, 1.0, 2.0), strict=True)
    ]
    loaded = load(parquet(tmp_path / "x.parquet", row)).rows[0]
    assert loaded == RankedRow(
        turns("Hi there"), [Answer("a", "A", 1), Answer("b", "B", 2), Answer("c", "C", 3)], ["s"]
    )


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: ", "two assistant turns in a row"),
        (
            "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: ",
            "two assistant turns in a row",
        ),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: ", "two user turns in a row"),
        ("\n\nAssistant: a\n\nHuman: b\n\nAssistant: ", "does not begin with a user turn"),
        ("preface\n\nHuman: b\n\nAssistant: ", "does not begin with a user turn"),
        ("\n\nHuman: a\n\nAssistant: already answered", "does not end with a user turn"),
        ("\n\nHuman: a\n\nAssistant: \n\nHuman: b\n\nAssistant: ", "empty turn"),
        ("\n\nHuman: \n\nAssistant: ", "empty turn"),
        (None, "empty turn"),
        ("", "empty turn"),
    ],
)
def test_rows_that_are_dropped(tmp_path, prompt, reason):
    data = load(parquet(tmp_path / "x.parquet", raw_row(prompt), raw_row()))
    assert data.dropped == {reason: 1}
    assert [row.messages for row in data.rows] == [turns("Hi there")]


def test_odd_answers_are_left_out_and_counted(tmp_path):
    ran_on = "Yes.\n\nHuman: Thanks\n\nAssistant: Welcome"
    row = raw_row(answers=["best", " ", "best ", ran_on, "", "worst"])
    row["answers"][5]["rank"] = None
    data = load(parquet(tmp_path / "x.parquet", row))
    assert [(answer.text, answer.rank) for answer in data.rows[0].answers] == [("best", 1.0), (ran_on, 4.0)]
    assert data.answers_changed == {
        "left out: empty": 2,
        "left out: repeats a better-ranked answer": 1,
        "left out: no rank": 1,
        "kept: goes on to write a Human turn": 1,
    }
    assert data.dropped == {}


def test_good_natured_only(tmp_path):
    file = parquet(tmp_path / "x.parquet", raw_row(good_natured=False), raw_row(good_natured=True))
    assert [row.good_natured for row in load(file).rows] == [False, True]
    data = load(file, good_natured_only=True)
    assert [row.good_natured for row in data.rows] == [True] and data.dropped == {"not good-natured": 1}


def test_directory_file_and_extra_columns(tmp_path):
    parquet(tmp_path / "data" / "a.parquet", raw_row("\n\nHuman: 1\n\nAssistant: ", extra=7))
    parquet(tmp_path / "data" / "b.parquet", raw_row("\n\nHuman: 2\n\nAssistant: ", turns=1))
    assert [row.messages[0]["content"] for row in load(tmp_path).rows] == ["1", "2"]
    assert len(load(tmp_path / "data" / "b.parquet").rows) == 1


def test_jsonl_prompts_messages_and_answers(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    answers = [{"answer": "x", "model": "m", "rank": 2}, {"answer": "y", "rank": 1}]
    file = jsonl(
        tmp_path / "x.jsonl",
        {"prompt": " plain text\n"},
        {"prompt": ONE_TURN, "answers": answers},
        {"messages": [*system, *turns("a", "b", "c ")]},
        {"messages": turns("a", "b")},
        {"messages": [*turns("a", "b"), *system, *turns("c")]},
    )
    data = load(file)
    assert [row.messages for row in data.rows] == [
        turns(" plain text\n"),
        turns("Hi there"),
        [*system, *turns("a", "b", "c ")],
        turns("a"),  # what the assistant said last is its answer
    ]
    assert [[answer.text for answer in row.answers] for row in data.rows] == [[], ["y", "x"], [], ["b"]]
    assert data.dropped == {"system message after the first turn": 1}


def test_jsonl_of_pairs(tmp_path):
    said = [{"role": "assistant", "content": "better"}]
    file = jsonl(
        tmp_path / "x.jsonl",
        {"prompt": "one", "chosen": "a", "rejected": "b"},
        {
            "prompt": turns("two"),
            "chosen": said,
            "rejected": [*turns("two"), {"role": "assistant", "content": "worse"}],
        },
        {"prompt": "three", "chosen": "same", "rejected": " same"},
        {"prompt": "four", "chosen": "", "rejected": "b"},
    )
    data = load(file)
    assert [row.messages for row in data.rows] == [turns("one"), turns("two"), turns("three"), turns("four")]
    answers = [[(answer.text, answer.rank) for answer in row.answers] for row in data.rows]
    assert answers == [[("a", 1), ("b", 2)], [("better", 1), ("worse", 2)], [("same", 1)], [("b", 2)]]
    assert data.answers_changed == {"left out: repeats a better-ranked answer": 1, "left out: empty": 1}


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "x", "chosen": "a"}, "`chosen` alone; a pair needs"),
        ({"prompt": "x", "rejected": "a"}, "`rejected` alone; a pair needs"),
        ({"prompt": "x", "chosen": 3, "rejected": "a"}, "`chosen` is not an answer"),
        ({"prompt": "x", "chosen": "a", "rejected": ["b"]}, "`rejected` must be a list of objects"),
    ],
)
def test_pairs_that_are_none_are_named(tmp_path, row, wrong):
    with pytest.raises(UserError, match=f"x.jsonl:1: {wrong}"):
        load(jsonl(tmp_path / "x.jsonl", row))


def test_answers_can_be_left_unread(tmp_path):
    file = parquet(tmp_path / "x.parquet", {"prompt": ONE_TURN})
    assert load(file, answers=False).rows == load(file).rows == [RankedRow(turns("Hi there"))]
    assert load(parquet(tmp_path / "y.parquet", raw_row()), answers=False).rows[0].answers == []


def test_ranks_may_be_whole_numbers_and_missing(tmp_path):
    answers = [{"answer": text, "rank": rank} for text, rank in (("a", 2), ("b", 1), ("c", None))]
    for write in (parquet, jsonl):
        data = load(write(tmp_path / f"x.{write.__name__}", raw_row() | {"answers": answers}))
        assert [(answer.text, answer.rank) for answer in data.rows[0].answers] == [("b", 1.0), ("a", 2.0)]
        assert data.answers_changed == {"left out: no rank": 1}


@pytest.mark.parametrize("write", [parquet, jsonl])
def test_columns_are_kept_on_request(tmp_path, write):
    rows = [raw_row("1", truth=["4", "four"], level=2), raw_row("2", truth=None, level=3)]
    file = write(tmp_path / f"x.{write.__name__}", *rows)
    kept = load(file, keep=["truth", "level"]).rows
    assert [row.columns for row in kept] == [{"truth": ["4", "four"], "level": 2}, {"truth": None, "level": 3}]
    assert [row.columns for row in load(file).rows] == [{}, {}]
    assert [row.columns for row in load(file, keep=["truth", "answer"]).rows] == [
        {"truth": ["4", "four"]}, {"truth": None},
    ]  # fmt: skip


def test_excluded_prompts_are_dropped_wherever_they_are_said(tmp_path):
    questions = jsonl(tmp_path / "q.jsonl", {"question_id": 81, "turns": ["Compose a POST, now!", "Rewrite it."]})
    lines = tmp_path / "lines.txt"
    lines.write_text("hi there\n\n!!!\n")
    rows = [
        raw_row("\n\nHuman: compose a post  now\n\nAssistant: "),
        raw_row("\n\nHuman: x\n\nAssistant: y\n\nHuman: rewrite it\n\nAssistant: "),
        raw_row("\n\nHuman: Compose a post, now! And more.\n\nAssistant: "),
        raw_row(),
        raw_row("\n\nHuman: ???\n\nAssistant: "),
    ]
    data = load(parquet(tmp_path / "x.parquet", *rows), exclude=[questions, lines])
    assert data.dropped == {"in an excluded file": 3}
    for form in (
        {"prompt": "\n\nHuman: Hi there!\n\nAssistant: "},
        {"chosen": turns("hi there", "x"), "rejected": turns("hi there", "y")},
    ):
        other = jsonl(tmp_path / "other.jsonl", form | {"turns": 1})  # Nectar counts them
        assert load(tmp_path / "x.parquet", exclude=[other]).dropped == {"in an excluded file": 1}
    assert [row.messages[0]["content"] for row in data.rows] == ["Compose a post, now! And more.", "???"]


def test_normalise_keeps_letters_of_every_script():
    assert normalise("  Wie_geht's, 你好?\n") == "wie geht s 你好"


def test_what_is_written_is_nectars_schema_and_loads_again(tmp_path):
    rows = [
        RankedRow(turns("a", "b", "c"), [Answer("x", "m", 1.0), Answer("y", "n", 2.0)], ["toy", "x"], False),
        RankedRow(turns("only a prompt")),
    ]
    write_parquet(rows, tmp_path / "data" / "train.parquet")
    answers = "list<element: struct<answer: string, model: string, rank: double>>"
    schema = pq.read_schema(tmp_path / "data" / "train.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "prompt": "string",
        "answers": answers,
        "turns": "int64",
        "num_responses": "int64",
        "source": "list<element: string>",
        "good_natured": "bool",
    }
    table = pq.read_table(tmp_path / "data" / "train.parquet").to_pylist()
    assert table[0]["prompt"] == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    assert [(row["turns"], row["num_responses"]) for row in table] == [(2, 2), (1, 0)]
    assert load(tmp_path) == Nectar(rows, {}, {})


def text_file(name, text):
    def make(directory):
        (directory / name).write_bytes(text.encode("latin-1"))
        return directory / name

    return make


def parquet_of(row):
    return lambda directory: parquet(directory / "x.parquet", row)


def broken_pages(directory):
    """A file whose end is right, and whose pages are not."""
    path = parquet(directory / "x.parquet", *(raw_row(f"\n\nHuman: {i} " * 9) for i in range(2000)))
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    return path


def dead_link(directory):
    (directory / "x.jsonl").symlink_to(directory / "not" / "there")
    return directory / "x.jsonl"


WRONG_FILES = {
    "dead link": (dead_link, "no such file or directory"),
    "broken pages": (broken_pages, "x.parquet: damaged ("),
    "empty file": (text_file("x.jsonl", ""), "no usable row is left"),
    "blank lines": (text_file("x.jsonl", "\n\n"), "no usable row is left"),
    "blank prompt": (parquet_of(raw_row() | {"prompt": ""}), "no usable row is left"),
    "deep": (text_file("x.jsonl", "[" * 100_000), "x.jsonl:1: JSON that cannot be read"),
    "surrogate": (text_file("x.jsonl", '{"prompt": "\\ud800"}'), "x.jsonl:1: half a surrogate pair"),
    "content type": (
        text_file("x.jsonl", '{"messages": [{"role": "user", "content": 3}]}'),
        "x.jsonl:1: `content` of a user",
    ),
    "nowhere": (lambda d: d / "nowhere" / "at" / "all", "no such file or directory"),
    "no file": (lambda d: Path("nectar/x.parquet"), "no such file or directory"),
    "empty directory": (lambda d: d, "no .parquet file"),
    "suffix": (text_file("x.arrow", "prompt\n"), "x.arrow: not one of .parquet, .jsonl, .json, .csv"),
    "not parquet": (text_file("x.parquet", "text"), "not a readable parquet file"),
    "columns": (parquet_of({"text": "x"}), "x.parquet, row 1: neither `prompt` nor `messages` (it has text)"),
    "prompt type": (parquet_of(raw_row() | {"prompt": 3}), "x.parquet, row 1: `prompt` is a int"),
    "answers type": (parquet_of(raw_row() | {"answers": "x"}), "x.parquet, row 1: `answers` must be a list"),
    "not UTF-8": (text_file("x.jsonl", '{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n'), "x.jsonl:2: not UTF-8"),
    "not JSON": (text_file("x.jsonl", '{"prompt": "ok"}\n\n{"prompt": \n'), "x.jsonl:3: not JSON"),
    "not an object": (text_file("x.jsonl", '["x"]'), "x.jsonl:1: a JSON list"),
    "no key": (text_file("x.jsonl", '{"text": "x"}'), "x.jsonl:1: neither `prompt` nor `messages`"),
    "number": (text_file("x.jsonl", '{"prompt": 3}'), "x.jsonl:1: `prompt` is a int"),
    "messages": (text_file("x.jsonl", '{"messages": "x"}'), "x.jsonl:1: `messages` must be a list"),
    "role": (
        text_file("x.jsonl", '{"messages": [{"role": "robot", "content": ""}]}'),
        "no usable row is left (1 role 'robot', not system, user or assistant (first ",
    ),
    "content": (text_file("x.jsonl", '{"messages": [{"role": "user"}]}'), "no usable row is left (1 empty turn"),
    "tools": (
        text_file("x.jsonl", '{"messages": [{"role": "tool", "content": ""}]}'),
        "no usable row is left (1 a tool's message or call (first ",
    ),
    "answers": (text_file("x.jsonl", '{"prompt": "x", "answers": ["y"]}'), "x.jsonl:1: `answers` must be"),
    "nothing left": (text_file("x.jsonl", '{"prompt": " "}\n'), "no usable row is left (1 empty turn (first "),
}


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ('{"answer": "a", "rank": "first"}', "a `rank` is 'first'; it must be a number"),
        ('{"answer": "a", "rank": true}', "a `rank` is True"),
        ('{"answer": 3, "rank": 1}', "an `answer` is a int"),
        ('{"answer": "\\ud800", "rank": 1}', "half a surrogate pair"),
    ],
)
def test_answers_that_cannot_be_ranked_are_named(tmp_path, answer, wrong):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hi", "answers": [{"answer": "b", "rank": 2}, ' + answer + "]}\n")
    with pytest.raises(UserError, match=f"rows.jsonl:1: {wrong}"):
        load(file)


def test_nan_is_no_rank_and_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"prompt": "hi", "answers": [{"answer": "a", "rank": NaN}, {"answer": "b", "rank": 2}]}\n'
    )
    loaded = load(file)
    assert [answer.text for answer in loaded.rows[0].answers] == ["b"]
    assert loaded.answers_changed == {"left out: no rank": 1}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_named(tmp_path, case):
    make, wrong = WRONG_FILES[case]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path)) and wrong in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("gone.txt", None, "no such file"),
        ("latin.txt", b"caf\xe9", "latin.txt: not UTF-8"),
        ("q.jsonl", b'{"id": 1}\n', "q.jsonl:1: no `turns`"),
    ],
)
def test_wrong_exclude_files_are_named(tmp_path, name, content, wrong):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(wrong)):
        load(parquet(tmp_path / "x.parquet", raw_row()), exclude=[tmp_path / name])


def test_hub_id_that_cannot_be_read(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("no route\nto the hub")

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # which would be the reason told
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^data.path: 'somebody/Nectar' .*no route"):
        load("somebody/Nectar")
    assert asked == [(("somebody/Nectar", None), {"split": "train"})]


def test_real_rows(data_dir):
    table = pq.read_table(data_dir / "nectar/data/rlaif.parquet").to_pylist()
    data = load(data_dir / "nectar")
    assert len(data.rows) == len(table) == 206 and data.dropped == {}
    assert sum(row.good_natured for row in data.rows) == sum(raw["good_natured"] for raw in table) == 184
    speakers = Counter(len(re.findall(r"\n\n(?:Human|Assistant):", raw["prompt"])) - 1 for raw in table)
    assert Counter(len(row.messages) for row in data.rows) == speakers
    repeats = sum(len(raw["answers"]) - len({a["answer"].strip() for a in raw["answers"]}) for raw in table)
    ran_on = sum("\n\nHuman:" in text for raw in table for text in {a["answer"].strip() for a in raw["answers"]})
    assert data.answers_changed == {
        "left out: repeats a better-ranked answer": repeats,
        "kept: goes on to write a Human turn": ran_on,
    }
    assert repeats >= 17 and ran_on == 4
    for row, raw in zip(data.rows, table, strict=True):
        assert "".join(
            f"\n\n{'Human' if m['role'] == USER else 'Assistant'}: {m['content']}" for m in row.messages
        ) == (raw["prompt"].removesuffix("\n\nAssistant: "))
        best = min(raw["answers"], key=lambda answer: answer["rank"])
        assert (row.answers[0].text, row.answers[0].model) == (best["answer"], best["model"])
        ranks = [answer.rank for answer in row.answers]
        assert ranks == sorted(set(ranks))


def test_real_rows_against_mt_bench(data_dir, tmp_path):
    """MT-Bench's questions are found in a copy of the data that has one put in; the real rows have none."""
    questions = data_dir / "mt_bench/question.jsonl"
    data = load(data_dir / "nectar", exclude=[questions])
    assert data.dropped == {} and len(data.rows) == 206
    second_turn = json.loads(questions.read_text().splitlines()[0])["turns"][1]
    write_parquet([*data.rows, RankedRow(turns("x", "y", second_turn.upper()))], tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", exclude=[questions]).dropped == {"in an excluded file": 1}


def test_written_real_rows_load_equal(data_dir, tmp_path):
    data = load(data_dir / "nectar")
    write_parquet(data.rows, tmp_path / "again.parquet")
    assert load(tmp_path / "again.parquet").rows == data.rows
