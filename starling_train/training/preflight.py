"""User errors, reported before anything expensive: a download of shards, a scan, a loaded model.

Every check reads headers and small files only. Nothing permanent is written.
"""

import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import torch

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import FreezeConfig, TrackingConfig
from starling_train.files.disk import check_directory
from starling_train.models import header_checks, quantisation
from starling_train.models.source import ModelSource
from starling_train.planning.memory import MemoryPlan
from starling_train.rollout import start_check
from starling_train.run.machine import is_installed
from starling_train.run.tracker import has_local_mlflow, requested, wandb_mode
from starling_train.selection.freeze import check_tied, is_tied
from starling_train.selection.listing import list_matrices
from starling_train.selection.records import Record
from starling_train.selection.scans import read_scan
from starling_train.selection.select import SCORED, select, select_unscored

WANDB_HOST = "https://api.wandb.ai"


def check_policy_run(config: PpoConfig | DpoConfig, source: ModelSource, run: Path) -> None:
    """Check what ppo and dpo both need but their data. source: the policy. Raises UserError."""
    check_trackers(config.logging)
    check_directory(run, "run_dir")
    quantisation.check_acceleration(
        attention=config.model.attention, eight_bit=config.optim.eight_bit, policy_load_in=config.model.load_in
    )
    start_check.check(config.rollout, config.model.load_in, config.cluster.zero_stage)
    header_checks.check_policy(source)
    if config.freeze.method != "none" or config.freeze.adapter:
        check_tied(config.freeze, is_tied(header_checks.empty_policy(source)))
    check_selection(config.freeze, source, list_matrices(source), config.seed)


def check_trackers(config: TrackingConfig) -> None:
    """Raise UserError where `logging` asks for a tracker whose package or login is missing."""
    for name in requested(config):
        by_mode = name == "wandb" and config.wandb != "disabled"
        key, instead = (
            ("logging.wandb", "use logging.wandb=disabled") if by_mode else ("logging.trackers", "leave it out")
        )
        packages = [name, *(("sqlalchemy", "alembic") if name == "mlflow" and has_local_mlflow() else ())]
        missing = [package for package in packages if not is_installed(package)]
        if missing:
            raise UserError(
                f"{key}: {' and '.join(missing)} not installed; pip install 'starling-train[{name}]', or {instead}"
            )
    if wandb_mode(config) == "online" and not _has_login(os.environ.get("WANDB_BASE_URL") or WANDB_HOST):
        raise UserError(
            "logging.wandb: online, but there is no login; run `wandb login` or set WANDB_API_KEY, or use "
            "logging.wandb=offline"
        )


def _has_login(url: str) -> bool:
    """Return whether wandb would find a key where it looks for one: environment, its own settings, netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    if any(path.is_file() for path in (folder / "settings", Path("wandb/settings"))):
        return True  # may hold a key, or another host's address: wandb knows
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files):
        try:
            if file.is_file() and netrc.netrc(file).authenticators(urlsplit(url).netloc):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def check_selection(freeze: FreezeConfig, source: ModelSource, listing: dict[str, Record], seed: int) -> None:
    """Raise UserError for a scan that does not fit, and for settings that select nothing whatever a scan finds."""
    if freeze.method in SCORED and freeze.scan:
        select(freeze, read_scan(freeze, source, warns=False), seed)
    else:
        select_unscored(freeze, listing, seed)


def check_gpu(plan: Callable[[], MemoryPlan], device: torch.device) -> None:
    """Compare the plan with the memory of the GPU that the run is to use; a CPU has swap. Raises UserError."""
    if device.type == "cuda":
        check_memory(plan(), torch.cuda.get_device_properties(device).total_memory)


def check_memory(plan: MemoryPlan, device: float) -> None:
    """Compare the plan with a device of so many bytes. Raises UserError if what is held all the time exceeds it.

    The phases can shrink while a run goes on (fewer slots, smaller micro-batches): they only cause a warning.
    """
    fixed = {part: size for part, size in plan.held.items() if not part.startswith("hidden states")}
    needed, largest = sum(fixed.values()), max(fixed, key=fixed.__getitem__)
    if needed > device:
        raise UserError(
            f"cluster.device: the run holds {needed / 1e9:.1f} GB ({largest}: {fixed[largest] / 1e9:.1f} GB), the GPU "
            f"has {device / 1e9:.1f} GB; lower freeze.top_percent or use 4-bit reward weights (dry_run=true shows "
            "all parts)"
        )
    if plan.total > device:
        print(
            f"warning: the plan's peak is {plan.total / 1e9:.1f} GB, the GPU has {device / 1e9:.1f} GB; dry_run=true "
            "shows it by part",
            file=sys.stderr,
        )
