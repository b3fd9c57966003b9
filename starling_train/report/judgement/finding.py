"""One judgement of a run: a sentence, how bad it is, and what to do."""

from dataclasses import dataclass, replace

from starling_train.report.judgement.limits import BAD, FAULTS, GOOD, LIMITS, NOTE, WATCH


@dataclass(frozen=True)
class Finding:
    """One sentence with its judgement.

    state: how bad it is.
    name: what it is about.
    text: the sentence.
    fault: what it is called where it is not good.
    advice: what to do; empty where nothing is wrong.
    """

    state: str
    name: str
    text: str
    fault: str
    advice: str = ""


def finding(row: str, text: str, value: float | None = None, state: str = "") -> Finding:
    """Make the finding of a row of LIMITS.

    row: the row's key.
    text: the sentence.
    value: is judged by the row's limits.
    state: in place of a value, where the row's limits are applied elsewhere.
    """
    limit = LIMITS[row]
    if value is not None:
        state = limit.state(value)
    assert state
    return Finding(state, limit.name, text, FAULTS[row], "" if state in (GOOD, NOTE) else limit.advice)


def softened(found: Finding, because: str = "") -> Finding:
    """Return a finding as worth a look at most, where something else speaks for the run. because: added to its text."""
    text = f"{found.text} {because}".strip() if found.state in (BAD, WATCH) else found.text
    return replace(found, state=WATCH if found.state == BAD else found.state, text=text)
