"""The plain path of any decoder: padded, or one sequence after the other; nothing is packed or shared."""

from typing import Any

import torch
from torch import Tensor

from starling_train.models.causal_lm import Decoder
from starling_train.models.packing import Packing


class PaddedTrunk:
    """A decoder's own forward over right-padded rows.

    alone: a row at a time instead, without any padding, where the decoder cannot even do that.
    """

    def __init__(self, decoder: Decoder, alone: bool = False):
        self._decoder, self._alone = decoder, alone

    def prefix(self, ids: Tensor, packing: Packing) -> Tensor:
        """Return the ids themselves."""
        return ids

    def suffix(self, entering: Tensor, packing: Packing, read: Tensor) -> Tensor:
        """Run the whole decoder: ids (tokens,) -> states after its last norm, (n, d), of the tokens `read`."""
        decoder: Any = self._decoder
        rows = entering.split(packing.lengths)
        if self._alone:
            states = [decoder(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
            return torch.cat(states)[read]
        ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        lengths = torch.tensor(packing.lengths, device=ids.device)
        is_real = torch.arange(packing.longest, device=ids.device) < lengths[:, None]
        output = decoder(input_ids=ids, attention_mask=is_real.long(), use_cache=False).last_hidden_state
        return output[is_real][read]
