"""From a checkpoint to the model that was trained: the base model, with the checkpoint's tensors put into it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from starling_train.config.fields import UserError
from starling_train.config.rm import RmConfig
from starling_train.config.sections import FreezeConfig, LoraConfig, ModelConfig
from starling_train.files.tensors import FLOATS
from starling_train.models import adapters, causal_lm, header_checks, written
from starling_train.models.reward.net import Network, RewardNet
from starling_train.models.reward.start import empty_net, find_start, make_net, net_writer
from starling_train.models.source import ModelSource
from starling_train.run.saved import SavedRun
from starling_train.selection import freeze
from starling_train.training import policy

LORA = ".lora_"  # in the names of an adapter's two matrices
NOT_EXPORTED = ("critic.", "value_head.")  # what a checkpoint of ppo has beside the policy


class TrainedModel(Protocol):
    """What a run trains.

    directory: the base model's.
    what: in a word or two.
    kind: of a reward model, else None.
    lora: None where no adapters train.

    Each raises UserError, naming `base`, for a base model that cannot be used.
    """

    directory: Path
    what: str
    kind: str | None
    model: ModelConfig
    lora: LoraConfig | None

    def empty(self) -> Network:
        """Build names and shapes, without memory."""

    def load(self) -> nn.Module:
        """Load the base model, on the CPU, in the type that it was trained in."""

    def write(self, model: Any, directory: Path) -> None:
        """Write a model and its tokenizer, as the run itself does at its end."""


class TrainedPolicy:
    """A causal language model, from a run whose checkpoints name its tensors `policy.*`."""

    what = "the policy"
    kind: str | None = None

    def __init__(self, model: ModelConfig, freeze: FreezeConfig, base: str | None):
        self.model, self.lora = model, freeze.lora if freeze.adapter else None
        # the base model: where it was when the run trained, or where it is now
        self._source = ModelSource.open(base or model.path, "base", None if base else model.revision)
        self.directory = self._source.directory
        self._chat = policy.load_chat(self._source, model)  # checked before the checkpoint is looked at

    def empty(self) -> Network:
        header_checks.check_policy(self._source)
        return causal_lm.build_empty(self._source.policy_config)

    def load(self) -> nn.Module:
        return causal_lm.load_causal_lm(self._source, dtype=self.model.dtype)

    def write(self, model: causal_lm.CausalLM, directory: Path) -> None:
        written.write(model, directory, self._chat)


class TrainedReward:
    """A reward model, of a run of `rm`."""

    what = "the reward model"
    kind: str | None

    def __init__(self, config: RmConfig, base: str | None):
        self.model, self.kind, self._config = config.model, config.rm.kind, config
        self.lora = config.freeze.lora if config.freeze.adapter else None
        self._start = find_start(config, base, "base")
        self.directory = self._start.directory

    def empty(self) -> Network:
        return empty_net(self._start)

    def load(self) -> nn.Module:
        return make_net(
            self._start,
            fresh=self._config.rm.fresh,  # then every tensor is in the checkpoint
            dtype=self.model.dtype,
            attention="sdpa",
            device="cpu",
        )

    def write(self, model: RewardNet, directory: Path) -> None:
        net_writer(self._start, model)(directory)


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write. table: what was trained. size: bytes of the model's weights."""

    table: freeze.FreezeTable
    size: int


def plan(run: SavedRun, trained: TrainedModel) -> ExportPlan:
    """Plan what to write, from headers alone. Raises UserError if the checkpoint's tensors are not of this model."""
    model = trained.empty()
    with _open(run) as held:
        targets = _targets(held)
        size = sum(parameter.numel() for parameter in model.parameters()) * _dtype(trained).itemsize
        try:
            table = _table(model, targets.values(), trained.lora)
            _hang_adapters(model, targets.values(), trained.lora)
        except UserError as error:
            raise _other_model(run, trained, str(error)) from error
        parameters = dict(model.named_parameters())
        for name, target in targets.items():
            saved = held.get_slice(name)
            shape, dtype = tuple(saved.get_shape()), FLOATS.get(saved.get_dtype())
            is_right = target in parameters and parameters[target].shape == shape
            if not is_right or (dtype != _dtype(trained) and LORA not in target):
                raise _other_model(run, trained, f"{name} {shape} in {saved.get_dtype()}")
    return ExportPlan(table, size)


@torch.no_grad()
def load_trained(run: SavedRun, trained: TrainedModel) -> nn.Module:
    """Load the base model and put the trained tensors into it; adapters are merged into the weights, as the run does.

    The checkpoint is read tensor by tensor, so this takes the memory of one model.
    """
    model = trained.load()
    with _open(run) as held:
        targets = _targets(held)
        _hang_adapters(model, targets.values(), trained.lora)
        parameters = dict(model.named_parameters())
        for name, target in targets.items():
            tensor = held.get_tensor(name)
            assert parameters[target].dtype == tensor.dtype, f"{name} was trained in another type"
            parameters[target].copy_(tensor)
    return adapters.merged(model)


def _table(model: Network, targets: Iterable[str], lora: LoraConfig | None) -> freeze.FreezeTable:
    """Make the table of trained tensors and adapters. Raises UserError for what the model does not have."""
    modules = _adapted(targets)
    if modules and not lora:
        raise UserError("it has adapters, and config.yaml has none")
    whole = [target for target in targets if LORA not in target]
    tables = [freeze.apply(FreezeConfig(), model, freeze.modules_in(model, whole))] if whole else []
    if modules and lora:
        head = freeze.head_module(model)
        adapted = FreezeConfig(head=head in modules, adapter="lora", lora=lora)
        weights = [f"{module}.weight" for module in modules]
        tables.append(freeze.apply(adapted, model, freeze.modules_in(model, weights)))
    first, *more = tables
    for other in more:
        rows = tuple(
            replace(a, trained=a.trained + b.trained, parameters_trained=a.parameters_trained + b.parameters_trained)
            for a, b in zip(first.rows, other.rows, strict=True)
        )
        first = replace(first, rows=rows, names=first.names + other.names)
    return first


def _hang_adapters(model: nn.Module, targets: Iterable[str], lora: LoraConfig | None) -> None:
    if lora and (modules := _adapted(targets)):
        adapters.add(model, [f"{module}.weight" for module in modules], lora)


def _adapted(targets: Iterable[str]) -> list[str]:
    """List the modules with an adapter, in order."""
    return list(dict.fromkeys(target.partition(LORA)[0] for target in targets if LORA in target))


def _dtype(trained: TrainedModel) -> torch.dtype:
    return getattr(torch, trained.model.dtype)


def _other_model(run: SavedRun, trained: TrainedModel, what: str) -> UserError:
    return UserError(
        f"checkpoint: {run.weights} does not fit the model in {trained.directory} in {trained.model.dtype} ({what}); "
        "is config.yaml this run's?"
    )


def _open(run: SavedRun) -> Any:
    try:
        return safe_open(run.weights, framework="pt")
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"checkpoint: {run.weights} cannot be read ({error}); use another one") from error


def _targets(held: Any) -> dict[str, str]:
    """Map the tensors of the checkpoint to the model's parameters, by name."""
    names = [name for name in held.keys() if not name.startswith(NOT_EXPORTED)]  # noqa: SIM118 (not a dict)
    return {name: name.removeprefix("policy.") for name in names}
