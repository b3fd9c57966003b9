"""The table, the sentences and the plot of a comparison of freeze strategies."""

import math
from pathlib import Path
from typing import Any

from starling_train.files.whole import write_text, write_whole
from starling_train.report.markup import markdown_table

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989")
WORDS = {
    "more": "better than",
    "less": "worse than",
    "alike": "not clearly different from",
    "unknown": "not comparable with",
}
LESS_IS_BETTER = ("eval/perplexity", "eval/kl_reference")


def number(value: Any, digits: int = 2) -> str:
    """Return an `Interval` as text."""
    if value.count == 0:
        return "none"
    half = "" if math.isnan(value.half) else f" ± {value.half:.{digits}f}"
    return f"{_signed(value.mean, digits)}{half}"


def _signed(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no negative zero


def table(compared: Any) -> str:
    """Return a Markdown table with a line for each strategy. compared: a `StrategyComparison`, as below."""
    return markdown_table(head(compared), rows(compared))


def head(compared: Any) -> list[str]:
    """Return the names of the table's columns."""
    skills, level = list(compared.sides[0].skills), compared.level
    names = ["strategy", "parameters trained", "seeds", "reward gained"]
    names += [f"{_short(skill)}, last step" for skill in skills]
    if level is not None:
        names += [f"{_short(skill)} at +{level:.2f} reward" for skill in skills]
        names += ["steps to it", "runs that reach it"]
    return names


def rows(compared: Any) -> list[list[str]]:
    """Return the table's lines."""
    skills, lines = list(compared.sides[0].skills), []
    for side in compared.sides:
        cells = [side.strategy, f"{side.trained:,}", str(side.reward.count), number(side.reward)]
        cells += [number(side.skills[skill]) for skill in skills]
        if compared.level is not None:
            reaching = side.steps_to_level.count
            cells += [number(side.at_level[skill]) for skill in skills]
            cells += [f"{side.steps_to_level.mean:.1f}" if reaching else "none", f"{reaching} of {side.reward.count}"]
        lines.append(cells)
    return lines


def sentences(compared: Any) -> list[str]:
    """Return the differences in words: for each other strategy and skill, at equal reward and at the last step."""
    lines = []
    for difference in compared.equal_reward:
        lines.append(f"At equal reward (+{compared.level:.2f}) {_sentence(compared.reference, difference)}")
    for difference in compared.equal_steps:
        lines.append(f"At equal steps {_sentence(compared.reference, difference)}")
    return lines


def _sentence(reference: str, difference: Any) -> str:
    """Return a difference, which is the strategy's minus the reference's, as seen from the reference."""
    turned = {} if difference.of in LESS_IS_BETTER else {"more": "less", "less": "more"}
    verdict = turned.get(difference.value.verdict, difference.value.verdict)
    what = "gains a reward that is" if difference.of == "reward" else f"leaves {_short(difference.of)}"
    value = difference.value
    if value.count == 0:
        return f"{reference} and {difference.strategy} cannot be compared in {_short(difference.of)}: no seed has both."
    spread = (
        "no interval" if math.isnan(value.half) else f"95 % interval {_signed(-value.high)} to {_signed(-value.low)}"
    )
    return (
        f"{reference} {what} {WORDS[verdict]} {difference.strategy}'s: {_signed(-value.mean)} ({spread}, {value.count} "
        "seeds)."
    )


def _short(key: str) -> str:
    return key.removeprefix("eval/").replace("_", " ")


def draw(curves: list[Any], compared: Any, path: Path) -> None:
    """Plot reward gained (right is better) against each skill's change (up is better).

    A line for each run, a cross for each strategy.
    """
    from matplotlib.figure import Figure

    skills = list(compared.sides[0].skills)
    figure = Figure(figsize=(6.4 * len(skills), 4.6), layout="constrained")
    for axes, skill in zip(figure.subplots(1, len(skills), squeeze=False)[0], skills, strict=True):
        for colour, side in zip(COLOURS * 3, compared.sides, strict=False):
            for curve in (c for c in curves if c.strategy == side.strategy):
                axes.plot(curve.reward, curve.skills[skill], color=colour, alpha=0.35, linewidth=0.9)
            x, y = side.reward, side.skills[skill]
            halves = [0.0 if math.isnan(v.half) else v.half for v in (x, y)]
            axes.errorbar(x.mean, y.mean, xerr=halves[0], yerr=halves[1], fmt="o", color=colour, label=side.strategy)
        if compared.level is not None:
            axes.axvline(compared.level, color="#8c959f", linewidth=0.8, linestyle=":")
        axes.axhline(0.0, color="#8c959f", linewidth=0.8)
        axes.set_xlabel("held-out reward gained")
        axes.set_ylabel(f"change of {_short(skill)}")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def markdown(name: str, curves: list[Any], compared: Any) -> str:
    """Return the text of `compare.md`."""
    seeds = sorted({curve.seed for curve in curves})
    return "\n".join(
        [
            f"# {name}: freeze strategies side by side",
            "",
            f"Seeds {', '.join(map(str, seeds))}; means over seeds with 95 % intervals (Student's t); changes since "
            "step 0.",
            "",
            table(compared),
            "",
            "![reward gained against skill lost](compare.png)",
            "",
            *(f"- {line}" for line in [*sentences(compared), *compared.notes]),
            "",
        ]
    )


def write(directory: Path, name: str, curves: list[Any], compared: Any, numbers: str) -> None:
    """Write compare.json, compare.png and compare.md, each whole or not at all: another process may write too.

    directory: of all runs.
    name: of the comparison.
    curves: of all runs.
    compared: a `StrategyComparison`.
    numbers: the content of compare.json.
    """
    write_whole(directory / "compare.png", lambda partial: draw(curves, compared, partial), shared=True)
    write_text(directory / "compare.json", numbers, shared=True)
    write_text(directory / "compare.md", markdown(name, curves, compared), shared=True)
