"""The configuration of the `plan` command."""

from dataclasses import dataclass

from starling_train.config.dpo import DpoConfig
from starling_train.config.dpo import check as check_dpo
from starling_train.config.fields import UserError, number, section
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_ppo
from starling_train.config.rm import RmConfig
from starling_train.config.rm import check as check_rm


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
    """`python -m starling_train.plan`: a run's keys (config.yaml), and the devices planned for.

    Memory of each device by part, trainable parameters by module type, tokens and estimated time of a step, and the
    fewest devices that hold the run. All from config.json, which the published models do not even need: their shapes
    are built in.
    """

    plan: DevicesConfig = section(DevicesConfig)


@dataclass
class PlanDpoConfig(DpoConfig):
    """`python -m starling_train.plan` with a recipe of dpo: its keys (dpo.yaml), and the devices planned for."""

    plan: DevicesConfig = section(DevicesConfig)


@dataclass
class PlanRmConfig(RmConfig):
    """`python -m starling_train.plan` with a recipe of rm: its keys (rm.yaml), and the devices planned for."""

    plan: DevicesConfig = section(DevicesConfig)


def check(config: PlanConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_ppo(config)
    _check_processes(config.plan, "algorithm", config.algorithm.prompts_per_step)


def check_of_dpo(config: PlanDpoConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_dpo(config)
    _check_processes(config.plan, "dpo", config.dpo.prompts_per_step)


def check_of_rm(config: PlanRmConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_rm(config)
    _check_processes(config.plan, "rm", config.rm.prompts_per_step)


def _check_processes(devices: DevicesConfig, section: str, prompts: int) -> None:
    if devices.processes > prompts:
        raise UserError(
            f"plan.processes: {devices.processes} exceeds {section}.prompts_per_step={prompts}; lower it, or raise "
            f"{section}.prompts_per_step"
        )
