"""What each weight of a decoder is: matrices of a layer with their types, embeddings, head, vector, or unknown.

By architecture (`model_type` of config.json) and exact name, never by substring: a vision tower's `q_proj` is not the
language model's, and a matrix that no table knows is reported as unknown.

One tensor may hold several matrices: the experts of a layer in one 3-D tensor, q, k and v in one 2-D tensor. Each is a
matrix of its own here, because the singular values of the stack say nothing about its parts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starling_train.config.fields import UserError

# What precedes the layers: transformers v5, bare decoders, reward models around a `transformer`, other decoders. Of
# several copies of the decoder in one checkpoint (Starling-RM-7B-alpha has two) the first in this order counts.
COPIES = (
    "model.", "model.language_model.", "model.model.", "transformer.", "", "language_model.model.", "gpt_neox.",
    "model.decoder.", "backbone.",
)  # fmt: skip
_PREFIX = f"(?:{'|'.join(re.escape(prefix) for prefix in COPIES)})"
LAYER = re.compile(_PREFIX + r"(?:layers|h)\.(\d+)\.(.+)")
EMBEDDINGS = re.compile(_PREFIX + r"(?:embed_tokens|embed_in|wte)")
HEADS = re.compile(r"(?:model\.|language_model\.)?lm_head|v_head(?:\.summary)?|score")

NORM = re.compile(r"(?:.+_)?(?:layer)?norm|ln_\w+")

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Architecture:
    """The matrices of one decoder layer in the order of the forward pass; `*` stands for the expert's number.

    `parts`: parameters of the model that hold several matrices, or one under another name -> the names of those. A name
    in brackets (`qkv_proj[q_proj]`) is a part that no checkpoint holds by itself; the others are names that checkpoints
    of the architecture use, and transformers 5 fuses as it loads them.
    """

    matrices: tuple[str, ...]
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)


_SWIGLU_EXPERTS = tuple(f"mlp.experts.*.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
_SHARED_EXPERT = tuple(f"mlp.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
_PHI3_QKV = tuple(f"self_attn.qkv_proj[{name}]" for name in ("q_proj", "k_proj", "v_proj"))
_PHI3_GATE_UP = ("mlp.gate_up_proj[gate_proj]", "mlp.gate_up_proj[up_proj]")

LLAMA = Architecture(ATTENTION + MLP)
MIXTRAL = Architecture(
    (*ATTENTION, "block_sparse_moe.gate", *(f"block_sparse_moe.experts.*.{w}" for w in ("w1", "w3", "w2"))),
    {
        "mlp.gate": ("block_sparse_moe.gate",),
        "mlp.experts.gate_up_proj": ("block_sparse_moe.experts.*.w1", "block_sparse_moe.experts.*.w3"),
        "mlp.experts.down_proj": ("block_sparse_moe.experts.*.w2",),
    },
)
SWIGLU_MOE = Architecture(  # the dense layers that some of them have are Llama's
    (*ATTENTION, *MLP, "mlp.gate", *_SHARED_EXPERT, *_SWIGLU_EXPERTS),
    {"mlp.experts.gate_up_proj": _SWIGLU_EXPERTS[:2], "mlp.experts.down_proj": _SWIGLU_EXPERTS[2:]},
)
PHI3 = Architecture(
    (*_PHI3_QKV, "self_attn.o_proj", *_PHI3_GATE_UP, "mlp.down_proj"),
    {"self_attn.qkv_proj": _PHI3_QKV, "mlp.gate_up_proj": _PHI3_GATE_UP},
)
ARCHITECTURES = {
    **dict.fromkeys(
        ("mistral", "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3"), LLAMA
    ),
    "gpt2": Architecture(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    "gpt_neox": Architecture(
        ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    ),
    "mixtral": MIXTRAL,
    "qwen2_moe": SWIGLU_MOE,
    "qwen3_moe": SWIGLU_MOE,
    "olmoe": SWIGLU_MOE,
    "phi3": PHI3,
    "phi": Architecture((*ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2")),
    "starcoder2": Architecture((*ATTENTION, "mlp.c_fc", "mlp.c_proj")),
}


@dataclass(frozen=True)
class Matrix:
    """A matrix of a decoder layer and where it lies in its tensor.

    `module` names it without `.weight`; `index` cuts it out of its tensor (empty: the whole tensor); `order` sorts
    matrices by layer and then as in the forward pass. `parameter` is the parameter that holds it in the model (of
    transformers 5), which the checkpoint may hold in parts.
    """

    module: str
    type: str
    layer: int
    shape: tuple[int, int]
    index: tuple[int | slice, ...]
    order: tuple[int, int, int]
    parameter: str


@dataclass(frozen=True)
class Weight:
    """A tensor of a checkpoint. `kind`: matrices, embeddings, head, norm, vector (a bias), unknown."""

    kind: str
    matrices: tuple[Matrix, ...] = ()


def classify(module: str, shape: tuple[int, ...], config: dict) -> Weight:
    """Classify the weight `module` (its name without `.weight`) of `shape` in the model of config.json.

    An architecture without a table of its own gets the names in its model's layers. A matrix of one row or column is
    a vector.
    """
    if EMBEDDINGS.fullmatch(module):
        return Weight("embeddings")
    if HEADS.fullmatch(module):
        return Weight("head")
    if len(shape) < 2 or min(shape[-2:]) == 1:
        # `input_layernorm`, `norm`, `q_norm`, `ln_f`...: the last part of the name, never some part of it
        return Weight("norm" if NORM.fullmatch(module.rsplit(".", 1)[-1]) else "vector")
    match = LAYER.fullmatch(module)
    if not match:
        return Weight("unknown")
    config = config.get("text_config") or config
    architecture = _architecture(config)
    matrices = _matrices(module, match[2], int(match[1]), shape, architecture, config)
    return Weight("matrices", matrices) if matrices else Weight("unknown")


_derived: dict[str, Architecture] = {}


def _architecture(config: dict) -> Architecture:
    kind = config.get("model_type", "")
    if kind not in ARCHITECTURES and kind not in _derived:
        _derived[kind] = _derive(config)
    return ARCHITECTURES.get(kind) or _derived[kind]


def _derive(config: dict) -> Architecture:
    """Make the table of an architecture from its model, without memory; Llama's where none can be built.

    What has two dimensions is a matrix; of a stack of experts each is one.
    """
    from transformers import AutoConfig

    from starling_train.models.causal_lm import build_empty
    from starling_train.models.source import UNUSABLE

    try:
        model_config: Any = AutoConfig.for_model(**config)
        held = {name: tuple(p.shape) for name, p in build_empty(model_config).named_parameters()}
    except UNUSABLE:
        return LLAMA
    matrices: dict[str, None] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for name, shape in held.items():
        match = LAYER.fullmatch(name.removesuffix(".weight"))
        if not match or len(shape) < 2 or min(shape[-2:]) == 1:
            continue
        template = re.sub(r"(?<=experts)\.\d+\.", ".*.", match[2])
        if len(shape) == 3:
            in_gate_order = shape[-1] == model_config.hidden_size or template != "mlp.experts.gate_up_proj"
            own = (re.sub(r"experts\.", "experts.*.", template),)
            parts[template] = SWIGLU_MOE.parts.get(template, own) if in_gate_order else own
            matrices |= dict.fromkeys(parts[template])
        elif len(shape) == 2:
            matrices[template] = None
    return Architecture(tuple(matrices), parts) if matrices else LLAMA


def _matrices(
    module: str, name: str, layer: int, shape: tuple[int, ...], architecture: Architecture, config: dict
) -> tuple[Matrix, ...]:
    """Return the matrices of the tensor `name` (inside its layer); none where the architecture does not know it."""
    prefix = module.removesuffix(name)
    template = re.sub(r"(?<=experts)\.\d+\.", ".*.", name)
    number = re.search(r"experts\.(\d+)\.", name)
    if len(shape) == 2 and template in architecture.matrices:
        order = (layer, architecture.matrices.index(template), int(number[1]) if number else 0)
        return (
            Matrix(module, type_of(template), layer, shape, (), order, _holder(prefix, name, template, architecture)),
        )
    parts = architecture.parts.get(name, ())
    stacked = any("*" in part for part in parts)
    if not parts or len(shape) != (3 if stacked else 2):
        return ()
    matrices = []
    for expert in range(shape[0]) if stacked else (None,):
        for part, (start, stop) in zip(parts, _rows(module, parts, shape[-2], config), strict=True):
            whole = len(parts) == 1
            index = (() if expert is None else (expert,)) + (() if whole else (slice(start, stop),))
            order = (layer, architecture.matrices.index(part), expert or 0)
            part_module = prefix + part.replace("*", str(expert))
            part_shape = (stop - start, shape[-1])
            parameter = module if stacked else f"{module}.weight"
            matrices.append(Matrix(part_module, type_of(part), layer, part_shape, index, order, parameter))
    return tuple(matrices)


def _holder(prefix: str, name: str, template: str, architecture: Architecture) -> str:
    """Return the model's parameter for a matrix that has a tensor of its own in the checkpoint."""
    for holder, parts in architecture.parts.items():
        if template in parts:
            return prefix + (holder if "*" in template else f"{holder}.weight")
    return f"{prefix}{name}.weight"


def _rows(module: str, parts: tuple[str, ...], rows: int, config: dict) -> list[tuple[int, int]]:
    """Return the first and last row of each part.

    q, k and v by the numbers of heads, everything else in equal shares.
    """
    shares = [1] * len(parts)
    if len(parts) == 3:
        heads = config.get("num_attention_heads")
        if not heads:
            raise UserError(f"config.json: no num_attention_heads, which splits {module}; download it again")
        shares = [heads, *[config.get("num_key_value_heads") or heads] * 2]
    if rows % sum(shares):
        raise UserError(f"config.json: {rows} rows of {module} do not split {shares}; it is of another model")
    ends = [rows // sum(shares) * sum(shares[: i + 1]) for i in range(len(shares))]
    return list(zip([0, *ends], ends, strict=False))


def type_of(template: str) -> str:
    """Return the module type of a name inside its layer.

    Without expert number; a part by its own name (`self_attn.q_proj`).
    """
    return re.sub(r"[^.]+\[(\w+)\]", r"\1", template.replace(".*", ""))


def layer_of(module: str) -> int | None:
    """Return the number of the decoder layer that `module` lies in; None outside the decoder layers."""
    match = LAYER.match(module)
    return int(match[1]) if match else None


def name_in_layer(parameter: str) -> str:
    """Shorten `model.layers.3.mlp.experts.down_proj` or `...mlp.gate.weight` to `mlp.experts.down_proj`, `mlp.gate`."""
    match = LAYER.fullmatch(parameter.removesuffix(".weight"))
    assert match is not None, parameter
    return match[2]


def is_linear(parameter: str) -> bool:
    """Return whether `parameter` is the weight of a Linear; stacked experts and routers are bare parameters."""
    return parameter.endswith(".weight") and not parameter.endswith(".mlp.gate.weight")


def _before_layers(match: re.Match[str]) -> str:
    """Return what precedes `layers.3.` in a name."""
    return re.sub(r"(?:layers|h)\.$", "", match.string[: match.start(1)])


def second_copies(names: Iterable[str]) -> dict[str, str]:
    """Map the tensors that belong to a further copy of the decoder to the prefix of that copy."""
    names = list(names)
    prefixes = {_before_layers(match) for name in names if (match := LAYER.fullmatch(name))}
    others = sorted(prefixes, key=COPIES.index)[1:]
    part = r"(?:(?:layers|h)\.\d+|embed_tokens|norm)\..+"
    return {name: prefix for name in names for prefix in others if re.fullmatch(re.escape(prefix) + part, name)}
