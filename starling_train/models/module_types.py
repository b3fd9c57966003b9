"""What kind each weight of a decoder is: matrix of a layer, embedding, head, vector, or unknown.

By architecture (`model_type` of config.json) and exact name, never by substring: a vision tower's `q_proj` is not the
language model's, and a matrix that no table knows is reported as unknown.
"""

import re
from dataclasses import dataclass, field

# Decoder layers in front of the layer number: transformers v5, bare base models, and heads around a `transformer`.
LAYER = re.compile(r"(?:model\.|transformer\.|model\.model\.|model\.language_model\.)?layers\.(\d+)\.(.+)")
EMBEDDINGS = re.compile(r"(?:model\.|transformer\.|model\.model\.|model\.language_model\.)?embed_tokens")
HEADS = re.compile(r"(?:model\.)?lm_head|v_head|score")

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Architecture:
    """The matrices of one decoder layer, in the order of the forward pass: module name in the layer -> type."""

    types: dict[str, str] = field(default_factory=dict)


def _same_names(*groups: tuple[str, ...]) -> dict[str, str]:
    return {name: name for group in groups for name in group}


LLAMA = Architecture(_same_names(ATTENTION, MLP))
ARCHITECTURES = dict.fromkeys(
    (
        "llama",
        "mistral",
        "mistral3",
        "ministral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "olmo2",
    ),
    LLAMA,
)


@dataclass(frozen=True)
class Kind:
    """What a weight is. `kind`: matrix, embeddings, head, vector, unknown. `type` and `layer` are a matrix's."""

    kind: str
    type: str = ""
    layer: int | None = None


def classify(module: str, shape: tuple[int, ...], model_type: str | None) -> Kind:
    """Kind of the weight of `module` (its name without `.weight`) in a checkpoint of architecture `model_type`."""
    if len(shape) < 2:
        return Kind("vector")
    if EMBEDDINGS.fullmatch(module):
        return Kind("embeddings")
    if HEADS.fullmatch(module):
        return Kind("head")
    found = LAYER.fullmatch(module)
    types = ARCHITECTURES.get(model_type or "", LLAMA).types
    if found and len(shape) == 2 and found[2] in types:
        return Kind("matrix", types[found[2]], int(found[1]))
    return Kind("unknown")


def order(kind: Kind, model_type: str | None) -> tuple[int, int]:
    """Sort key that puts matrices in the order of the forward pass, whatever the order of the files."""
    types = list(ARCHITECTURES.get(model_type or "", LLAMA).types.values())
    return (
        -1 if kind.layer is None else kind.layer,
        types.index(kind.type) if kind.type in types else len(types),
    )


def layer_of(module: str) -> int | None:
    """Number of the decoder layer that `module` lies in; None outside the decoder layers."""
    found = LAYER.match(module)
    return int(found[1]) if found else None
