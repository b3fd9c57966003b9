"""What somebody wrote into a message never becomes a special token: stand-ins before a template, plain pieces after it.

A template makes text of messages, and in text nobody can tell `<|im_end|>` of the template from one that a user typed.
So what a user typed is replaced, before the template is rendered, by characters that mean nothing (private use), and
their text comes back as the tokenizer's ordinary pieces. Where nobody wrote such a string, which is nearly always, the
rendered text is tokenised as it is, like the model's authors do.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

PRIVATE_USE = range(0xE000, 0xF8FF)
# Stand for the template's own special tokens while the rest is tokenised as plain text: characters that Unicode
# reserves for use within a program. One for tokens that are looked for in the text as it stands, one for those that are
# looked for after its normalisation: what a tokenizer puts in front of text differs behind the two.
SEPARATORS = {False: "\ufdd0\ufdd1", True: "\ufdd2\ufdd3"}


def special_strings(tokenizer: Any) -> list[str]:
    """List the text of every special token."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


class StandIns:
    """Keeps strings that a message's writer chose apart from special tokens.

    tokenizer: whose special tokens these are.
    others: ids of added tokens that are not marked as special, but that a template uses like special ones.
    """

    def __init__(self, tokenizer: Any, others: Collection[int] = ()):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._specials = {index: token for index, token in added.items() if token.special or index in others}
        strings = sorted((token.content for token in self._specials.values()), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, strings)) or "(?!)")
        self._others = {added[index].content for index in others if index in added}

    @property
    def ids(self) -> frozenset[int]:
        """The ids that no message can bring forth."""
        return frozenset(self._specials)

    def hide(self, messages: Sequence[dict]) -> tuple[list[dict], dict[str, str]]:
        """Return (the messages with stand-ins in place of special strings, what each stand-in stands for)."""
        stretches = [self._stretches(message["content"]) for message in messages]
        if not any(stretches):
            return list(messages), {}
        everything = "".join(message["content"] for message in messages)
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in everything)
        marks: dict[str, str] = {}
        hidden = []
        for message, found in zip(messages, stretches, strict=True):
            content, done = "", 0
            for start, end in found:
                written = message["content"][start:end]
                if written not in marks:
                    marks[written] = next(free)
                content += message["content"][done:start] + marks[written]
                done = end
            hidden.append({**message, "content": content + message["content"][done:]})
        return hidden, {mark: written for written, mark in marks.items()}

    def encode(self, text: str, written: dict[str, str]) -> list[int]:
        """Tokenise rendered text; each stand-in in `written` is tokenised as the plain text that it stands for."""
        if not any(mark in text for mark in written):
            return _ids(text, self._tokenizer)
        if self._tokenizer.is_fast and not any(mark in text for mark in SEPARATORS.values()):
            return self._encode_in_place(text, written)
        return self._encode_apart(text, written)

    def encode_behind(self, before: str, text: str, written: dict[str, str]) -> list[int]:
        """Tokenise rendered text behind other text, with no token that reaches over both."""
        if self._tokenizer.is_fast and not any(mark in before + text for mark in SEPARATORS.values()):
            return self._encode_in_place(before + text, written, len(before))
        return self.encode(text, written)

    def _stretches(self, content: str) -> list[tuple[int, int]]:
        """Find (start, end) of everything in a message that the tokenizer would read as a special token."""
        backend = self._tokenizer.backend_tokenizer if self._tokenizer.is_fast else None
        normaliser = backend.normalizer if backend else None
        candidates = [content] if normaliser is None else [content, normaliser.normalize_str(content)]
        if not any(map(self._any.search, candidates)):
            return []
        found = {match.span() for match in self._any.finditer(content)}
        for index, span in self._special_spans(content) if backend else ():
            # an id for unknown characters stands for any text
            if index != self._tokenizer.unk_token_id and not any(a < span[1] and span[0] < b for a, b in found):
                found.add(span)
        return sorted(found)

    def _special_spans(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Return (id, (start, end)) of the special tokens in text, in order."""
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        return [(index, tuple(span)) for index, span in pairs if index in self._specials]

    def _encode_in_place(self, text: str, written: dict[str, str], cut: int | None = None) -> list[int]:
        """Tokenise everything between the template's special tokens as one piece of text, in its place.

        cut: a place in the text that no token reaches over; only what comes behind it is returned.
        """
        plain = _plain_copy(self._tokenizer, self._others)
        unknown = self._tokenizer.unk_token_id
        pieces: list[str] = []
        own: list[int | None] = []
        done, behind = 0, 0
        cuts = [] if cut is None else [(None, (cut, cut))]
        spans = [*self._special_spans(text), *cuts]
        for index, (start, end) in sorted(spans, key=lambda item: item[1]):
            if index == unknown and index is not None and text[start:end].strip() != self._specials[index].content:
                continue
            if index is None:
                behind = len(own)
            normalised = index is not None and self._specials[index].normalized
            pieces += [text[done:start], SEPARATORS[normalised]]
            own.append(index)
            done = end
        whole = "".join([*pieces, text[done:]])
        for mark, string in written.items():
            whole = whole.replace(mark, string)
        ids = plain.encode(whole, add_special_tokens=False).ids
        separators = {plain.token_to_id(mark) for mark in SEPARATORS.values()}
        places = [place for place, index in enumerate(ids) if index in separators]
        assert len(places) == len(own), "separators are tokens of the copy"
        for place, index in zip(places, own, strict=True):
            ids[place] = index  # None at the cut, which is left out
        return ids if cut is None else ids[places[behind] + 1 :]

    def _encode_apart(self, text: str, written: dict[str, str]) -> list[int]:
        """Tokenise the text between the stand-ins, and what they stand for, each by itself."""
        ids, done = [], 0
        for match in re.finditer("|".join(map(re.escape, written)), text):
            ids += _ids(text[done : match.start()], self._tokenizer)
            ids += _ids(written[match[0]], self._tokenizer, as_plain_text=True)
            done = match.end()
        return ids + _ids(text[done:], self._tokenizer)


def _ids(text: str, tokenizer: Any, *, as_plain_text: bool = False) -> list[int]:
    if not text:
        return []
    return tokenizer(text, add_special_tokens=False, split_special_tokens=as_plain_text).input_ids


_copies: WeakKeyDictionary = WeakKeyDictionary()


def _plain_copy(tokenizer: Any, others: set[str]) -> Any:
    """Copy a fast tokenizer's backend such that no special string is special, but the separators are tokens."""
    from tokenizers import AddedToken, Tokenizer

    known = _copies.setdefault(tokenizer, {})
    key = frozenset(others)
    if key not in known:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in described["added_tokens"]:
            token["special"] |= token["content"] in others
        copy = Tokenizer.from_str(json.dumps(described))
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        copy.add_tokens([AddedToken(mark, normalized=flag, special=False) for flag, mark in SEPARATORS.items()])
        known[key] = copy
    return known[key]
