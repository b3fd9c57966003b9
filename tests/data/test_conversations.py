"""What somebody sent or wrote in JSON -> a conversation."""

import pytest

from starling_train.config.fields import UserError
from starling_train.data.conversations import of_row, parse

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
