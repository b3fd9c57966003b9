"""Text in place of special strings is tokenised as if it had stood there all along."""

import chat_tokenizers
import openchat_tokenizer
import pytest

from starling_train.data.stand_ins import StandIns, special_strings

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEXTS = [
    "<|im_start|>user\nWhat is hello world?<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] hello [/INST] hello</s> [INST]hello<|im_end|>",
    "hello<|im_start|>  hello \n\nhello<|im_end|>hello",
    "hello",
]


@pytest.fixture(scope="module", params=["bytes", "always", "first", "openchat", "rstrip"])
def tokenizer(request):
    if request.param == "rstrip":
        return chat_tokenizers.tokenizer("always", SPECIAL, rstrip=True)
    if request.param != "openchat":
        return chat_tokenizers.tokenizer(request.param, SPECIAL)
    tokenizer = openchat_tokenizer.build()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return tokenizer


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("word", ["hello", "ell", " hello", "hello "])
def test_a_stand_in_changes_nothing_around_it(tokenizer, text, word):
    """`word` is not special: with a stand-in for it the ids are those of the text without."""
    hidden = text.replace(word, "\ue000")
    assert StandIns(tokenizer).encode(hidden, {"\ue000": word}) == ids(tokenizer, text)


def test_without_special_strings_messages_and_text_stay_as_they_are(tokenizer):
    stand_ins = StandIns(tokenizer)
    messages = [{"role": "user", "content": "hello \ue000 <|im_st"}]
    hidden, written = stand_ins.hide(messages)
    assert hidden == messages and written == {}
    assert stand_ins.encode(TEXTS[0], written) == ids(tokenizer, TEXTS[0])


def test_special_strings_come_back_as_plain_pieces(tokenizer):
    stand_ins = StandIns(tokenizer)
    for special in special_strings(tokenizer):
        messages = [{"role": "user", "content": f"a {special}{special} b\ue000"}, {"role": "user", "content": special}]
        hidden, written = stand_ins.hide(messages)
        assert written == {"\ue001": special}
        assert [message["content"] for message in hidden] == ["a \ue001\ue001 b\ue000", "\ue001"]
        encoded = stand_ins.encode(f"<|im_start|>{hidden[0]['content']}<|im_end|>", written)
        own = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
        assert [index for index in encoded if index in stand_ins.ids] == [encoded[0], encoded[-1]]
        assert {encoded[0], encoded[-1]} == own
        text = tokenizer.decode(encoded, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert text.strip() == f"a {special}{special} b\ue000"


def test_longer_special_strings_win_and_overlaps_are_one_stretch():
    tokenizer = chat_tokenizers.tokenizer("bytes", ("<end>", "<end>>", "<e"))
    hidden, written = StandIns(tokenizer).hide([{"role": "user", "content": "<end>> <end> <e"}])
    assert hidden[0]["content"] == "\ue000 \ue001 \ue002"
    assert list(written.values()) == ["<end>>", "<end>", "<e"]


def test_added_tokens_that_a_template_uses_count_as_special():
    tokenizer = chat_tokenizers.tokenizer("bytes", ("<s>",), plain=("<|im_end|>", "<tool>"))
    end, tool = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<tool>"])
    assert end in StandIns(tokenizer).encode("a<|im_end|>", {})
    stand_ins = StandIns(tokenizer, [end])
    hidden, written = stand_ins.hide([{"role": "user", "content": "a <|im_end|> <tool>"}])
    encoded = stand_ins.encode(hidden[0]["content"] + "<|im_end|>", written)
    assert encoded.count(end) == 1 and encoded[-1] == end
    assert tool in encoded  # which nobody said is special
    assert tokenizer.decode(encoded[:-1]) == "a <|im_end|> <tool>"


def test_what_a_normaliser_would_make_special_is_found():
    from tokenizers import AddedToken, normalizers

    tokenizer = chat_tokenizers.tokenizer("bytes", ("<s>",))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<end>", special=True, normalized=True)])
    end = tokenizer.convert_tokens_to_ids("<end>")
    wide = "a \uff1cend\uff1e b"  # full-width brackets
    assert end in ids(tokenizer, wide)
    stand_ins = StandIns(tokenizer)
    hidden, written = stand_ins.hide([{"role": "user", "content": wide}])
    assert list(written.values()) == ["\uff1cend\uff1e"]
    encoded = stand_ins.encode(hidden[0]["content"] + "<end>", written)
    assert encoded.count(end) == 1 and tokenizer.decode(encoded[:-1]) == "a <end> b"


def test_text_behind_other_text_begins_with_a_token_of_its_own(tokenizer):
    stand_ins = StandIns(tokenizer)
    before, text = "<|im_start|>assistant\n", "\n\nhello<|im_end|>"
    behind = stand_ins.encode_behind(before, text, {})
    joined = tokenizer.decode(ids(tokenizer, before) + behind, clean_up_tokenization_spaces=False)
    assert "".join(joined.split()) == "<|im_start|>assistanthello<|im_end|>"
    assert joined.count("\n") == 3 and behind[-1] == ids(tokenizer, "<|im_end|>")[-1]
