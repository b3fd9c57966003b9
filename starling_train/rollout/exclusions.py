"""The ids that responses are drawn without: those that the tokenizer has no token for, and early ends of turn."""

from typing import Any

from starling_train.core.excluded import ExcludedIds
from starling_train.data.chat import Chat


def exclusions(model_config: Any, chat: Chat, min_new_tokens: int = 0) -> ExcludedIds:
    """Return the ids that a response cannot have.

    model_config: its vocabulary is as large as the output head, which may have more rows than there are tokens.
    chat: the tokenizer, and the ids that end a turn.
    min_new_tokens: the first tokens of a response, of which none ends the turn.
    """
    without_token = chat.ids_without_token(model_config.get_text_config().vocab_size)
    return ExcludedIds(without_token, tuple(sorted(chat.end_ids)) if min_new_tokens else (), min_new_tokens)


def lines(model_config: Any, chat: Chat, key: str = "model.path") -> list[str]:
    """Return the line that counts the model's ids without a token; none where there is none. key: names the model."""
    vocabulary = model_config.get_text_config().vocab_size
    count = len(chat.ids_without_token(vocabulary))
    if not count:
        return []
    return [f"{key}: {count:,} of the model's {vocabulary:,} ids have no token in the tokenizer; no response has them"]
