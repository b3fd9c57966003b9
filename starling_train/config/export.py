"""TODO docstring."""

from dataclasses import dataclass
from pathlib import Path

from starling_train.config.fields import UserError, check_values, no_path


@dataclass
class ExportConfig:
    """No run's configuration: the run directory holds that."""

    run_dir: str | None = None
    checkpoint: str = "newest"
    output: str | None = None
    base: str | None = None
    dry_run: bool = False
    debug: bool = False


def check(config: ExportConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    for key, value, what in (
        ("run_dir", config.run_dir, "run_dir=runs/NAME, the directory of a run"),
        ("output", config.output, "output=DIR, a new directory for the model"),
    ):
        if not value:
            raise UserError(f"{key}: not set; give {what}")
        if reason := no_path(Path(value).expanduser()):
            raise UserError(f"{key}: {value[:80]!r} cannot be a path ({reason}); give another")
