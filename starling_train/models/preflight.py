"""A model directory checked from its headers: what loading would stumble over, told before minutes of it.

Only config.json, tokenizer files, and names and shapes of tensors are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.data import reward_templates
from starling_train.files import tensors as checkpoint_files
from starling_train.models import load, quantisation, reward_checkpoint, reward_loading

Shapes = Mapping[str, tuple[int, ...]]


def check_policy(directory: Path, config: Any, key: str) -> None:
    """Check that a causal language model's files hold every tensor in the shape that config.json says.

    key: the configuration key, for messages. Raises UserError.
    """
    from transformers import AutoModelForCausalLM

    expected = load.shapes_of(AutoModelForCausalLM, config)
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    found = _found(directory, key, "model.")
    if missing := [name for name in expected if name not in found]:
        raise UserError(f"{key}: {directory} lacks {len(missing)} tensors, {missing[0]} first; download it again")
    _check_shapes(expected, {name: entry.shape for name, entry in found.items()}, f"{key}: {directory}")
    for name in expected:
        checkpoint_files.check_readable(found[name])
    generation = directory / "generation_config.json"
    if generation.is_file():
        checkpoint_files.read_json(generation)


def check_reward(config: RewardConfig, directory: Path, tokenizer_directory: Path, *, weights: bool = True) -> None:
    """Check a reward model's directory against the `reward` section. weights: its tensors' shapes too.

    Raises UserError.
    """
    model_config = reward_loading.load_config(directory, tokenizer_directory)
    tokenizer = reward_loading.load_tokenizer(tokenizer_directory)
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
    reward_loading.check_llama(kind, directory, config)
    expected = reward_loading.starling_shapes(config)
    if not weights:
        return
    if kind == "starling_7b":
        tensors = reward_checkpoint.read_7b(directory)  # mapped, not read
    else:
        reward_checkpoint.shards(directory)  # the same files, or the message that says which are wanted
        tensors = {entry.name: entry for entry in checkpoint_files.entries(directory)}
    reward_checkpoint.check(reward_checkpoint.drop_rotary(tensors), expected, str(directory))


def _check_classifier(kind: str, directory: Path, config: Any, weights: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    reward_loading.check_labels(directory, config)
    expected = load.shapes_of(AutoModelForSequenceClassification, config)
    if not weights:
        return
    # transformers knows older names of many tensors: only what it finds by name is compared, and a head must be there
    found = {name: entry.shape for name, entry in _found(directory, "reward.path", "model.").items()}
    if "score.weight" in expected and "score.weight" not in found:
        raise UserError(f"{directory}: score.weight missing; it is no trained sequence classifier, check reward.path")
    _check_shapes({name: shape for name, shape in expected.items() if name in found}, found, str(directory))


def _found(directory: Path, key: str, prefix: str) -> dict[str, checkpoint_files.Entry]:
    """Tensors by name, and by the name with the base model's prefix, which transformers adds where it lacks."""
    entries = checkpoint_files.entries(directory)
    checkpoint_files.forget()
    if not entries:
        raise UserError(
            f"{key}: {directory} has no weights (model.safetensors, pytorch_model.bin, or shards and their index); "
            "download them"
        )
    return {prefix + entry.name: entry for entry in entries} | {entry.name: entry for entry in entries}


def _check_shapes(expected: Shapes, found: Shapes, source: str) -> None:
    wrong = [name for name, shape in expected.items() if tuple(found[name]) != tuple(shape)]
    if wrong:
        raise UserError(
            f"{source}: {wrong[0]} has shape {tuple(found[wrong[0]])}, config.json says {tuple(expected[wrong[0]])} "
            f"({len(wrong)} such tensors); is config.json this checkpoint's?"
        )


def check_acceleration(
    *,
    attention: str | None = None,
    load_in: str | None = None,
    device_map: str | None = None,
    eight_bit: bool = False,
    policy_load_in: str | None = None,
) -> None:
    """Raise UserError for a setting that needs a GPU, or a package, which is not there."""
    from importlib.util import find_spec

    needing = (
        ("model.attention", attention == "flash_attention_2", "flash_attn", "sdpa"),
        ("model.load_in", bool(policy_load_in), "bitsandbytes", "null"),
        ("reward.load_in", bool(load_in), "bitsandbytes", "null"),
        ("optim.eight_bit", eight_bit, "bitsandbytes", "false"),
        ("reward.device_map", bool(device_map), None, "null"),
    )
    for key, asked, package, instead in needing:
        if not asked:
            continue
        if key == "reward.device_map":
            quantisation.check_device(device_map)
        elif not torch.cuda.is_available():
            raise UserError(f"{key}: needs an NVIDIA GPU, and none is visible; use {instead}")
        if package and find_spec(package) is None:
            name = package.replace("_", "-")
            raise UserError(f"{key}: needs {package}, which is not installed; pip install {name}, or use {instead}")
