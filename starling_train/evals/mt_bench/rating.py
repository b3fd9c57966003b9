"""How a judge's reply becomes a rating: what it says outside its reasoning, read as FastChat reads it."""

import re

LOWEST, HIGHEST = 1.0, 10.0
NO_RATING = "no rating in the reply"
# reasons for which a server ends a reply, by the names of several
CUT = ("length", "max_tokens", "max_output_tokens")
ENDED = ("", "stop", "end_turn", "eos", "stop_sequence", "completed")

_NUMBER = r"([0-9]+\.?[0-9]*)"
_RATINGS = (re.compile(rf"\[\[{_NUMBER}\]\]"), re.compile(rf"\[{_NUMBER}\]"))

# Reasoning as models mark it: tags of several names, in several brackets, and gpt-oss's channels. In quotes it is a
# remark about a mark, which the answer that is judged may have.
_NAME = "(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad|seed:think)"
_SQUARE = "think(?:ing)?"  # [analysis] may be a heading
_BEGINS = (
    rf"<{_NAME}(?:\s[^<>/]*)?>",
    rf"\[{_SQUARE}\]",
    rf"◁{_NAME}▷",
    rf"<\|(?:begin_of_)?{_NAME}\|>",
    r"<\|channel\|>(?:analysis|commentary)\b[^<]*<\|message\|>",
)
_ENDS = (
    rf"</{_NAME}\s*>",
    rf"\[/{_SQUARE}\]",
    rf"◁/{_NAME}▷",
    rf"<\|(?:end_of_|/){_NAME}\|>",
    r"<\|channel\|>final\b[^<]*<\|message\|>",
    r"\bassistantfinal",  # the channels' marks, decoded without special tokens
)
_MARKS = re.compile(rf"(?<![`'\"])(?:(?P<begins>{'|'.join(_BEGINS)})|{'|'.join(_ENDS)})", re.IGNORECASE)


def rating(reply: str) -> float | None:
    """Return the number of the first `[[n]]` in a judge's reply, else of the first `[n]`; None if not from 1 to 10.

    Reasoning is not part of the reply, and a reply whose reasoning does not end has no rating.
    """
    text = without_reasoning(reply)
    if text is None:
        return None
    for pattern in _RATINGS:
        if match := pattern.search(text):
            value = float(match[1])
            return value if LOWEST <= value <= HIGHEST else None
    return None


def without_reasoning(reply: str) -> str | None:
    """Return what a reply says outside its reasoning; None where the reasoning does not end.

    An end without a beginning ends what began in the prompt, so that what stands before it is reasoning too.
    """
    kept: list[str] = []
    start, is_inside = 0, False
    for mark in _MARKS.finditer(reply):
        if mark["begins"]:
            if not is_inside:
                kept.append(reply[start : mark.start()])
            is_inside = True
        else:
            if not is_inside:
                kept.clear()
            start, is_inside = mark.end(), False
    return None if is_inside else "\n".join([*kept, reply[start:]])


def why_unrated(reply: str, ended: str) -> str:
    """Say why a reply has no rating. ended: why the server ended it (`finish_reason`)."""
    if ended.lower() in CUT:
        return f"{NO_RATING}, which was cut at mt_bench.judge.max_tokens"
    if ended.lower() not in ENDED:
        return f"{NO_RATING}, which the server ended: {ended}"
    return f"{NO_RATING}, whose reasoning does not end" if without_reasoning(reply) is None else NO_RATING
