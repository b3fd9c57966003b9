"""TODO docstring."""

from dataclasses import dataclass, field

from starling_train.config.fields import UserError, number
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_run


@dataclass
class DevicesConfig:
    processes: int = number(1, 1, 65536)
    gpu_gb: float = number(80.0, 1.0)
    prompt_tokens: int = number(256, 1)
    response_tokens: int = number(256, 1)
    matrix_share: float = number(0.4, 0.01, 1.0)
    bandwidth_share: float = number(0.6, 0.01, 1.0)


@dataclass
class PlanConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and the devices it is planned for."""

    plan: DevicesConfig = field(default_factory=DevicesConfig)


def check(config: PlanConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_run(config)
    if config.plan.processes > config.algorithm.prompts_per_step:
        raise UserError(
            f"plan.processes: {config.plan.processes} exceeds algorithm.prompts_per_step="
            f"{config.algorithm.prompts_per_step}; lower it, or raise that"
        )
