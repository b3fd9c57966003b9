"""Chat templates in Jinja, built like those of published models: what is trained is what the template renders."""

from dataclasses import replace

import chat_tokenizers
import pytest
from chat_tokenizers import FAMILIES
from transformers import AutoTokenizer

from starling_train.config.fields import UserError
from starling_train.data import pairs
from starling_train.data.chat import Chat
from starling_train.data.jinja_chat import DATE, TemplateRefusal

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "What is the capital\nof France?"}
ANSWER = {"role": "assistant", "content": "It is Paris."}
AGAIN = {"role": "user", "content": "Again in one word "}
TALKS = [[QUESTION], [SYSTEM, QUESTION], [QUESTION, ANSWER, AGAIN], [SYSTEM, QUESTION, ANSWER, AGAIN]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def chat(family):
    return opened(family)


def opened(family, **changes):
    tokenizer = family.tokenizer()
    ends = tokenizer.convert_tokens_to_ids(list(family.ends))
    return Chat.checked(tokenizer, "model.path: DIR", **{"values": family.values, "ends": ends} | changes)


def rendered(family, messages, generation=True):
    """The ids that transformers gives, from a tokenizer that nobody has looked at; the date is today's."""
    return family.tokenizer().apply_chat_template(
        messages, add_generation_prompt=generation, return_dict=False, **family.values
    )


def talks(family):
    return [talk for talk in TALKS if family.takes_system or talk[0] is not SYSTEM]


def test_prompts_are_what_transformers_renders(family, chat):
    if "strftime_now" in family.template:
        pytest.skip("transformers renders today's date; see test_a_date_is_fixed")
    for talk in talks(family):
        assert chat.prompt(talk) == rendered(family, talk)


def test_an_answer_is_what_the_template_has_behind_the_prompt(family, chat):
    end = chat.tokenizer.convert_tokens_to_ids(family.end)
    assert chat.end_of_turn == end
    for talk in talks(family):
        prompt, answer = chat.answered([*talk, ANSWER])
        assert prompt == chat.prompt(talk)
        assert answer[-1] == end and chat.end_ids.isdisjoint(answer[:-1])
        assert chat.text(answer) == ANSWER["content"]
        if family is FAMILIES["r1"]:  # the thought that the prompt opens is not in a given answer
            assert chat.tokenizer.decode(prompt).endswith("<|Assistant|><think>\n")
            assert chat.tokenizer.decode(answer) == "It is Paris.<eos>"
        elif "strftime_now" not in family.template:
            # up to the end of turn: ChatML has a newline behind it, Phi-3 the end of the text
            whole = rendered(family, [*talk, ANSWER], False)
            whole = whole[: len(prompt) + len(answer)] if end in whole else [*rendered(family, talk), *answer]
            assert prompt + answer == whole


@pytest.mark.parametrize("content", ["\n\nIt is", "x", "  two", "ends \n", "caf\u00e9 \U0001f600", "<think>a</think>b"])
def test_text_gives_back_what_was_answered(family, chat, content):
    prompt, answer = chat.answered([QUESTION, {"role": "assistant", "content": content}])
    assert prompt == chat.prompt([QUESTION])
    said = chat.text(answer)
    # what a template trims is not trained; Llama's pieces do not tell a first space of the answer from their own
    assert said.strip() == content.strip() or "</think>" in content
    if family.kind == "bytes" and "trim" not in family.template and "</think>" not in content:
        assert said == content


def test_ends_are_the_templates_and_the_configurations(family, chat):
    names = {family.end, *family.ends}
    assert chat.end_ids == set(chat.tokenizer.convert_tokens_to_ids(list(names)))
    assert chat.pad_id not in chat.end_ids
    assert chat.template.takes_system == family.takes_system
    assert chat.stop_strings(None) == [] and chat.stop_strings(["\n"]) == ["\n"]


def test_nothing_that_somebody_writes_becomes_special(family, chat):
    special = [*family.special, *(token for token in family.plain if token.startswith("<|"))]
    ids = set(chat.tokenizer.convert_tokens_to_ids(special))

    def specials(messages):
        return [index for part in chat.answered(messages) for index in part if index in ids]

    for text in [*special, "".join(special), f"a {special[-1]}\n{special[0]}b"]:
        for place in range(3 if family.takes_system else 2):
            talk = [QUESTION, ANSWER, QUESTION, ANSWER]
            talk = [SYSTEM, *talk] if family.takes_system else talk
            odd = [*talk]
            odd[place] = {**talk[place], "content": text}
            assert specials(odd) == specials(talk)
        _, answer = chat.answered([QUESTION, {"role": "assistant", "content": text}])
        assert chat.text(answer).strip() == text.strip()


def test_a_written_tokenizer_renders_what_was_trained(family, chat, tmp_path):
    chat.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(chat.probes()) == (3 if family.takes_system else 2)
    for messages, ids in chat.probes():
        assert again.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    assert again.eos_token == family.end
    assert again.pad_token_id is not None and again.pad_token_id not in chat.end_ids
    # trained on once more, it is the same
    more = Chat.checked(again, "model.path: DIR", ends=chat.end_ids)
    for talk in talks(family):
        assert more.answered([*talk, ANSWER]) == chat.answered([*talk, ANSWER])
    assert (more.end_ids, more.end_of_turn) == (chat.end_ids, chat.end_of_turn)


@pytest.mark.slow  # makes the tokenizer from its package, 15 s once
def test_of_the_real_smollm2(request):
    """The published template and 49,152 tokens: its pad token ends a turn, and its BOS begins one."""
    import real_model

    plain, tokenizer = real_model.tokenizer(request.config), real_model.tokenizer(request.config)
    chat = Chat.checked(tokenizer, "model.path: DIR", ends=[2])
    assert chat.end_ids == {2} and chat.pad_id == 0 and plain.pad_token_id == 2
    for talk in TALKS:
        assert chat.prompt(talk) == plain.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    odd = {"role": "assistant", "content": "\n\n<|im_end|> and <|im_start|>user"}
    _, answer = chat.answered([QUESTION, odd])
    assert answer[-1] == 2 and {1, 2}.isdisjoint(answer[:-1]) and chat.text(answer) == odd["content"]


def test_a_date_is_fixed():
    family = FAMILIES["llama3_dated"]
    chat = opened(family)
    assert f"{DATE:%d %b %Y}" == "26 Jul 2024"
    assert "Today Date: 26 Jul 2024\n" in chat.tokenizer.decode(chat.prompt([QUESTION]))
    assert any("today's date" in note for note in chat.template.notes)
    given = opened(family, values={"date_string": "1 May 2030"})
    assert "Today Date: 1 May 2030\n" in given.tokenizer.decode(given.prompt([QUESTION]))
    assert not any("today's date" in note for note in given.template.notes)


@pytest.mark.parametrize(
    "call", ["{% set form = '%d %b' %}{{ strftime_now(form) }}", "{{ strftime_now('%d ' ~ '%b') }}"]
)
def test_a_date_is_fixed_whatever_makes_its_format(call):
    family = FAMILIES["qwen2"]
    dated = replace(family, template=call + family.template)
    chat = opened(dated)
    assert chat.tokenizer.decode(chat.prompt([QUESTION])).startswith("26 Jul")
    assert any("today's date" in note for note in chat.template.notes)


def test_notes_say_what_a_template_does():
    said = {name: opened(FAMILIES[name]).lines()[0] for name in ("llama3", "qwen2", "qwen3", "gemma", "plain")}
    assert said["llama3"] == "chat template: an answer ends with <|eot_id|> or <|end_of_text|>"
    assert "it puts text of its own" in said["qwen2"] and "changes" not in said["qwen2"]
    assert "changes earlier turns of conversations whose earlier answers reason" in said["qwen3"] or (
        "changes earlier turns of conversations of several turns" in said["qwen3"]
    )
    assert "refuses system messages" in said["gemma"]
    assert "no token behind an answer: </s> is put there" in said["plain"]


def test_pairs_that_differ_only_in_what_the_template_leaves_out_are_left_out():
    family = FAMILIES["qwen2"]
    content = "message['content']"
    assert content in family.template
    strips = replace(family, template=family.template.replace(content, f"{content}.split('</think>')[-1]"))
    thoughts = [f"<think>{thought}</think>Yes" for thought in ("Because.", "No reason, really")]
    row = pairs.PairedRow(3, [QUESTION], [*thoughts, "No"], [(0, 1), (0, 2)])
    assert pairs.distinct([row], opened(strips), 400) == ([row.only([(0, 2)])], [3])
    assert pairs.distinct([row], opened(family), 400) == ([row], [])
    said = {one.template: opened(one).lines()[0] for one in (strips, family, FAMILIES["qwen3"])}
    assert ["leaves the reasoning out of answers" in line for line in said.values()] == [True, False, False]


def test_rows_that_a_template_refuses_are_counted_and_the_first_is_named():
    chat = opened(FAMILIES["gemma"])
    rows = [[QUESTION], [SYSTEM, QUESTION], [QUESTION, QUESTION], [QUESTION, ANSWER, AGAIN]]
    kept, dropped, lines = chat.accepted(rows, lambda row: [row], lambda row: f"row {rows.index(row)}")
    assert kept == [rows[0], rows[3]] and dropped == {"refused by the chat template": 2}
    assert lines == [
        "2 rows refused by the chat template, row 1 first: the chat template refuses it (System role not supported)"
    ]
    with pytest.raises(UserError, match=r"^data\.path: all 1 rows are refused by the chat template, row 1 first"):
        chat.accepted(rows[1:2], lambda row: [row], lambda row: "row 1")
    with pytest.raises(TemplateRefusal, match="must alternate"):
        chat.prompt(rows[2])
    assert chat.adapted([SYSTEM, QUESTION]) == [{**QUESTION, "content": f"Be brief.\n\n{QUESTION['content']}"}]
    assert opened(FAMILIES["qwen2"]).adapted([SYSTEM, QUESTION]) == [SYSTEM, QUESTION]


def test_every_row_is_trained_as_its_own_rendering():
    """Qwen3's earlier answers lose their reasoning, the last one keeps it."""
    chat = opened(FAMILIES["qwen3"])
    reasoned = {"role": "assistant", "content": "<think>\nthink\n</think>\n\nIt is Paris."}
    prompt, answer = chat.answered([QUESTION, reasoned])
    assert chat.tokenizer.decode(answer) == "<think>\nthink\n</think>\n\nIt is Paris.<|im_end|>"
    later = chat.tokenizer.decode(chat.answered([QUESTION, reasoned, AGAIN, ANSWER])[0])
    assert "It is Paris.<|im_end|>" in later and "think" not in later
    silent = opened(FAMILIES["qwen3_no_thinking"])
    prompt, answer = silent.answered([QUESTION, ANSWER])
    assert silent.tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert silent.tokenizer.decode(answer) == "It is Paris.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }", r"the chat template is not Jinja \(line 1"),
        ("{{ raise_exception('no') }}", r"a question and its answer cannot be rendered: .*\(no\)"),
        ("{{ messages[0].content }}", "leaves out the assistant's answer"),
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
         "no generation prompt: '<|im_start|>assistant"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trained_with(tmp_path, template, says):
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    tokenizer = FAMILIES["qwen2"].tokenizer()
    with pytest.raises(UserError, match=says.replace("|", r"\|")) as error:
        Chat.checked(tokenizer, "model.path: DIR", str(file))
    assert str(error.value).startswith(f"model.template: {file}: ") and "\n" not in str(error.value)


def test_files_that_are_no_templates(tmp_path):
    tokenizer = FAMILIES["qwen2"].tokenizer()
    with pytest.raises(UserError, match=r"^model\.template: .*gone\.jinja cannot be read \(No such file"):
        Chat.checked(tokenizer, "model.path: DIR", str(tmp_path / "gone.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xe4")
    with pytest.raises(UserError, match=r"^model\.template: .*latin\.jinja: not UTF-8"):
        Chat.checked(tokenizer, "model.path: DIR", str(tmp_path / "latin.jinja"))


def test_values_that_cannot_be_set():
    with pytest.raises(UserError, match=r"^model\.template_kwargs: the chat template has no variable 'thinking'"):
        opened(FAMILIES["qwen3"], values={"thinking": True})
    with pytest.raises(UserError, match=r"^model\.template_kwargs: the chat template has no variable 'messages'"):
        opened(FAMILIES["qwen3"], values={"messages": []})


def test_no_token_to_end_an_answer():
    tokenizer = chat_tokenizers.tokenizer("bytes", ("<s>",), chat_template=FAMILIES["plain"].template)
    with pytest.raises(UserError, match="no token ends an answer"):
        Chat.checked(tokenizer, "model.path: DIR")


def test_a_file_replaces_the_tokenizers_template(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("\ufeff" + FAMILIES["zephyr"].template, "utf-8")
    tokenizer = FAMILIES["mistral"].tokenizer()
    chat = Chat.checked(tokenizer, "model.path: DIR", str(file))
    assert chat.prompt([QUESTION]) == rendered(FAMILIES["zephyr"], [QUESTION])


def test_plain_text_begins_with_bos_where_the_tokenizer_puts_one():
    assert opened(FAMILIES["qwen2"]).plain("<|im_end|>")[0] not in opened(FAMILIES["qwen2"]).end_ids
    assert opened(FAMILIES["smollm2"]).plain("") == []  # its BOS begins a turn; plain text does not have it
