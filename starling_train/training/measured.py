"""What one evaluation measured: metrics, answers, and which cases were right."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What an evaluation, or one skill of it, measured.

    metrics: `eval/*`.
    samples: rows for samples.jsonl.
    cases: for a metric that is a share of cases, a digit for each case, in their order: 1 where it was right.
    """

    metrics: dict[str, float]
    samples: list[dict[str, Any]] = field(default_factory=list)
    cases: dict[str, str] = field(default_factory=dict)
