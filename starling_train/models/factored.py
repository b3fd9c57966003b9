"""A causal LM with some matrices kept as two thin factors: a folder, and how it becomes a model again.

The folder is a Hugging Face directory except for its weights, `factored.safetensors`: all tensors of the model, but
NAME.weight (n, m) of a matrix of low rank is replaced by NAME.left (n, k) and NAME.right (k, m), its factors.
`factored.json` lists those matrices: {"matrices": {NAME: k}, "parameters": ..., "parameters_dense": ...}.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.data.chat import Chat
from starling_train.files.json_object import read_json
from starling_train.files.whole import write_whole
from starling_train.models import causal_lm, written
from starling_train.models.causal_lm import CausalLM
from starling_train.models.source import ModelSource

WEIGHTS, LISTING = "factored.safetensors", "factored.json"


class FactoredLinear(nn.Module):
    """x -> left (right x) + bias, instead of a Linear: k (n + m) numbers and multiplications instead of n m."""

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)


def fits(model: nn.Module, parameter: str) -> bool:
    """Return whether a parameter is the weight of a Linear, which two factors can replace."""
    return parameter.endswith(".weight") and isinstance(model.get_submodule(parameter.rpartition(".")[0]), nn.Linear)


def write(
    model: CausalLM,
    factors: dict[str, tuple[Tensor, Tensor]],
    directory: Path,
    chat: Chat,
) -> dict[str, int]:
    """Write the folder, complete or absent.

    model: of the dense matrices.
    factors: (left, right) by the module's name.
    directory: to write.
    chat: the tokenizer and its template.

    Returns {"parameters", "parameters_dense"}: numbers that the folder holds, and that the dense model does.
    """
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}  # a tied head is not
    state = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    dense = sum(tensor.numel() for tensor in state.values())
    for name, (left, right) in factors.items():
        del state[f"{name}.weight"]
        state |= {f"{name}.left": left, f"{name}.right": right}
    counts = {"parameters": sum(tensor.numel() for tensor in state.values()), "parameters_dense": dense}
    listing = {"matrices": {name: right.shape[0] for name, (_, right) in factors.items()}} | counts

    written.name_ends(model, chat)

    def fill(partial: Path) -> None:
        partial.mkdir()
        model.config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        chat.save(partial)
        save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, partial / WEIGHTS)
        (partial / LISTING).write_text(json.dumps(listing, indent=1) + "\n")
        written.complete(partial, tied=written.is_tied(model))

    write_whole(directory, fill)
    return counts


def load_factored(
    directory: str | Path, *, dtype: str = "bfloat16", device: str = "cpu", dense: bool = False
) -> CausalLM:
    """Load the model of a folder that `laser` wrote as `factored/`, in evaluation mode.

    dense: multiply the factors out, for code that needs plain Linear layers; the memory is then that of the dense
    model, which is needed for a moment in any case. Raises UserError for a folder that is not whole.
    """
    directory = Path(directory).expanduser()
    try:
        state = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / WEIGHTS}: cannot be read ({error}); give the folder `factored` of a run"
        ) from None
    names = read_json(directory / LISTING).get("matrices", {})
    kind = getattr(torch, dtype)
    try:
        factors = {name: (state.pop(f"{name}.left").to(kind), state.pop(f"{name}.right").to(kind)) for name in names}
    except KeyError as error:
        raise UserError(f"{directory / WEIGHTS}: lacks {error}; write the folder again") from None
    state |= {f"{name}.weight": (left.double() @ right.double()).to(kind) for name, (left, right) in factors.items()}
    config = causal_lm.without_dropout(ModelSource(directory, "model.path").policy_config)
    # the class that transformers has for it; from_pretrained also makes what no file holds, such as rotary tables
    network: Any = type(causal_lm.build_empty(config))
    model, report = network.from_pretrained(None, config=config, state_dict=state, dtype=kind, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{directory / WEIGHTS}: lacks {len(missing)} tensors, {missing[0]} first; write it again")
    if not dense:
        for name, (left, right) in factors.items():
            model.set_submodule(name, FactoredLinear(left, right, getattr(model.get_submodule(name), "bias", None)))
    return model.to(device).eval()
