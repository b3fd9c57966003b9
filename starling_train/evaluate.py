"""python -m starling_train.evaluate model.path=DIR suites=[...]: how good are a reward model and a policy?"""

import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train import assets
from starling_train.cli import command
from starling_train.config import (
    Config,
    FunctionCallingConfig,
    UserError,
    check_name,
    check_reward,
    check_values,
    optional_number,
)

if TYPE_CHECKING:
    from starling_train.engine.runtime import Runtime
    from starling_train.evals.suites import Row, Suite

SUITES = ("preference", "function_calling")


@dataclass
class PreferenceConfig:
    path: str | None = None
    rows: int | None = optional_number(1)


@dataclass
class EvaluateConfig(Config):
    """A run's configuration, so that recipes fit, and what is measured."""

    name: str = "evaluate"
    suites: list[str] = field(default_factory=list)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    function_calling: FunctionCallingConfig = field(default_factory=FunctionCallingConfig)


def check(config: EvaluateConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_name(config.name)
    if not config.suites:
        raise UserError(f"suites: none is given; give some of: suites=[{','.join(SUITES)}]")
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"suites: '{suite}' is not a suite; use some of: {', '.join(SUITES)}")
    if "preference" in config.suites:
        check_reward(config.reward)
        if not config.preference.path:
            raise UserError("preference.path: not set; give JSONL of chosen and rejected answers, or Nectar's parquet")
    if "function_calling" in config.suites:
        if not config.model.path:
            raise UserError("model.path: not set; give the policy: a Hugging Face directory or hub id")
        if not config.function_calling.path:
            raise UserError("function_calling.path: not set; give the directory of the leaderboard's BFCL_v4_*.json")


@command(check, EvaluateConfig, "evaluate")
def main(config: EvaluateConfig) -> None:
    """Find what the suites need, pass over what is done, measure the rest, print the table."""
    from starling_train import __version__
    from starling_train.engine.runtime import Runtime
    from starling_train.evals import results

    for number in (signal.SIGTERM, signal.SIGUSR1):  # every suite that is done is in the file already
        signal.signal(number, lambda received, frame: sys.exit(128 + received))

    # 1. What can be wrong, before anything is loaded.
    if config.prepare:
        assets.ensure(config.prepare)
    runtime = Runtime(config.cluster.device, config.cluster.threads, config.seed)
    file = results.place(config.run_dir or Path("runs") / config.name)
    done = results.read(file)
    asked = [find(name, config, runtime) for name in dict.fromkeys(config.suites)]
    missing = [suite for suite in asked if results.find(done, suite.identity) is None]
    for suite in missing:
        suite.check(config.dry_run)
    for suite in asked:
        would = "would measure" if suite in missing else "done already:"
        if config.dry_run or suite not in missing:
            print(f"{suite.name}: {would} {suite.plan()}")
    if config.dry_run:
        print(f"results go to {file.absolute()}")
        return

    # 2. One suite after the other, each written when it is done.
    results.make_directory(file)
    for suite in missing:
        print(f"{suite.name}: {suite.plan()}", flush=True)
        began = time.perf_counter()
        result = suite.measure(lambda text: print(text, flush=True))
        made = {"seconds": round(time.perf_counter() - began, 3), "device": runtime.describe(), "version": __version__}
        results.add(file, {"identity": suite.identity, "result": result, "made": made})

    # 3. What is known now of everything that was asked for.
    done = results.read(file)
    print(table([(suite.name, suite.rows(results.find(done, suite.identity))) for suite in asked]))
    print(f"results: {file.resolve()}")


def find(name: str, config: EvaluateConfig, runtime: "Runtime") -> "Suite":
    """A suite with its data read and its model looked up. Raises UserError."""
    from starling_train.evals.suites import FunctionCalling, Preference

    weights = not config.dry_run
    if name == "preference":
        return Preference.find(config.preference.path, config.preference.rows, config.reward, runtime, weights)
    return FunctionCalling.find(config.function_calling, config, runtime, weights)


def table(suites: "list[tuple[str, list[Row]]]") -> str:
    """Right answers in percent, a line for each suite and for each of its parts."""
    lines = [f"{'suite':<34}{'right':>9}{'of':>12}"]
    for name, rows in suites:
        lines += [
            f"{f'  {part}' if part else name:<34}{100 * share:>7.2f} %{count:>12,}" for part, share, count in rows
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
