"""python -m starling_train.compare +recipe=NAME: one run under several freeze strategies and seeds, side by side."""

import json
import sys
from pathlib import Path

from starling_train import assets
from starling_train.cli import command
from starling_train.comparison.runs import describe, find_runs, look_over
from starling_train.config.compare import CompareConfig, check
from starling_train.config.fields import UserError


@command(check, CompareConfig, "compare")
def main(config: CompareConfig) -> None:
    """Run what is not finished, then compare all that is."""
    check_arguments(sys.argv[1:])
    if config.prepare:
        assets.ensure(config.prepare)
    # a recipe's name is that of the training run's directory already
    folder = config.name if "compare" in config.name else f"{config.name}-compare"
    directory = Path(config.run_dir or Path("runs") / folder).expanduser()

    # 1. Mistakes of any run, before the first of them trains.
    runs = find_runs(config, directory)
    missing = [run for run in runs if not run.finished]
    look_over(missing, config.dry_run)
    print(f"{len(runs)} runs in {directory}, {len(runs) - len(missing)} of them finished", flush=True)
    if config.dry_run:
        describe(runs)
        return

    # 2. The runs; one that was interrupted goes on.
    from starling_train.comparison import children

    children.run([run.child for run in missing], config.compare.processes, lambda line: print(line, flush=True))

    # 3. All that is finished there, that of other strategies too.
    report(config, directory)


def check_arguments(arguments: list[str]) -> None:
    """Raise UserError for what the runs' own arguments would overrule without a word."""
    for argument in arguments:
        if argument.lstrip("+~").startswith("seed="):
            raise UserError(f"seed: compare gives each run its own; use compare.first_seed{argument.lstrip('+~')[4:]}")
        if argument in ("-m", "--multirun"):
            raise UserError(f"{argument}: compare starts its runs itself; give compare.strategies and compare.seeds")


def report(config: CompareConfig, directory: Path) -> None:
    """compare.json, compare.png and compare.md of every finished run in the directory, if one is the reference's."""
    from starling_train.comparison import curves as comparison
    from starling_train.report import comparison as page

    section, curves = config.compare, []
    for place in sorted((directory / "runs").glob("*/seed_*")):
        seed = int(place.name.removeprefix("seed_"))
        curve = comparison.read(place, place.parent.name, seed, section.reward, section.skills)
        curves += [curve] if curve else []
    if not any(curve.strategy == section.reference for curve in curves):
        print(f"no comparison yet: no run of {section.reference}, compare.reference, is finished")
        return
    found = comparison.compare(curves, section.reference, section.level)
    text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
    page.write(directory, config.name, curves, found, text)
    print("\n".join([page.table(found), *page.sentences(found), *found.notes]))
    print(f"comparison: {(directory / 'compare.md').resolve()}")


if __name__ == "__main__":
    main()
