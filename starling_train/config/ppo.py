"""TODO docstring."""

from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_betas,
    check_name,
    check_values,
    number,
)
from starling_train.config.sections import (
    AlgorithmConfig,
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    FreezeConfig,
    LoggingConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    check_adapter,
    check_evaluation,
    check_freeze,
    check_reward,
)


@dataclass
class PpoConfig:
    name: str = "ppo"
    run_dir: str | None = None
    seed: int = number(0, 0, 2**32 - 1)
    dry_run: bool = False
    debug: bool = False
    prepare: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def check_ppo_adapter(config: PpoConfig) -> None:
    """Check what PPO with adapters needs. Raises UserError."""
    if config.model.load_in == "8bit" and config.rollout.engine == "slots":
        raise UserError(
            "model.load_in: the 8-bit products of bitsandbytes wait for the GPU and cannot be captured in the graphs "
            "of rollout.engine=slots; use 4bit, or rollout=hf"
        )
    if config.freeze.adapter and config.algorithm.critic == "separate":
        raise UserError(
            "algorithm.critic: separate trains a whole copy; with freeze.adapter=lora use head, or twin for adapters "
            "of its own"
        )
    if config.freeze.adapter and config.freeze.lora.dropout:
        raise UserError("freeze.lora.dropout: in PPO a probability must be the same each time it is computed; use 0")


def check(config: PpoConfig) -> None:
    """Check a run's configuration, single keys first, then across keys. Raises UserError."""
    check_values(config)
    check_name(config.name)
    for key, value, what in (
        ("model.path", config.model.path, "the policy: a Hugging Face directory or hub id"),
        ("data.path", config.data.path, "the prompts: Nectar's parquet, JSONL, or a hub id"),
    ):
        if not value:
            raise UserError(f"{key}: not set; give {what}, or start from a recipe (+recipe=small)")
    check_reward(config.reward)
    check_freeze(config.freeze)
    check_adapter(config.model, config.freeze, config.cluster.zero_stage)
    check_ppo_adapter(config)
    minibatches, prompts = config.algorithm.minibatches, config.algorithm.prompts_per_step
    if minibatches > prompts:
        raise UserError(f"algorithm.minibatches: {minibatches} exceeds algorithm.prompts_per_step={prompts}; lower it")
    if config.algorithm.critic_warmup_steps >= config.algorithm.steps:
        raise UserError(
            f"algorithm.critic_warmup_steps: {config.algorithm.critic_warmup_steps} of {config.algorithm.steps} steps "
            "leave none in which the policy trains; lower it"
        )
    if config.algorithm.kl.target is not None and config.algorithm.kl.coefficient == 0:
        raise UserError("algorithm.kl.coefficient: 0 stays 0 whatever algorithm.kl.target asks for; start above 0")
    if config.reward.has_weights and config.reward.max_length <= config.rollout.max_new_tokens:
        raise UserError(
            f"reward.max_length: {config.reward.max_length} has no place for a response of "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} and its prompt; raise it, or lower that"
        )
    check_betas(config.optim.betas)
    check_evaluation(config.rollout, config.evaluation)
