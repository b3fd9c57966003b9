"""python -m starling_train.plan +recipe=NAME plan.processes=N: what a run needs, before there is a GPU or a weight."""

from dataclasses import dataclass, field

from starling_train import assets
from starling_train.cli import command
from starling_train.config import Config, UserError, number
from starling_train.config import check as check_run


@dataclass
class DevicesConfig:
    processes: int = number(1, 1, 65536)
    gpu_gb: float = number(80.0, 1.0)
    prompt_tokens: int = number(256, 1)
    response_tokens: int = number(256, 1)
    matrix_share: float = number(0.4, 0.01, 1.0)
    bandwidth_share: float = number(0.6, 0.01, 1.0)


@dataclass
class PlanConfig(Config):
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


@command(check, PlanConfig, "plan")
def main(config: PlanConfig) -> None:
    """Print the plan. Nothing is written and nothing downloaded."""
    from starling_train.engine import planner

    if config.prepare:
        assets.ensure(config.prepare)
    print(planner.describe(config))


if __name__ == "__main__":
    main()
