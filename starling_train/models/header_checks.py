"""A model directory checked from its headers: what would fail after minutes of loading is reported before.

Only config.json, tokenizer files, and names and shapes of tensors are read.
"""

from collections.abc import Mapping

from starling_train.config.fields import UserError
from starling_train.files import tensors
from starling_train.models import causal_lm
from starling_train.models.source import ModelSource

Shapes = Mapping[str, tuple[int, ...]]


def check_policy(source: ModelSource) -> None:
    """Check that a causal language model's files hold every tensor in the shape that config.json says.

    Raises UserError.
    """
    from transformers import AutoModelForCausalLM

    config, directory = source.policy_config, source.directory
    expected = causal_lm.shapes_of(AutoModelForCausalLM, config)
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    held = entries_by_name(source)
    if missing := [name for name in expected if name not in held]:
        raise UserError(
            f"{source.key}: {directory} lacks {len(missing)} tensors, {missing[0]} first; download it again"
        )
    check_shapes(expected, {name: entry.shape for name, entry in held.items()}, f"{source.key}: {directory}")
    for name in expected:
        tensors.check_readable(held[name])
    generation = directory / "generation_config.json"
    if generation.is_file():
        tensors.read_json(generation)


def entries_by_name(source: ModelSource) -> dict[str, tensors.Entry]:
    """Index tensors by name, also with the base model's prefix, which transformers adds where it is missing.

    Raises UserError if there are none.
    """
    source.check_present("loading it")
    tensors.forget()
    return {f"model.{entry.name}": entry for entry in source.entries} | {entry.name: entry for entry in source.entries}


def check_shapes(expected: Shapes, held: Shapes, source: str) -> None:
    """Raise UserError, naming `source`, for the first tensor whose shape is not the expected one."""
    wrong = sorted(name for name, shape in expected.items() if tuple(held[name]) != tuple(shape))
    if wrong:
        raise UserError(
            f"{source}: {wrong[0]} has shape {tuple(held[wrong[0]])}, config.json says {tuple(expected[wrong[0]])} "
            f"({len(wrong)} such tensors); is config.json this checkpoint's?"
        )
