"""Data in the schemas in which people publish it: the same tokens as in our own form, and nothing lost silently.

The rows are ours; the schemas are those of HuggingFaceH4/ultrafeedback_binarized, Anthropic/hh-rlhf, TRL's data set
formats, ShareGPT and Nectar.
"""

import csv
import gzip
import json

import openchat_tokenizer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling_train.config.fields import UserError
from starling_train.data import nectar, pairs, preferences, ranked
from starling_train.data.chat import Chat
from starling_train.data.rows import source
from starling_train.evals import perplexity


def turns(*contents, system=None):
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *said] if system else said


def answered(context, text):
    return [*context, {"role": "assistant", "content": text}]


# (messages in front, better answer, worse answer)
TALKS = [
    (turns("What is 2 + 2?"), "It is 4.", "It is 5,\nI think."),
    (turns("Name a river.", "The Elbe.", "Another, please: a long one?"), "The Nile.", "No."),
    (turns("Grüße! 你好 <|end_of_turn|>"), 'Hello, "you".', "Hi"),
    (turns("Two\n\nparagraphs.", "Yes?", "And now?", "Now this.", "Go on."), "- one\n- two", "…"),
]
WITH_SYSTEM = [*TALKS, (turns("Who?", "Me.", "Why?", system="Be brief."), "Because.", "I do not know at all.")]


def text(context, answer=None):
    """HH-RLHF's."""
    said = context if answer is None else answered(context, answer)
    whole = "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in said)
    return whole + ("\n\nAssistant:" if answer is None else "")


def in_parts(messages):
    """OpenAI's content as a list, a message's text in two parts."""
    half = [(m, len(m["content"]) // 2) for m in messages]
    return [
        {
            "role": m["role"],
            "content": [{"type": "text", "text": m["content"][:i]}, {"type": "text", "text": m["content"][i:]}],
        }
        for m, i in half
    ]


def sharegpt(messages):
    return [
        {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], "system"), "value": m["content"]}
        for m in messages
    ]


def pair(better, worse):
    return {"chosen": better, "rejected": worse}


def ultrafeedback(context, better, worse):
    users = [m["content"] for m in context if m["role"] == "user"]
    whole = answered(context, better)
    scores = {"score_chosen": 8.5, "score_rejected": 3.0}
    both = pair(whole, answered(context, worse))
    return {"prompt": users[0], "prompt_id": "9f"} | both | {"messages": whole} | scores


# name -> (how a row is written, the talks that the schema can hold)
SCHEMAS = {
    "ultrafeedback": (ultrafeedback, WITH_SYSTEM),
    "last user as prompt": (lambda c, b, w: ultrafeedback(c, b, w) | {"prompt": c[-1]["content"]}, WITH_SYSTEM),
    "hh-rlhf": (lambda c, b, w: {"chosen": text(c, b), "rejected": text(c, w)}, TALKS),
    "hh-rlhf, stripped": (lambda c, b, w: {"chosen": text(c, b).strip(), "rejected": text(c, w).strip()}, TALKS),
    "hh-rlhf with its prompt": (lambda c, b, w: {"prompt": text(c), "chosen": b, "rejected": w}, TALKS),
    "trl, explicit": (lambda c, b, w: {"prompt": c} | pair(answered([], b), answered([], w)), WITH_SYSTEM),
    "trl, explicit texts": (lambda c, b, w: {"prompt": c[-1]["content"], "chosen": b, "rejected": w}, TALKS[::2]),
    "trl, implicit": (lambda c, b, w: {"chosen": answered(c, b), "rejected": answered(c, w)}, WITH_SYSTEM),
    "trl, several turns behind the prompt": (
        lambda c, b, w: {"prompt": c[:1], "chosen": answered(c[1:], b), "rejected": answered(c[1:], w)}, TALKS[1:2],
    ),
    "system beside": (
        lambda c, b, w: {"system": "Be brief.", "chosen": answered(c[1:], b), "rejected": answered(c[1:], w)},
        WITH_SYSTEM[-1:],
    ),
    "parts": (
        lambda c, b, w: {"prompt": in_parts(c)} | pair(in_parts(answered(c, b)), in_parts(answered(c, w))), WITH_SYSTEM,
    ),
    "sharegpt": (
        lambda c, b, w: {"conversations": sharegpt(c)} | pair(sharegpt(answered([], b)), sharegpt(answered([], w))),
        WITH_SYSTEM,
    ),
    "nectar": (
        lambda c, b, w: {"prompt": text(c) + " ", "answers": [{"answer": w, "model": "m", "rank": 2},
                                                              {"answer": b, "model": "n", "rank": 1}]},
        TALKS,
    ),
    "openai's preferences": (
        lambda c, b, w: {"input": {"messages": c, "tools": [], "parallel_tool_calls": True},
                         "preferred_output": answered([], b), "non_preferred_output": answered([], w)},
        WITH_SYSTEM,
    ),
    "capitalised roles": (
        lambda c, b, w: {"prompt": [m | {"role": m["role"].title()} for m in c]}
        | pair([{"role": "ASSISTANT", "content": b}], [{"role": " Assistant", "content": w}]),
        WITH_SYSTEM,
    ),
    "messages as JSON text": (
        lambda c, b, w: {"prompt": json.dumps(c), "chosen": json.dumps(answered(c, b), indent=1)}
        | {"rejected": json.dumps(answered(c, w))},
        WITH_SYSTEM,
    ),
    "messages as Python prints them": (
        lambda c, b, w: pair(str(answered(c, b)), str(sharegpt(answered(c, w)))), WITH_SYSTEM,
    ),
    "one message without a list": (
        lambda c, b, w: {"conversations": c} | pair(*({"from": "gpt", "value": answer} for answer in (b, w))),
        WITH_SYSTEM,
    ),
    "messages with ranked answers": (
        lambda c, b, w: {"messages": c, "answers": [{"answer": b, "rank": 0.5}, {"answer": w, "rank": 3}]}, WITH_SYSTEM,
    ),
}  # fmt: skip


def jsonl(folder, rows):
    return write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def compressed(folder, rows):
    file = folder / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return file


def array(folder, rows):
    return write(folder / "rows.json", json.dumps(rows, indent=1, ensure_ascii=False))


def lines(folder, rows):
    return write(folder / "rows.json", "\n".join(json.dumps(row) for row in rows))


def table(folder, rows):
    file = folder / "rows.csv"
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(rows[0])
        writer.writerows([v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows)
    return file


def parquet(folder, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def hub_layout(folder, rows):
    """As a data set with several splits lies on the hub; only README.md and the files' names say which is which."""
    (folder / "data").mkdir()
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part or rows[:0], pa.Table.from_pylist(rows).schema),
                       folder / "data" / f"train-{i:05}-of-00002.parquet")  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "data" / "test_prefs-00000-of-00001.parquet")
    return folder


FORMATS = [jsonl, compressed, array, lines, table, parquet, hub_layout]


def write(file, content):
    file.write_text(content, encoding="utf-8")
    return file


def own(folder, talks):
    """The same conversations in our own form."""
    folder.mkdir()
    return jsonl(folder, [{"prompt": c, "chosen": b, "rejected": w} for c, b, w in talks])


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.build())


def trained(path, chat, **where):
    """The pairs of a file, and the ids that they train."""
    data = nectar.load(path, **where)
    usable, _ = ranked.with_an_order(data.rows, str(path))
    rows = pairs.make(usable, "best_worst", 0)
    return rows, [pairs.encode(talk, chat, 500) for row in rows for talk in row.conversations()]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_trains_the_ids_of_our_own_form(tmp_path, chat, schema):
    make, talks = SCHEMAS[schema]
    expected = trained(own(tmp_path / "own", talks), chat)
    assert len(expected[0]) == len(talks)
    assert trained(jsonl(tmp_path, [make(*talk) for talk in talks]), chat) == expected


@pytest.mark.parametrize("schema", ["ultrafeedback", "hh-rlhf", "trl, implicit", "nectar"])
@pytest.mark.parametrize("format", FORMATS[1:], ids=lambda f: f.__name__)
def test_every_format_trains_the_ids_of_our_own_form(tmp_path, chat, schema, format):
    make, talks = SCHEMAS[schema]
    path = format(tmp_path, [make(*talk) for talk in talks])
    assert trained(path, chat) == trained(own(tmp_path / "own", talks), chat)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_prompts_preferences_and_documents_are_those_of_the_pairs(tmp_path, schema):
    """One reader for all commands: ppo's prompts, the suites `preference` and `perplexity`."""
    make, talks = SCHEMAS[schema]
    path = jsonl(tmp_path, [make(*talk) for talk in talks])
    assert [row.messages for row in nectar.load(path, answers=False).rows] == [context for context, _, _ in talks]
    both = [[answered(context, better), answered(context, worse)] for context, better, worse in talks]
    assert [row.conversations for row in preferences.load(path)] == both
    assert perplexity.load(path) == [better for better, _ in both]


@pytest.mark.parametrize("form", [
    lambda talk: {"messages": talk}, lambda talk: {"messages": in_parts(talk), "prompt": talk[-2]["content"]},
    lambda talk: {"conversations": sharegpt(talk)}, lambda talk: {"prompt": talk[:-1], "completion": talk[-1:]},
    lambda talk: {"prompt": talk[:-1], "response": talk[-1]["content"]},
    lambda talk: {"messages": talk[:-1], "response": talk[-1]["content"]},
    lambda talk: {"messages": talk[:-1], "completion": talk[-1:]},
    lambda talk: {"messages": json.dumps(talk)},
])  # fmt: skip
def test_of_a_conversation_the_last_answer_is_no_part_of_the_prompt(tmp_path, form):
    talks = [answered(context, better) for context, better, _ in WITH_SYSTEM]
    path = jsonl(tmp_path, [form(talk) for talk in talks])
    assert [row.messages for row in nectar.load(path, answers=False).rows] == [talk[:-1] for talk in talks]
    assert perplexity.load(path) == talks


def test_texts_that_share_their_beginning(tmp_path):
    """TRL's implicit prompt without roles: the beginning up to a space is the user's message."""
    path = jsonl(tmp_path, [{"chosen": "The sky is blue.", "rejected": "The sky is black."},
                            {"chosen": "Yes", "rejected": "No"}])  # fmt: skip
    data = nectar.load(path)
    assert [(row.messages, [a.text for a in row.answers]) for row in data.rows] == [
        (turns("The sky is"), ["blue.", "black."])
    ]
    assert data.dropped == {"chosen and rejected without a prompt or a shared beginning": 1}
    path = jsonl(tmp_path, [{"question": "Why?", "chosen": "I am sorry, no.", "rejected": "I am sorry, yes."}])
    with pytest.raises(UserError, match=r"without their prompt \(data.columns can say which of question it is\)"):
        nectar.load(path)
    assert nectar.load(path, columns={"prompt": "question"}).rows[0].messages == turns("Why?")


CONTEXT, BETTER, WORSE = TALKS[1]
RIGHT = ultrafeedback(*TALKS[1])
DROPPED = {
    "an unrelated prompt": (RIGHT | {"prompt": "What is this?"}, "prompt and chosen contradict each other"),
    "a prompt from the middle": (
        ultrafeedback(*TALKS[3]) | {"prompt": "And now?"}, "prompt and chosen contradict each other",
    ),
    "another prompt as messages": (RIGHT | {"prompt": CONTEXT[-1:] * 2}, "prompt and chosen contradict each other"),
    "an unrelated conversation": (RIGHT | {"messages": turns("a", "b")}, "messages and chosen contradict each other"),
    "different contexts": (
        {"chosen": answered(CONTEXT, BETTER), "rejected": answered(TALKS[0][0], WORSE)},
        "chosen and rejected follow different messages",
    ),
    "texts of different contexts": (
        {"chosen": text(CONTEXT, BETTER), "rejected": text(TALKS[0][0], WORSE)},
        "chosen and rejected follow different messages",
    ),
    "another system message": (
        RIGHT | {"prompt": None, "system": "x", "messages": [{"role": "system", "content": "y"}, *CONTEXT]},
        "system and the messages contradict each other",
    ),
    "a tool": (RIGHT | {"chosen": [*CONTEXT, {"role": "tool", "content": "x"}]}, "a tool's message or call"),
    "a tool call": (
        {"messages": [*CONTEXT, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "a tool's message or call",
    ),
    "an image": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]},
        "content that is not text",
    ),
    "no answer": (RIGHT | {"rejected": CONTEXT}, "rejected does not end with the assistant"),
    "tools beside messages": ({"messages": CONTEXT, "tools": [{"name": "f"}]}, "with tools beside the text"),
    "tools as JSON": ({"prompt": "What?", "tools": '[{"name": "f"}]'}, "with tools beside the text"),
    "images beside a prompt": ({"prompt": "What is this?", "images": ["a.png"]}, "with images beside the text"),
    "a role of its own": (RIGHT | {"messages": [*CONTEXT, {"role": "bot", "content": "x"}]},
                          "role 'bot', not system, user or assistant"),
    "a tool, capitalised": (RIGHT | {"chosen": [*CONTEXT, {"role": "Tool", "content": "x"}]},
                            "a tool's message or call"),
    "openai's tools": ({"input": {"messages": CONTEXT, "tools": [{"type": "function"}]},
                        "preferred_output": answered([], "a"), "non_preferred_output": answered([], "b")},
                       "with tools beside the text"),
    "openai's output of several turns": (
        {"input": {"messages": CONTEXT}, "preferred_output": answered(CONTEXT, "a"),
         "non_preferred_output": answered([], "b")},
        "an output of several turns",
    ),
    "openai's input that is answered": (
        {"input": {"messages": answered(CONTEXT, "x")}, "preferred_output": answered([], "a"),
         "non_preferred_output": answered([], "b")},
        "does not end with a user turn",
    ),
    "messages as numpy prints them": (
        RIGHT | {"chosen": "[{'content': 'q', 'role': 'user'}\n {'content': 'a', 'role': 'assistant'}]"},
        "chosen is messages as text that is no JSON",
    ),
    "messages of a cell that was cut off": (
        RIGHT | {"prompt": json.dumps(CONTEXT)[:-9]}, "prompt is messages as text that is no JSON",
    ),
    "nothing asked": ({"prompt": [{"role": "user", "content": None}]}, "empty turn"),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPPED)
def test_what_is_dropped_is_counted_and_the_first_is_named(tmp_path, case):
    row, reason = DROPPED[case]
    path = jsonl(tmp_path, [RIGHT, row, row])
    data = nectar.load(path)
    assert [kept.messages for kept in data.rows] == [CONTEXT]
    assert data.dropped == {reason: 2} and str(data.drops()) == f"2 {reason} (first {path}:2)"
    assert sum(data.forms.values()) == 3 and data.read().startswith("3 rows read (")


@pytest.mark.parametrize("empty", [None, "", " ", [], [{"role": "assistant", "content": None}]])
def test_an_answer_that_is_null_or_empty_is_left_out(tmp_path, empty):
    """A parquet column has null where JSON has nothing: neither stops the file."""
    for key in ("chosen", "rejected"):
        data = nectar.load(jsonl(tmp_path, [RIGHT | {key: empty, "messages": None}]))
        assert [a.text for a in data.rows[0].answers] == [WORSE if key == "chosen" else BETTER]
        assert data.rows[0].messages == CONTEXT and data.answers_changed == {"left out: empty": 1}


@pytest.mark.parametrize(
    "answer", ['[{"name": "f", "arguments": {}}]', '{"role": "x"}', "[1, 2]", "[{'a': 1}]", "[{", "[]"]
)
@pytest.mark.parametrize("format", [jsonl, table])
def test_an_answer_that_is_other_json_is_text(tmp_path, answer, format):
    data = nectar.load(format(tmp_path, [{"prompt": "[1]", "chosen": answer, "rejected": "no"}]))
    assert [a.text for a in data.rows[0].answers] == [answer, "no"] and data.rows[0].messages == turns("[1]")


def test_a_contradiction_cannot_be_seen_in_the_ids_only_in_the_count(tmp_path, chat):
    """The pair of the field report: four messages beside a prompt that is the first of them."""
    pair = {"prompt": CONTEXT[0]["content"], "chosen": answered(CONTEXT, BETTER), "rejected": answered(CONTEXT, WORSE)}
    rows, ids = trained(jsonl(tmp_path, [pair]), chat)
    assert rows[0].conversations() == [pair["chosen"], pair["rejected"]]
    assert ids[0][0] == chat.prompt(CONTEXT) != chat.prompt(CONTEXT[:1])


@pytest.mark.parametrize("none", [None, [], "", "[]"])
def test_a_column_of_tools_may_be_empty(tmp_path, none):
    data = nectar.load(jsonl(tmp_path, [RIGHT | {"tools": none, "images": none}]))
    assert [row.messages for row in data.rows] == [CONTEXT] and not data.dropped


def test_a_prompt_may_begin_with_the_word_human(tmp_path):
    """One mark alone without its blank line may be anybody's words; several are turns."""
    prompts = nectar.load(jsonl(tmp_path, [{"prompt": "Human: Hi\n\nAssistant:"}, {"prompt": "Human: a species?"}]))
    assert [row.messages for row in prompts.rows] == [turns("Hi"), turns("Human: a species?")]


def test_a_prompt_may_quote_turns(tmp_path):
    """What the user says is text, even if it looks like HH-RLHF's turns."""
    quoted = "Continue:\n\nHuman: hi\n\nAssistant: ", "\n\nHuman: hi\n\nAssistant: go on"
    rows = [ultrafeedback(turns(said), "a", "b") for said in quoted]
    assert [row.messages[0]["content"] for row in nectar.load(jsonl(tmp_path, rows)).rows] == list(quoted)


def test_rows_of_several_forms_are_counted_by_form(tmp_path):
    rows = [{"prompt": "a"}, {"messages": turns("b", "c")}, RIGHT, {"prompt": "d"}]
    said = nectar.load(jsonl(tmp_path, rows)).read()
    assert said == "4 rows read (2 prompts, 1 conversations, 1 pairs beside prompt and messages, as in UltraFeedback)"


# where the rows lie


def test_splits_of_a_directory(tmp_path):
    path = hub_layout(tmp_path, [RIGHT, RIGHT])
    assert len(nectar.load(path).rows) == 2 and len(nectar.load(path, split="test_prefs").rows) == 1
    with pytest.raises(UserError) as error:
        nectar.load(path, split="train_prefs")
    assert str(error.value) == f"data.split: {path} has no split 'train_prefs'; use one of: test_prefs, train"


def test_files_whose_names_say_nothing_are_one_split(tmp_path):
    for name in ("a", "b"):
        pq.write_table(pa.Table.from_pylist([RIGHT]), tmp_path / f"{name}.parquet")
    assert len(nectar.load(tmp_path).rows) == 2
    with pytest.raises(UserError, match="has no split 'test'; use one of: train"):
        nectar.load(tmp_path, split="test")


def test_subsets_that_a_readme_names(tmp_path):
    for name, rows in (("helpful", [RIGHT]), ("harmless", [RIGHT] * 2)):
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name, rows)
    configs = "".join(f"- config_name: {n}\n  data_files: {n}/rows.jsonl\n" for n in ("helpful", "harmless"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert len(nectar.load(tmp_path, subset="harmless").rows) == 2
    for subset in (None, "nonesuch"):
        with pytest.raises(UserError, match=r"^data.subset: .*\['helpful', 'harmless'\]") as error:
            nectar.load(tmp_path, subset=subset)
        assert "\n" not in str(error.value)


def test_a_file_has_one_split(tmp_path):
    with pytest.raises(UserError, match="has no split 'test'; use one of: train"):
        nectar.load(jsonl(tmp_path, [RIGHT]), split="test")


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.__name__)
def test_columns_of_other_names(tmp_path, format):
    rows = [{"question": "Why?", "good": "So.", "bad": "No.", "extra": "7"}]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    path = format(tmp_path, rows)
    (row,) = nectar.load(path, columns=names | {"truth": "extra"}, keep=["truth"]).rows
    assert (row.messages, [a.text for a in row.answers]) == (turns("Why?"), ["So.", "No."])
    assert row.columns == {"truth": "7"}
    with pytest.raises(UserError, match=r"^data.columns: .* has no column 'nonesuch' for rejected; it has .*bad"):
        nectar.load(path, columns=names | {"rejected": "nonesuch"})
    with pytest.raises(UserError, match=r"data.columns: 'promt' is not a column that is read; use some of: prompt"):
        nectar.load(path, columns={"promt": "question"})
    with pytest.raises(UserError, match=r"neither `prompt` nor `messages` \(it has .*question|`chosen` alone"):
        nectar.load(path)


def test_cells_are_text_but_for_empty_ones_and_flags(tmp_path):
    path = write(
        tmp_path / "x.csv",
        "prompt,messages,chosen,rejected,good_natured\nIs 1 = 1?,,True,False,True\nIs it?,,NA,,False\n"
        '"a, ""b""\nc",,1,2,\n',
    )
    rows = nectar.load(path).rows
    assert [row.messages[0]["content"] for row in rows] == ["Is 1 = 1?", "Is it?", 'a, "b"\nc']
    assert [[a.text for a in row.answers] for row in rows] == [["True", "False"], ["NA"], ["1", "2"]]
    assert [row.good_natured for row in rows] == [True, False, True]
    assert len(nectar.load(path, good_natured_only=True).rows) == 1


WRONG = {
    "cells": ("x.csv", "prompt,chosen\na,b,c\n", "x.csv:2: 3 cells, but the first line names 2"),
    "names": ("x.csv", "prompt,chosen,prompt\na,b,c\n", "x.csv:1: two columns are named 'prompt'"),
    "quote": ("x.csv", 'prompt\n"a\n', "x.csv:2: not CSV"),
    "latin": ("x.csv", b"prompt\ncaf\xe9\n", "x.csv: not UTF-8"),
    "array": ("x.json", '[{"prompt": "a"}, 3]', "x.json, row 2: a JSON int"),
    "cut": ("x.json", '[{"prompt": "a"}', "x.json: not JSON"),
    "object": ("x.json", '{\n"prompt": "a"\n}', "x.json:1: not JSON"),
    "gzip": ("x.jsonl.gz", b"\x1f\x8b\x08\x00 nothing", "x.jsonl.gz: damaged after line 0"),
    "no gzip": ("x.jsonl.gz", '{"prompt": "a"}', "x.jsonl.gz: damaged after line 0"),
    "empty csv": ("x.csv", "", "x.csv: no usable row is left (it is empty)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(tmp_path, case):
    name, content, says = WRONG[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        nectar.load(tmp_path / name)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("Unknown split \"train\". Should be one of ['train_prefs', 'test_prefs']."),
         "data.split: some/set has no split 'train'; use one of: train_prefs, test_prefs"),
        (ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']\nExample of usage:\n\tx"),
         "data.subset: some/set: Config name is missing. Please pick one among: ['a', 'b']; "
         "name one that it has"),
        (RuntimeError("Dataset scripts are no longer supported, but found set.py"),
         "some/set: a script, which is not run here (Dataset scripts are no longer supported, but found set.py); give "
         "its files as parquet or JSON"),
    ],
)  # fmt: skip
def test_data_sets_that_the_hub_does_not_give(monkeypatch, error, says):
    import datasets

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError) as told:
        nectar.load("some/set")
    assert str(told.value) == says


def test_a_data_set_of_the_hub_is_read_through_datasets(monkeypatch):
    import datasets

    def load_dataset(name, subset, split):
        assert (name, subset, split) == ("some/set", "one", "train_prefs")
        return datasets.Dataset.from_list([RIGHT, RIGHT | {"prompt": "other"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = nectar.load("some/set", subset="one", split="train_prefs", keep=["score_chosen"])
    assert [(row.messages, row.columns) for row in data.rows] == [(CONTEXT, {"score_chosen": 8.5})]
    assert str(data.drops()) == "1 prompt and chosen contradict each other (first some/set, row 2)"


def test_what_can_be_a_hub_id():
    assert source.is_on_hub("some/set") and not source.is_on_hub("some/set.jsonl") and not source.is_on_hub("/some/set")


# pairs that teach nothing


def test_pairs_that_are_the_same_tokens_once_they_are_cut(tmp_path, chat):
    long = "word " * 50
    talks = [(turns("a"), long + "yes", long + "no"), (turns("b"), "yes", "no"), (turns("c"), "Yes", "yes")]
    rows = pairs.make(nectar.load(own(tmp_path / "own", talks)).rows, "all", 0)
    assert pairs.distinct(rows, chat, 400) == (rows, [])
    prompt = len(chat.prompt(turns("a")))
    first = next(i for i in range(400) if len({str(pairs.encode(t, chat, i)) for t in rows[0].conversations()}) == 2)
    assert prompt + 50 <= first < 400
    assert pairs.distinct(rows, chat, first) == (rows, [])
    assert pairs.distinct(rows, chat, first - 1) == (rows[1:], [0])
    assert pairs.distinct(rows, chat, prompt - 2) == ([], [0, 1, 2])  # nothing of any answer is left
    three = pairs.PairedRow(7, turns("a"), [long + "x", long + "y", "z"], [(0, 1), (0, 2), (1, 2)])
    assert pairs.distinct([three], chat, prompt + 20) == ([three.only([(0, 2), (1, 2)])], [7])


# What is odd and used all the same: counted, with the first row

RENDERED = {
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "openchat": "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:",
    "llama 2": "[INST] Hi [/INST]",
    "llama 3": "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "gemma": "<start_of_turn>user\nHi<end_of_turn>\n",
    "zephyr": "<|user|>\nHi</s>\n<|assistant|>\n",
    "alpaca": "### Instruction:\nHi\n\n### Response:\n",
    "vicuna": "A chat. USER: Hi ASSISTANT:",
    "hh-rlhf, behind other text": "Continue.\n\nHuman: Hi\n\nAssistant:",
    "hh-rlhf, a line each": "Human: Hi\nAssistant:",
    "a mark alone": "What does <|end_of_turn|> do?",
}


@pytest.mark.parametrize("template", RENDERED)
def test_marks_of_templates_are_counted_wherever_they_are_text(tmp_path, chat, template):
    """They stay text, as they should; but whoever rendered the data by mistake is told."""
    asked = turns(RENDERED[template])
    rows = [RIGHT, {"prompt": asked, "chosen": "a", "rejected": "b"}, {"prompt": asked, "chosen": "c", "rejected": "d"}]
    path = jsonl(tmp_path, rows)
    data = nectar.load(path)
    assert data.noted.counts == {"rows with marks of a chat template in a prompt, kept as text": 2}
    assert (
        f"used as they are: 2 rows with marks of a chat template in a prompt, kept as text (first {path}:2: "
        in data.read()
    )
    assert len(data.rows) == 3 and data.rows[1].messages == asked and "\n" not in data.read()
    assert nectar.load(path, answers=False).noted.counts == data.noted.counts
    if "hh-rlhf" not in template:  # in answers those are counted by themselves
        answers = jsonl(tmp_path, [RIGHT | {"chosen": answered(CONTEXT, RENDERED[template]), "messages": None}])
        assert nectar.load(answers).noted.counts == {"rows with marks of a chat template in an answer, kept as text": 1}
    # and a system message
    system = jsonl(tmp_path, [{"system": RENDERED[template], "prompt": "Hi"}])
    assert sum(nectar.load(system).noted.counts.values()) == 1


def test_a_tokenizers_own_end_of_turn_is_a_mark(tmp_path, chat):
    path = jsonl(tmp_path, [{"prompt": "Say <<done>>.", "chosen": "<<done>>", "rejected": "no"}])
    assert not nectar.load(path).noted.counts
    assert sum(nectar.load(path, marks=["<<done>>"]).noted.counts.values()) == 2
    assert "<|end_of_turn|>" in chat.end_strings


def test_text_of_people_has_no_marks(data_dir):
    """Of 206 real rows few hold one: the line means something."""
    data = nectar.load(data_dir / "nectar")
    assert sum(data.noted.counts.values()) <= 2 * 5 and not data.unread


@pytest.mark.parametrize(
    "better, worse, what",
    [(3.0, 8.5, "chosen scored below rejected"), (5, 5.0, "chosen and rejected of one score"), (8, 1, "")],
)
@pytest.mark.parametrize(
    "names",
    [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating")],
)
@pytest.mark.parametrize("format", [jsonl, parquet, table])
def test_pairs_whose_scores_contradict_their_order_are_used_and_counted(tmp_path, better, worse, what, names, format):
    """TRL trains on them, and so do we; only the owner of the data knows whether they are right."""
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    right = row | dict(zip(names, (9.0, 1.0), strict=True))
    odd = row | dict(zip(names, (float(better), float(worse)), strict=True))
    path = format(tmp_path, [right, odd])
    data = nectar.load(path)
    assert [[a.text for a in kept.answers] for kept in data.rows] == [["a", "b"]] * 2
    assert data.noted.counts == ({what: 1} if what else {})
    if what:
        assert f"used as they are: 1 {what} (first " in data.read()


def test_answers_that_begin_with_the_prompt_are_counted(tmp_path):
    """The same fact in two columns: `chosen` and `rejected` as whole texts, beside their prompt."""
    path = jsonl(tmp_path, [
        {"prompt": "What is it?", "chosen": "What is it? A tree.", "rejected": " What is it? No."},
        {"prompt": "What is it?", "chosen": "What is it? you ask.", "rejected": "A tree."},
    ])  # fmt: skip
    data = nectar.load(path)
    assert data.noted.counts == {"rows whose answers all begin with the whole prompt": 1} and len(data.rows) == 2


def test_scores_that_are_no_numbers_say_nothing(tmp_path):
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    for scores in ((None, 1.0), ("", ""), ("high", "low"), ([1], [2]), (float("nan"), 1.0), (True, False)):
        path = jsonl(tmp_path, [row | {"score_chosen": scores[0], "score_rejected": scores[1]}])
        assert not nectar.load(path).noted.counts


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"prompt": "Hi", "history": [["a", "b"]], "response": "x"}, ["history"]),
        ({"prompt": "Hi", "system_prompt": "Be brief.", "chosen": "a", "rejected": "b"}, ["system_prompt"]),
        ({"prompt": "Hi", "instruction": "Do.", "input": "this"}, ["instruction", "input"]),
        ({"messages": turns("Hi"), "conversations": sharegpt(turns("Hi"))}, ["conversations"]),
        ({"messages": turns("Hi"), "context": "a page of text"}, ["context"]),
        ({"conversations": sharegpt(turns("Hi")), "system": "Be brief."}, []),
        ({"prompt": "Hi", "source": "x", "prompt_id": "1", "score_chosen": 1.0, "chosen": "a", "rejected": "b"}, []),
        ({"input": {"messages": turns("Hi")}, "preferred_output": answered([], "a"),
          "non_preferred_output": answered([], "b")}, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", [jsonl, parquet])
def test_columns_that_look_like_context_and_are_not_read_are_named(tmp_path, row, unread, format):
    data = nectar.load(format(tmp_path, [row]))
    assert data.unread == unread
    assert data.read().endswith(f"; columns not read: {', '.join(unread)}" if unread else ")")
    # a column that a reward function is given, or that is named as ours, is read
    for name in unread:
        if name != "conversations":
            assert name not in nectar.load(format(tmp_path, [row]), keep=[name]).unread
    if unread == ["system_prompt"]:
        named = nectar.load(format(tmp_path, [row]), columns={"system": "system_prompt"})
        assert not named.unread and named.rows[0].messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("label", [False, 0, "false", "False"])
@pytest.mark.parametrize("key", ["completion", "response"])
def test_answers_that_are_labelled_undesirable_are_no_text_to_measure(tmp_path, label, key):
    """KTO's form: half of the answers are bad ones on purpose."""
    good = {"prompt": "Hi", key: "Hello.", "label": True}
    path = jsonl(tmp_path, [good, good | {key: "Go away.", "label": label}, {"prompt": "Hi", key: "Hi!"}])
    dropped = nectar.Dropped()
    documents = perplexity.load(path, dropped=dropped)
    assert [document[-1]["content"] for document in documents] == ["Hello.", "Hi!"]
    assert dropped.counts == {"labelled undesirable": 1} and dropped.first["labelled undesirable"] == f"{path}:2"


def test_suites_name_their_own_key(tmp_path):
    """Not `data.columns`, which is another file's."""
    path = jsonl(tmp_path, [{"question": "Hi", "answer": "x"}])
    for load, key in ((perplexity.load, "perplexity"), (preferences.load, "preference")):
        with pytest.raises(UserError, match=rf"{key}\.columns can "):
            load(path, key=key)
    pair_alone = jsonl(tmp_path, [{"question": "Why?", "chosen": "a", "rejected": "b"}] * 2)
    for load, key in ((perplexity.load, "evaluation.perplexity"), (preferences.load, "preference")):
        with pytest.raises(UserError, match=rf"\({key}\.columns can say which of question"):
            load(pair_alone, dropped=nectar.Dropped(), key=key)


def test_suites_tell_what_is_odd(tmp_path):
    rows = [{"prompt": "[INST] Hi [/INST]", "chosen": "a", "rejected": "b", "history": "x"}, {"prompt": "x"}]
    for load, why in ((perplexity.load, "without an answer"), (preferences.load, ranked.NO_ORDER)):
        dropped = nectar.Dropped()
        load(jsonl(tmp_path, rows), dropped=dropped)
        told = dropped.told()
        assert (
            f"; dropped: 1 {why} (first " in told
            and "; columns not read: history; used as they are: 1 rows with marks" in told
        )
    assert nectar.Dropped().told() == ""
