"""The output head of a causal LM: from last hidden states to logits, in the model's own way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from starling_train.core.excluded import Exclusions
from starling_train.core.float32_products import InFloat32
from starling_train.core.logprobs import PLAIN, HeadForm, token_logprobs, token_logprobs_by
from starling_train.models import adapters
from starling_train.models.causal_lm import CausalLM
from starling_train.models.packing import bare_copy

# Keys of configurations that say what becomes of the head's products; each is compared with the model.
FORMS = {
    "final_logit_softcapping": lambda value: HeadForm(softcap=float(value)),
    "logits_scaling": lambda value: HeadForm(scale=1 / float(value)),
    "logit_scale": lambda value: HeadForm(scale=float(value)),
}
PROBES, SPREADS = 4, (1.0, 20.0)  # hidden states to compare on, and their sizes: capped logits show when they are large


class Head:
    """The head of one model. form: `form_of` the model, or of the one it was copied from; None: by its own forward."""

    def __init__(self, model: CausalLM, form: HeadForm | None):
        self._model, self._form = model, form
        self._own = None if form is not None else _without_decoder(model)

    @property
    def weight(self) -> Tensor:
        return self._model.get_output_embeddings().weight

    def logits(self, hidden: Tensor, product: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return logits (n, vocabulary) of hidden states (n, d): float32, of 16-bit weights too.

        product: takes the place of the output layer's own where a formula gives the logits.
        """
        if self._form is None:
            return own_logits(self._model, hidden)
        with InFloat32(self.weight):
            products = (product or self._model.get_output_embeddings())(hidden)
        return self._form.logits(products)

    def logprobs(
        self, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, excluded: Exclusions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each token and the entropy, (n,) float32: see `core.logprobs`."""
        head: Any = self._model.get_output_embeddings()
        if self._own is not None:
            return token_logprobs_by(self._own, len(head.weight), hidden, tokens, temperature, excluded=excluded)
        assert self._form is not None, "else the model's own way is used"
        low_rank, bias = adapters.low_rank(head), getattr(head, "bias", None)
        return token_logprobs(
            hidden, head.weight, tokens, temperature, None, low_rank, bias, form=self._form, excluded=excluded
        )


def own_logits(model: CausalLM, hidden: Tensor) -> Tensor:
    """Compute logits (n, vocabulary) of hidden states (n, d) by the model's own forward."""
    return _without_decoder(model)(hidden)


class _States(tuple[Tensor]):
    """A decoder's output that has last hidden states and nothing else, whatever a model asks it for."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        return None


class _Given(nn.Module):
    """Stands where the decoder is and returns the hidden states that it is given for embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_States":
        return _States((inputs_embeds,))


def _without_decoder(model: CausalLM) -> Any:
    """Return hidden states (n, d) -> logits by the model's forward, with everything below the head taken out."""
    view: Any = bare_copy(model)
    view._modules = dict(model._modules) | {view.base_model_prefix: _Given()}

    def logits(hidden: Tensor) -> Tensor:
        with InFloat32(model.get_output_embeddings().weight):
            return view(inputs_embeds=hidden[None], use_cache=False).logits[0]

    return logits


@torch.no_grad()
def form_of(model: CausalLM) -> HeadForm | None:
    """Find what becomes of the head's products in this model, by comparing; None where no known form gives its logits.

    Raises UNUSABLE where the model's own forward cannot be run like this.
    """
    weight = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    states = torch.cat([size * torch.randn(PROBES, weight.shape[1], generator=generator) for size in SPREADS])
    states = states.to(weight.device, model.dtype)
    expected, products = own_logits(model, states).float(), model.get_output_embeddings()(states)
    for form in _candidates(model.config):
        if _agree(form.logits(products).float(), expected, model.dtype):
            return form
    return None


def _candidates(config: Any) -> list[HeadForm]:
    text = config.get_text_config()
    named = {key: getattr(text, key, None) for key in FORMS}
    return [PLAIN, *(FORMS[key](value) for key, value in named.items() if isinstance(value, int | float) and value)]


def _agree(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    # a form that is wrong is wrong by far: only rounding has to be let through
    return bool((logits - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max())
