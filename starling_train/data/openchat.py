"""Openchat's conversation template: messages <-> text <-> token ids.

Source: the openchat-3.5-0106 and Starling-LM model cards. A turn is `{role}: {text}<|end_of_turn|>`; the
prompt for an answer ends in `{role}:` with no space after it, because the tokenizer puts the space in front
of the answer's first word. System messages are bare text and an end of turn, as in Openchat's serving code;
`system="role"` renders them as the jinja template does that was uploaded with the model.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, given

END_OF_TURN = "<|end_of_turn|>"
PAD = "<|pad_0|>"
ROLE_PREFIX = {"chat": "GPT4 Correct", "code": "Code", "math": "Math Correct"}
STOP_STRINGS = ("GPT4 Correct User:", "GPT4 Correct Assistant:")
_USER, _ANSWER = {"role": "user", "content": "Hi "}, {"role": "assistant", "content": " Yes"}
WITHOUT_SYSTEM = ([_USER], [_USER, _ANSWER, _USER])
WITH_SYSTEM = (*WITHOUT_SYSTEM, [{"role": "system", "content": "Short."}, _USER])

# For tokenizers we save: `apply_chat_template(messages, add_generation_prompt=True, mode="code")` gives
# the ids of `encode`, except that a special token's string inside a message becomes the token.
CHAT_TEMPLATE = (
    "{%- set names = {'code': 'Code', 'math': 'Math Correct'} -%}"
    "{%- set prefix = names.get(mode | default('chat'), 'GPT4 Correct') -%}"
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] != 'system' -%}"
    "{{ prefix + ' ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' }}"
    "{%- elif message['content'] -%}"
    "{{ message['content'] + '<|end_of_turn|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ prefix + ' Assistant:' }}{%- endif -%}"
)

# The model cards' own check: (the user's text, mode, ids with the generation prompt).
CARD_CHECKS = (
    ("Hello", "chat",
     [1, 420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 32000, 420, 6316, 28781, 3198, 3123, 21631, 28747]),
    ("Implement quicksort using C++", "code",
     [1, 7596, 1247, 28747, 26256, 2936, 7653, 1413, 334, 1680, 32000, 7596, 21631, 28747]),
)  # fmt: skip
OPENCHAT_BASE_VOCABULARY = 32000
OPENCHAT_PIECES = {"▁Hello": 22557, "▁User": 1247, "▁Assistant": 21631}


def render(
    messages: Sequence[dict], mode: str = "chat", add_generation_prompt: bool = True, *, system: str = "bare"
) -> str:
    """Render the template as text, without BOS.

    mode: chat, code or math; system: bare (Openchat's serving code) or role (its uploaded jinja template).
    Raises UserError for a role other than system, user and assistant.
    """
    turns, prompt = _segments(messages, mode, add_generation_prompt, system)
    return "".join(turn + END_OF_TURN for turn in turns) + prompt


def encode(
    messages: Sequence[dict],
    tokenizer,
    mode: str = "chat",
    add_generation_prompt: bool = True,
    *,
    system: str = "bare",
) -> list[int]:
    """Return the token ids of `render`, BOS first.

    Turns are tokenised apart and joined by the end-of-turn id, so a special token's string inside a message
    stays text, and the ids do not depend on how the tokenizer treats text that follows a special token
    (transformers forgets `legacy` when it saves a Llama tokenizer, see `save_tokenizer`).
    """
    turns, prompt = _segments(messages, mode, add_generation_prompt, system)
    end_of_turn = end_of_turn_id(tokenizer)
    ids = [tokenizer.bos_token_id]
    for turn in turns:
        ids += text_ids(turn, tokenizer)
        ids.append(end_of_turn)
    return ids + text_ids(prompt, tokenizer)


def decode(ids: Sequence[int], tokenizer) -> str:
    """Decode an answer: special tokens left out, the one space that follows `Assistant:` removed.

    The inverse of tokenising an answer after its prompt: its own leading spaces and newlines are kept.
    """
    # Decoded behind a colon, because some tokenizers drop a leading space by themselves and some do not.
    colon = text_ids(":", tokenizer)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(colon, **options)
    return tokenizer.decode([*colon, *ids], **options)[len(before) :].removeprefix(" ")


def text_ids(text: str, tokenizer) -> list[int]:
    """Tokenise text in which no string is special."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []


def end_of_turn_id(tokenizer) -> int:
    """Return the id of `<|end_of_turn|>`; only for tokenizers that passed `check_tokenizer`."""
    return tokenizer.convert_tokens_to_ids(END_OF_TURN)


def pad_id(tokenizer) -> int | None:
    """Return `<|pad_0|>` where the tokenizer has it, else its pad token; None if that is missing or the end of turn.

    Starling-LM-7B-beta names the end of turn as its pad token; training with that loses the real end of turn.
    """
    if PAD in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids(PAD)
    return None if tokenizer.pad_token_id == end_of_turn_id(tokenizer) else tokenizer.pad_token_id


def check_tokenizer(tokenizer, source: str) -> None:
    """Raise UserError, naming `source`, unless the tokenizer can speak Openchat's template.

    With Openchat's own vocabulary the model card's token ids must come out as well.
    """
    vocabulary = tokenizer.get_vocab()
    if END_OF_TURN not in vocabulary:
        raise UserError(f"{source}: the tokenizer has no {END_OF_TURN} token; use an Openchat-3.5 descendant's")
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if vocabulary[END_OF_TURN] not in special:
        raise UserError(f"{source}: {END_OF_TURN} is not a special token; add it with special=true")
    special.pop(tokenizer.unk_token_id, None)  # stands for unknown characters too, so it may come from any text
    for text in special.values():
        if not special.keys().isdisjoint(text_ids(text, tokenizer)):
            raise UserError(f"{source}: {text!r} written by a user becomes the special token; use a fast tokenizer")
    if tokenizer.bos_token_id is None:
        raise UserError(f"{source}: the tokenizer has no BOS token; Openchat's prompts begin with one")
    if pad_id(tokenizer) is None:
        raise UserError(f"{source}: no pad token other than {END_OF_TURN}; add {PAD} as a special token")
    if _has_openchat_vocabulary(vocabulary):
        _check_card_ids(tokenizer, source)


def save_tokenizer(tokenizer, directory: str | Path) -> None:
    """Save a tokenizer such that loading it gives the same ids, with a chat template that renders what was trained.

    Its own template stays where it does: Openchat's uploaded one renders system messages with a role. Its eos token
    becomes the end of turn, or servers would not stop there, and its pad token another one.

    transformers 5 drops `legacy` on saving; without it a reloaded Llama tokenizer no longer puts a space in
    front of text that follows a special token: `apply_chat_template` gives ids the model was not trained on.
    """
    tokenizer = copy.deepcopy(tokenizer)
    scheme = getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None)
    if scheme is not None:
        tokenizer.init_kwargs["legacy"] = scheme == "always"
    tokenizer.eos_token = END_OF_TURN
    if tokenizer.pad_token_id in (None, end_of_turn_id(tokenizer)) and (pad := pad_id(tokenizer)) is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    if not renders_alike(tokenizer, WITH_SYSTEM):
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(directory))


def renders_alike(tokenizer, conversations: Sequence[Sequence[dict]]) -> bool:
    """Return whether the tokenizer's own chat template renders conversations as `render` does."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return False
    try:
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return False
    return texts == [f"{tokenizer.bos_token or ''}{render(conversation)}" for conversation in conversations]


class OpenchatTemplate:
    """Openchat's template with a tokenizer that passed `check_tokenizer`; see `Template` in `chat.py`."""

    stop_strings = STOP_STRINGS
    takes_system = keeps_reasoning = True
    text = ""
    notes: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @cached_property
    def end_of_turn(self) -> int:
        return end_of_turn_id(self.tokenizer)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        return frozenset([self.end_of_turn])

    @cached_property
    def pad_id(self) -> int:
        return given(pad_id(self.tokenizer))

    def prompt(self, messages: Sequence[dict]) -> list[int]:
        """Return the token ids, BOS first, up to where the assistant answers."""
        return encode(messages, self.tokenizer)

    def answered(self, messages: Sequence[dict]) -> tuple[list[int], list[int]]:
        """Split a conversation that ends with an answer into (prompt ids, answer ids); its end of turn is the last id.

        Where a tokenizer joins the prompt's last character with the answer's first, the answer begins there.
        """
        prompt = self.prompt(messages[:-1])
        whole = encode(messages, self.tokenizer, add_generation_prompt=False)
        first = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        return whole[:first], whole[first:]

    def plain(self, text: str) -> list[int]:
        """Return the token ids of plain text, BOS first where the tokenizer has one; no string is special."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + text_ids(text, self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        return decode(ids, self.tokenizer)

    def refusal(self, messages: Sequence[dict]) -> str | None:
        return None  # every conversation of users, assistants and systems is rendered

    def save(self, directory: str | Path) -> None:
        save_tokenizer(self.tokenizer, directory)

    def identity(self) -> dict[str, str]:
        return {}  # the template is the model's: nothing but the tokenizer's files

    def described(self) -> str:
        return ""


def _segments(messages, mode: str, add_generation_prompt: bool, system: str) -> tuple[list[str], str]:
    """Return the texts of the turns, each to be followed by an end of turn, and the text that asks for an answer."""
    assert mode in ROLE_PREFIX, f"mode {mode!r} is none of {sorted(ROLE_PREFIX)}"
    assert system in ("bare", "role"), system
    prefix = ROLE_PREFIX[mode]
    turns = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            raise UserError(f"messages: role {role!r} is unknown; use system, user or assistant")
        if role != "system" or system == "role":
            turns.append(f"{prefix} {role.title()}: {content}")
        elif content:
            turns.append(content)
    return turns, f"{prefix} Assistant:" if add_generation_prompt else ""


def _has_openchat_vocabulary(vocabulary: dict[str, int]) -> bool:
    pieces_match = all(vocabulary.get(piece) == index for piece, index in OPENCHAT_PIECES.items())
    return pieces_match and len(vocabulary) >= OPENCHAT_BASE_VOCABULARY


def _check_card_ids(tokenizer, source: str) -> None:
    for text, mode, expected in CARD_CHECKS:
        messages = [{"role": "user", "content": text}]
        ids = encode(messages, tokenizer, mode)
        if ids != expected:
            raise UserError(
                f"{source}: the tokenizer turns {render(messages, mode)!r} into {ids}, the model card says "
                f"{expected}; download the tokenizer again"
            )
