"""Tokens that a phase holds at a time: halved when memory runs out, and the phase done again."""

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from starling_train.run.out_of_memory import REMEDY, OutOfMemory, first_line, in_one_line, is_out_of_memory
from starling_train.run.runtime import Runtime

Result = TypeVar("Result")
SPARES: list[Callable[[], bool]] = []  # each lets go of memory that can be made again, and says whether it had any
LEAST = 1  # that is, a sequence at a time: one longer than the budget still goes through alone


class Budget:
    """How much of something goes through a model at a time, e.g. tokens of a micro-batch.

    key: the configuration key that sets it, for messages. amount: to begin with. say: prints a line, to stderr if None.
    `amount` only ever falls; a run keeps it in its state, so that a resumed one continues with it.
    """

    def __init__(self, key: str, amount: int, say: Callable[[str], None] | None = None):
        self.key, self.amount = key, amount
        self._say = say or (lambda line: print(f"warning: {line}", file=sys.stderr))

    def lower_to(self, amount: int) -> None:
        """Continue with what an earlier start was lowered to."""
        self.amount = min(self.amount, amount)

    def halving(self, phase: Callable[[int], Result], undo: Callable[[], None] = lambda: None) -> Result:
        """Return `phase(amount)`; when memory runs out, halve the amount, call `undo` and repeat the phase.

        Where something lets go of memory first (`SPARES`), it is repeated with the same amount.

        The phase must change nothing that `undo` does not restore: the result is then that of the smaller amount.
        Raises OutOfMemory, naming the key, when the least amount is still too much.
        """
        while True:
            try:
                return phase(self.amount)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                first = first_line(error)
            # outside of `except`: the error holds the frames, and with them the tensors, that filled the memory
            if sum(spare() for spare in SPARES):  # each, not only the first that has something
                note = "what a rollout had kept for the next is given up"
            elif self.amount <= LEAST:
                raise OutOfMemory(f"{self.key}: out of memory even at {self.amount} ({first}); {REMEDY}")
            else:
                self.amount = max(LEAST, self.amount // 2)
                note = f"{self.key} is {self.amount} from here on"
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._say(f"out of memory ({first}): {note}")

    def once(self, phase: Callable[[int], Result]) -> Result:
        """Return `phase(amount)` where it cannot be repeated, because other processes wait in the middle of it.

        Raises OutOfMemory, naming the key and half the amount, when memory runs out.
        """

        def describe(first: str) -> str:
            if self.amount <= LEAST:
                return f"{self.key}: out of memory even at {self.amount} ({first}); {REMEDY}"
            return (
                f"{self.key}: out of memory at {self.amount} ({first}); start again with "
                f"{self.key}={self.amount // 2}: the run goes on from its last checkpoint"
            )

        with in_one_line(describe):
            return phase(self.amount)


class Budgets(NamedTuple):
    """tokens: of a micro-batch, in scoring and update. slots: sequences that are drawn side by side."""

    tokens: Budget
    slots: Budget


class RunBudgets:
    """The budgets of a run: as low after a resume as before it, and on every process as on the lowest.

    lowered: what an earlier start lowered, by key. say: prints a line.
    """

    def __init__(self, lowered: dict[str, int], say: Callable[[str], None]):
        self._lowered, self._say = lowered, say
        self._budgets: dict[Budget, int] = {}  # with the amount that the configuration gives

    def add(self, key: str, amount: int) -> Budget:
        """Make a budget of this run."""
        return self.follow(Budget(key, amount, self._say))

    def follow(self, budget: Budget) -> Budget:
        """Include a budget that something else has made, e.g. a reward model."""
        self._budgets[budget] = budget.amount
        budget.lower_to(self._lowered.get(budget.key, budget.amount))
        return budget

    def synchronise(self, runtime: Runtime) -> dict[str, int]:
        """Lower each to the least amount of all processes; returns those below the configuration's, by key."""
        least = runtime.minimum([budget.amount for budget in self._budgets])
        for budget, amount in zip(self._budgets, least, strict=True):
            budget.lower_to(int(amount))
        return {budget.key: budget.amount for budget, full in self._budgets.items() if budget.amount < full}
