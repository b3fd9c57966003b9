"""A model directory checked from its headers: what would fail after minutes of loading is reported before.

Only config.json, tokenizer files, and names and shapes of tensors are read.
"""

from collections.abc import Mapping

from starling_train.config.fields import UserError
from starling_train.files import tensors
from starling_train.files.json_object import read_json
from starling_train.models import causal_lm
from starling_train.models.families.file_names import renamed
from starling_train.models.source import UNUSABLE, ModelSource, first_line

Shapes = Mapping[str, tuple[int, ...]]


def check_policy(source: ModelSource) -> None:
    """Check that a causal language model's files hold every tensor in the shape that config.json says.

    Raises UserError.
    """
    directory = source.directory
    source.check_present("loading it")
    source.files.check_loadable()
    tensors.forget()
    model = empty_policy(source)
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}  # a tied head is none of its own
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name in own}
    names = renamed(model, [entry.name for entry in source.entries])
    held = {names[entry.name]: entry for entry in source.entries if names[entry.name].name in expected}
    parts = {name for name, is_part in held if is_part}
    whole = {name: entry for (name, is_part), entry in held.items() if not is_part}
    if missing := [name for name in expected if name not in whole and name not in parts]:
        raise UserError(
            f"{source.key}: {directory} lacks {len(missing)} tensors, {missing[0]} first; download it again"
        )
    shapes = {name: entry.shape for name, entry in whole.items()}
    check_shapes({name: expected[name] for name in whole}, shapes, f"{source.key}: {directory}")
    for entry in source.entries:
        if names[entry.name].name in expected:
            tensors.check_readable(entry)
    generation = directory / "generation_config.json"
    if generation.is_file():
        read_json(generation)


def empty_policy(source: ModelSource) -> causal_lm.CausalLM:
    """Build the model that config.json describes, without memory. Raises UserError if it describes none."""
    config = source.policy_config
    try:
        return causal_lm.build_empty(config)
    except UNUSABLE as error:
        raise UserError(
            f"{config.name_or_path}/config.json: no model can be made from it ({first_line(error)}); download it again"
        ) from error


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
