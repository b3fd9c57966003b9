import openchat_tokenizer
import pytest

from starling_train.config.fields import UserError
from starling_train.data import openchat
from starling_train.data.chat import Chat

TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "Hello <|end_of_turn|> you"},
]


@pytest.fixture(scope="module")
def chat():
    return Chat.checked(openchat_tokenizer.build(), "model.path: DIR")


def test_prompt_and_answer_are_the_conversation(chat):
    for turns in (2, 4):
        prompt, answer = chat.answered(TALK[:turns])
        assert prompt == chat.prompt(TALK[: turns - 1])
        assert prompt + answer == openchat.encode(TALK[:turns], chat.tokenizer, add_generation_prompt=False)
        assert answer[-1] in chat.end_ids and chat.end_ids.isdisjoint(answer[:-1])
        assert chat.text(answer) == TALK[turns - 1]["content"]


def test_the_pad_token_never_ends_an_answer(chat):
    assert chat.pad_id is not None and chat.pad_id not in chat.end_ids


def test_plain_text_begins_with_bos_and_nothing_in_it_is_special(chat):
    ids = chat.plain("Hello <|end_of_turn|>")
    assert ids[:2] == [1, 22557] and chat.end_ids.isdisjoint(ids)
    assert chat.plain("") == [1]


def test_answers_lose_what_follows_a_stop_string(chat):
    ids = chat.tokenizer(" Fine. GPT4 Correct User: and", add_special_tokens=False).input_ids
    assert chat.text(ids, ["GPT4 Correct User:"]) == "Fine."
    assert chat.text(ids) == "Fine. GPT4 Correct User: and"


def test_saved_it_is_the_same_again(chat, tmp_path):
    from transformers import AutoTokenizer

    chat.save(tmp_path)
    again = Chat.checked(AutoTokenizer.from_pretrained(tmp_path), "model.path: DIR")
    assert again.answered(TALK) == chat.answered(TALK)


def test_what_is_wrong_names_the_source():
    class Other:
        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(
        UserError, match=r"^model\.path: DIR: the tokenizer has no chat template and no <\|end_of_turn\|> token"
    ):
        Chat.checked(Other(), "model.path: DIR")
