"""The configuration of the `dpo` command."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, choice, number, run_name, section
from starling_train.config.guard import GuardConfig, check_guard
from starling_train.config.run import RunConfig, check_run
from starling_train.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimConfig,
    RolloutConfig,
    check_adapter,
    check_evaluation,
)


@dataclass
class DpoLossConfig:
    """The loss, and the pairs."""

    loss: str = choice("sigmoid", ("sigmoid", "ipo"), doc="sigmoid (Rafailov et al.), ipo (Azar et al., of sums)")
    beta: float = number(0.1, 1e-6, doc="how much the policy is held to its start: reward = beta x log(policy / start)")
    label_smoothing: float = number(0.0, 0.0, 0.5, doc="share of pairs taken as mislabelled, below 0.5; sigmoid only")
    pairs: str = choice(
        "best_worst",
        ("best_worst", "best_random", "all"),
        doc="of ranked answers: best_worst, best_random (one draw a run), all (of different rank)",
    )
    epochs: float = number(1.0, 1e-6, doc="passes over the training prompts")
    prompts_per_step: int = number(64, 1, doc="per update, each with all its pairs; the loss is the mean over pairs")
    max_length: int = number(2048, 8, doc="tokens of prompt and answer; longer answers lose their end")
    tokens_per_microbatch: int = number(8192, 1, free=True, doc="changes memory, not the result; a row is never cut")


@dataclass
class DpoEvaluationConfig(EvaluationConfig):
    """On held-out prompts, before the first step, every `every` steps, and after the last."""

    every: int = number(100, 0, doc="steps; 0 = never")
    responses: int = number(64, 0, doc="held-out prompts that are answered, for samples.jsonl and functions; 0 = none")


@dataclass
class DpoConfig(RunConfig):
    """`python -m starling_train.dpo`: direct preference optimisation on pairs of a better and a worse answer. The
    policy is compared with itself before training: those log-probabilities are computed once and kept."""

    name: str = run_name("dpo", "of the run")
    dpo: DpoLossConfig = section(DpoLossConfig)
    data: DataConfig = section(DataConfig, group="nectar", eval_prompts=256)
    rollout: RolloutConfig = section(RolloutConfig, group="slots")
    optim: OptimConfig = section(
        OptimConfig, learning_rate=5e-7, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, warmup_percent=10.0
    )
    checkpoint: CheckpointConfig = section(CheckpointConfig, free=True, every=100)
    evaluation: DpoEvaluationConfig = section(DpoEvaluationConfig, free=True)
    guard: GuardConfig = section(GuardConfig)
    logging: LoggingConfig = section(LoggingConfig, free=True)


def check(config: DpoConfig) -> None:
    """Check the configuration of training on preferences. Raises UserError."""
    data = "ranked answers or pairs: Nectar's parquet, JSONL, or a hub id"
    check_run(config, "the policy: a Hugging Face directory or hub id", data)
    check_adapter(config.model, config.freeze, config.cluster.zero_stage)
    check_evaluation(config.rollout, config.evaluation)
    if config.optim.critic_learning_rate is not None:
        raise UserError("optim.critic_learning_rate: dpo has no critic; leave it out, or use optim.learning_rate")
    if config.dpo.label_smoothing and config.dpo.loss != "sigmoid":
        raise UserError(f"dpo.label_smoothing: dpo.loss={config.dpo.loss} does not use it; use 0, or dpo.loss=sigmoid")
    if config.dpo.label_smoothing == 0.5:
        raise UserError("dpo.label_smoothing: at 0.5 no pair says which answer is better; give less")
    if config.dpo.max_length <= config.data.max_prompt_tokens:
        raise UserError(
            f"dpo.max_length: {config.dpo.max_length} leaves no room for an answer after a prompt of "
            f"data.max_prompt_tokens={config.data.max_prompt_tokens}; raise it, or lower data.max_prompt_tokens"
        )
    if config.evaluation.responses > config.data.eval_prompts:
        raise UserError(
            f"evaluation.responses: {config.evaluation.responses} exceeds data.eval_prompts="
            f"{config.data.eval_prompts}; lower it"
        )
    check_guard(config.guard, config.evaluation, 0.0, config.evaluation.responses)
