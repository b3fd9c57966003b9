"""The configuration of the `dpo` command, in the way of `config/sections.py`; its YAML is `conf/dpo.yaml`."""

from dataclasses import dataclass, field

from starling_train.config.fields import UserError, check_betas, check_name, check_values, choice, number
from starling_train.config.sections import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    FreezeConfig,
    LoggingConfig,
    ModelConfig,
    RolloutConfig,
    check_adapter,
    check_evaluation,
    check_freeze,
)


@dataclass
class DpoLossConfig:
    loss: str = choice("sigmoid", "sigmoid", "ipo")
    beta: float = number(0.1, 1e-6)
    label_smoothing: float = number(0.0, 0.0, 0.5)
    pairs: str = choice("best_worst", "best_worst", "best_random", "all")
    epochs: float = number(1.0, 1e-6)
    prompts_per_step: int = number(64, 1)
    max_length: int = number(2048, 8)
    tokens_per_microbatch: int = number(8192, 1)


@dataclass
class DpoOptimConfig:
    learning_rate: float = number(5e-7, 0.0, 1.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = number(1e-8, 0.0)
    weight_decay: float = number(0.0, 0.0)
    schedule: str = choice("linear", "linear", "constant", "cosine")
    warmup_percent: float = number(10.0, 0.0, 100.0)
    max_gradient_norm: float = number(1.0, 1e-9)
    eight_bit: bool = False


@dataclass
class DpoEvaluationConfig(EvaluationConfig):
    """What `ppo` has, and how many of the held-out prompts are answered."""

    every: int = number(100, 0)
    responses: int = number(64, 0)


@dataclass
class DpoConfig:
    name: str = "dpo"
    run_dir: str | None = None
    seed: int = number(0, 0, 2**32 - 1)
    dry_run: bool = False
    debug: bool = False
    prepare: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    dpo: DpoLossConfig = field(default_factory=DpoLossConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(eval_prompts=256))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optim: DpoOptimConfig = field(default_factory=DpoOptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=100))
    evaluation: DpoEvaluationConfig = field(default_factory=DpoEvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def check_dpo(config: DpoConfig) -> None:
    """Check the configuration of training on preferences. Raises UserError."""
    check_values(config)
    check_name(config.name)
    for key, value, what in (
        ("model.path", config.model.path, "the policy: a Hugging Face directory or hub id"),
        ("data.path", config.data.path, "ranked answers or pairs: Nectar's parquet, JSONL, or a hub id"),
    ):
        if not value:
            raise UserError(f"{key}: not set; give {what}, or start from a recipe (+recipe=laser_dpo)")
    check_freeze(config.freeze)
    check_adapter(config.model, config.freeze, config.cluster.zero_stage)
    check_betas(config.optim.betas)
    check_evaluation(config.rollout, config.evaluation)
    if config.dpo.label_smoothing and config.dpo.loss != "sigmoid":
        raise UserError(f"dpo.label_smoothing: dpo.loss={config.dpo.loss} has none; use 0, or dpo.loss=sigmoid")
    if config.dpo.label_smoothing == 0.5:
        raise UserError("dpo.label_smoothing: at 0.5 no pair says which answer is better; give less")
    if config.dpo.max_length <= config.data.max_prompt_tokens:
        raise UserError(
            f"dpo.max_length: {config.dpo.max_length} has no place for an answer behind a prompt of "
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}; raise it, or lower that"
        )
    if config.evaluation.responses > config.data.eval_prompts:
        raise UserError(
            f"evaluation.responses: {config.evaluation.responses} exceeds data.eval_prompts="
            f"{config.data.eval_prompts}; lower it"
        )
