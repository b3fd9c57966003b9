"""What a run holds in memory at a time: the budgets that fall when memory runs out."""

from collections.abc import Callable, Sequence
from typing import Any

from starling_train.config.ppo import PpoConfig
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime


class Remembered:
    """Budgets that a run keeps in its state. amounts: what an earlier start's fell to, by key."""

    def __init__(self, budgets: Sequence[Budget], amounts: dict[str, int]):
        self._all = budgets
        self._full = {budget.key: budget.amount for budget in budgets}
        for budget in budgets:
            budget.fall_to(amounts.get(budget.key, budget.amount))

    def agree(self, runtime: Runtime) -> None:
        """Go on with the least amounts of all processes."""
        for budget, least in zip(self._all, runtime.minimum([b.amount for b in self._all]), strict=True):
            budget.fall_to(int(least))

    def fallen(self) -> dict[str, int]:
        """Amounts that are no longer the configuration's, by key."""
        return {budget.key: budget.amount for budget in self._all if budget.amount < self._full[budget.key]}


class Budgets(Remembered):
    """tokens: of a micro-batch, in scoring and update. slots: sequences that are drawn side by side.

    reward_model: its own budget, if it has one here, is the third. amounts: what an earlier start's fell to, by key.
    """

    def __init__(self, config: PpoConfig, reward_model: Any, amounts: dict[str, int], say: Callable[[str], None]):
        self.tokens = Budget("algorithm.tokens_per_microbatch", config.algorithm.tokens_per_microbatch, say)
        self.slots = Budget("rollout.slots", config.rollout.slots, say)
        served = [reward_model.budget] if hasattr(reward_model, "budget") else []
        super().__init__([self.tokens, self.slots, *served], amounts)
