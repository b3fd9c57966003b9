"""TODO docstring."""

from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_name,
    check_values,
)
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_freeze


@dataclass
class SnrConfig(PpoConfig):
    """Configuration of the `snr` command: a run's, so that recipes fit, and what only a scan has."""

    name: str = "snr"
    compare: str | None = None
    spectra: list[str] = field(default_factory=list)


def check_snr(config: SnrConfig) -> None:
    """Check the configuration of a scan. Raises UserError."""
    check_values(config)
    check_name(config.name)
    check_freeze(config.freeze)
    if not config.model.path:
        raise UserError("model.path: not set; give the model to scan: a Hugging Face directory or hub id")
