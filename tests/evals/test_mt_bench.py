"""MT-Bench's files, its prompts, and ratings read from hundreds of odd replies."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_train.config.fields import UserError
from starling_train.evals.mt_bench import bench as mt_bench
from starling_train.evals.mt_bench.rating import rating, why_unrated, without_reasoning

PLAIN = [
    ("Rating: [[5]]", 5.0),
    ("[[10]]", 10.0),
    ("[[1]]", 1.0),
    ("[[7.5]]", 7.5),
    ("[[7.]]", 7.0),
    ("[[007]]", 7.0),
    ("so: [[8]] and then [[3]]", 8.0),  # the first one, as FastChat takes it
    ("[3] sources say so. Rating: [[9]]", 9.0),  # two brackets win wherever they are
    ("Rating: [6]", 6.0),
    ("Rating: [6.25].", 6.25),
    ("[[rating]] I give [4]", 4.0),
    ("[[[8]]]", 8.0),
    ("[[8]", 8.0),
    ("[8]]", 8.0),
    ("[[\n8\n]]", None),
    ("line\n\nRating: [[2]]\n", 2.0),
    ("[[11]]", None),
    ("[[0]]", None),
    ("[[0.99]]", None),
    ("[[10.01]]", None),
    ("[[-5]]", None),
    ("[[5/10]]", None),
    ("[[ 5 ]]", None),
    ("[[５]]", None),  # full-width digits
    ("[[٥]]", None),
    ("[[5,5]]", None),
    ("[[five]]", None),
    ("[[1e1]]", None),
    ("[[.5]]", None),
    ("[[5.5.5]]", None),
    ("[[" + "9" * 5000 + "]]", None),
    ("[[nan]] [[inf]]", None),
    ("Rating: 5", None),
    ("(5)", None),
    ("{5}", None),
    ("[]", None),
    ("[[]]", None),
    ("", None),
    ("[" * 10_000, None),
    ("[[" * 5000 + "5" + "]]" * 5000, 5.0),
]


@pytest.mark.parametrize("reply,expected", PLAIN, ids=range(len(PLAIN)))
def test_odd_replies(reply, expected):
    assert rating(reply) == expected


REASONED = [
    ("<think>[[1]]</think> Rating: [[9]]", 9.0),
    ("<think>\n[[1]]\n</think>\n\nRating: [[9]]", 9.0),
    ("<THINK>[[1]]</THINK>[[9]]", 9.0),
    ("<thinking>[[1]]</thinking> [[9]]", 9.0),
    ("<thought>[[1]]</thought> [9]", 9.0),
    ("<reasoning>[[1]]</reasoning>[[9]]", 9.0),
    ("<reflection>[[1]] [[2]]</reflection>[[9]]", 9.0),
    ("<analysis>[[1]]</analysis>[[9]]", 9.0),
    ("<scratchpad>[[1]]</scratchpad>[[9]]", 9.0),
    ("<seed:think>[[1]]</seed:think>[[9]]", 9.0),
    ('<think time="3">[[1]]</think >[[9]]', 9.0),
    ("[THINK][[1]][/THINK] [[9]]", 9.0),
    ("◁think▷[[1]]◁/think▷[[9]]", 9.0),
    ("<|begin_of_thought|>[[1]]<|end_of_thought|>[[9]]", 9.0),
    ("<|channel|>analysis<|message|>[[1]]<|end|><|start|>assistant<|channel|>final<|message|>[[9]]", 9.0),
    ("analysis[[1]] so it isassistantfinal[[9]]", 1.0),  # one word: no mark
    ("analysis [[1]]. assistantfinal[[9]]", 9.0),
    ("[[1]] is too low</think>Rating: [[9]]", 9.0),  # begun in the prompt
    ("Rating: [[9]] <think>[[1]]</think>", 9.0),
    ("<think>[[1]]</think> well <think>[[2]]</think> Rating: [[9]]", 9.0),
    ("<think>the answer has <think> [[1]]</think> Rating: [[9]]", 9.0),
    ("<think>it has </think> [[1]] </think> Rating: [[9]]", 9.0),
    ("<think>[[1]]</thinking>[[9]]", 9.0),
    ("[<think>x</think>[9]]", 9.0),
    ("The answer opens `<think>` and never ends. [[9]]", 9.0),  # quoted
    ("[Analysis] good. [[9]]", 9.0),  # a heading
    ("I think [[9]]", 9.0),
    ("a </think", None),
    ("<think>[[1]]", None),
    ("<think>[[1]] <think> [[2]]", None),
    ("Rating: [[9]] but <think>[[1]]", None),
    ("<think>[[1]]</think>", None),
    ("<think>[[1]]</think> no number", None),
    ("[[9]]</think>", None),
    ("<|channel|>analysis<|message|>[[1]]", None),
]


@pytest.mark.parametrize("reply,expected", REASONED, ids=range(len(REASONED)))
def test_reasoning_is_not_the_rating(reply, expected):
    assert rating(reply) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "[[3]]", " ", "`", "<reasoning>", "[/think]"]), max_size=12))
def test_a_rating_never_stands_in_what_is_between_marks(parts):
    """Against a walk over the parts, one by one."""
    kept, inside, before = "", False, ""
    for part in parts:
        is_mark = part not in ("[[3]]", " ", "`") and before != "`"
        if is_mark and "/" in part:
            kept, inside = ("" if not inside else kept), False
        elif is_mark:
            inside = True
        elif not inside:
            kept += part
        before = part
    assert rating("".join(parts)) == (3.0 if "[[3]]" in kept and not inside else None)


def test_marks_without_end_take_no_time():
    for text in ("<think>" * 50_000, "<think " * 50_000, "<|channel|>final" * 50_000, "</think>" * 50_000 + "[[5]]"):
        assert rating(text) == (5.0 if text.endswith("]]") else None)
    assert without_reasoning("</think>" * 50_000) == ""


@pytest.mark.parametrize(
    "reply,ended,why",
    [
        ("so far", "length", "no rating in the reply, which was cut at mt_bench.judge.max_tokens"),
        ("<think>so far", "length", "no rating in the reply, which was cut at mt_bench.judge.max_tokens"),
        ("so far", "MAX_TOKENS", "no rating in the reply, which was cut at mt_bench.judge.max_tokens"),
        ("so", "content_filter", "no rating in the reply, which the server ended: content_filter"),
        ("<think>[[1]]", "stop", "no rating in the reply, whose reasoning does not end"),
        ("good", "stop", "no rating in the reply"),
        ("good", "", "no rating in the reply"),
    ],
)
def test_why_there_is_no_rating(reply, ended, why):
    assert rating(reply) is None and why_unrated(reply, ended) == why


def test_a_rating_is_found_in_hundreds_of_surroundings():
    words = [
        "",
        " ",
        "Rating: ",
        "**Rating:** ",
        "\n\n",
        "评分：",
        "I'd say [A] or [B], ",
        "5 of 10 ",
        '"',
        "`",
        "\x00",
        "😀",
    ]
    tried = 0
    for before in words:
        for behind in words:
            for text in ("1", "3", "9.5", "10"):
                assert rating(f"{before}[[{text}]]{behind}") == float(text)
                tried += 1
    assert tried > 500


@given(st.text(max_size=60))
def test_any_text_is_rated_within_the_scale_or_not_at_all(reply):
    found = rating(reply)
    assert found is None or (1 <= found <= 10 and re.search(r"\[[0-9]", reply))


@given(
    st.text(st.characters(exclude_characters="[]")),
    st.floats(1, 10).map(lambda number: f"{number:.3f}"),
    st.text(st.characters(exclude_characters="[]")),
)
def test_the_number_that_is_in_brackets_is_the_rating(before, number, behind):
    assert rating(f"{before}[[{number}]]{behind}") == float(number)
    assert rating(f"{before}[{number}]{behind}") == float(number)


@given(st.lists(st.sampled_from(["[", "]", "[[", "]]", "1", "10", "11", ".", "5", " ", "x", "\n", "-"]), max_size=14))
def test_what_fastchat_reads_we_read_within_the_scale(parts):
    """Against the rule written down once more: two brackets, else one, the first of them."""
    reply = "".join(parts)
    found = re.search(r"\[\[([0-9]+\.?[0-9]*)\]\]", reply) or re.search(r"\[([0-9]+\.?[0-9]*)\]", reply)
    wanted = float(found[1]) if found else None
    assert rating(reply) == (wanted if wanted is not None and 1 <= wanted <= 10 else None)


@pytest.fixture(scope="module")
def directory(data_dir) -> Path:
    return data_dir / "mt_bench"


def test_the_real_files(directory):
    bench = mt_bench.load(directory)
    assert [q.id for q in bench.questions] == [str(number) for number in range(81, 161)]
    counts = Counter(q.category for q in bench.questions)
    assert set(counts.values()) == {10} and set(counts) == set(mt_bench.TEMPERATURES)
    assert sum(bool(q.references) for q in bench.questions) == 30
    heats = Counter(q.temperature(None) for q in bench.questions)
    assert heats == {0.7: 20, 0.0: 40, 0.1: 20} and {q.temperature(0.0) for q in bench.questions} == {0.0}
    some = mt_bench.load(directory, 10)
    assert Counter(q.category for q in some.questions).most_common()[0][1] == 2 and len(some.questions) == 10


def test_what_the_judge_reads(directory):
    bench = mt_bench.load(directory)
    answers = ["one {question} [[3]] {0}", "two"]  # braces in an answer are text
    essay = bench.questions[0]
    first = bench.judgment(essay, 1, answers[:1])
    assert [message["role"] for message in first] == ["system", "user"]
    assert first[0]["content"] == "You are a helpful assistant."
    assert first[1]["content"].endswith(
        f"[Question]\n{essay.turns[0]}\n\n"
        f"[The Start of Assistant's Answer]\n{answers[0]}\n[The End of Assistant's Answer]"
    )
    second = bench.judgment(essay, 2, answers)
    assert second[1]["content"] == (
        "<|The Start of Assistant A's Conversation with User|>\n\n"
        f"### User:\n{essay.turns[0]}\n\n### Assistant A:\n{answers[0]}\n\n"
        f"### User:\n{essay.turns[1]}\n\n### Assistant A:\n{answers[1]}\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )
    sums = next(q for q in bench.questions if q.category == "math")
    with_reference = bench.judgment(sums, 2, answers)[1]["content"]
    assert all(text in with_reference for text in (*sums.references, *sums.turns, *answers))
    assert sums.references[0] in bench.judgment(sums, 1, answers[:1])[1]["content"]


def spoil(file: str, change) -> callable:
    def make(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        change(rows)
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    return make


@pytest.mark.parametrize(
    "make,says",
    [
        (lambda folder: (folder / "question.jsonl").unlink(), "question.jsonl: no such file"),
        (lambda folder: (folder / "judge_prompts.jsonl").unlink(), "judge_prompts.jsonl: no such file"),
        (lambda folder: (folder / "reference_answer_gpt-4.jsonl").unlink(), "reference_answer_gpt-4.jsonl: no such"),
        (lambda folder: (folder / "question.jsonl").write_text(""), "question.jsonl: nothing in it"),
        (lambda folder: (folder / "question.jsonl").write_text("{"), "question.jsonl:1: not JSON"),
        (spoil("question.jsonl", lambda rows: rows[2].pop("category")), "question.jsonl:3: no `question_id` or no"),
        (spoil("question.jsonl", lambda rows: rows[3].update(turns=["one"])), "question.jsonl:4: `turns` are not two"),
        (spoil("question.jsonl", lambda rows: rows[4].update(turns=[1, 2])), "question.jsonl:5: `turns` are not two"),
        (spoil("question.jsonl", lambda rows: rows.append(rows[0])), "question.jsonl:81: question 81 appears twice"),
        (spoil("reference_answer_gpt-4.jsonl", lambda rows: rows.pop(0)), "question 101 (reasoning) has no reference"),
        (spoil("reference_answer_gpt-4.jsonl", lambda rows: rows[0].update(choices=[])), "gpt-4.jsonl:1: no"),
        (spoil("judge_prompts.jsonl", lambda rows: rows.pop(4)), "no prompt named single-v1"),
        (spoil("judge_prompts.jsonl", lambda rows: rows[4].update(prompt_template="{answer}")), "jsonl:5: no `system_"),
        (spoil("judge_prompts.jsonl", lambda rows: rows[4].update(prompt_template="{x.y}{")), "jsonl:5: no `system_"),
    ],
)
def test_what_is_wrong_in_the_files_is_named(directory, tmp_path, make, says):
    folder = Path(shutil.copytree(directory, tmp_path / "bench"))
    make(folder)
    with pytest.raises(UserError, match=re.escape(says)):
        mt_bench.load(folder)
