"""The guard of skills: at each evaluation, whether a skill is lost since step 0, and what follows.

A skill is lost where the whole 95 % interval of its fall is above what may be lost. The interval is of the cases, taken
in pairs: a policy answers the same questions as at step 0, so that only questions whose answer changed are noise.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from starling_train.config.fields import UserError
from starling_train.config.guard import MEAN, PERPLEXITY, SHARE, GuardConfig, Measure, allowed
from starling_train.core.intervals import paired_difference_of_shares, weighted_mean
from starling_train.run.runtime import Runtime
from starling_train.training.measured import CaseValues, Measured

RAISED = 2.0  # factor of the KL coefficient, each time that a skill is lost


class Fall(NamedTuple):
    """How far a skill is below step 0, in the metric's points; negative where it rose.

    surely: the low end of the 95 % interval, what chance does not explain; without cases the fall itself.
    """

    points: float
    surely: float


class FirstMeasure:
    """A metric at step 0, and the value of each of its cases."""

    def __init__(self, metric: str, measure: Measure):
        self.metric, self.measure = metric, measure
        self._value: float | None = None
        self._cases: dict[str, float] = {}

    def take(self, measured: Measured) -> None:
        """Take over what was measured at step 0. Raises UserError where no later one can be compared with it."""
        value = measured.metrics[self.metric]
        if not math.isfinite(value):
            raise UserError(
                f"guard.skills: {self.metric} is not a finite number before the first step; leave it out, or use "
                "model.dtype=float32"
            )
        self._value = value
        self._cases = {name: case.value for name, case in measured.values_of(self.metric).items()}

    @property
    def is_taken(self) -> bool:
        return self._value is not None

    def fall(self, measured: Measured) -> Fall:
        """Compare with step 0. Raises UserError where the cases are not the same."""
        assert self._value is not None, "step 0 comes first"
        now, cases = measured.metrics[self.metric], measured.values_of(self.metric)
        if cases.keys() != self._cases.keys():
            raise UserError(
                f"guard.skills: {self.metric} was measured on other cases at step 0; give the evaluation.* settings "
                "with which the run began, or another name="
            )
        if not math.isfinite(now):
            return Fall(math.inf, math.inf)
        if self.measure.kind == SHARE and cases:
            return self._fall_of_share(cases)
        sign = 1.0 if self.measure.is_lower_better else -1.0
        if len(cases) < 2:
            return Fall(sign * (now - self._value), sign * (now - self._value))
        differences = [case.value - self._cases[name] for name, case in cases.items()]
        change = weighted_mean(differences, [case.weight for case in cases.values()])
        if self.measure.kind == PERPLEXITY:
            return Fall(self._value * math.expm1(change.mean), self._value * math.expm1(change.low))
        assert self.measure.kind == MEAN, self.measure
        return Fall(sign * change.mean, min(sign * change.low, sign * change.high))

    def _fall_of_share(self, cases: CaseValues) -> Fall:
        lost = sum(self._cases[name] > case.value for name, case in cases.items())
        gained = sum(self._cases[name] < case.value for name, case in cases.items())
        return _fall_of_counts(lost, gained, len(cases))

    def resolution(self, points: float) -> str:
        """Say from which fall on a share counts as lost, where `points` may be; "" for other metrics.

        Raises UserError where no fall could count.
        """
        of = len(self._cases)
        if self.measure.kind != SHARE or not of:
            return ""
        least = next((lost for lost in range(1, of + 1) if _fall_of_counts(lost, 0, of).surely > points), None)
        if least is None:
            raise UserError(
                f"guard.skills: {self.metric} has {of} cases, too few to tell a loss of more than {points:g} points "
                "from chance; give it more"
            )
        return f" ({of:,} cases: a loss of {100 * least / of:.1f} points or more is told from chance)"

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run compares with; the metric itself is the case without a name."""
        return {"": self._value, **self._cases} if self._value is not None else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo `state_dict`."""
        self._cases = dict(state)
        self._value = self._cases.pop("", None)


def _fall_of_counts(lost: int, gained: int, of: int) -> Fall:
    change = paired_difference_of_shares(lost, gained, of)
    return Fall(-100 * change.mean, -100 * change.high)


class Guard:
    """Watches the skills of `config`, and does what `guard.then` says. Without skills it does nothing.

    `stop` and `anchor` both go back to the best checkpoint that kept all skills, and so end with a model that does:
    `stop` ends the run there, `anchor` goes on from there with a larger KL coefficient. That is never lowered: the run
    has shown that it loses the skill with less.

    config: the section.
    measures: what is known of each metric.
    own: returns the KL coefficient that the run has without the guard; 0 where it has none.
    """

    def __init__(
        self, config: GuardConfig | None, measures: Mapping[str, Measure], own: Callable[[], float] = lambda: 0.0
    ):
        config = config or GuardConfig()
        self._config, self._own = config, own
        self._allowed = allowed(config)
        self._firsts = {metric: FirstMeasure(metric, measures[metric]) for metric in self._allowed}
        self._anchor = 0.0
        self._news: list[str] = []  # of the last evaluation
        self._is_lost = self.is_stopped = False  # at the last evaluation; for good

    @property
    def coefficient(self) -> float:
        """The KL coefficient of the next step: the run's own, or the guard's where that is larger."""
        return max(self._own(), self._anchor)

    @property
    def is_active(self) -> bool:
        return bool(self._firsts)

    @property
    def goes_back(self) -> bool:
        """Whether a run that loses a skill goes back, and so needs the best checkpoint that kept them."""
        return self.is_active and self._config.then != "warn"

    @property
    def firsts(self) -> list[FirstMeasure]:
        """What was measured at step 0, to be remembered beside the guard."""
        return list(self._firsts.values())

    def metrics(self) -> dict[str, float]:
        """Return what every step logs: the KL coefficient that it has, where an anchor may raise it."""
        return {"guard/coefficient": self.coefficient} if self.is_active and self._config.then == "anchor" else {}

    def judge(self, measured: Measured, runtime: Runtime) -> dict[str, float]:
        """Compare an evaluation with step 0's, and decide what follows: `guard/*` metrics.

        The first process decides for all. Raises UserError for an evaluation that cannot be compared.
        """
        self._news = []
        if not self.is_active:
            return {}
        if not all(first.is_taken for first in self.firsts):
            self._begin(measured)
            return {"guard/kept": 1}
        falls = runtime.on_first(lambda: {metric: first.fall(measured) for metric, first in self._firsts.items()})
        lost = [metric for metric, fall in falls.items() if fall.surely > self._allowed[metric]]
        self._is_lost = bool(lost)
        if lost:
            self._act({metric: falls[metric] for metric in lost})
        metrics: dict[str, float] = {"guard/kept": int(not lost)}
        for metric, fall in falls.items():
            name = metric.removeprefix("eval/")
            metrics |= {f"guard/{name}_fall": fall.points, f"guard/{name}_fall_low": fall.surely}
        return metrics

    def _begin(self, measured: Measured) -> None:
        for metric, first in self._firsts.items():
            first.take(measured)
            points, unit = self._allowed[metric], first.measure.unit
            self._news.append(f"guard: {metric} may lose {points:g}{unit}{first.resolution(points)}")

    def _act(self, lost: Mapping[str, Fall]) -> None:
        for metric, fall in lost.items():
            unit, points = self._firsts[metric].measure.unit, self._allowed[metric]
            beyond = "" if fall.points == fall.surely else f", {fall.surely:.3g} of them beyond chance"
            told = f"{metric} is {fall.points:.3g}{unit} worse than at step 0{beyond}"
            self._news.append(f"guard: {told}, and {points:g} may be lost")
        before = self.coefficient
        if self._config.then == "anchor":
            self._anchor = min(self._config.most, max(RAISED * before, self._config.least))
            changed = f"KL coefficient {before:.3g} -> {self._anchor:.3g}"
            same = f"the KL coefficient stays at guard.most={before:g}"
            self._news.append(f"guard: back to {{model}}; {same if self._anchor == before else changed}")
        elif self._config.then == "stop":
            self.is_stopped = True
            self._news.append("guard: back to {model}; the run stops")
        else:
            self._news.append("guard: the run goes on (guard.then=warn)")

    def news(self, best_step: int | None) -> list[str]:
        """Return what is to be said of an evaluation, once. best_step: of the best checkpoint that kept the skills."""
        model = f"the model of step {best_step}, the best that kept all skills" if best_step else "the starting model"
        lines = [line.format(model=model) for line in self._news]
        self._news = []
        return lines

    def summary(self, step: int, best_step: int | None) -> dict[str, Any] | None:
        """Return the guard's entry of summary.json, None without skills.

        step: the last one. best_step: as in `news`.
        """
        if not self.is_active:
            return None
        went_back = self.goes_back and self._is_lost
        return {
            "skills": list(self._config.skills),
            "then": self._config.then,
            "stopped": self.is_stopped,
            "policy_step": (best_step or 0) if went_back else step,
        }

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run goes on with."""
        return {"anchor": self._anchor, "lost": int(self._is_lost), "stopped": int(self.is_stopped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self._anchor, self._is_lost, self.is_stopped = state["anchor"], bool(state["lost"]), bool(state["stopped"])
