"""Where scores come from: a reward model here, or one that is served."""

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.models import quantisation
from starling_train.models.reward import header_checks as reward_header_checks
from starling_train.models.reward import model as reward_model
from starling_train.models.reward.source import RewardSource
from starling_train.models.source import ModelSource
from starling_train.rewards.served import RewardClient
from starling_train.run.runtime import Runtime


def load_reward(config: RewardConfig, runtime: Runtime) -> reward_model.RewardModel | RewardClient:
    """The reward model, with its own tokenizer, on the run's device; or the client of a served one that answers."""
    if config.kind == "server":
        return load_reward_client(config)
    source = RewardSource.of(config)
    device = config.device_map or str(runtime.device)
    return reward_model.load(source, config, dtype=config.dtype, device=device)


def load_reward_client(config: RewardConfig) -> RewardClient:
    """The client of a served reward model that answers. Raises UserError."""
    tokenizer = None
    if config.protocol == "openrlhf":
        source = ModelSource.open(config.tokenizer, "reward.tokenizer", weights=False, needs_config=False)
        tokenizer = source.tokenizer
        if not tokenizer.chat_template:
            raise UserError(
                f"reward.tokenizer: {source.directory} has no chat template, which makes the text for "
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
    reward_header_checks.check_reward(config, RewardSource.of(config, weights=weights), weights=weights)
