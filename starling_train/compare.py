"""python -m starling_train.compare +recipe=NAME: one run under several freeze strategies and seeds, side by side."""

import json
import sys
from pathlib import Path

from starling_train.cli import command, configuration, quoted
from starling_train.config.compare import CompareConfig, check
from starling_train.config.fields import UserError


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
    requested = runs.find_runs(config, directory, sys.argv[1:], configuration, quoted)
    missing = [run for run in requested if not run.finished]
    runs.look_over(missing, config.dry_run)
    print(f"{len(requested)} runs in {directory}, {len(requested) - len(missing)} of them finished", flush=True)
    if config.dry_run:
        runs.describe(requested)
        return

    # 2. The runs; an interrupted one resumes.
    children.run([run.child for run in missing], config.compare.processes, lambda line: print(line, flush=True))

    # 3. All finished runs in the directory, those of other strategies too.
    report(config, directory)


def check_arguments(arguments: list[str]) -> None:
    """Raise UserError for arguments that the runs' own ones would silently overrule."""
    for argument in arguments:
        if argument.lstrip("+~").startswith("seed="):
            raise UserError(f"seed: compare gives each run its own; use compare.first_seed{argument.lstrip('+~')[4:]}")
        if argument in ("-m", "--multirun"):
            raise UserError(f"{argument}: compare starts its runs itself; give compare.strategies and compare.seeds")


def report(config: CompareConfig, directory: Path) -> None:
    """Write compare.json, compare.png and compare.md of all finished runs, if one is of the reference strategy."""
    from starling_train.comparison.curves import read
    from starling_train.comparison.strategies import compare
    from starling_train.report import comparison

    section, curves = config.compare, []
    for run in sorted((directory / "runs").glob("*/seed_*")):
        seed = int(run.name.removeprefix("seed_"))
        curve = read(run, run.parent.name, seed, section.reward, config.skills())
        curves += [curve] if curve else []
    if not any(curve.strategy == section.reference for curve in curves):
        print(f"no comparison yet: no run of {section.reference}, compare.reference, is finished")
        return
    compared = compare(curves, section.reference, section.level, section.kl_level)
    text = json.dumps(compared.to_json(), indent=1, allow_nan=False) + "\n"
    comparison.write(directory, config.name, curves, compared, text)
    print(comparison.text(compared))
    print(f"comparison: {(directory / 'compare.md').resolve()}")


if __name__ == "__main__":
    main()
