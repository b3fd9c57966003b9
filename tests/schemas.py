"""Every command's schema, and what its keys are."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starling_train.config import compare, dpo, evaluate, export, laser, plan, ppo, rm, score, serve_reward, snr

# command -> (schema, check)
SCHEMAS: dict[str, tuple[type, Callable]] = {
    "ppo": (ppo.PpoConfig, ppo.check), "rm": (rm.RmConfig, rm.check), "dpo": (dpo.DpoConfig, dpo.check),
    "snr": (snr.SnrConfig, snr.check), "score": (score.ScoreConfig, score.check),
    "serve_reward": (serve_reward.ServeConfig, serve_reward.check),
    "evaluate": (evaluate.EvaluateConfig, evaluate.check), "plan": (plan.PlanConfig, plan.check),
    "laser": (laser.LaserConfig, laser.check), "compare": (compare.CompareConfig, compare.check),
    "export": (export.ExportConfig, export.check),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of a command. default: its value where nothing is asked."""

    name: str
    field: dataclasses.Field
    default: Any

    @property
    def whole(self) -> bool:
        """Whether it counts something: a number without a fraction."""
        return "int" in str(getattr(self.field.type, "__name__", self.field.type))


def keys(command: str) -> Iterator[Key]:
    """Every key of the command, sections too."""

    def walk(config: Any, prefix: str) -> Iterator[Key]:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            yield Key(f"{prefix}{field.name}", field, value)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{field.name}.")

    return walk(SCHEMAS[command][0](), "")
