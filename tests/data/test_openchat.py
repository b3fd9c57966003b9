"""Openchat's template against the model card's ids, with the real tokenizer."""

import pytest
from openchat_tokenizer import build
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from starling_train.config.fields import UserError
from starling_train.data import openchat

USER_HELLO = [420, 6316, 28781, 3198, 3123, 1247, 28747, 22557]
ASSISTANT = [420, 6316, 28781, 3198, 3123, 21631, 28747]
AWKWARD = ["<|end_of_turn|>", "a<|end_of_turn|>b </s><s> <unk><|pad_0|>", "GPT4 Correct Assistant:", "<0x0A>"]
SPACED = ["", " ", "  two", "\n", "\nline", "\n\n  code:\n\tx = 1  \n", "héllo 你好 🙂"]


@pytest.fixture(scope="module")
def tokenizer():
    return build()


def chat(*contents, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def test_card_ids_single_turn(tokenizer):
    assert openchat.encode(chat("Hello"), tokenizer) == [1, *USER_HELLO, 32000, *ASSISTANT]


def test_card_ids_several_turns(tokenizer):
    how_are_you = [420, 6316, 28781, 3198, 3123, 1247, 28747, 1602, 460, 368, 3154, 28804]
    expected = [1, *USER_HELLO, 32000, *ASSISTANT, 15359, 32000, *how_are_you, 32000, *ASSISTANT]
    assert openchat.encode(chat("Hello", "Hi", "How are you today?"), tokenizer) == expected


def test_card_ids_code_mode(tokenizer):
    expected = [1, 7596, 1247, 28747, 26256, 2936, 7653, 1413, 334, 1680, 32000, 7596, 21631, 28747]
    assert openchat.encode(chat("Implement quicksort using C++"), tokenizer, "code") == expected


def test_render_every_mode():
    assert openchat.render(chat("Hi")) == "GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:"
    assert openchat.render(chat("Hi"), "code") == "Code User: Hi<|end_of_turn|>Code Assistant:"
    assert openchat.render(chat("Hi"), "math") == "Math Correct User: Hi<|end_of_turn|>Math Correct Assistant:"


def test_finished_answer_ends_with_the_end_of_turn(tokenizer):
    messages = chat("Hello", "Hi")
    text = "GPT4 Correct User: Hello<|end_of_turn|>GPT4 Correct Assistant: Hi<|end_of_turn|>"
    assert openchat.render(messages, add_generation_prompt=False) == text
    ids = openchat.encode(messages, tokenizer, add_generation_prompt=False)
    assert ids == [1, *USER_HELLO, 32000, *ASSISTANT, 15359, 32000]


def test_system_message_bare_or_with_a_role():
    messages = chat("Hi", system="Be brief.")
    assert openchat.render(messages, add_generation_prompt=False) == (
        "Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>"
    )
    assert openchat.render(messages, add_generation_prompt=False, system="role") == (
        "GPT4 Correct System: Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>"
    )
    assert openchat.render(chat("Hi", system="")) == openchat.render(chat("Hi"))


@pytest.mark.parametrize("mode", ["chat", "code", "math"])
@pytest.mark.parametrize("content", [*SPACED, "Hello", "Ends in a space ", "  ▁x"])
def test_ids_are_those_of_the_rendered_text(tokenizer, mode, content):
    messages = chat("First", content, content, system="Rules.")
    whole = tokenizer(openchat.render(messages, mode)).input_ids
    assert openchat.encode(messages, tokenizer, mode) == whole


@pytest.mark.parametrize("content", AWKWARD)
def test_special_strings_in_a_message_stay_text(tokenizer, content):
    ids = openchat.encode(chat(content, content, "ok", system=content), tokenizer)
    special = {0, 1, 2, 32000, 32001}
    assert [i for i in ids if i in special] == [1, 32000, 32000, 32000, 32000]
    assert tokenizer.decode(ids).count(content) >= 3


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer):
    openchat.encode(chat("x"), tokenizer)
    assert tokenizer("<|end_of_turn|>", add_special_tokens=False).input_ids == [32000]


@pytest.mark.parametrize("answer", [*SPACED, *AWKWARD, "Hi", " Hi ", "  - item\n  - item"])
def test_decode_gives_back_the_answer(tokenizer, answer):
    prompt = openchat.encode(chat("q"), tokenizer)
    whole = openchat.encode(chat("q", answer), tokenizer, add_generation_prompt=False)
    assert whole[: len(prompt)] == prompt
    assert openchat.decode(whole[len(prompt) :], tokenizer) == answer


def test_decode_leaves_special_tokens_out(tokenizer):
    assert openchat.decode([15359, 32000, 32001, 32001], tokenizer) == "Hi"
    assert openchat.decode([32000], tokenizer) == openchat.decode([], tokenizer) == ""


def test_pad_is_not_the_end_of_turn(tokenizer):
    assert (openchat.end_of_turn_id(tokenizer), openchat.pad_id(tokenizer)) == (32000, 32001)


@pytest.mark.parametrize("mode", ["chat", "code", "math"])
def test_saved_tokenizer_keeps_ids_and_chat_template(tokenizer, tmp_path, mode):
    messages = chat("Hello", "  Hi\n", "How are you today? ", system="Rules.\n")
    expected = openchat.encode(messages, tokenizer, mode)
    openchat.save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert openchat.encode(messages, loaded, mode) == expected
    options = {"return_dict": False, "mode": mode}
    assert loaded.apply_chat_template(messages, add_generation_prompt=True, **options) == expected
    assert loaded.apply_chat_template(messages, **options) == openchat.encode(messages, loaded, mode, False)
    openchat.save_tokenizer(loaded, tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.apply_chat_template(messages, add_generation_prompt=True, **options) == expected


def test_encode_survives_a_tokenizer_that_forgot_legacy(tokenizer, tmp_path):
    plain = build()
    plain.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert openchat.encode(chat("Hello"), loaded) == openchat.encode(chat("Hello"), tokenizer)
    openchat.check_tokenizer(loaded, "saved")


def small_tokenizer(*special, pad=None, special_flag=True):
    letters = {letter: i for i, letter in enumerate(["<unk>", "<s>", *"abcdefghijklmnopqrstuvwxyz▁:GPTCUAM4<|_>"])}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(text, special=special_flag, normalized=False) for text in special])
    if pad:
        tokenizer.pad_token = pad
    return tokenizer


def test_other_vocabularies_work():
    tokenizer = small_tokenizer("<|end_of_turn|>", "<|pad_0|>")
    openchat.check_tokenizer(tokenizer, "small")
    ids = openchat.encode(chat("ab", "  <s>"), tokenizer, add_generation_prompt=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *["<s>", *"▁GPT4▁Correct▁User:▁ab", "<|end_of_turn|>"],
        *[*"▁GPT4▁Correct▁Assistant:▁▁▁<s>", "<|end_of_turn|>"],
    ]
    assert openchat.decode(ids[-7:], tokenizer) == "  <s>"


@pytest.mark.parametrize(
    ("tokenizer", "wrong"),
    [
        (small_tokenizer("<|pad_0|>"), "no <|end_of_turn|>"),
        (small_tokenizer("<|end_of_turn|>", "<|pad_0|>", special_flag=False), "not a special token"),
        (small_tokenizer("<|end_of_turn|>"), "no pad token"),
        (small_tokenizer("<|end_of_turn|>", pad="<|end_of_turn|>"), "no pad token"),
    ],
)
def test_unusable_tokenizers_are_named(tokenizer, wrong):
    with pytest.raises(UserError, match=r"^model\.path=x: ") as error:
        openchat.check_tokenizer(tokenizer, "model.path=x")
    assert wrong in str(error.value) and "\n" not in str(error.value)


def test_real_vocabulary_with_other_ids_is_refused():
    tokenizer = build()
    openchat.check_tokenizer(tokenizer, "real")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    with pytest.raises(UserError, match="the model card says"):
        openchat.check_tokenizer(tokenizer, "real")


def test_unknown_role_is_named():
    with pytest.raises(UserError, match="role 'tool' is unknown"):
        openchat.render([{"role": "tool", "content": "x"}])
