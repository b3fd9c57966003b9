"""TODO docstring."""

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.models import causal_lm, quantisation
from starling_train.models.reward import header_checks as reward_header_checks
from starling_train.models.reward import model as reward_model
from starling_train.rewards.served import RewardClient
from starling_train.run.runtime import Runtime


def load_reward(config: RewardConfig, runtime: Runtime) -> reward_model.RewardModel | RewardClient:
    """The reward model, with its own tokenizer, on the run's device; or the client of a served one that answers."""
    if config.kind == "server":
        return load_reward_client(config)
    # Starling-RM-7B-alpha comes without config.json: the tokenizer's directory, its base model's, then has it
    directory = causal_lm.resolve(config.path, "reward.path", needs_config=not config.tokenizer)
    tokenizer = causal_lm.resolve(config.tokenizer, "reward.tokenizer", weights=False) if config.tokenizer else None
    return reward_model.load_reward_model(
        config.kind,
        directory,
        tokenizer=tokenizer,
        dtype=config.dtype,
        device=config.device_map or str(runtime.device),
        position=config.position,
        max_length=config.max_length,
        tokens_per_batch=config.tokens_per_batch,
        load_in=config.load_in,
        trailing_newline=config.trailing_newline,
    )


def load_reward_client(config: RewardConfig) -> RewardClient:
    """The client of a served reward model that answers. Raises UserError."""
    tokenizer = None
    if config.protocol == "openrlhf":
        directory = causal_lm.resolve(config.tokenizer, "reward.tokenizer", weights=False, needs_config=False)
        tokenizer = causal_lm.load_tokenizer(directory, "reward.tokenizer")
        if not tokenizer.chat_template:
            raise UserError(
                f"reward.tokenizer: {directory} has no chat template, which makes the text for "
                "reward.protocol=openrlhf; add chat_template.jinja to it"
            )
    client = RewardClient(config, tokenizer)
    client.check()
    return client


def check_reward(config: RewardConfig, *, weights: bool = True) -> None:
    """Check the reward model's directory, or that its server answers. weights: their shapes too. Raises UserError."""
    if config.kind == "server":
        if weights:
            load_reward_client(config).close()
        return
    quantisation.check_acceleration(load_in=config.load_in, device_map=config.device_map)
    directory = causal_lm.resolve(config.path, "reward.path", weights=weights, needs_config=not config.tokenizer)
    tokenizer = (
        causal_lm.resolve(config.tokenizer, "reward.tokenizer", weights=False) if config.tokenizer else directory
    )
    reward_header_checks.check_reward(config, directory, tokenizer, weights=weights)
