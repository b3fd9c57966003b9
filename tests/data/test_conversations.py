"""What somebody sent or wrote -> a conversation: JSON rows, and the plain text of OpenRLHF's requests."""

import pytest

from starling_train.config.fields import UserError
from starling_train.data.conversations import of_row, parse
from starling_train.data.rendered_text import to_conversation

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TALK = [USER, ANSWER]


@pytest.mark.parametrize(
    "row",
    [
        TALK,
        {"messages": TALK},
        {"messages": [USER | {"name": "x"}, ANSWER], "id": 7},
        {"prompt": "hi", "response": "hello"},
        {"prompt": [USER], "response": "hello"},
        {"prompt": "hi", "completion": [ANSWER]},
        {"prompt": "\n\nHuman: hi\n\nAssistant: ", "response": "hello"},
        {"messages": TALK, "prompt": "hi", "response": None},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        [USER | {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, ANSWER],
    ],
)
def test_the_forms_of_a_conversation(row):
    assert of_row(row) == TALK


@pytest.mark.parametrize(
    "row,says",
    [
        (7, "no conversation"),
        ({"prompt": "hi"}, "no conversation"),
        ({"messages": "hi"}, "must be a list of objects"),
        ([USER], "ends with the user"),
        ([USER, USER, ANSWER], "alternate"),
        ([ANSWER], "alternate"),
        ([], "roles are none"),
        ([USER, {"role": "assistant", "content": " \n"}], "the answer is empty"),
        ([USER, {"role": "tool", "content": "x"}], "a tool's message or call"),
        ([USER, ANSWER | {"tool_calls": [{"name": "f"}]}], "a tool's message or call"),
        ([USER, {"role": ["user"], "content": "x"}], "role .'user'.; use system"),
        ([USER, {"role": "assistant"}], "`content` of an assistant message must be text"),
        ([USER | {"content": [{"type": "image"}]}, ANSWER], "content that is not text"),
        ({"messages": TALK, "prompt": "something else"}, "contradict"),
        ([USER, {"role": "assistant", "content": "\ud800"}], "surrogate"),
        ({"prompt": None, "response": "x"}, "no conversation"),
    ],
)
def test_what_is_no_conversation_is_said_in_one_line(row, says):
    with pytest.raises(UserError, match=says) as caught:
        of_row(row)
    assert "\n" not in str(caught.value)


def test_an_empty_answer_is_an_answer_where_a_policy_may_give_one():
    assert of_row([USER, {"role": "assistant", "content": ""}], allow_empty=True)[-1]["content"] == ""


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"", b"NaNa"])
def test_text_that_is_not_json(text):
    with pytest.raises(UserError, match=r"^not (JSON|UTF-8)"):
        parse(text)


def test_a_byte_order_mark_is_passed_over():
    assert parse(b"\xef\xbb\xbf[]") == []


OPENCHAT = "GPT4 Correct User: hi<|end_of_turn|>GPT4 Correct Assistant:"
CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "query,prompt",
    [
        (f"<s>{OPENCHAT} hello<|end_of_turn|>", OPENCHAT),
        (f"{OPENCHAT} hello<|end_of_turn|><|pad_0|><|pad_0|>", f"<s>{OPENCHAT}"),
        (f"{OPENCHAT} hello", None),
        (f"{CHATML}hello<|im_end|>\n", CHATML),
        (f"{CHATML}hello<|im_end|>", None),
        ("<s>[INST] hi [/INST] hello</s>", "<s>[INST] hi [/INST]"),
        ("<s>[INST] hi [/INST] hello</s>", None),
        ("\n\nHuman: hi\n\nAssistant: hello", "\n\nHuman: hi\n\nAssistant: "),
        ("\n\nHuman: hi\n\nAssistant: hello", None),
        ("hi hello", "hi"),
    ],
)
def test_openrlhf_s_text_becomes_the_conversation(query, prompt):
    assert to_conversation(query, prompt) == TALK


def test_earlier_turns_and_the_system_message_are_found():
    prompt = f"Be kind.<|end_of_turn|>{OPENCHAT} hello<|end_of_turn|>{OPENCHAT}"
    system = {"role": "system", "content": "Be kind."}
    assert to_conversation(f"{prompt} hello", prompt) == [system, *TALK, *TALK]
    chatml = f"<|im_start|>system\nBe kind.<|im_end|>\n{CHATML}hello<|im_end|>\n"
    assert to_conversation(chatml) == [system, *TALK]


def test_the_answer_is_what_follows_the_prompt_whatever_it_contains():
    said = f"hello<|end_of_turn|>{OPENCHAT} I am both"
    assert to_conversation(f"{OPENCHAT} {said}", OPENCHAT) == [USER, {"role": "assistant", "content": said}]


@pytest.mark.parametrize("query,prompt,says", [("hi", None, "no known template"), ("hi", "hello", "does not begin")])
def test_text_that_cannot_be_told_apart(query, prompt, says):
    with pytest.raises(UserError, match=says):
        to_conversation(query, prompt)
