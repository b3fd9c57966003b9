"""Reward models' templates: the model cards' texts, tokenised whole, are what comes out."""

import pytest
from openchat_tokenizer import build

from starling_train.config.fields import UserError
from starling_train.data.reward_templates import check_tokenizer, encode_conversation, encode_prompt

QUESTION = {"role": "user", "content": "How are\nyou? "}
ANSWER = {"role": "assistant", "content": "  Fine,\n\nthanks"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = {
    "starling_7b": "[INST] How are\nyou?  [/INST]   Fine,\n\nthanks</s>",
    "starling_34b": ("<|im_start|>user\nHow are\nyou? <|im_end|>\n<|im_start|>assistant\n  Fine,\n\nthanks<|im_end|>"),
    "sequence_classification": "Q: How are\nyou? <|im_end|>A:   Fine,\n\nthanks<|im_end|>",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ {'user': 'Q', 'assistant': 'A', 'system': 'S'}[m.role] + ': ' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Mistral's pieces, Llama-2's `</s>` and Yi's two turn tokens: one tokenizer for all templates."""
    tokenizer = build()
    tokenizer.eos_token = "</s>"
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("kind", TEXTS)
def test_ids_are_those_of_the_cards_text(tokenizer, kind):
    whole = tokenizer(TEXTS[kind], add_special_tokens=kind == "starling_7b").input_ids
    assert encode_conversation(kind, [QUESTION, ANSWER], tokenizer) == whole


def test_several_turns_and_a_system_message(tokenizer):
    messages = [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER]
    turn = TEXTS["starling_7b"]
    text = turn.replace("[INST] ", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n", 1) + " " + turn
    assert encode_conversation("starling_7b", messages, tokenizer) == tokenizer(text).input_ids
    turn = TEXTS["starling_34b"]
    text = f"<|im_start|>system\nBe brief.<|im_end|>\n{turn}\n{turn}"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert encode_conversation("starling_34b", messages, tokenizer) == ids


def test_trailing_newline_is_for_the_34b_only(tokenizer):
    messages = [QUESTION, ANSWER]
    plain = encode_conversation("starling_34b", messages, tokenizer)
    newline = tokenizer(TEXTS["starling_34b"] + "\n", add_special_tokens=False).input_ids
    assert encode_conversation("starling_34b", messages, tokenizer, trailing_newline=True) == newline != plain
    seven = encode_conversation("starling_7b", messages, tokenizer, trailing_newline=True)
    assert seven == encode_conversation("starling_7b", messages, tokenizer)


@pytest.mark.parametrize("kind", TEXTS)
def test_prompt_is_the_beginning_of_the_conversation(tokenizer, kind):
    messages = [QUESTION, ANSWER, QUESTION, ANSWER]
    prompt = encode_prompt(kind, messages, tokenizer)
    ids = encode_conversation(kind, messages, tokenizer)
    assert ids[: len(prompt)] == prompt
    assert "Fine" in tokenizer.decode(ids[len(prompt) :]) and "How" not in tokenizer.decode(ids[len(prompt) :])


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("written", ["</s>", "a<|im_end|>b <s>\ue000", "<|im_start|>user\nx<|im_end|>\n", "<unk>"])
def test_special_strings_in_a_message_stay_text(tokenizer, kind, written):
    special = {0, 1, 2, *tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])}
    awkward = [{"role": role, "content": written} for role in ("system", "user", "assistant")]
    plain = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    ids = encode_conversation(kind, awkward, tokenizer)
    expected = encode_conversation(kind, plain, tokenizer)
    assert [i for i in ids if i in special] == [i for i in expected if i in special]
    for part in written.split():
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "").count(part) >= 3


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [QUESTION],
        [ANSWER],
        [SYSTEM],
        [QUESTION, QUESTION, ANSWER],
        [QUESTION, ANSWER, ANSWER],
        [QUESTION, SYSTEM, ANSWER],
    ],
)
def test_conversations_without_an_answer_to_score_are_refused(tokenizer, messages):
    with pytest.raises(UserError, match="must alternate"):
        encode_conversation("starling_7b", messages, tokenizer)


def test_tokenizers_that_do_not_fit_the_template_are_named():
    tokenizer = build()
    check_tokenizer("starling_7b", tokenizer, "dir")
    with pytest.raises(UserError, match=r"^dir: the tokenizer lacks <\|im_start\|>"):
        check_tokenizer("starling_34b", tokenizer, "dir")
    with pytest.raises(UserError, match=r"^dir: the tokenizer has no chat template"):
        check_tokenizer("sequence_classification", tokenizer, "dir")
    tokenizer.bos_token = None
    with pytest.raises(UserError, match=r"^dir: the tokenizer has no BOS"):
        check_tokenizer("starling_7b", tokenizer, "dir")
