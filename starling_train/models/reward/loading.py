"""From a local directory to the network of a reward model, with every mismatch named."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.files.weight_files import shortened
from starling_train.models.causal_lm import shapes_of
from starling_train.models.header_checks import check_shapes
from starling_train.models.reward import batching, checkpoint
from starling_train.models.reward.net import ClassifierNet, RewardNet
from starling_train.models.source import first_line
from starling_train.run.out_of_memory import is_out_of_memory
from starling_train.run.quiet import no_bars_of_loading


def load_starling(kind: str, directory: Path, config: Any, options: dict[str, Any]) -> RewardNet:
    """Load a checkpoint in one of the two Starling layouts. Raises UserError naming tensors that do not fit."""
    from transformers import LlamaModel

    no_bars_of_loading()
    check_llama(kind, directory, config)
    read = checkpoint.read_7b if kind == "starling_7b" else checkpoint.read_34b
    tensors = checkpoint.drop_rotary(read(directory))
    checkpoint.check(tensors, starling_shapes(config), str(directory))
    head = _head(tensors.pop("v_head.weight"), options["dtype"])
    weights = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    llama: Any = LlamaModel
    transformer = llama.from_pretrained(None, config=config, state_dict=weights, **options)
    return RewardNet(transformer, head.to(next(transformer.parameters()).device))


def check_llama(kind: str, directory: Path, config: Any) -> None:
    """Raise UserError unless the configuration is of the architecture that both Starling kinds have."""
    if config.model_type != "llama":
        raise UserError(
            f"{directory}: config.json is a {config.model_type}'s; reward.kind={kind} is a Llama, check reward.path"
        )


def check_labels(directory: Path, config: Any) -> None:
    """Raise UserError for a classifier that gives anything but one number."""
    if config.num_labels != 1:
        raise UserError(f"{directory}: config.json has {config.num_labels} labels; a reward model has num_labels 1")


def starling_shapes(config: Any) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a Starling checkpoint of this configuration. Raises UserError without one."""
    from transformers import AutoModel

    shapes = {f"transformer.{name}": shape for name, shape in shapes_of(AutoModel, config).items()}
    return shapes | {"v_head.weight": torch.Size([1, config.hidden_size])}


LANGUAGE_HEADS = ("lm_head.", "embed_out.")  # as files call them


def load_classifier(directory: Path, config: Any, options: dict[str, Any]) -> RewardNet | ClassifierNet:
    """Load a transformers sequence classifier with one label; a decoder's head is read where we say.

    Raises UserError naming tensors that do not fit: transformers alone would ignore those that it does not know.
    """
    check_labels(directory, config)
    model, report = read_classifier(directory, config, options)
    check_report(report, directory)
    if isinstance(getattr(model, "score", None), nn.Linear) and batching.reads_last(model):
        return RewardNet(model.base_model, model.score)
    return ClassifierNet(model)


def read_classifier(directory: Path, config: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return (the classifier, what transformers reports of its tensors). Raises UserError for unreadable files."""
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    no_bars_of_loading()
    try:
        with _quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                directory,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below
                trust_remote_code=False,
                **options,
            )
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"{directory}: its weights are not a readable file of plain tensors; download it again"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{directory}: {first_line(error)}; check reward.path and reward.kind") from error
    return model, report


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own table of tensors that do not fit: ours is one line."""
    from transformers import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_report(report: dict[str, Any], directory: Path) -> None:
    """Raise UserError unless transformers found every tensor of the classifier in its shape, and no other."""
    if missing := sorted(report["missing_keys"]):
        named = shortened(missing)
        raise UserError(f"{directory}: {named} missing; it is not a trained sequence classifier")
    shaped = sorted(report["mismatched_keys"])
    check_shapes({name: size for name, _, size in shaped}, {name: size for name, size, _ in shaped}, str(directory))
    # the head of the language model that the classifier was made of says nothing about it
    extra = sorted(name for name in report["unexpected_keys"] if not name.startswith(LANGUAGE_HEADS))
    if extra:
        raise UserError(f"{directory}: {shortened(extra)} unknown; is config.json this checkpoint's?")


def _head(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head
