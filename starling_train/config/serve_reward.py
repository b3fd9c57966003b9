"""TODO docstring."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, check_values, number
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_reward, variable


@dataclass
class ServeConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and where and how the server answers."""

    name: str = "serve_reward"
    host: str = "127.0.0.1"
    port: int = number(8000, 0, 65535)
    token_env: str | None = variable("STARLING_REWARD_TOKEN")
    max_body_mb: float = number(16.0, 0.001, 10_000.0)
    max_wait_ms: float = number(5.0, 0.0, 60_000.0)
    max_connections: int = number(1024, 1, 65_536)
    shutdown_s: int = number(60, 0, 86_400)


def check(config: ServeConfig) -> None:
    """Check the configuration of the server. Raises UserError."""
    check_values(config)
    check_reward(config.reward)
    if not config.reward.has_weights:
        raise UserError("reward.kind: a server cannot serve a server; give the kind and path of a model")
