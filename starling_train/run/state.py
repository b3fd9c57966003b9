"""What a run remembers from step to step, besides tensors."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Step and everything that later steps depend on; random numbers and data order follow from seed and step.

    step: the last one; 0 is in checkpoints of runs whose guard goes back to it.
    algorithm: `state_dict` of what the command remembers from step to step, e.g. PPO's KL controller, by name.
    seconds: spent in steps so far.
    tracker: id of the W&B run.
    unlogged: metrics of a step that is not evaluated yet, empty otherwise.
    best_score, best_step: the best held-out score so far and its step, None before one.
    budgets: what was lowered when memory ran out, by configuration key.
    """

    step: int = 0
    episodes: int = 0
    algorithm: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    tracker: str | None = None
    unlogged: dict[str, Any] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    budgets: dict[str, int] = field(default_factory=dict)

    @property
    def logged(self) -> int:
        """The last step that is certainly in metrics.jsonl; -1 if not even the evaluation before the first is."""
        return self.step if self.step and not self.unlogged else self.step - 1

    def note(self, step: int, score: float | None) -> None:
        """Compare a held-out score, if there is one, with the best so far; of equal ones the first stays."""
        if score is not None and math.isfinite(score) and (self.best_score is None or score > self.best_score):
            self.best_score, self.best_step = score, step

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "TrainState":
        """Undo `to_json`. Raises ValueError, naming the key, for anything that it does not give."""
        if not isinstance(values, dict):
            raise ValueError("is not a JSON object")
        if different := values.keys() ^ cls.__dataclass_fields__.keys():
            raise ValueError(f"lacks, or has too much: {', '.join(sorted(different))}")
        for key, is_right in _IS_RIGHT.items():
            if not is_right(values[key]):
                raise ValueError(f"has a wrong {key}")
        return cls(**values)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_algorithm(value: Any) -> bool:
    states = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(state, dict) and all(map(_is_number, state.values())) for state in states)


_IS_RIGHT = {
    "step": lambda value: _is_count(value),
    "episodes": _is_count,
    "algorithm": _is_algorithm,
    "seconds": _is_number,
    "tracker": lambda value: value is None or isinstance(value, str),
    "unlogged": lambda value: isinstance(value, dict),
    "best_score": lambda value: value is None or _is_number(value),
    "best_step": lambda value: value is None or _is_count(value),
    "budgets": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
}
