"""The value head: from a hidden state to the value of a token."""

from torch import Tensor, nn
from torch.nn.functional import linear


class ValueHead(nn.Module):
    """Hidden state -> value: Linear(d, 2d), ReLU, Linear(2d, 1), float32, starting at exactly zero everywhere.

    Shape from the Starling authors' training code; the zero start from facts known to matter in PPO (the first
    advantages are then the rewards themselves, not noise of a random critic).
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(2 * hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., d) to values (...), in units of the scaled reward."""
        # computed in float32 even where DeepSpeed stores these weights in bfloat16
        up = linear(hidden.float(), self.up.weight.float(), self.up.bias.float())
        return linear(up.relu(), self.out.weight.float(), self.out.bias.float()).squeeze(-1)
