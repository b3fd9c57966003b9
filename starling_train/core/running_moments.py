"""Running mean and deviation of the reward model's scores, for `reward.scale=running`."""

import math
from collections.abc import Sequence


class RunningMoments:
    """Mean and deviation of all numbers seen so far, batch by batch, without keeping the numbers.

    Chan, Golub & LeVeque (1979), 'Updating formulae and a pairwise algorithm for computing sample variances':
    the result does not depend on how the numbers were cut into batches, and large means lose no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean

    @property
    def std(self) -> float:
        """Sample deviation (divided by count - 1); 1 as long as fewer than two numbers were seen."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else 1.0

    def update(self, numbers: Sequence[float]) -> None:
        """Take in a batch of finite numbers (one that is not would stay in the moments for ever)."""
        assert all(math.isfinite(number) for number in numbers), "a score is not finite"
        if not numbers:
            return
        count, mean = len(numbers), math.fsum(numbers) / len(numbers)
        squares = math.fsum((number - mean) ** 2 for number in numbers)
        total, distance = self.count + count, mean - self.mean
        self._squares += squares + distance**2 * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """Return plain JSON numbers; `load_state_dict` restores them to the last bit."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self._squares = int(state["count"]), state["mean"], state["squares"]
