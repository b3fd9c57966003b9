"""The configuration that every training run has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from starling_train.config.fields import check_values, number, path_to, require, run_name, section, setting
from starling_train.config.sections import (
    CheckpointConfig,
    ClusterConfig,
    FreezeConfig,
    HeldOutConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    check_freeze,
    check_offload,
)


@dataclass
class RunConfig:
    """What ppo, dpo and rm have in common."""

    # a recipe's name is the name of its training run's directory; a command with other results appends this to it
    folder: ClassVar[str] = ""

    name: str = run_name("run", "of the run")
    run_dir: str | None = path_to(None, "where everything goes; null = runs/<name> in the working directory", free=True)
    seed: int = number(0, 0, 2**32 - 1, doc="of everything random: data order, held-out prompts, sampling, new weights")
    dry_run: bool = setting(False, "print what would train, on what, the memory by part; load no weights", free=True)
    debug: bool = setting(False, "show a traceback for a user's mistake too", free=True)
    prepare: str | None = setting(None, "assets that the package makes if they are missing: `toy`, or null", free=True)
    model: ModelConfig = section(ModelConfig, group="openchat_3_5_0106")
    freeze: FreezeConfig = section(FreezeConfig, group="snr")
    optim: OptimConfig = section(OptimConfig)
    cluster: ClusterConfig = section(ClusterConfig, group="one_process", free=True)
    checkpoint: CheckpointConfig = section(CheckpointConfig, free=True)
    evaluation: HeldOutConfig = section(HeldOutConfig, free=True)
    logging: TrackingConfig = section(TrackingConfig, free=True)

    def directory(self) -> Path:
        """Return the directory of the run's files: `run_dir`, or a folder of `runs/`."""
        name = self.name if self.folder in self.name else f"{self.name}-{self.folder}"
        return Path(self.run_dir or Path("runs") / name).expanduser()


def check_run(config: Any, model: str, data: str) -> None:
    """Check what ppo, dpo and rm have in common: a `RunConfig` with a section `data`. Raises UserError.

    config: the run's configuration.
    model: what `model.path` must give, for the message.
    data: what `data.path` must give, for the message.
    """
    check_values(config)
    for key, value, what in (("model.path", config.model.path, model), ("data.path", config.data.path, data)):
        require(key, value, what)
    check_freeze(config.freeze)
    check_offload(config.cluster, config.optim)
