"""What one evaluation measured: metrics, answers, and which cases were right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class CaseValue(NamedTuple):
    """A case's part in a metric that is a mean: a value, or nats a token; 1 or 0 for right or wrong.

    weight: in the mean over cases, such as the tokens of a window of text.
    """

    value: float
    weight: float = 1.0


CaseValues = Mapping[str, CaseValue]  # by a name that stays the same from one evaluation to the next


@dataclass(frozen=True)
class Measured:
    """What an evaluation, or one skill of it, measured.

    metrics: `eval/*`.
    samples: rows for samples.jsonl.
    cases: for a metric that is a share of cases, a digit for each case, in their order: 1 where it was right.
    values: for a metric that is another mean over cases, their values, the same on all processes.
    """

    metrics: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)
    cases: dict[str, str] = field(default_factory=dict)
    values: dict[str, CaseValues] = field(default_factory=dict)

    def values_of(self, metric: str) -> CaseValues:
        """Return the cases that a metric is made of; none where it is a single number."""
        digits = {str(index): CaseValue(float(digit)) for index, digit in enumerate(self.cases.get(metric, ""))}
        return self.values.get(metric, digits)
