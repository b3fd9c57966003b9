"""Token ids that a response cannot have, left out of the distribution that it is drawn from and scored under."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExcludedIds:
    """Ids that no response has at all, and ids that its first tokens are not.

    A response is drawn from the softmax over the other ids, and old, new and reference log-probabilities, the entropy
    and the KL are those of that softmax. Temperature is in them too; top_p and top_k are not: what they cut off depends
    on the weights, so that a token that was drawn may have no probability after an update or under the reference. These
    ids are the same whatever the weights.

    always: ids without a token. early: ids that end a turn, left out of the first `floor` tokens.
    """

    always: tuple[int, ...] = ()
    early: tuple[int, ...] = ()
    floor: int = 0

    def __bool__(self) -> bool:
        return bool(self.always or (self.early and self.floor))

    def at(self, indices: Tensor) -> "Exclusions | None":
        """Return what is left out of rows of logits; None where nothing is.

        indices: (n,) of the tokens that the rows predict, each within its response, from 0.
        """
        return Exclusions(self, indices) if self else None


NOTHING = ExcludedIds()


@dataclass(frozen=True)
class Exclusions:
    """The ids that are left out of each of n rows of logits. indices: (n,), see `ExcludedIds.at`."""

    ids: ExcludedIds
    indices: Tensor

    def split(self, rows: int) -> "list[Exclusions]":
        """Return those of the first `rows` rows, of the next, and so on."""
        return [Exclusions(self.ids, part) for part in self.indices.split(rows)]

    def apply_(self, logits: Tensor) -> Tensor:
        """Set the logits (n, vocabulary) of the ids that are left out, in place, to the lowest finite number.

        Their probability is 0, and finite it stays out of sums and gradients: 0 x inf is nan.
        """
        lowest = torch.finfo(logits.dtype).min
        if self.ids.always:
            logits.index_fill_(-1, _index(self.ids.always, logits.device), lowest)
        if self.ids.floor and self.ids.early:
            early = _index(self.ids.early, logits.device)
            is_early = (self.indices < self.ids.floor)[:, None]
            logits.index_copy_(-1, early, logits.index_select(-1, early).masked_fill(is_early, lowest))
        return logits


@lru_cache(maxsize=16)
def _index(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ids, device=device)
