"""The configuration of the `ppo` command, which those of most other commands extend."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, run_name, section
from starling_train.config.guard import GuardConfig, check_guard
from starling_train.config.run import RunConfig, check_run
from starling_train.config.sections import (
    AlgorithmConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    RewardConfig,
    RolloutConfig,
    check_adapter,
    check_evaluation,
    check_reward,
)


@dataclass
class PpoConfig(RunConfig):
    """The whole configuration of a run. Sections with options live in the folders beside this file (freeze=last_layers
    picks another option); recipes/ holds whole jobs (+recipe=small). Every key can be given as section.key=value."""

    name: str = run_name("ppo", "of the run")
    reward: RewardConfig = section(RewardConfig, group="starling_7b")
    data: DataConfig = section(DataConfig, group="nectar")
    rollout: RolloutConfig = section(RolloutConfig, group="slots")
    algorithm: AlgorithmConfig = section(AlgorithmConfig, group="ppo")
    evaluation: EvaluationConfig = section(EvaluationConfig, free=True)
    guard: GuardConfig = section(GuardConfig)
    logging: LoggingConfig = section(LoggingConfig, free=True)


def check_ppo_adapter(config: PpoConfig) -> None:
    """Check the keys that adapters restrict in PPO. Raises UserError."""
    if config.model.load_in == "8bit" and config.rollout.engine == "slots":
        raise UserError(
            "model.load_in: bitsandbytes' 8-bit products wait for the GPU and cannot be captured in the CUDA graphs of "
            "rollout.engine=slots; use 4bit, or rollout=hf"
        )
    if config.freeze.adapter and config.algorithm.critic == "separate":
        raise UserError(
            "algorithm.critic: separate trains a whole copy; with freeze.adapter=lora use head, or twin for a second "
            "set of adapters"
        )
    if config.freeze.adapter and config.freeze.lora.dropout:
        raise UserError("freeze.lora.dropout: in PPO a probability must be the same each time it is computed; use 0")


def check_algorithm(algorithm: AlgorithmConfig) -> None:
    """Check the keys of the algorithm against each other. Raises UserError."""
    name, minibatches, responses = algorithm.name, algorithm.minibatches, algorithm.responses_per_step
    if minibatches > responses:
        of = "=" if algorithm.responses_per_prompt == 1 else " * algorithm.responses_per_prompt = "
        raise UserError(
            f"algorithm.minibatches: {minibatches} exceeds algorithm.prompts_per_step{of}{responses}; lower it"
        )
    if algorithm.has_groups and algorithm.responses_per_prompt < 2:
        raise UserError(f"algorithm.responses_per_prompt: {name} compares responses to the same prompt; give 2 or more")
    if algorithm.has_groups and algorithm.critic != "none":
        raise UserError(f"algorithm.critic: {name} has no use for {algorithm.critic}; set algorithm.critic=none")
    if algorithm.critic == "none" and not algorithm.has_groups:
        raise UserError(f"algorithm.critic: {name} needs one; take head, twin or separate, or algorithm=rloo or grpo")
    if algorithm.clip_high is not None and name == "apa":
        raise UserError("algorithm.clip_high: apa has no ratio to clip; leave it out")
    if not algorithm.scale_by_group and name != "grpo":
        raise UserError(f"algorithm.scale_by_group: {name} does not scale by its group anyway; leave it out")
    if algorithm.critic == "none" and algorithm.critic_warmup_steps:
        raise UserError("algorithm.critic_warmup_steps: there is no critic; leave it out")
    if algorithm.critic_warmup_steps >= algorithm.steps:
        raise UserError(
            f"algorithm.critic_warmup_steps: {algorithm.critic_warmup_steps} of {algorithm.steps} steps "
            "leave none in which the policy trains; lower it"
        )
    if algorithm.kl.target is not None and algorithm.kl.coefficient == 0:
        raise UserError("algorithm.kl.coefficient: 0 stays 0 whatever algorithm.kl.target is; start above 0")
    if algorithm.kl.where == "loss" and algorithm.kl.estimator == "k1":
        raise UserError(
            "algorithm.kl.estimator: the gradient of k1 in the loss is 0 in the mean; take k2 or k3, or "
            "algorithm.kl.where=reward"
        )


def check(config: PpoConfig) -> None:
    """Check a run's configuration, single keys first, then across keys. Raises UserError."""
    model, data = "the policy: a Hugging Face directory or hub id", "the prompts: Nectar's parquet, JSONL, or a hub id"
    check_run(config, model, data)
    check_reward(config.reward)
    check_adapter(config.model, config.freeze, config.cluster.zero_stage)
    check_ppo_adapter(config)
    check_algorithm(config.algorithm)
    for scorer in config.reward.scorers.values():
        if scorer.has_weights and scorer.max_length <= config.rollout.max_new_tokens:
            raise UserError(
                f"{scorer.section}.max_length: {scorer.max_length} leaves no room for a prompt and "
                f"rollout.max_new_tokens={config.rollout.max_new_tokens}; raise it, or lower rollout.max_new_tokens"
            )
    check_evaluation(config.rollout, config.evaluation)
    if config.rollout.correction is not None and config.algorithm.name == "apa":
        raise UserError("rollout.correction: apa squares the advantage, so a weight on it means nothing; leave it out")
    check_guard(config.guard, config.evaluation, config.algorithm.kl.coefficient)
