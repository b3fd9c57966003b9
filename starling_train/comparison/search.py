"""The search for learning rates: every strategy with the same ones, on seeds that are not compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from starling_train.comparison.curves import Curve, by_seed, read
from starling_train.config.compare import CompareConfig
from starling_train.config.fields import UserError


@dataclass(frozen=True)
class Tried:
    """A strategy with one learning rate, at the last step of its runs.

    seeds, rewards: of each run; None for a reward that is not finite.
    reward: the mean over the seeds that count; None where one is missing or not finite.
    skills: means over all its runs.
    is_chosen: whether the strategy runs with this rate.
    """

    strategy: str
    rate: float
    seeds: list[int]
    rewards: list[float | None]
    reward: float | None
    skills: dict[str, float]
    is_chosen: bool = False


@dataclass(frozen=True)
class Search:
    """Everything that was tried, by strategy and rate. metric: of the reward."""

    metric: str
    tried: list[Tried]

    def rates(self) -> dict[str, float]:
        """Return the chosen learning rate of each strategy."""
        return {one.strategy: one.rate for one in self.tried if one.is_chosen}


def find(config: CompareConfig, directory: Path) -> Search:
    """Read the finished runs of the search, and choose.

    Runs of other rates or seeds, from an earlier search, are listed and do not count. Raises UserError as `choose`.
    """
    section = config.compare
    tried = []
    for strategy, rate, path in sorted(_directories(directory / "search")):
        curves = []
        for seed, run in by_seed(path.iterdir()):
            curve = read(run, strategy, seed, section.reward, ())  # nothing else was measured
            curves += [curve] if curve else []
        if curves:
            tried.append(summarised(strategy, rate, curves, section.searched_seeds()))
    return Search(section.reward, choose(tried, section.search, section.searched_seeds()))


def _directories(folder: Path) -> list[tuple[str, float, Path]]:
    """Return the directories of a search as (strategy, learning rate, path)."""
    known = []
    for path in folder.glob("*/*"):
        try:
            known.append((path.parent.name, float(path.name), path))
        except ValueError:  # not one of ours
            continue
    return known


def summarised(strategy: str, rate: float, curves: Sequence[Curve], seeds: Sequence[int]) -> Tried:
    """Return what a strategy's runs with one rate came to.

    strategy: its name.
    rate: the learning rate.
    curves: of one run or more.
    seeds: those that count.
    """
    ends = {curve.seed: None if max([0, *curve.left_out]) > curve.steps[-1] else curve.reward[-1] for curve in curves}
    counted = [end for seed in seeds if (end := ends.get(seed)) is not None]
    skills = [skill for skill in curves[0].skills if all(skill in curve.skills for curve in curves)]
    return Tried(
        strategy,
        rate,
        list(ends),
        list(ends.values()),
        fmean(counted) if len(counted) == len(seeds) else None,
        {skill: fmean(curve.skills[skill][-1] for curve in curves) for skill in skills},
    )


def choose(tried: Sequence[Tried], rates: Sequence[float], seeds: Sequence[int]) -> list[Tried]:
    """Mark the rate that gained most reward, of equal ones the smallest, for each strategy that has them all.

    Raises UserError for a strategy none of whose rates ended with a finite reward.

    tried: everything.
    rates: among which is chosen.
    seeds: by which.
    """
    chosen = {}
    for strategy in dict.fromkeys(one.strategy for one in tried):
        own = {one.rate: one for one in tried if one.strategy == strategy and set(seeds) <= set(one.seeds)}
        if not set(rates) <= own.keys():
            continue
        known = {rate: reward for rate in sorted(rates) if (reward := own[rate].reward) is not None}
        if not known:
            raise UserError(
                f"compare.search: with every learning rate a run of {strategy} ended with a reward that is not finite; "
                "give smaller ones"
            )
        chosen[strategy] = max(known, key=lambda rate: known[rate])
    return [replace(one, is_chosen=chosen.get(one.strategy) == one.rate) for one in tried]


def remarks(search: Search, rates: Sequence[float]) -> list[str]:
    """Return what a reader must know of the choice: rates at an end of those tried."""
    ends = {"smallest": min(rates), "largest": max(rates)} if len(set(rates)) > 1 else {}
    return [
        f"{strategy} runs with the {end} learning rate that was tried ({rate:g}): one beyond it may be better."
        for strategy, rate in search.rates().items()
        for end, at in ends.items()
        if rate == at
    ]
