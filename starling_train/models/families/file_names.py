"""Names of a checkpoint's tensors in the model that transformers makes of it, by transformers' own conversion."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from starling_train.models.causal_lm import CausalLM


class Renamed(NamedTuple):
    """A parameter of the model. is_part: whether it is put together from several tensors, or one is cut for it."""

    name: str
    is_part: bool


def renamed(model: CausalLM, names: Iterable[str]) -> dict[str, Renamed]:
    """Rename tensors of a file as transformers does when it loads them into the model, which may be empty."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    network: Any = model
    conversions = get_model_conversion_mapping(network)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    held = model.state_dict()
    results = {}
    for name in names:
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        results[name] = Renamed(new, pattern is not None)
    return results
