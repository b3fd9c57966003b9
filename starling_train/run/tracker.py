"""Where metrics are sent beside the run's own files: one of TRACKERS, by `logging.wandb`."""

from pathlib import Path
from typing import Any

from starling_train.files import whole
from starling_train.files.json_lines import strict

WANDB_ID = "wandb_id.txt"


class NoTracker:
    """Tracks nothing."""

    id: str | None = None

    def __init__(self, *run: Any): ...

    def log(self, metrics: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class WandbTracker:
    """Weights & Biases; `id` continues a run after a resume. API keys are left to wandb's own login.

    The id is kept in the run's directory too: a run that ends before its first checkpoint resumes the same W&B run.
    """

    def __init__(self, mode: str, name: str, run_dir: Path, config: dict[str, Any], run_id: str | None):
        import wandb

        id_file = run_dir / WANDB_ID
        run_id = run_id or (id_file.read_text().strip() if id_file.is_file() else None)
        begin: Any = wandb.init  # whose types want each mode as a literal
        self._run = begin(
            project="starling_train", name=name, dir=run_dir, config=config, id=run_id, resume="allow", mode=mode
        )
        self.id = self._run.id
        whole.write_text(id_file, f"{self.id}\n")

    def log(self, metrics: dict[str, Any]) -> None:
        self._run.log(strict(metrics), step=metrics["step"])

    def finish(self) -> None:
        self._run.finish()


# by logging.wandb; each takes (mode, name, run_dir, config, run_id)
TRACKERS = {"disabled": NoTracker, "offline": WandbTracker, "online": WandbTracker}
