"""Conversations -> the token ids of a reward model, in its own template and with its own tokenizer.

Sources: the model cards of Starling-RM-7B-alpha (Llama-2's template, one BOS, `</s>` after each answer) and
Starling-RM-34B (ChatML as in Yi-34B-Chat, no BOS); system messages as in Llama-2-chat and ChatML.
"""

from collections.abc import Callable, Sequence

from starling_train.config.fields import UserError
from starling_train.config.sections import REWARD_MODELS
from starling_train.data.stand_ins import StandIns, special_strings

KINDS = REWARD_MODELS


def encode_conversation(kind: str, messages: Sequence[dict], tokenizer, *, trailing_newline: bool = False) -> list[int]:
    """Encode a conversation that ends with the answer to score, not truncated, as token ids.

    trailing_newline: starling_34b only, a newline after the last `<|im_end|>`, as in its training.
    A special token's string inside a message stays text. Raises UserError for a conversation that does not
    alternate between user and assistant or does not end with the assistant.
    """
    check_conversation(messages)
    return _encode(kind, messages, tokenizer, trailing_newline)


def encode_prompt(kind: str, messages: Sequence[dict], tokenizer) -> list[int]:
    """Encode what stands in front of the last answer in `encode_conversation`."""
    check_conversation(messages)
    return _encode(kind, messages[:-1], tokenizer, False)


def check_renders(kind: str, messages: Sequence[dict], tokenizer) -> None:
    """Raise UserError for a conversation that `encode_conversation` would refuse."""
    check_conversation(messages)
    if kind == "sequence_classification":  # the others' templates are ours, and take every conversation
        _own_template(messages, tokenizer)


def check_conversation(messages: Sequence[dict]) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise UserError(
            f"conversation: the roles are {', '.join(roles) or 'none'}; after an optional system message, "
            "user and assistant must alternate and the assistant's answer to score must be last"
        )


def check_tokenizer(kind: str, tokenizer, source: str, needs_template: bool = True) -> None:
    """Raise UserError, naming `source`, unless the tokenizer has what the template needs.

    needs_template: a sequence classifier's own; an encoder can do without.
    """
    specials = set(special_strings(tokenizer))
    if kind == "starling_7b" and (tokenizer.bos_token is None or tokenizer.eos_token is None):
        raise UserError(f"{source}: the tokenizer has no BOS or no EOS token; use Llama-2-7b-chat's")
    if kind == "starling_34b" and not {"<|im_start|>", "<|im_end|>"} <= specials:
        raise UserError(f"{source}: the tokenizer lacks <|im_start|> or <|im_end|>; use Yi-34B-Chat's")
    if kind == "sequence_classification" and needs_template and not tokenizer.chat_template:
        raise UserError(f"{source}: the tokenizer has no chat template; add chat_template.jinja to the directory")


def _encode(kind: str, messages: Sequence[dict], tokenizer, trailing_newline: bool) -> list[int]:
    stand_ins = StandIns(tokenizer)
    hidden, written = stand_ins.hide(messages)
    text = _renderer(kind, tokenizer)(hidden) + ("\n" if trailing_newline and kind == "starling_34b" else "")
    # BOS as an id: as text in front of the template it would change how the first word is tokenised.
    bos = [tokenizer.bos_token_id] if kind == "starling_7b" else []
    return bos + stand_ins.encode(text, written)


def _renderer(kind: str, tokenizer) -> Callable[[Sequence[dict]], str]:
    assert kind in KINDS, kind
    if kind == "starling_7b":
        return lambda messages: _llama2(messages, tokenizer.eos_token)
    if kind == "starling_34b":
        return _chatml
    return lambda messages: _own_template(messages, tokenizer)


def _own_template(messages: Sequence[dict], tokenizer) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=messages[-1]["role"] == "user"
        )
    except TemplateError as error:  # a template may refuse, e.g. a system message
        raise UserError(f"conversation: the tokenizer's chat template refuses it ({error})") from error


def _llama2(messages: Sequence[dict], eos: str) -> str:
    """Render `[INST] {user} [/INST] {assistant}</s> [INST] ...`; a system message goes into the first user turn."""
    text, system = "", ""
    for message in messages:
        if message["role"] == "system":
            system = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            text += f"{' ' if text else ''}[INST] {system}{message['content']} [/INST]"
            system = ""
        else:
            text += f" {message['content']}{eos}"
    return text


def _chatml(messages: Sequence[dict]) -> str:
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>" for message in messages]
    return "\n".join([*turns, "<|im_start|>assistant\n"] if messages[-1]["role"] == "user" else turns)
