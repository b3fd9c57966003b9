"""The configuration of the `rm` command, in the way of `config/sections.py`; its YAML is `conf/rm.yaml`."""

from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_betas,
    check_name,
    check_values,
    choice,
    number,
    optional_number,
)
from starling_train.config.sections import CheckpointConfig, ClusterConfig, FreezeConfig, ModelConfig, check_freeze


@dataclass
class RankingConfig:
    kind: str = choice("starling_7b", "starling_7b", "starling_34b")
    tokenizer: str | None = None
    fresh: bool = False
    trailing_newline: bool = False
    max_length: int = number(2000, 8)
    epochs: float = number(1.0, 1e-6)
    prompts_per_step: int = number(20, 1)
    tokens_per_microbatch: int = number(16384, 1)
    centring: float = number(0.0, 0.0)


@dataclass
class RankedDataConfig:
    path: str = "berkeley-nest/Nectar"
    eval_prompts: int = number(256, 1)
    good_natured_only: bool = False
    exclude: list[str] = field(default_factory=list)


@dataclass
class RmOptimConfig:
    learning_rate: float = number(1e-5, 0.0, 1.0)
    head_learning_rate: float | None = optional_number(0.0, 1.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = number(1e-8, 0.0)
    weight_decay: float = number(0.0, 0.0)
    schedule: str = choice("constant", "linear", "constant", "cosine")
    warmup_percent: float = number(5.0, 0.0, 100.0)
    max_gradient_norm: float = number(1.0, 1e-9)


@dataclass
class RmEvaluationConfig:
    every: int = number(500, 0)


@dataclass
class RmLoggingConfig:
    wandb: str = choice("disabled", "disabled", "offline", "online")


@dataclass
class RmConfig:
    name: str = "rm"
    run_dir: str | None = None
    seed: int = number(0, 0, 2**32 - 1)
    dry_run: bool = False
    debug: bool = False
    prepare: str | None = None
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(path="meta-llama/Llama-2-7b-chat-hf", gradient_checkpointing=True)
    )
    freeze: FreezeConfig = field(
        default_factory=lambda: FreezeConfig(method="none", embeddings=True, head=True, norms=True)
    )
    rm: RankingConfig = field(default_factory=RankingConfig)
    data: RankedDataConfig = field(default_factory=RankedDataConfig)
    optim: RmOptimConfig = field(default_factory=RmOptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))
    evaluation: RmEvaluationConfig = field(default_factory=RmEvaluationConfig)
    logging: RmLoggingConfig = field(default_factory=RmLoggingConfig)


def check_rm(config: RmConfig) -> None:
    """Check the configuration of a reward model's training. Raises UserError."""
    check_values(config)
    check_name(config.name)
    for key, value, what in (
        ("model.path", config.model.path, "a causal language model or a reward model to start from"),
        ("data.path", config.data.path, "ranked answers: Nectar's parquet, JSONL, or a hub id"),
    ):
        if not value:
            raise UserError(f"{key}: not set; give {what}, or start from a recipe (+recipe=starling_rm_7b)")
    check_freeze(config.freeze)
    check_betas(config.optim.betas)
    if config.rm.fresh and (config.freeze.method != "none" or config.freeze.adapter):
        what = "freeze.adapter" if config.freeze.adapter else f"freeze.method={config.freeze.method}"
        raise UserError(f"rm.fresh: {what} would freeze random weights; use freeze=none, without an adapter")
    if config.model.load_in:
        raise UserError("model.load_in: the weights of a reward model in training are not quantised; leave it out")
    if config.rm.trailing_newline and config.rm.kind != "starling_34b":
        raise UserError(f"rm.trailing_newline: the template of rm.kind={config.rm.kind} has none; use starling_34b")
