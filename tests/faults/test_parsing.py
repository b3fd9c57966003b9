"""Whatever text comes in, parsing ends in a result or in a UserError, and what was written reads back the same."""

import copy
import json
import keyword
import math
import os
import string
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reward_checkpoints import small_tokenizer

from starling_train.config.fields import UserError
from starling_train.data import conversations, nectar, openchat, preferences, rendered_text, reward_templates
from starling_train.data.rows import json_rows, marked_text
from starling_train.evals import function_calling, perplexity
from starling_train.evals.function_calling import checker
from starling_train.evals.function_calling.parser import Call, answer_text, parse_calls
from starling_train.selection import records as scan_records
from starling_train.selection.records import Record

EXAMPLES = int(os.environ.get("STARLING_EXAMPLES", "60"))  # `make test-faults` takes 1000
settings.register_profile(
    "suite",
    derandomize=True,  # the same examples each time: a failure is one for everybody
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")

# Text as people and models write it: whole Unicode, and the marks that our formats give a meaning to.
MARKS = (
    "\n\nHuman: ", "\n\nAssistant: ", "\n\nHuman:", "\n\nAssistant:", "GPT4 Correct User: ", "GPT4 Correct Assistant:",
    "<|end_of_turn|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST] ", " [/INST]", "```", "`", "<unk>",
    "\ue000", "\ue001", "f(a=1)", "[", "]", "(", ")", "{", "}", "**", "'", '"', "\\", "=", ",", "lambda: ", "1e999",
    "9" * 5000, "0x", "\0", "\r\n", "\u2028", "\ufeff", "\U0001f600",
)  # fmt: skip
TEXT = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=12)), max_size=8).map("".join)
WORDS = TEXT.map(str.strip).filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**310) | st.floats() | TEXT | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(("system", "user", "assistant"))
KEYS = (
    "prompt", "messages", "answers", "response", "role", "content", "rank", "answer", "chosen", "rejected", "turns",
    "source", "model", "good_natured", "question", "conversations", "system", "completion", "text", "from", "value",
    "type", "tool_calls",
)  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(KEYS), JSON | st.lists(st.dictionaries(st.sampled_from(KEYS), JSON)), max_size=5)
DEEP = ("[" * 100_000, '{"a":' * 100_000, "(" * 100_000, "-" * 100_000, "f(a=" * 9_000, "[" * 90 + "]" * 90)


def or_user_error(function, *arguments, **options):
    """The result, or None for a UserError of one line."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        assert str(error) and "\n" not in str(error), str(error)
        return None


SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
ANSWERS = [{"answer": "a", "model": "m", "rank": 1.0}, {"answer": "b", "model": "n", "rank": 2.0}]
RIGHT_ROWS = (
    {"prompt": "\n\nHuman: hi\n\nAssistant: ", "answers": ANSWERS, "source": ["s"], "good_natured": True, "turns": 1},
    {"messages": SAID[:1], "answers": ANSWERS},
    {"messages": SAID},
    {"prompt": "hi", "response": "yes"},
    {"prompt": SAID[:1], "chosen": "yes", "rejected": SAID},
    {"prompt": "hi", "chosen": SAID, "rejected": [*SAID[:1], {"role": "assistant", "content": "no"}], "messages": SAID},
    {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    {"chosen": "hi, yes", "rejected": "hi, no"},
    {"system": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "completion": SAID[1:]},
    {"turns": ["one", "two"]},
)
CASE = {
    "id": "a",
    "question": [SAID[:1]],
    "function": [
        {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": []}}
    ],
    "ground_truth": [{"f": {"a": [1, ""]}}],
}
SCAN = {"model.layers.0.mlp.up_proj": {
    "snr": 1.5, "type": "mlp.up_proj", "shape": [4, 8], "raw": 2.0, "threshold": 1.0, "rank": 3, "s_max": 4.0,
    "signal": 3.0, "noise": 2.0, "stable_rank": 1.0, "margin": 0.1, "fragile": False, "dialect": "spectrum",
    "content": "aa", "holder": "b",
}}  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value: keys and indices from the root."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


@st.composite
def spoiled(draw, *rights):
    """A right value with something else, or nothing, in one or two places."""
    value = copy.deepcopy(draw(st.sampled_from(rights)))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            return draw(JSON)
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()) and draw(st.booleans()):
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(JSON)
    return value


@st.composite
def dialogues(draw, end: str = "user", content=WORDS, system: bool = True) -> list[dict]:
    """Turns in alternation from the user on, ending with a turn of `end`."""
    count = 2 * draw(st.integers(0, 3)) + (1 if end == "user" else 2)
    turns = [{"role": ("user", "assistant")[i % 2], "content": draw(content)} for i in range(count)]
    before = [{"role": "system", "content": draw(content)}] if system and draw(st.booleans()) else []
    return [*before, *turns]


# Nectar


@given(TEXT)
def test_any_text_is_a_prompt_or_none(text):
    messages = marked_text.parse_prompt(text)
    assert all(set(message) == {"role", "content"} for message in messages)
    assert {message["role"] for message in messages} <= {"user", "assistant"}


@given(dialogues(system=False, content=st.text(min_size=1).map(str.strip).filter(bool)))
def test_a_prompt_that_was_written_reads_back(messages):
    text = marked_text.render_prompt(messages)
    if any(marked_text.SPEAKER.search(f"\n\n{message['content']}") for message in messages):
        return  # somebody wrote a turn into a turn: no text can tell them apart
    assert marked_text.parse_prompt(text) == messages


@given(values=st.lists(spoiled(*RIGHT_ROWS) | ROWS, min_size=1, max_size=2), good_natured_only=st.booleans())
@settings(max_examples=2 * EXAMPLES)
def test_any_rows_are_read_or_refused_by_line(tmp_path, values, good_natured_only):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    read = or_user_error(nectar.load, file, good_natured_only=good_natured_only)
    assert read is None or all(row.messages[-1]["role"] == "user" for row in read.rows)
    or_user_error(nectar.load, file, answers=False, exclude=[file])
    or_user_error(preferences.load, file)
    or_user_error(perplexity.load, file)


@given(st.binary(max_size=200) | st.sampled_from([text.encode() for text in DEEP]))
@example(b'{"prompt": "\\ud800"}')
@example(b"9" * 5000)
def test_any_line_is_an_object_or_refused(line):
    row = or_user_error(json_rows.parse_object, line, "file:1")
    assert row is None or isinstance(row, dict)
    or_user_error(conversations.parse, line)


# conversations


@given(spoiled(*RIGHT_ROWS) | ROWS, st.booleans())
def test_any_json_is_a_conversation_or_refused(row, allow_empty):
    messages = or_user_error(conversations.of_row, row, allow_empty=allow_empty)
    assert messages is None or messages[-1]["role"] == "assistant"


@given(dialogues("assistant"))
def test_a_conversation_is_taken_as_it_is(messages):
    line = json.dumps({"messages": messages}).encode()
    assert conversations.of_row(conversations.parse(line)) == messages
    assert conversations.of_row(messages) == messages


@given(TEXT, st.none() | TEXT)
def test_any_rendered_text_is_a_conversation_or_refused(query, prompt):
    messages = or_user_error(rendered_text.to_conversation, query, prompt)
    assert messages is None or messages[-1]["role"] == "assistant"


# templates

LETTERS = st.text(string.ascii_letters + string.digits + " .,:\n", max_size=20)


@pytest.fixture(scope="module")
def openchat_tokenizer_():
    import openchat_tokenizer

    return openchat_tokenizer.build()


@given(messages=dialogues(), mode=st.sampled_from(("chat", "code", "math")), system=st.sampled_from(("bare", "role")))
@settings(max_examples=60)
def test_an_encoded_dialogue_holds_its_turns_and_no_forged_ones(openchat_tokenizer_, messages, mode, system):
    tokenizer = openchat_tokenizer_
    ids = openchat.encode(messages, tokenizer, mode, system=system)
    end = openchat.end_of_turn_id(tokenizer)
    silent = system == "bare"  # an empty system message is no turn
    turns = [m for m in messages if m["role"] != "system" or m["content"] or not silent]
    assert ids[0] == tokenizer.bos_token_id and ids.count(end) == len(turns)
    assert ids.count(tokenizer.bos_token_id) == 1  # whatever a message says
    assert openchat.render(messages, mode, system=system).count(openchat.END_OF_TURN) >= len(turns)


@given(messages=dialogues(content=LETTERS.filter(str.strip)), answer=LETTERS)
@settings(max_examples=60)
def test_what_is_tokenised_as_an_answer_is_decoded_to_the_same(openchat_tokenizer_, messages, answer):
    tokenizer = openchat_tokenizer_
    prompt = openchat.encode(messages, tokenizer)
    whole = openchat.encode(
        [*messages, {"role": "assistant", "content": answer}], tokenizer, add_generation_prompt=False
    )
    assert whole[: len(prompt) - 1] == prompt[:-1]  # the last piece may join what follows
    if whole[: len(prompt)] == prompt:
        assert openchat.decode(whole[len(prompt) :], tokenizer) == answer


@given(messages=dialogues("assistant"), kind=st.sampled_from(reward_templates.KINDS))
@settings(max_examples=80)
def test_reward_templates_take_any_text_as_text(messages, kind):
    tokenizer = TOKENIZER
    ids = or_user_error(reward_templates.encode_conversation, kind, messages, tokenizer)
    assert ids is not None and all(type(token) is int for token in ids)
    plain = [{**message, "content": "x"} for message in messages]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    counted = [token for token in reward_templates.encode_conversation(kind, plain, tokenizer) if token in special]
    assert [token for token in ids if token in special] == counted  # nobody writes a turn into a message


TOKENIZER = small_tokenizer()


# function calls

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}(\.[a-z][a-z0-9_]{0,6})?", fullmatch=True).filter(
    lambda name: not any(map(keyword.iskeyword, name.split(".")))
)
SIMPLE = NAMES.filter(lambda name: "." not in name)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(SIMPLE, VALUES, max_size=3)), min_size=1, max_size=3)
FUNCTION = {"name": "f", "parameters": {"properties": {"a": {"type": "float"}}, "required": ["a"]}}
KINDS = (*checker.PYTHON_TYPES, "any", None)


@given(CALLS)
def test_calls_that_were_written_read_back(calls):
    text = answer_text(calls)
    assert parse_calls(text) == calls


@given(TEXT)
@example("f(a=__import__('os').system('touch ran'))")
@example("[f(a=1), " * 3000)
@example("f(" + "(" * 150 + ")" * 150 + ")")
@example("f(a=" + "-" * 3000 + "1)")
@example("f" + ".a" * 16_000 + "(b=1)")
@example("f(a=" + "9" * 30_000 + ")")
@example("f(a={[]: 1})")
@example("f(a={**{}})")
@example("f(a=1j, b=b'x', c=...)")
@example("f(a=" + '"' * 30_000)
def test_any_answer_is_calls_or_none(text):
    calls = parse_calls(text)
    assert calls is None or all(isinstance(call, Call) for call in calls)
    for truth in (None, [{"f": {"a": [1.0]}}]):
        assert checker.is_correct(text, [FUNCTION], truth) in (True, False)


@pytest.mark.parametrize("text", DEEP)
def test_deep_answers_are_none(text):
    assert parse_calls(text) is None or text.startswith("[")
    assert checker.is_correct(text, [FUNCTION], [{"f": {"a": [1.0]}}]) is False


@given(VALUES, st.lists(JSON, min_size=1, max_size=3), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_any_argument_is_compared_with_any_truth(value, allowed, kind, items):
    schema = {"type": kind, "items": {"type": items}} if kind else {}
    function = {"name": "f", "parameters": {"properties": {"a": schema}}}
    text = answer_text([Call("f", {"a": value})])
    assert checker.is_correct(text, [function], [{"f": {"a": allowed}}]) in (True, False)


@given(values=st.lists(spoiled(CASE), min_size=1, max_size=2), truths=st.lists(spoiled(CASE), min_size=1, max_size=2))
@settings(max_examples=100)
def test_any_file_of_cases_is_read_or_refused(tmp_path, values, truths):
    (tmp_path / "possible_answer").mkdir(exist_ok=True)
    for file, content in ((tmp_path, values), (tmp_path / "possible_answer", truths)):
        (file / "BFCL_v4_multiple.json").write_text("".join(json.dumps(value) + "\n" for value in content))
    cases = or_user_error(function_calling.load_cases, tmp_path)
    if cases:
        result = function_calling.evaluate(cases, lambda asked: ["f(a=1)" for _ in asked])
        assert 0 <= result.accuracy <= 100


# scans

NUMBERS = st.none() | st.floats(min_value=0, allow_nan=False)


FIELDS = st.sampled_from(("snr", "type", "shape", "raw", "threshold", "noise", "margin", "fragile", "holder"))


@given(content=spoiled(SCAN) | st.dictionaries(st.text(max_size=8), st.dictionaries(FIELDS, JSON)))
def test_any_json_is_a_scan_or_refused(tmp_path, content):
    file = tmp_path / "scan.json"
    file.write_text(json.dumps(content))
    records = or_user_error(scan_records.read_records, file)
    assert records is None or all(isinstance(record, Record) for record in records.values())
    for record in (records or {}).values():
        assert record.snr is None or not math.isnan(record.snr)
        json.dumps(scan_records.to_json(record), allow_nan=False)


@given(content=st.binary(max_size=60) | st.sampled_from([text.encode() for text in DEEP]))
def test_any_bytes_are_a_scan_or_refused(tmp_path, content):
    (tmp_path / "scan.json").write_bytes(content)
    or_user_error(scan_records.read_records, tmp_path / "scan.json")


@given(records=st.dictionaries(SIMPLE, st.builds(
    Record, st.just(""), SIMPLE, st.tuples(st.integers(1, 99), st.integers(1, 99)), snr=NUMBERS,
    s_max=NUMBERS, fragile=st.booleans(), dialect=st.sampled_from(("spectrum", "laserrmt"))), min_size=1))  # fmt: skip
def test_a_scan_that_was_written_reads_back(tmp_path, records):
    records = {f"model.layers.0.{name}": replace(r, module=f"model.layers.0.{name}") for name, r in records.items()}
    records = {name: r for name, r in records.items() if not (r.snr and math.isinf(r.snr)) and r.s_max != math.inf}
    if records:
        scan_records.write_records(records, tmp_path / "scan.json")
        assert scan_records.read_records(tmp_path / "scan.json") == records
