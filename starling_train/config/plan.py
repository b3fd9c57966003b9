"""The configuration of the `plan` command."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, number, section
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_ppo


@dataclass
class DevicesConfig:
    """The devices, and what is assumed of them."""

    processes: int = number(1, 1, 65536, doc="devices, one process each; cluster.zero_stage says what they shard")
    gpu_gb: float = number(80.0, 1.0, doc="decimal GB of each; times are those of the nearest of 24, 40, 80 and 141")
    prompt_tokens: int = number(256, 1, doc="mean tokens of a prompt, for the time of a step")
    response_tokens: int = number(256, 1, doc="mean tokens of a response, for the time of a step")
    matrix_share: float = number(0.4, 0.01, 1.0, doc="assumed share of the data sheet's bfloat16 operations a second")
    bandwidth_share: float = number(0.6, 0.01, 1.0, doc="assumed share of the data sheet's bandwidth in decoding")


@dataclass
class PlanConfig(PpoConfig):
    """`python -m starling_train.plan`: a run's (config.yaml), and the devices planned for.

    Memory of each device by part, trainable parameters by module type, tokens and estimated time of a step, and the
    fewest devices that hold the run. From config.json alone; the shapes of the published models are known without
    it.
    """

    plan: DevicesConfig = section(DevicesConfig)


def check(config: PlanConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_ppo(config)
    if config.plan.processes > config.algorithm.prompts_per_step:
        raise UserError(
            f"plan.processes: {config.plan.processes} exceeds algorithm.prompts_per_step="
            f"{config.algorithm.prompts_per_step}; lower it, or raise that"
        )
