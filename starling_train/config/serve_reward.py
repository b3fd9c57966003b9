"""The configuration of the `serve_reward` command."""

from dataclasses import dataclass

from starling_train.config.fields import UserError, check_values, number, run_name, setting, variable
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_reward


@dataclass
class ServeConfig(PpoConfig):
    """`python -m starling_train.serve_reward`: a run's keys (config.yaml), and how the server answers.

    POST /score {"conversations": [[{"role", "content"}, ...], ...]} -> {"scores": [...]}; POST /get_reward is
    OpenRLHF's remote reward model; GET /health. The model is given by reward=KIND reward.path=DIR.
    """

    name: str = run_name("serve_reward", "of the job")
    host: str = setting("127.0.0.1", "address to listen on; one that others can reach needs a token")
    port: int = number(8000, 0, 65535, doc="0 = any free one, printed when it listens")
    token_env: str | None = variable(
        "STARLING_REWARD_TOKEN", "variable that holds the bearer token; unset = none is requested; null = never"
    )
    max_body_mb: float = number(16.0, 0.001, 10_000.0, doc="10^6 bytes of a request's body; larger ones get 413")
    max_wait_ms: float = number(
        5.0, 0.0, 60_000.0, doc="milliseconds that a request waits for others to join its batch"
    )
    max_connections: int = number(1024, 1, 65_536, doc="open at the same time; more get 503")
    shutdown_s: int = number(60, 0, 86_400, doc="seconds that requests under way may take to end after SIGTERM")


def check(config: ServeConfig) -> None:
    """Check the configuration of the server. Raises UserError."""
    check_values(config)
    check_reward(config.reward)
    if config.reward.kind == "terms":
        raise UserError("reward.kind: a sum of terms is not served; give the kind and path of a model")
    if not config.reward.has_weights:
        raise UserError(f"reward.kind: a {config.reward.kind} is not served; give the kind and path of a model")
    if config.reward.empty_response is not None:
        raise UserError(
            "reward.empty_response: the server gives the model's own scores; leave it out, and set it in the run that "
            "asks the server"
        )
