"""The configuration of the `rm` command."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, choice, number, path_to, run_name, section, setting
from starling_train.config.run import RunConfig, check_run
from starling_train.config.sections import (
    CheckpointConfig,
    FreezeConfig,
    HeldOutConfig,
    ModelConfig,
    OptimConfig,
    RowsConfig,
)


@dataclass
class RankingConfig:
    """The reward model, and the loss."""

    kind: str = choice(
        "starling_7b",
        ("starling_7b", "starling_34b", "sequence_classification"),
        doc="template and layout: starling_7b (Llama-2's), starling_34b (Yi's), sequence_classification (the "
        "tokenizer's own; a plain transformers classifier)",
    )
    tokenizer: str | None = path_to(None, "directory or hub id of the tokenizer; null = model.path")
    fresh: bool = setting(False, "random weights in model.path's shape instead of its own")
    trailing_newline: bool = setting(False, "starling_34b: end with a newline; reward.* must say the same")
    max_length: int = number(2000, 8, doc="tokens; longer conversations lose their beginning")
    epochs: float = number(1.0, 1e-6, doc="passes over the training rows")
    prompts_per_step: int = number(20, 1, doc="ranked prompts per update, each with all its answers")
    tokens_per_microbatch: int = number(16384, 1, free=True, doc="changes memory, not the result; a row is never cut")
    centring: float = number(0.0, 0.0, doc="weight of the penalty (sum of a row's scores)^2: scores stay around 0")


@dataclass
class RmConfig(RunConfig):
    """`python -m starling_train.rm`: K-wise training of a reward model on ranked answers. The defaults are the Starling
    authors' for 7B where those are known. Unknown are weight decay, clipping and the number of GPUs, and so the rows a
    step. For 34B their rate was 1.67e-6."""

    name: str = run_name("rm", "of the run")
    model: ModelConfig = section(
        ModelConfig,
        "a Llama or Mistral causal language model, or a Starling reward model; with rm.kind=sequence_classification "
        "any causal language model, or a classifier of one label",
        path="meta-llama/Llama-2-7b-chat-hf",
        gradient_checkpointing=True,
    )
    freeze: FreezeConfig = section(FreezeConfig, group="none", method="none", embeddings=True, head=True, norms=True)
    rm: RankingConfig = section(RankingConfig)
    data: RowsConfig = section(RowsConfig)
    optim: OptimConfig = section(
        OptimConfig,
        learning_rate=1e-5,
        betas=[0.9, 0.999],
        eps=1e-8,
        weight_decay=0.0,
        schedule="constant",
        warmup_percent=5.0,
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig, free=True, every=500)
    evaluation: HeldOutConfig = section(HeldOutConfig, free=True, every=500)


def check(config: RmConfig) -> None:
    """Check the configuration of a reward model's training. Raises UserError."""
    model = "a causal language model or a reward model to start from"
    check_run(config, model, "ranked answers: Nectar's parquet, JSONL, or a hub id")
    if config.rm.fresh and (config.freeze.method != "none" or config.freeze.adapter):
        what = "freeze.adapter" if config.freeze.adapter else f"freeze.method={config.freeze.method}"
        raise UserError(f"rm.fresh: {what} would freeze random weights; use freeze=none, without an adapter")
    if config.model.load_in:
        raise UserError("model.load_in: the weights of a reward model in training are not quantised; leave it out")
    if config.rm.trailing_newline and config.rm.kind != "starling_34b":
        raise UserError(f"rm.trailing_newline: the template of rm.kind={config.rm.kind} has none; use starling_34b")
