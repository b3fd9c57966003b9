import openchat_tokenizer
import pytest

from starling_train.config.fields import UserError
from starling_train.data import openchat
from starling_train.data.chat import Chat
from starling_train.data.jinja_chat import JinjaTemplate

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


UPLOADED = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' + "
    "message['content'] + '<|end_of_turn|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
    "+ ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def with_template(template, **names):
    tokenizer = openchat_tokenizer.build()
    tokenizer.chat_template = template
    for name, token in names.items():
        setattr(tokenizer, name, token)
    return tokenizer


@pytest.mark.parametrize("template", [None, UPLOADED, openchat.CHAT_TEMPLATE])
def test_auto_is_openchat_where_token_and_template_are(template, chat):
    found = Chat.checked(with_template(template), "model.path: DIR")
    assert isinstance(found.template, openchat.OpenchatTemplate) and found.lines() == []
    system = [{"role": "system", "content": "Short."}, *TALK]
    assert found.answered(system) == chat.answered(system)
    assert found.stop_strings(None) == ["GPT4 Correct User:", "GPT4 Correct Assistant:"]
    assert found.stop_strings([]) == []


def test_auto_is_the_tokenizers_own_template_where_that_is_another():
    found = Chat.checked(with_template(INSTRUCT), "model.path: DIR")
    assert isinstance(found.template, JinjaTemplate)
    assert found.tokenizer.decode(found.prompt(TALK[:1])) == "<s> [INST] Hello [/INST]"
    assert found.stop_strings(None) == []


@pytest.mark.parametrize("template", [INSTRUCT, UPLOADED])
def test_what_is_written_renders_what_was_trained_and_ends_where_training_did(template, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = with_template(template, eos_token="</s>", pad_token="<|end_of_turn|>")
    chat = Chat.checked(tokenizer, "model.path: DIR", "openchat")
    chat.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(chat.probes()) == 3
    for messages, ids in chat.probes():
        assert again.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    assert (again.eos_token, again.pad_token) == ("<|end_of_turn|>", "<|pad_0|>")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<|end_of_turn|>")  # the run's own stays


def test_openchats_template_has_no_variables():
    with pytest.raises(UserError, match=r"^model\.template_kwargs: Openchat's template has no variables"):
        Chat.checked(openchat_tokenizer.build(), "model.path: DIR", values={"x": 1})
