"""Which of our ways through a network give what transformers' plain forward gives: found by comparing them.

A model is admitted by this check and not by a list of names. A few short sequences go through the plain, unpadded
forward and through each way; a way that differs is not taken, and the next plainer one is.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.core.logprobs import HeadForm
from starling_train.models.causal_lm import CausalLM, Decoder
from starling_train.models.families.head import Head, form_of
from starling_train.models.families.padded import PaddedTrunk
from starling_train.models.packing import Packing, can_pack
from starling_train.models.source import UNUSABLE, first_line
from starling_train.models.trunk import AnyTrunk, Trunk, WholeTrunk
from starling_train.run.out_of_memory import is_out_of_memory

LENGTHS = (3, 17, 8)  # of the sequences that are compared
# Largest difference of logits that rounding explains, in units of the largest logit.
ROUNDING = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
# or so many times what the plain forward itself differs by when a sequence goes on, but not more than that of ROUNDING
NOISE, MOST = 8, 4
# In short types rounding may send a token to another expert: so many of the tokens must agree.
AGREEING = {torch.float32: 1.0, torch.float16: 0.9, torch.bfloat16: 0.9}
EXACT_UP_TO = 200_000_000  # parameters: a smaller model of a short type is compared in float32
REFUSALS = (*UNUSABLE, NotImplementedError, AssertionError)


@dataclass(frozen=True)
class Ways:
    """What may be done with a model.

    trunk: `cut` (prefix and suffix), `whole` (packed, all layers), `padded`, `alone` (a sequence at a time).
    form: of its head; None where logits are computed by its own forward.
    reason: why the trunk is not cut; '' if it is.
    continues: whether sequences that begin alike may have their beginning once.
    """

    trunk: str
    form: HeadForm | None
    reason: str = ""
    continues: bool = False

    @property
    def cuts(self) -> bool:
        return self.trunk == "cut"

    def of(self, decoder: Decoder, lowest: int) -> AnyTrunk:
        """Make the trunk of a decoder of this kind. lowest: index of the lowest layer that trains."""
        return make_trunk(self.trunk, decoder, lowest)

    def head(self, model: CausalLM) -> Head:
        """Make the head of a model of this kind."""
        return Head(model, self.form)

    def fallbacks(self, model: CausalLM) -> list[str]:
        """Say what is not done with the model, and what that costs; empty where everything is."""
        layers = model.config.get_text_config().num_hidden_layers
        parts = []
        if not self.cuts:
            what = "the trunk is not cut" if self.trunk == "whole" else "sequences are not packed"
            parts.append(f"{what} ({self.reason}): {COSTS[self.trunk].format(layers=layers)}")
        if self.form is None:
            parts.append("no formula gives its logits: its own forward computes them, twice in an update")
        return parts


MAKE: dict[str, Callable[[Any, int], AnyTrunk]] = {
    "cut": Trunk,
    "whole": lambda decoder, _: WholeTrunk(decoder),
    "padded": lambda decoder, _: PaddedTrunk(decoder),
    "alone": lambda decoder, _: PaddedTrunk(decoder, alone=True),
}
PACKED = ("cut", "whole")
COSTS = {
    "whole": "policy, reference and critic each run all {layers} layers",
    "padded": "policy, reference and critic each run all {layers} layers, and padding costs as much as tokens",
    "alone": "policy, reference and critic each run all {layers} layers, one sequence after the other",
}
_known: WeakKeyDictionary[nn.Module, dict[int, Ways]] = WeakKeyDictionary()


def make_trunk(kind: str, decoder: Decoder, lowest: int) -> AnyTrunk:
    """Make a trunk of a kind of `Ways.trunk`."""
    return MAKE[kind](decoder, lowest)


def ways_of(model: CausalLM, lowest: int = 0) -> Ways:
    """Find the ways through a model; each is compared once, the first time that it is asked for.

    lowest: index of the layer at which its trunk is to be cut. Raises UserError for a model that is not a decoder with
    an output head.
    """
    known = _known.setdefault(model, {})
    if lowest not in known:
        with probing(model) as probed:
            known[lowest] = _find(probed, lowest)
    return known[lowest]


def head_of(model: CausalLM) -> Head:
    """Make the head of a model whose ways are known, or are found now."""
    known = _known.get(model)
    return (next(iter(known.values())) if known else ways_of(model)).head(model)


@contextmanager
def probing(model: CausalLM) -> Iterator[CausalLM]:
    """Give the model in evaluation mode, without gradients; a small one of a short type as a copy in float32."""
    size = sum(parameter.numel() for parameter in model.parameters())
    # quantised weights have other types, and ZeRO's shards no elements
    is_plain = all(parameter.dtype == model.dtype and parameter.numel() for parameter in model.parameters())
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            is_short = model.dtype != torch.float32 and is_plain and size <= EXACT_UP_TO
            probed = copy.deepcopy(model).float() if is_short else model
            _known.setdefault(probed, {}).update(_known.get(model, {}))
            yield probed
    finally:
        model.train(was_training)


def probes(model: CausalLM) -> list[Tensor]:
    """Make the token ids that are compared, spread over the vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    count = sum(LENGTHS)
    ids = (torch.arange(count) * 7919 + 13) % vocabulary
    return list(ids.to(model.get_input_embeddings().weight.device).split(LENGTHS))


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits (tokens, vocabulary) of transformers' plain forward of one sequence."""
    return model(input_ids=ids[None], use_cache=False).logits[0]


class Comparison:
    """The plain logits of the probes, one sequence after the other, and how far another way may be from them."""

    def __init__(self, model: CausalLM):
        self.sequences = probes(model)
        plain = [plain_logits(model, ids).float() for ids in self.sequences]
        index = LENGTHS.index(max(LENGTHS))
        begun = plain_logits(model, self.sequences[index][: max(LENGTHS) // 2]).float()
        noise = float((begun - plain[index][: len(begun)]).abs().max())
        self._plain = torch.cat(plain)
        rounding = ROUNDING.get(model.dtype, 1e-5) * float(self._plain.abs().max())
        self._limit = min(max(rounding, NOISE * noise), MOST * rounding)
        self._share = AGREEING.get(model.dtype, 1.0)

    def agree(self, logits: Tensor, positions: Tensor | None = None) -> bool:
        """Return whether logits (n, vocabulary) are the plain ones. positions: (n,) of the tokens; None: of all."""
        plain = self._plain if positions is None else self._plain[positions]
        right = (logits.float() - plain).abs().amax(-1) <= self._limit  # nan is not
        return bool(right.float().mean() >= self._share)


def _find(model: CausalLM, lowest: int) -> Ways:
    try:
        comparison = Comparison(model)
        form = form_of(model)
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"model.path: {type(model).__name__} is not a decoder with an output head on its last hidden states "
            f"({first_line(error)[:150]}); give another model"
        ) from error
    head, decoder = Head(model, form), model.get_decoder()
    reasons: list[str] = []
    for kind in _candidates(decoder):
        reason = _differs(comparison, head, decoder, kind, lowest)
        if not reason:
            continues = kind in PACKED and not _differs(comparison, head, decoder, kind, lowest, begun=True)
            return Ways(kind, form, reasons[0] if reasons else _unfit(decoder), continues)
        reasons.append(reason)
    raise UserError(
        f"model.path: the hidden states of {type(model).__name__} do not give its logits ({reasons[-1]}); give another "
        "model"
    )


def _begun(device: torch.device) -> Packing:
    """Cut the longest of the probes in two, of which the second goes on from the first."""
    longest = LENGTHS.index(max(LENGTHS))
    half = LENGTHS[longest] // 2
    lengths = [*LENGTHS[:longest], half, LENGTHS[longest] - half, *LENGTHS[longest + 1 :]]
    return Packing(lengths, device, [longest if index == longest + 1 else None for index in range(len(lengths))])


def _candidates(decoder: Decoder) -> list[str]:
    return list(MAKE) if not _unfit(decoder) else ["padded", "alone"]


def _unfit(decoder: Decoder) -> str:
    """Return why a decoder cannot be packed, by its structure; '' if it may be tried."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(getattr(decoder, "norm", None), nn.Module):
        return "it has no list `layers` with a `norm` after it"
    if not can_pack(list(layers)):
        return "its layers have no `self_attn` of their own"
    kinds = set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return f"it has layers of {sorted(kinds)[0]}" if kinds else ""


def _differs(comparison: Comparison, head: Head, decoder: Decoder, kind: str, lowest: int, begun: bool = False) -> str:
    """Return why a kind of trunk is not taken; '' where its logits are the plain ones.

    begun: have the longest sequence's beginning in front, and let the rest of it go on from there.
    """
    ids = torch.cat(comparison.sequences)
    packing = _begun(ids.device) if begun else Packing(LENGTHS, ids.device)
    read = torch.arange(len(ids), device=ids.device)
    try:
        trunk = make_trunk(kind, decoder, lowest)
        entering = trunk.prefix(ids, packing)
        trunk.prefix(ids.flip(0), packing)  # as in a run, others come between: what enters is all that is known
        states = trunk.suffix(entering, packing, read)
        # of some tokens alone too: the last layer then computes fewer
        every_second = read[1::2]
        some = trunk.suffix(entering, packing, every_second)
        logits, few = head.logits(states), head.logits(some)
    except REFUSALS as error:
        if is_out_of_memory(error):  # it says nothing about the model
            raise
        return first_line(error)[:100]
    is_plain = comparison.agree(logits) and comparison.agree(few, every_second)
    return "" if is_plain else "other logits than the plain forward's"
