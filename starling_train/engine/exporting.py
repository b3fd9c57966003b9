"""From a checkpoint to the model that was trained: the base model, with the checkpoint's tensors in their places."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from starling_train.config import ModelConfig, UserError
from starling_train.config_rm import RmConfig
from starling_train.data import openchat
from starling_train.engine import ranking_setup
from starling_train.engine.saved_run import SavedRun
from starling_train.models import freeze, load, preflight, reward_start
from starling_train.models.checkpoint_files import FLOATS

NOT_EXPORTED = ("critic.", "value_head.")  # what a checkpoint of ppo has beside the policy


class Trained(Protocol):
    """What a run trains. directory: the base model's. what: in a word or two. kind: of reward model, None of none.

    Each raises UserError, naming `base`, for a base model that cannot be used.
    """

    directory: Path
    what: str
    kind: str | None
    model: ModelConfig

    def empty(self) -> nn.Module:
        """Names and shapes, without memory."""

    def load(self) -> nn.Module:
        """The base model, on the CPU, in the type that it was trained in."""

    def write(self, model: nn.Module, directory: Path) -> None:
        """Write a model and its tokenizer, in the way in which the run itself does at its end."""


class TrainedPolicy:
    """A causal language model, of a run of `ppo`."""

    what, kind = "the policy", None

    def __init__(self, model: ModelConfig, base: str | None):
        self.model = model
        self.directory = _resolve(model, base)
        self._config = load.load_config(self.directory, "base")
        self._tokenizer = load.load_tokenizer(self.directory, "base")

    def empty(self) -> nn.Module:
        preflight.check_policy(self.directory, self._config, "base")
        return load.build_empty(self._config)

    def load(self) -> nn.Module:
        return load.load_causal_lm(self.directory, "base", dtype=self.model.dtype)

    def write(self, model: nn.Module, directory: Path) -> None:
        model.save_pretrained(directory)
        openchat.save_tokenizer(self._tokenizer, directory)


class TrainedReward:
    """A reward model, of a run of `rm`."""

    what = "the reward model"

    def __init__(self, config: RmConfig, base: str | None):
        self.model, self.kind, self._config = config.model, config.rm.kind, config
        self.directory = _resolve(config.model, base, needs_config=not config.rm.tokenizer)
        here = replace(config, model=replace(config.model, path=str(self.directory)))
        self._start = ranking_setup.find(here)

    def empty(self) -> nn.Module:
        return reward_start.empty(self._start.config)

    def load(self) -> nn.Module:
        return reward_start.start(
            self.directory,
            self._start.config,
            fresh=self._config.rm.fresh,  # then every tensor is in the checkpoint
            dtype=self.model.dtype,
            attention="sdpa",
            device="cpu",
        )

    def write(self, model: nn.Module, directory: Path) -> None:
        ranking_setup.writer(self._config, model, self._start.tokenizer)(directory)


def _resolve(model: ModelConfig, base: str | None, needs_config: bool = True) -> Path:
    """The base model's directory: where it was when the run trained, or where it is now."""
    revision = None if base else model.revision
    return load.resolve(base or model.path, "base", revision, needs_config=needs_config)


@dataclass(frozen=True)
class Plan:
    """table: what was trained of which model. size: bytes of the model's weights."""

    table: freeze.FreezeTable
    size: int


def plan(run: SavedRun, trained: Trained) -> Plan:
    """What will be written, from headers alone. Raises UserError if the checkpoint's tensors are not of this model."""
    model = trained.empty()
    parameters = dict(model.named_parameters())
    dtype = getattr(torch, trained.model.dtype)
    names = []
    with _open(run) as held:
        for name, place in _places(held).items():
            part, expected = held.get_slice(name), parameters.get(place)
            shape = tuple(part.get_shape())
            if expected is None or expected.shape != shape or FLOATS.get(part.get_dtype()) != dtype:
                raise UserError(
                    f"checkpoint: {run.weights} holds {name} {shape} in {part.get_dtype()}, and the model in "
                    f"{trained.directory} has no such tensor in {trained.model.dtype}; is config.yaml this run's?"
                )
            names.append(place.removesuffix(".weight"))
    size = sum(parameter.numel() for parameter in parameters.values()) * dtype.itemsize
    return Plan(freeze.apply(model, names), size)


@torch.no_grad()
def load_trained(run: SavedRun, trained: Trained) -> nn.Module:
    """The base model with what was trained in its place.

    The checkpoint is read tensor by tensor, so this takes the memory of one model.
    """
    model = trained.load()
    parameters = dict(model.named_parameters())
    with _open(run) as held:
        for name, place in _places(held).items():
            parameters[place].copy_(held.get_tensor(name))
    return model


def _open(run: SavedRun) -> Any:
    try:
        return safe_open(run.weights, framework="pt")
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"checkpoint: {run.weights} cannot be read ({error}); use another one") from error


def _places(held: Any) -> dict[str, str]:
    """Names in the checkpoint, and which parameter of the model each tensor is."""
    names = [name for name in held.keys() if not name.startswith(NOT_EXPORTED)]  # noqa: SIM118 (not a dict)
    return {name: name.removeprefix("policy.") for name in names}
