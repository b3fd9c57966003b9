"""The live policy's tensors under the names of its checkpoint, as an engine with weights of its own loads them.

Such an engine puts matrices together that read the same input. Given one of them alone, vLLM fills the rest with
whatever memory holds; so what is given is rounded up to the whole.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.models import adapters
from starling_train.models.causal_lm import CausalLM

# matrices that engines put together, by the last part of their module's name
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"))
ADAPTER, BASE = ".lora_", ".base_layer."  # in PEFT's names
AT_ONCE = 2**24  # elements
Weights = dict[str, Callable[[], Tensor]]  # by the name of a parameter of the model without adapters


def weights_of(policy: CausalLM) -> Weights:
    """Return every weight of a policy, adapters merged, each computed when it is asked for.

    A tied head is among them once, as the embeddings.
    """
    layers = dict(adapters.adapted(policy))
    weights: Weights = {}
    for name, module, parameter in _own(policy):
        layer = layers.get(module)
        weights[name] = parameter.detach if layer is None else partial(adapters.merged_weight, layer)
    return weights


def _own(policy: CausalLM) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield weights that are no adapter's: the name as without adapters, the module's name under them, the weight."""
    for name, parameter in policy.named_parameters():
        if ADAPTER not in name:
            yield name.replace(BASE, "."), name.removesuffix(f"{BASE}weight"), parameter


def trained_names(policy: CausalLM) -> set[str]:
    """Return the names of the weights that training changes: those that train, and those that adapters are added to."""
    named = policy.named_parameters()
    trained = {name for name, parameter in named if parameter.requires_grad and ADAPTER not in name}
    return trained | {f"{name}.weight" for name, _ in adapters.adapted(policy)}


def rounded_up(names: Collection[str], known: Iterable[str]) -> set[str]:
    """Add to some weights those of the same module, and of the modules that engines put together with it.

    names: of the weights.
    known: the names of all.
    """
    modules = {name.rpartition(".")[0] for name in names}
    for module in list(modules):
        parent, _, last = module.rpartition(".")
        modules |= {f"{parent}.{other}" for fused in FUSED if last in fused for other in fused}
    return {name for name in known if name.rpartition(".")[0] in modules}


@torch.no_grad()
def tensors(policy: CausalLM, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield weights by their names in a checkpoint, a layer's after the other's, so that few are held at a time.

    names: of the model's parameters; None: all.
    """
    from transformers.core_model_loading import revert_weight_conversion

    network: Any = policy
    weights = weights_of(policy)
    chosen = [name for name in weights if names is None or name in names]
    for _, of_layer in groupby(chosen, _layer):
        loaded = {name: weights[name]() for name in of_layer}
        yield from revert_weight_conversion(network, loaded).items()


def _layer(name: str) -> str:
    """Return a name up to the layer's number; beyond the layers, the name."""
    number = number_of_layer(name)
    return name[: name.index(f".{number}.") + len(number) + 1] if number else name


def number_of_layer(name: str) -> str:
    """Return the number of the layer in a name, its first one; "" beyond the layers."""
    return next((part for part in name.split(".")[:-1] if part.isdigit()), "")


def layers_with_experts(policy: CausalLM, names: Collection[str] | None) -> set[str]:
    """Return the numbers of the layers of which experts are among some weights. names: of them; None: all."""
    found = weights_of(policy) if names is None else names
    return {number_of_layer(name) for name in found if ".experts." in name}


@torch.no_grad()
def fingerprint(policy: CausalLM) -> tuple[int, ...]:
    """Return a number for each tensor that trains, which changes with it."""
    return tuple(sum_of_bits(parameter) for parameter in policy.parameters() if parameter.requires_grad)


def sum_of_bits(tensor: Tensor) -> int:
    """Return a sum of a tensor's bits, in which every second element weighs more."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().reshape(-1).contiguous().view(kind)
    parts = bits.split(AT_ONCE)  # a sum in 64 bits makes a copy in 64 bits
    sums = [part.sum(dtype=torch.int64) + 3 * part[::2].sum(dtype=torch.int64) for part in parts]
    return int(torch.stack(sums).sum())


def size_of(policy: CausalLM, names: Collection[str] | None = None) -> int:
    """Return the bytes of some weights. names: of them; None: of all."""
    named = _own(policy)
    return sum(one.numel() * one.element_size() for name, _, one in named if names is None or name in names)
