"""What a user got wrong, found before the first expensive thing: a download of shards, a scan, a loaded model.

Every check reads headers and small files only. Nothing that stays is written.
"""

import netrc
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig
from starling_train.config.sections import FreezeConfig
from starling_train.files.disk import check_directory
from starling_train.models import causal_lm, quantisation
from starling_train.models import header_checks as models_header_checks
from starling_train.models.reward import start as reward_start
from starling_train.planning.memory import Plan
from starling_train.rewards import kinds
from starling_train.run.runtime import Runtime
from starling_train.selection import records as scan_records
from starling_train.selection import scan, scans, select
from starling_train.selection.records import Record
from starling_train.training.dpo import inputs as dpo_inputs
from starling_train.training.ppo.inputs import planned
from starling_train.training.reward_model import inputs as reward_model_inputs
from starling_train.training.reward_model.inputs import Start

WANDB_HOST = "https://api.wandb.ai"


def check_run(config: PpoConfig, directory: Path, model_config: Any, runtime: Runtime, run: Path) -> None:
    """Check everything that a PPO run needs but its data. directory, model_config: the policy's. Raises UserError."""
    _check_policy_run(config, directory, model_config, run)
    kinds.of(config.reward).check(config.reward, True)
    if runtime.device.type == "cuda":
        check_memory(planned(config, directory, model_config)[1], device_bytes(runtime.device))


def check_ranking(config: RmConfig, start: Start, runtime: Runtime, run: Path) -> None:
    """Check everything that the training of a reward model needs but its data. Raises UserError."""
    check_tracker(config.logging.wandb)
    check_directory(run, "run_dir")
    quantisation.check_acceleration(attention=config.model.attention)
    if not config.rm.fresh and not reward_start.is_reward_model(start.directory):
        models_header_checks.check_policy(
            start.directory, causal_lm.load_config(start.directory, "model.path"), "model.path"
        )
    listed = replace(config, freeze=replace(config.freeze, method=_unscored(config.freeze)))
    _check_selection(
        config.freeze, start.directory, reward_model_inputs.scan(listed, start.directory, "cpu"), config.seed
    )
    if runtime.device.type == "cuda":
        check_memory(reward_model_inputs.planned(config, start)[1], device_bytes(runtime.device))


def check_preferences(config: DpoConfig, directory: Path, model_config: Any, runtime: Runtime, run: Path) -> None:
    """Check everything that training on preferences needs but its data. Raises UserError."""
    _check_policy_run(config, directory, model_config, run)
    if runtime.device.type == "cuda":
        check_memory(dpo_inputs.planned(config, directory, model_config)[1], device_bytes(runtime.device))


def _check_policy_run(config: PpoConfig | DpoConfig, directory: Path, model_config: Any, run: Path) -> None:
    check_tracker(config.logging.wandb)
    check_directory(run, "run_dir")
    quantisation.check_acceleration(
        attention=config.model.attention, eight_bit=config.optim.eight_bit, policy_load_in=config.model.load_in
    )
    models_header_checks.check_policy(directory, model_config, "model.path")
    _check_selection(config.freeze, directory, scan.list_matrices(directory), config.seed)


def check_tracker(mode: str) -> None:
    """Raise UserError where `logging.wandb` asks for what is not installed, or for a login that is not there."""
    if mode == "disabled":
        return
    if find_spec("wandb") is None:
        raise UserError("logging.wandb: wandb is not installed; pip install wandb, or use logging.wandb=disabled")
    if mode == "online" and not _has_login(os.environ.get("WANDB_BASE_URL") or WANDB_HOST):
        raise UserError(
            "logging.wandb: online, but there is no login; run `wandb login` or set WANDB_API_KEY, or use "
            "logging.wandb=offline"
        )


def _has_login(url: str) -> bool:
    """Whether wandb would find a key where it looks for one: environment, its own settings, netrc."""
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


def _unscored(freeze: FreezeConfig) -> str:
    return "random" if freeze.method in scans.SCORED and not freeze.scan else freeze.method


def _check_selection(freeze: FreezeConfig, directory: Path, listing: dict[str, Record], seed: int) -> None:
    """Raise UserError for a scan that does not fit, and for settings that select nothing whatever a scan finds."""
    if freeze.method in scans.SCORED and freeze.scan:
        source = Path(freeze.scan).expanduser()
        records = scan_records.match(scan_records.read_scan(source), scan.list_matrices(directory), str(source))
        scan.check_scan(directory, records, freeze.dialect, str(source))
        scans.select(freeze, records, seed)
    else:
        unscored = select.SMALLEST if freeze.method in scans.SCORED else None
        scans.select(freeze, listing, seed, unscored)


def check_memory(plan: Plan, device: float) -> None:
    """Compare the plan with a device of so many bytes. Raises UserError where what is held all the time exceeds it.

    The phases' parts can become smaller while a run goes on (fewer slots, smaller micro-batches): only a warning.
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


def device_bytes(device: torch.device) -> float:
    """Memory of a GPU, bytes."""
    return torch.cuda.get_device_properties(device).total_memory
