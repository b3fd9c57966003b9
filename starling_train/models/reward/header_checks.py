"""TODO docstring."""

from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data import reward_templates
from starling_train.files import tensors as checkpoint_files
from starling_train.models import causal_lm
from starling_train.models.header_checks import _check_shapes, _found
from starling_train.models.reward import checkpoint, loading


def check_reward(config: RewardConfig, directory: Path, tokenizer_directory: Path, *, weights: bool = True) -> None:
    """Check a reward model's directory against the `reward` section. weights: its tensors' shapes too.

    Raises UserError.
    """
    model_config = loading.load_config(directory, tokenizer_directory)
    tokenizer = loading.load_tokenizer(tokenizer_directory)
    reward_templates.check_tokenizer(config.kind, tokenizer, str(tokenizer_directory))
    if model_config.vocab_size < len(tokenizer):
        raise UserError(
            f"reward.tokenizer: {tokenizer_directory} has {len(tokenizer)} tokens, but the vocabulary of {directory} "
            f"is {model_config.vocab_size}; give the one it was trained with"
        )
    positions = getattr(model_config, "max_position_embeddings", None)
    # rotary positions go on for ever, learned ones end in an error of indices
    if positions and getattr(model_config, "rope_parameters", None) is None and config.max_length > positions:
        raise UserError(
            f"reward.max_length: {config.max_length} is more than the {positions} positions of {directory}; lower it"
        )
    check = _check_classifier if config.kind == "sequence_classification" else _check_starling
    check(config.kind, directory, model_config, weights)


def _check_starling(kind: str, directory: Path, config: Any, weights: bool) -> None:
    loading.check_llama(kind, directory, config)
    expected = loading.starling_shapes(config)
    if not weights:
        return
    if kind == "starling_7b":
        tensors = checkpoint.read_7b(directory)  # mapped, not read
    else:
        checkpoint.shards(directory)  # the same files, or the message that says which are wanted
        tensors = {entry.name: entry for entry in checkpoint_files.entries(directory)}
    checkpoint.check(checkpoint.drop_rotary(tensors), expected, str(directory))


def _check_classifier(kind: str, directory: Path, config: Any, weights: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    loading.check_labels(directory, config)
    expected = causal_lm.shapes_of(AutoModelForSequenceClassification, config)
    if not weights:
        return
    # transformers knows older names of many tensors: only what it finds by name is compared, and a head must be there
    found = {name: entry.shape for name, entry in _found(directory, "reward.path", "model.").items()}
    if "score.weight" in expected and "score.weight" not in found:
        raise UserError(f"{directory}: score.weight missing; it is no trained sequence classifier, check reward.path")
    _check_shapes({name: shape for name, shape in expected.items() if name in found}, found, str(directory))
