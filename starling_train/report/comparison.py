"""The tables, the sentences and compare.md of a comparison of freeze strategies."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from starling_train.config.sections import KL, is_less_better
from starling_train.files.whole import write_text, write_whole
from starling_train.report.markup import markdown_table
from starling_train.report.plots import frontier

BETTER, WORSE, ALIKE, UNKNOWN = "better than", "worse than", "not clearly different from", "not comparable with"
ORDER = (BETTER, f"perhaps {BETTER}", ALIKE, f"perhaps {WORSE}", WORSE, UNKNOWN)
CLEAR = 0.05  # a corrected p-value below it
REACH = ("steps to it", "runs that reach it")


class Table(NamedTuple):
    """A table with its heading, and what it says in sentences; all is plain text."""

    title: str
    head: list[str]
    rows: list[list[str]]
    says: Sequence[str] = ()


def number(value: Any, digits: int = 2) -> str:
    """Return an `Interval` as text."""
    if value.count == 0:
        return "none"
    half = "" if math.isnan(value.half) else f" ± {value.half:.{digits}f}"
    return f"{signed(value.mean, digits)}{half}"


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign; "none" for None."""
    return "none" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no negative zero


def short(key: str) -> str:
    """Return the name of a metric as words."""
    return "KL to the start" if key == KL else key.removeprefix("eval/").replace("_", " ")


def leads(compared: Any) -> tuple[str, str, str]:
    """Return what the three ways to compare are called: at equal reward, at equal KL, at the last step."""
    reward = "" if compared.level is None else f" ({signed(compared.level)})"
    kl = "" if compared.kl_level is None else f" ({compared.kl_level:.2f} nats)"
    return f"At equal reward{reward}", f"At equal KL{kl}", "At the last step"


def tables(compared: Any) -> list[Table]:
    """Return a table for each way to compare, with a row for each strategy; equal reward, the fairest, comes first.

    compared: a `StrategyComparison`.
    """
    made = [_at_equal_reward(compared), _at_equal_kl(compared), _at_the_last_step(compared)]
    return [table for table in made if table is not None]


def _at_the_last_step(compared: Any) -> Table:
    skills = list(compared.sides[0].skills)
    names = [short(skill) for skill in skills]
    rates = any(side.rates for side in compared.sides)
    head = ["strategy", "parameters trained", *(["learning rate"] if rates else []), "seeds", "reward gained", *names]
    rows = []
    for side in compared.sides:
        rate = [" and ".join(f"{rate:g}" for rate in side.rates) or "not known"] if rates else []
        cells = [side.strategy, f"{side.trained:,}", *rate, str(side.reward.count), number(side.reward)]
        rows.append(cells + [number(side.skills[skill]) for skill in skills])
    lead = leads(compared)[2]
    return Table(lead, head, rows, _sentences(compared, lead, compared.equal_steps))


def _at_equal_reward(compared: Any) -> Table | None:
    if compared.level is None:
        return None
    skills = list(compared.sides[0].skills)
    rows = [
        [side.strategy, *(number(side.at_level[skill]) for skill in skills), *_reached(side.steps_to_level, side)]
        for side in compared.sides
    ]
    lead = leads(compared)[0]
    return Table(
        lead, ["strategy", *map(short, skills), *REACH], rows, _sentences(compared, lead, compared.equal_reward)
    )


def _at_equal_kl(compared: Any) -> Table | None:
    if compared.kl_level is None:
        return None
    skills = list(compared.sides[0].at_kl)
    rows = []
    for side in compared.sides:
        means = [number(side.reward_at_kl), *(number(side.at_kl[skill]) for skill in skills)]
        rows.append([side.strategy, *means, *_reached(side.steps_to_kl, side)])
    head, lead = ["strategy", "reward gained", *map(short, skills), *REACH], leads(compared)[1]
    return Table(lead, head, rows, _sentences(compared, lead, compared.equal_kl))


def _reached(steps: Any, side: Any) -> list[str]:
    return [f"{steps.mean:.1f}" if steps.count else "none", f"{steps.count} of {side.reward.count}"]


def run_table(compared: Any) -> Table:
    """Return a table with a row for each run."""
    equal_reward, equal_kl, _ = leads(compared)
    skills, others = list(compared.sides[0].skills), list(compared.sides[0].at_kl)
    head = ["strategy", "seed", "steps", "reward gained", *(short(skill) for skill in skills)]
    if compared.level is not None:
        head += [f"{short(skill)} {equal_reward[0].lower()}{equal_reward[1:]}" for skill in skills]
    if compared.kl_level is not None:
        head += [f"{name} {equal_kl[0].lower()}{equal_kl[1:]}" for name in ("reward gained", *map(short, others))]
    rows = []
    for run in compared.runs:
        cells: list[float | None] = [run.reward, *(run.skills[skill] for skill in skills)]
        if compared.level is not None:
            cells += [run.at_level[skill] for skill in skills]
        if compared.kl_level is not None:
            cells += [run.reward_at_kl, *(run.at_kl[skill] for skill in others)]
        rows.append([run.strategy, str(run.seed), str(run.steps), *map(signed, cells)])
    return Table("Every run", head, rows)


def more_tables(compared: Any) -> list[Table]:
    """Return the tables that a reader looks up: the search for learning rates, and every run."""
    search = [search_table(compared.search)] if compared.search is not None and compared.search.tried else []
    return [*search, *([run_table(compared)] if compared.runs else [])]


def search_table(search: Any) -> Table:
    """Return the table of a search for learning rates, everything that was tried, and what was chosen how."""
    seeds = sorted({seed for one in search.tried for seed in one.seeds})
    skills = [skill for skill in search.tried[0].skills if all(skill in one.skills for one in search.tried)]
    head = ["strategy", "learning rate", *(f"reward gained, seed {seed}" for seed in seeds), "mean"]
    rows = []
    for one in search.tried:
        by_seed = dict(zip(one.seeds, one.rewards, strict=True))
        ends = [("not finite" if by_seed[s] is None else signed(by_seed[s])) if s in by_seed else "" for s in seeds]
        rate, mean = f"{one.rate:g}{' (chosen)' if one.is_chosen else ''}", signed(one.reward)
        rows.append([one.strategy, rate, *ends, mean, *(signed(one.skills[skill]) for skill in skills)])
    says = [
        "Every strategy was tried with the same learning rates, on seeds that are not compared. It runs with the one "
        f"that gained most reward ({search.metric}) at the last step, on average over the seeds; skills did not count."
    ]
    return Table("Search for learning rates", [*head, *map(short, skills)], rows, says)


def sentences(compared: Any) -> list[str]:
    """Return the reference against all others in words: a sentence for each value, at equal reward first."""
    return [line for table in tables(compared) for line in table.says]


def _sentences(compared: Any, lead: str, differences: Sequence[Any]) -> list[str]:
    """Return a sentence for each value that was compared.

    compared: all.
    lead: what they begin with.
    differences: of one way to compare.
    """
    return [
        _sentence(compared.reference, lead, [difference for difference in differences if difference.of == of])
        for of in dict.fromkeys(difference.of for difference in differences)
    ]


def _sentence(reference: str, lead: str, differences: Sequence[Any]) -> str:
    of = differences[0].of
    what = "reward gained" if of == "reward" else short(of) + (" (less is better)" if is_less_better(of) else "")
    counts = {difference.value.count for difference in differences}
    by_verdict: dict[str, list[str]] = {word: [] for word in ORDER}
    for difference in differences:
        figures = _figures(difference, with_seeds=len(counts) > 1)
        by_verdict[verdict(difference)].append(f"{difference.strategy} ({figures})")
    parts = [f"{word} {_listed(names)}" for word, names in by_verdict.items() if names]
    seeds = f", {_seeds(*counts)}" if len(counts) == 1 and counts != {0} else ""
    return f"{lead}, {what}{seeds}: {reference} is {'; '.join(parts)}."


def verdict(difference: Any) -> str:
    """Return how the reference compares with a strategy, one of `ORDER`.

    Better and worse hold for all strategies of a sentence together (Holm's correction); where only the interval of the
    one difference leaves out 0, it is "perhaps". A comparison from before the correction is judged by the interval.
    """
    sides = {"more": WORSE, "less": BETTER}  # of the strategy minus the reference
    if is_less_better(difference.of):
        sides = {"more": BETTER, "less": WORSE}
    word = {"alike": ALIKE, "unknown": UNKNOWN}.get(difference.value.verdict) or sides[difference.value.verdict]
    is_sure = difference.p_holm is None or not difference.p_holm > CLEAR
    return word if is_sure or word in (ALIKE, UNKNOWN) else f"perhaps {word}"


def _figures(difference: Any, with_seeds: bool) -> str:
    """Return the reference's value minus the strategy's, its interval, and its size against the spread over seeds."""
    value = difference.value
    if value.count == 0:
        return "no seed has both"
    parts = [signed(-value.mean)]
    if math.isnan(value.half):
        parts.append("no interval")
    else:
        parts.append(f"{signed(-value.high)} to {signed(-value.low)}")
        # equal differences, but for their rounding, have no spread to count by
        has_spread = (difference.spread or 0.0) > 1e-9 * max(1.0, abs(value.mean))
        parts += [f"{abs(value.mean) / difference.spread:.1f} sd"] if has_spread else []
    return ", ".join([*parts, *([_seeds(value.count)] if with_seeds else [])])


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def explanation(compared: Any) -> list[str]:
    """Return how the tables and sentences are to be read, in sentences."""
    counted = [f"{short(skill)} ({count} cases)" for skill, count in compared.cases.items() if count]
    together = f", for {_listed(counted)} by seeds and cases together" if counted else ""
    others = len(compared.sides) - 1
    lines = [f"Means over the seeds with 95 % intervals (Student's t){together}; changes since step 0."]
    if others:
        lines.append(
            f"In brackets: {compared.reference} minus the other strategy, over the seeds of both; its 95 % interval; "
            "its size in standard deviations (sd) over seeds."
        )
        lines.append("*Not clearly different* does not prove that two are alike: with few seeds, little is clear.")
    if others > 1:
        lines.append(
            f"*Better* and *worse* hold for the {others} comparisons of a sentence together (Holm's correction, 5 %), "
            "*perhaps* for the one alone; over all sentences one in twenty may still err."
        )
    return lines


def text(compared: Any) -> str:
    """Return tables, sentences and notes for a terminal."""
    parts = []
    for table in tables(compared):
        parts += [f"{table.title}\n{markdown_table(table.head, table.rows)}", *table.says]
    return "\n".join([*parts, *compared.notes])


def markdown(name: str, compared: Any) -> str:
    """Return the text of `compare.md`."""
    seeds = sorted({run.seed for run in compared.runs})
    parts = [f"# {name}: freeze strategies side by side", f"Seeds {', '.join(map(str, seeds))}."]
    parts += ["\n".join(f"- {line}" for line in compared.notes)]
    for table in tables(compared):
        parts += [f"## {table.title}", markdown_table(table.head, table.rows)]
        parts += ["\n".join(f"- {line}" for line in table.says)]
    parts += [" ".join(explanation(compared)), f"![{frontier.READING}](compare.png)"]
    for table in more_tables(compared):
        parts += [f"## {table.title}", *table.says, markdown_table(table.head, table.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(directory: Path, name: str, curves: Sequence[Any], compared: Any, numbers: str) -> None:
    """Write compare.json, compare.png and compare.md, each whole or not at all: another process may write too.

    directory: of all runs.
    name: of the comparison.
    curves: of all runs.
    compared: a `StrategyComparison`.
    numbers: the content of compare.json.
    """
    write_whole(directory / "compare.png", lambda partial: frontier.draw(curves, compared, partial), shared=True)
    write_text(directory / "compare.json", numbers, shared=True)
    write_text(directory / "compare.md", markdown(name, compared), shared=True)
