"""What every training command needs before its first step: prompts, and a policy of which the selected part trains."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import CheckpointConfig, FreezeConfig
from starling_train.data import nectar, openchat, prompts
from starling_train.data.prompts import Prompt, counts
from starling_train.engine.optim import Optimizer
from starling_train.engine.zero import ZeroOptimizer
from starling_train.files.identity import Identity
from starling_train.models import adapters, causal_lm
from starling_train.run.checkpoints import Beside, Checkpoints, identify_base
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.run.state import TrainState
from starling_train.selection import freeze, scans, unfrozen_yaml
from starling_train.selection.freeze import apply_to
from starling_train.selection.scan import Record
from starling_train.selection.scans import write_scan


@dataclass
class Data:
    """Prompts to train on, prompts held out, and one line on what was dropped."""

    training: list[Prompt]
    held_out: list[Prompt]
    report: str


def load_data(config: PpoConfig, tokenizer: Any) -> Data:
    """Read, filter, tokenise and split the prompts. Raises UserError when none is left, naming the filter."""
    rows = nectar.load(
        config.data.path,
        good_natured_only=config.data.good_natured_only,
        exclude=config.data.exclude,
        answers=False,
    )
    fitting, too_long = prompts.tokenise([row.messages for row in rows.rows], tokenizer, config.data.max_prompt_tokens)
    training, held_out = prompts.hold_out(fitting, config.data.eval_prompts, config.seed)
    dropped = rows.dropped | ({f"longer than {config.data.max_prompt_tokens} tokens": too_long} if too_long else {})
    report = f"{len(training)} training prompts, {len(held_out)} held out; dropped: {counts(dropped)}"
    return Data(training, held_out, report)


def load_tokenizer(config: PpoConfig, directory: Path) -> Any:
    """The policy's tokenizer, checked to speak Openchat's template."""
    causal_lm.load_config(
        directory, "model.path"
    )  # read with the tokenizer too: what is wrong in it is told as its own
    tokenizer = causal_lm.load_tokenizer(directory, "model.path")
    openchat.check_tokenizer(tokenizer, f"model.path: {directory}")
    return tokenizer


def check_lengths(config: PpoConfig, model_config: Any, tokenizer: Any) -> None:
    """Raise UserError if prompt and response together can outgrow the model's positions, or ids its vocabulary."""
    check_vocabulary(model_config, tokenizer)
    wanted = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if wanted > model_config.max_position_embeddings:
        raise UserError(
            f"rollout.max_new_tokens: {config.rollout.max_new_tokens} and data.max_prompt_tokens "
            f"{config.data.max_prompt_tokens} make {wanted} tokens, more than the model's "
            f"{model_config.max_position_embeddings} positions; lower one of them"
        )


def check_vocabulary(model_config: Any, tokenizer: Any, key: str = "model.path") -> None:
    """Raise UserError, naming the model's `key`, if the tokenizer has ids that the model has no embedding for."""
    if (highest := max(tokenizer.get_vocab().values())) >= model_config.vocab_size:
        raise UserError(
            f"{key}: the tokenizer has ids up to {highest}, the model only {model_config.vocab_size} embeddings; "
            "use the tokenizer that belongs to the model"
        )


def check_shares(config: PpoConfig, runtime: Runtime) -> None:
    """Raise UserError if a process would have no prompt to see to, or a reward model on the GPUs of the others."""
    if runtime.world > 1 and config.reward.device_map:
        raise UserError(
            f"reward.device_map: {config.reward.device_map} spreads the reward model over GPUs that the other "
            "processes use; serve it (reward.kind=server), or leave reward.device_map out"
        )
    for key, count in (
        ("algorithm.prompts_per_step", config.algorithm.prompts_per_step),
        ("data.eval_prompts", config.data.eval_prompts),
    ):
        check_share(key, count, runtime)


def check_share(key: str, count: int, runtime: Runtime) -> None:
    """Raise UserError if so many prompts are too few for each process to see to one."""
    if count < runtime.world:
        raise UserError(f"{key}: {count} prompts for {runtime.world} processes; give each at least one, or start fewer")


SCORED = scans.SCORED
select = scans.select


@dataclass
class SelectedPolicy:
    """A causal LM with its trainable parameters marked, the names selected, the table, and the scan."""

    model: nn.Module
    selected: list[str]
    table: freeze.FreezeTable
    records: dict[str, Record]


def load_selected_policy(
    config: PpoConfig, directory: Path, runtime: Runtime, records: dict[str, Record], selected: list[str]
) -> SelectedPolicy:
    """Load the weights and freeze what is not selected; with freeze.adapter, hang adapters onto it."""
    model = causal_lm.load_causal_lm(
        directory,
        "model.path",
        dtype=config.model.dtype,
        attention=config.model.attention,
        device=str(runtime.device),
        load_in=config.model.load_in,
    )
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # quantised weights have neither their shapes nor gradients: what is selected is told by the empty model
    table = apply_to(config.freeze, causal_lm.build_empty(model.config) if config.freeze.adapter else model, selected)
    add_adapters(config.freeze, model, table, runtime)
    return SelectedPolicy(model, selected, table, records)


def add_adapters(config: FreezeConfig, model: nn.Module, table: freeze.FreezeTable, runtime: Runtime) -> None:
    """With freeze.adapter, adapters on what the table names train, and nothing else."""
    if config.adapter:
        runtime.seed_all("adapters")
        adapters.add(model, table.names, config.lora)


class Trained(Protocol):
    """What a selection gave: names selected, scan, table."""

    selected: list[str]
    records: dict[str, Record]
    table: freeze.FreezeTable


def begin(config: FreezeConfig, run: RunDirectory, runtime: Runtime, trained: Trained) -> None:
    """Make the run's directory, with its configuration and what was selected. The first process does."""
    if not runtime.is_first:
        return
    run.create()
    if config.method in SCORED:
        write_scan(trained.records, run.path)
    unfrozen_yaml.write_unfrozen_yaml(
        trained.selected, trained.records, run.path / "unfrozen.yaml", trained.table.names
    )


def open_checkpoints(
    config: CheckpointConfig, run: RunDirectory, base: Path | Identity, runtime: Runtime, beside: Beside | None = None
) -> Checkpoints:
    """The run's checkpoints, of the model in the directory `base`, or known as that. beside: see `Checkpoints`."""
    if isinstance(base, Path):
        base = runtime.from_first(lambda: identify_base(run.checkpoints, base))
    return Checkpoints(run.checkpoints, config.keep, base, beside)


def adapter_files(config: PpoConfig, table: freeze.FreezeTable, prefix: str) -> Beside | None:
    """Writes the adapters as PEFT reads them into each checkpoint; None without adapters. prefix: of their names."""
    if not config.freeze.adapter:
        return None
    model = config.freeze.lora, config.model.path, config.model.revision
    return lambda directory, tensors: adapters.write(directory, tensors, prefix, table.names, *model)


def whole_policy(config: PpoConfig, directory: Path, policy: nn.Module) -> nn.Module:
    """The policy as a model of its own: with adapters merged into the weights, those of a quantised base unquantised.

    directory: of the base model.
    """
    if not config.model.load_in:
        return adapters.merged(policy)
    base = causal_lm.load_causal_lm(directory, "model.path", dtype=config.model.dtype, device="cpu")
    return adapters.merged(policy, base)


def describe(optimizer: Optimizer | ZeroOptimizer, runtime: Runtime, zero_stage: int) -> str:
    """What runs where, as it is and not as it was asked for. zero_stage: the one that was."""
    here = optimizer.state_bytes() if optimizer.engine is None else optimizer.bytes_here()
    how = "whole" if optimizer.engine is None else f"ZeRO stage {optimizer.engine.zero_optimization_stage()}"
    if optimizer.engine is None and zero_stage:
        how += f": cluster.zero_stage={zero_stage} has no effect in one process"
    return f"{runtime.describe()}; optimizer state in each process: {here / 1e9:.3g} GB ({how})"


def restore(
    checkpoints: Checkpoints, optimizer: Optimizer | ZeroOptimizer, logged: int, runtime: Runtime
) -> TrainState | None:
    """Load the newest intact checkpoint into trainable parameters and optimizer; None if there is none.

    The first process chooses it. logged: the last step in metrics.jsonl. Raises UserError if no checkpoint can be
    used, or if it is of other tensors.
    """
    found = checkpoints.newest(logged) if runtime.is_first else None
    step = runtime.from_first(lambda: found and found.state.step)
    if step is not None and found is None:
        found = checkpoints.at(step)
    if found is None:
        if logged > 0 and runtime.is_first:
            print(
                f"no checkpoint was saved before the run ended: it starts again, and the steps up to {logged}, which "
                "metrics.jsonl has already, are computed again",
                file=sys.stderr,
            )
        return None
    shapes = {name: (t.shape, t.dtype) for name, t in found.trainable.items()}
    if shapes != optimizer.shapes() or not optimizer.fits(found.optimizer):
        raise UserError(
            "run_dir: its checkpoint trained other tensors than this selection; give the same freeze.* settings, "
            "or another run_dir"
        )
    optimizer.load(found.trainable, found.optimizer)
    return found.state
