"""What a rollout is: prompts with the responses drawn for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from starling_train.rollout.hidden_states import Entered


@dataclass
class Rollout:
    """Prompts and the responses drawn for them, as token ids, in the order of the prompts.

    responses: end with the end-of-turn token where `ended` is True; else they were cut by the limit or a stop string.
    entering: the hidden states that entered `keep_layer`, per sequence, of all its tokens but the last.
    drawn_logprobs: the log-probs under which the engine drew the responses' tokens, where it has weights of its own;
        None where it draws from the live ones.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: list[bool]
    entering: list[Entered] | None = field(default=None, repr=False, compare=False)
    drawn_logprobs: list[list[float]] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def only(self, rows: Sequence[int]) -> "Rollout":
        """Return some of its sequences, in this order."""
        entering = None if self.entering is None else [self.entering[i] for i in rows]
        drawn = None if self.drawn_logprobs is None else [self.drawn_logprobs[i] for i in rows]
        prompts, responses = [self.prompts[i] for i in rows], [self.responses[i] for i in rows]
        return Rollout(prompts, responses, [self.ended[i] for i in rows], entering, drawn)

    def is_at_limit(self, max_new_tokens: int) -> list[bool]:
        """Return, per sequence, whether its response was cut by the limit, and neither ended nor met a stop string."""
        return [len(r) == max_new_tokens and not ended for r, ended in zip(self.responses, self.ended, strict=True)]

    def lengths(self) -> list[int]:
        """Count the tokens of prompt and response but for the last, which predicts nothing, per sequence."""
        return [len(p) + len(r) - 1 for p, r in zip(self.prompts, self.responses, strict=True)]


class Drawn(NamedTuple):
    """What an engine gives back for its prompts; see `Rollout`."""

    responses: list[list[int]]
    entering: list[Entered] | None = None
    logprobs: list[list[float]] | None = None


OnDone = Callable[[int, list[int]], None]
# (policy, chat, prompts, config, greedy, keep_layer, indices, on_done), as `generate` takes them
Engine = Callable[..., Drawn]
