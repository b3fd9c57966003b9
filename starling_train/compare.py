"""python -m starling_train.compare +recipe=NAME: one run under several freeze strategies and seeds, side by side."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train.cli import command, configuration, quoted
from starling_train.config.compare import CompareConfig, check
from starling_train.config.fields import UserError

if TYPE_CHECKING:
    from starling_train.comparison.curves import Curve
    from starling_train.comparison.runs import StrategyRun


def check_start(config: CompareConfig) -> None:
    """Check the configuration, and the command line that the runs will have. Raises UserError."""
    check(config)
    check_arguments(sys.argv[1:])


@command(check_start, CompareConfig, "compare")
def main(config: CompareConfig) -> None:
    """Run what is not finished, then compare all finished runs."""
    from starling_train.comparison import children, runs

    directory = config.directory()

    # 1. Mistakes in any run, before the first one trains.
    lines = runs.CommandLines(config, directory, sys.argv[1:], configuration, quoted)
    tried = lines.search()
    requested = lines.compared(find_rates(config, directory, tried))
    runs.look_over([*runs.missing(tried), *runs.missing(requested)], config.dry_run)
    finished(config, directory)
    for what, of in (("runs of the search for learning rates", tried), ("runs", requested)):
        if of:
            print(f"{len(of)} {what} in {directory}, {len(of) - len(runs.missing(of))} of them finished", flush=True)
    if config.dry_run:
        runs.describe([*tried, *requested])
        return

    # 2. The search for learning rates, if there is one, then the runs; an interrupted one resumes.
    start = partial(children.run, at_once=config.compare.processes, say=partial(print, flush=True))
    if runs.missing(tried):
        start([run.child for run in runs.missing(tried)])
        requested = lines.compared(find_rates(config, directory, lines.search()))
    try:
        start([run.child for run in runs.missing(requested)])
    except UserError:  # one failed; what the others found is not lost
        report(config, directory)
        raise

    # 3. All finished runs in the directory, those of other strategies too.
    report(config, directory)


def find_rates(config: CompareConfig, directory: Path, tried: "list[StrategyRun]") -> dict[str, float] | None:
    """Return the learning rate that the search has found for each strategy; None without one, or before its end."""
    from starling_train.comparison import search

    if not tried or not all(run.finished for run in tried):
        return None
    known = search.find(config, directory).rates()
    rates = {run.strategy: known[run.strategy] for run in tried}
    for strategy, rate in rates.items():
        print(f"{strategy}: learning rate {rate:g}, by the search", flush=True)
    return rates


def check_arguments(arguments: list[str]) -> None:
    """Raise UserError for arguments that the runs' own ones would silently overrule."""
    for argument in arguments:
        if argument.lstrip("+~").startswith("seed="):
            raise UserError(f"seed: compare gives each run its own; use compare.first_seed{argument.lstrip('+~')[4:]}")
        if argument in ("-m", "--multirun"):
            raise UserError(f"{argument}: compare starts its runs itself; give compare.strategies and compare.seeds")


def finished(config: CompareConfig, directory: Path) -> "tuple[list[Curve], list[str]]":
    """Return the curves of all finished runs in the directory, and a note on each other one.

    Raises UserError for a run that was not measured by what is compared.
    """
    from starling_train.comparison.curves import by_seed, read

    curves, notes = [], []
    found = sorted((run.parent.name, seed, run) for seed, run in by_seed(directory.glob("runs/*/*")))
    for strategy, seed, run in found:
        curve = read(run, strategy, seed, config.compare.reward, config.skills())
        curves += [curve] if curve else []
        notes += [] if curve else [f"{strategy} seed {seed} is not finished, and is left out."]
    return curves, notes


def report(config: CompareConfig, directory: Path) -> None:
    """Write compare.json, compare.png and compare.md of all finished runs, if one is of the reference strategy."""
    from starling_train.comparison import search
    from starling_train.comparison.strategies import compare
    from starling_train.report import comparison

    section = config.compare
    curves, notes = finished(config, directory)
    if not any(curve.strategy == section.reference for curve in curves):
        print(f"no comparison yet: no run of {section.reference}, compare.reference, is finished")
        return
    compared = compare(curves, section.reference, section.level, section.kl_level)
    compared = replace(compared, notes=notes + compared.notes)
    if section.search:
        tried = search.find(config, directory)
        compared = replace(compared, search=tried, notes=compared.notes + search.remarks(tried, section.search))
    text = json.dumps(compared.to_json(), indent=1, allow_nan=False) + "\n"
    comparison.write(directory, config.name, curves, compared, text)
    print(comparison.text(compared))
    print(f"comparison: {(directory / 'compare.md').resolve()}")


if __name__ == "__main__":
    main()
