"""Strings that end a response."""

from bisect import bisect_left
from collections.abc import Sequence

from starling_train.data.chat import Chat, begin_of

EVERY = 8  # tokens between two looks at a response: decoding text costs more than drawing a few tokens too many


class StopStrings:
    """Where the text of a response first contains one of some strings; a string may end in the middle of a token.

    floor: the first tokens of a response; a string that is complete within them does not end it, as in vLLM.
    """

    def __init__(self, chat: Chat, strings: Sequence[str], floor: int = 0):
        self._chat, self._strings, self._floor = chat, tuple(strings), floor
        # what is new since the last look lies in the newest tokens: a token has at least one byte
        self._tail = EVERY + max((len(string.encode()) for string in strings), default=0)

    def due(self, length: int) -> bool:
        """Return whether to look at a response that is still growing when it has `length` tokens."""
        return bool(self._strings) and length % EVERY == 0

    def is_in_tail(self, response: Sequence[int]) -> bool:
        """Return whether one of the strings is in what a response has gained since the last look."""
        return self._contains(response[-self._tail :])

    def end(self, response: Sequence[int]) -> int | None:
        """Return how many tokens complete the first of the strings; None without one."""
        begun = len(self._chat.text(response[: self._floor])) if self._floor and self._strings else 0
        if not self._strings or not self._contains(response, begun):
            return None
        return bisect_left(range(len(response)), True, key=lambda length: self._contains(response[:length], begun))

    def _contains(self, ids: Sequence[int], begun: int = 0) -> bool:
        text = self._chat.text(ids)
        return any(begin_of(string, text, begun) >= 0 for string in self._strings)
