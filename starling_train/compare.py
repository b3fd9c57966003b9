"""python -m starling_train.compare +recipe=NAME: one run under several freeze strategies and seeds, side by side."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train import assets
from starling_train.cli import command
from starling_train.config import Config, UserError, number, optional_number
from starling_train.config import check as check_run

if TYPE_CHECKING:
    from starling_train.engine.children import Child

OWN = ("compare.", "run_dir=", "name=", "seed=", "dry_run=")  # of the command line, not for the runs


@dataclass
class CompareSection:
    strategies: dict[str, list[str]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)
    reference: str = "snr"
    seeds: int = number(5, 1, 1000)
    first_seed: int = number(0, 0, 2**31)
    reward: str = "eval/score_mean"
    skills: list[str] = field(default_factory=lambda: ["eval/function_calling"])
    level: float | None = optional_number(0.0)
    processes: int = number(1, 1, 1024)


@dataclass
class CompareConfig(Config):
    """A run's configuration, so that recipes fit, and what is compared."""

    name: str = "compare"
    compare: CompareSection = field(default_factory=CompareSection)


def check(config: CompareConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_run(config)
    section = config.compare
    for name in [*section.only, section.reference]:
        if name not in section.strategies:
            known = ", ".join(section.strategies)
            raise UserError(
                f"compare: there is no strategy '{name}'; use some of: {known}, or add to compare.strategies"
            )
    if not config.evaluation.every:
        raise UserError("evaluation.every: 0 measures nothing to compare; give a number of steps")
    if not section.skills:
        raise UserError("compare.skills: empty; give metrics that are evaluated, e.g. [eval/function_calling]")
    if "eval/function_calling" in section.skills and "function_calling" not in config.evaluation.suites:
        raise UserError(
            "compare.skills: eval/function_calling is not evaluated; add function_calling to evaluation.suites, or "
            "give other metrics"
        )


@command(check, CompareConfig, "compare")
def main(config: CompareConfig) -> None:
    """Run what is not finished, then compare all that is."""
    from starling_train.engine import children

    if config.prepare:
        assets.ensure(config.prepare)
    directory = Path(config.run_dir or Path("runs") / config.name).expanduser()
    layers = count_layers(config)
    wanted = [
        run_of(config, directory, name, overrides, seed, layers)
        for seed in range(config.compare.first_seed, config.compare.first_seed + config.compare.seeds)
        for name, overrides in chosen(config).items()
    ]
    missing = [child for child in wanted if not (place_of(directory, child) / "summary.json").is_file()]
    print(f"{len(wanted)} runs in {directory}, {len(wanted) - len(missing)} of them finished", flush=True)
    if config.dry_run:
        for child in wanted:
            print(f"{child.name}: python -m {' '.join(child.arguments)}")
        return

    # 1. Mistakes in a strategy's settings, before the first of them trains.
    new = {child.name.split("/")[0]: child for child in missing if not place_of(directory, child).exists()}
    children.run([dry(child) for child in new.values()], config.compare.processes, lambda line: None)

    # 2. The runs; one that was interrupted goes on.
    children.run(missing, config.compare.processes, lambda line: print(line, flush=True))

    # 3. All that is finished there, that of other strategies too.
    report(config, directory)


def chosen(config: CompareConfig) -> dict[str, list[str]]:
    """The strategies that are asked for, by name."""
    section = config.compare
    return {name: section.strategies[name] for name in section.only or section.strategies}


def count_layers(config: CompareConfig) -> int:
    """As many of the last layers as freeze.top_percent is of all: a like number of parameters."""
    from starling_train.models import shapes

    shape = shapes.find(config.model.path, "model.path", shapes.KNOWN_POLICIES, config.model.path)
    return max(1, int(shape.layers * config.freeze.top_percent / 100))


def run_of(config: CompareConfig, directory: Path, name: str, overrides: list[str], seed: int, layers: int) -> "Child":
    """The run of one strategy and seed: this command's own settings, then the strategy's."""
    from starling_train.engine.children import Child

    given = [argument for argument in sys.argv[1:] if not argument.lstrip("+~").startswith(OWN)]
    own = [override.replace("LAYERS", str(layers)) for override in overrides]
    place = directory / "runs" / name / f"seed_{seed}"
    arguments = ["starling_train.ppo", *given, *own, f"seed={seed}", f"name={config.name}_{name}", f"run_dir={place}"]
    return Child(f"{name}/seed_{seed}", arguments, directory / "logs" / f"{name}_seed_{seed}.log")


def place_of(directory: Path, child: "Child") -> Path:
    return directory / "runs" / child.name


def dry(child: "Child") -> "Child":
    """The same run, only looked at."""
    from starling_train.engine.children import Child

    return Child(child.name, [*child.arguments, "dry_run=true"], child.log)


def report(config: CompareConfig, directory: Path) -> None:
    """compare.json, compare.png and compare.md of every finished run in the directory. Raises UserError without any."""
    from starling_train.evals import comparison
    from starling_train.report import comparison as page

    section, curves = config.compare, []
    for place in sorted((directory / "runs").glob("*/seed_*")):
        seed = int(place.name.removeprefix("seed_"))
        curve = comparison.read(place, place.parent.name, seed, section.reward, section.skills)
        curves += [curve] if curve else []
    if not any(curve.strategy == section.reference for curve in curves):
        raise UserError(f"compare.reference: no run of {section.reference} is finished; run it, or give another one")
    found = comparison.compare(curves, section.reference, section.level)
    (directory / "compare.json").write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    page.draw(curves, found, directory / "compare.png")
    (directory / "compare.md").write_text(page.markdown(config.name, curves, found))
    print(page.table(found))
    print("\n".join(page.sentences(found)))
    print(f"comparison: {(directory / 'compare.md').resolve()}")


if __name__ == "__main__":
    main()
