"""What a run remembers from step to step, besides tensors."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Step and everything that later steps depend on; random numbers and data order follow from seed and step.

    kl_coefficient: of the adaptive controller. reward_moments: state of the running mean and deviation of scores.
    seconds: spent in steps so far. tracker: id of the W&B run. unlogged: metrics of the step whose evaluation is still
    to be done, empty otherwise.
    """

    step: int = 0
    episodes: int = 0
    kl_coefficient: float = 0.0
    reward_moments: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tracker: str | None = None
    unlogged: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "TrainState":
        return cls(**values)
