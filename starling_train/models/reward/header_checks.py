"""A reward model's directory checked from its headers, before minutes of loading."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig
from starling_train.files.tensors import Entry
from starling_train.models import causal_lm
from starling_train.models.families.positions import check_dynamic
from starling_train.models.header_checks import check_shapes, entries_by_name
from starling_train.models.reward import checkpoint, loading
from starling_train.models.reward.source import RewardSource


def check_reward(config: ScorerConfig, source: RewardSource, *, weights: bool = True) -> None:
    """Check a reward model's directory against the `reward` section. weights: its tensors' shapes too.

    Raises UserError.
    """
    source.check_vocabulary()
    model_config = source.config
    text = model_config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions and source.is_encoder and getattr(text, "position_embedding_type", "absolute") == "absolute":
        positions = _learned_positions(model_config) or positions
    # rotary positions go on for ever, learned ones end in an error of indices
    if positions and getattr(text, "rope_parameters", None) is None and config.max_length > positions:
        raise UserError(
            f"reward.max_length: {config.max_length} is more than the {positions} positions of {source.directory}; "
            "lower it"
        )
    check_dynamic(model_config, config.max_length, "reward.max_length")
    check = _check_classifier if source.kind == "sequence_classification" else _check_starling
    check(source, weights)


def _learned_positions(config: Any) -> int | None:
    """Count the positions that text can have, where they are learned: RoBERTa's begin behind that of the padding."""
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _check_starling(source: RewardSource, weights: bool) -> None:
    directory = source.directory
    loading.check_llama(source.kind, directory, source.config)
    expected = loading.starling_shapes(source.config)
    if not weights:
        return
    held: Mapping[str, Tensor | Entry]
    if source.kind == "starling_7b":
        held = checkpoint.read_7b(directory)  # mapped, not read
    else:
        checkpoint.shards(directory)  # the same files, or the message that names the missing ones
        held = {entry.name: entry for entry in source.model.entries}
    checkpoint.check(checkpoint.drop_rotary(held), expected, str(directory))


def _check_classifier(source: RewardSource, weights: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    directory = source.directory
    loading.check_labels(directory, source.config)
    expected = causal_lm.shapes_of(AutoModelForSequenceClassification, source.config)
    if not weights:
        return
    # transformers knows older names of many tensors: only known names are compared, and a head must exist
    held = {name: entry.shape for name, entry in entries_by_name(source.model).items()}
    if "score.weight" in expected and "score.weight" not in held:
        raise UserError(
            f"{directory}: score.weight missing; it is not a trained sequence classifier, check reward.path"
        )
    if "score.weight" in expected and "score.bias" in held and "score.bias" not in expected:
        raise UserError(f"{directory}: score.bias unknown; is config.json this checkpoint's?")
    check_shapes({name: shape for name, shape in expected.items() if name in held}, held, str(directory))
