"""A model directory checked from its headers: what loading would stumble over, told before minutes of it.

Only config.json, tokenizer files, and names and shapes of tensors are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.files import tensors as checkpoint_files
from starling_train.models import causal_lm

Shapes = Mapping[str, tuple[int, ...]]


def check_policy(directory: Path, config: Any, key: str) -> None:
    """Check that a causal language model's files hold every tensor in the shape that config.json says.

    key: the configuration key, for messages. Raises UserError.
    """
    from transformers import AutoModelForCausalLM

    expected = causal_lm.shapes_of(AutoModelForCausalLM, config)
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
