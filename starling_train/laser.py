"""python -m starling_train.laser model.path=DIR: matrices at lower rank, each kept where the measure is not worse."""

import json
import sys
from typing import TYPE_CHECKING, Any

from starling_train.cli import command
from starling_train.config.laser import LaserConfig, check

if TYPE_CHECKING:
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime


@command(check, LaserConfig, "laser")
def main(config: LaserConfig) -> None:
    """Describe the search (dry run), or search unless it is finished."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.rank_search.inputs import Inputs
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime

    config.run_dir = str(config.directory())
    run = RunDirectory(config)
    if not config.dry_run and run.is_finished(by_steps=False):
        print(f"{run.path} is finished, nothing to do; its model: {run.path / 'model'}")
        return
    runtime = Runtime.of(config.cluster, config.seed)
    if config.dry_run:
        print(Inputs.find(config, runtime, run).describe())
        return
    with run.owned():
        search(config, run, runtime)
    print(f"model: {(run.path / 'model').resolve()}")
    print(f"report: {run.report.resolve()}")


def search(config: LaserConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """Make all tries of one run, from wherever an earlier start left off; then write the model, numbers and page."""
    from starling_train.models.budget import Budget
    from starling_train.rank_search import results
    from starling_train.rank_search.inputs import Inputs, measure
    from starling_train.rank_search.search import LOG, order
    from starling_train.report import laser_page
    from starling_train.run.console import Console
    from starling_train.run.signals import Stopped, StopRequest
    from starling_train.selection import scans

    console = Console(0)
    tries = 0
    with StopRequest(config.checkpoint.grace_s) as stop:
        try:
            # 1. Inputs. Nothing is written before all of them are known to be right.
            with stop.abandonable():
                inputs = Inputs.find(config, runtime, run)
            log = run.log(run.path / LOG)
            tries = max(0, log.last)
            known = results.read_start(run, inputs.source, inputs.criterion.digest())
            results.check_room(run, inputs.source, config.laser.factored)

            # 2. The scan, whose journal knows what an interrupted start has done.
            run.create()
            console.say(inputs.judged())
            with stop.abandonable():
                records = inputs.scan(runtime, run)
            scans.write_scan(records, run.path)
            laser = config.laser
            candidates, uncut = order(records, laser.modules, laser.layers, laser.types, laser.percent)

            # 3. The model, and how good it is before anything is changed.
            with stop.abandonable():
                model = inputs.load_model(runtime)
                budget = Budget("laser.tokens_per_batch", laser.tokens_per_batch, console.say)
                known = known or measure(inputs, model, budget)
            run.write(results.START, json.dumps(known))

            # 4. One matrix after the other.
            attempts = inputs.attempts(model, candidates, known["judging"], budget, run)
            console.say(f"{tries} of {len(candidates)} tries are done, {uncut} matrices have nothing to cut")
            for row in attempts.go_on(log, stop):
                tries = row["step"]
                console.say(in_words(row, len(candidates)))

            # 5. The results: the model to use, and what happened.
            with stop.abandonable():
                held_out = inputs.criterion.measure_held_out(model, budget)
            with stop.finishing():
                measured = {"judging": attempts.current(), "held_out": held_out}
                numbers = results.finish(config, inputs, attempts, known, measured, run, runtime)
                laser_page.write(run.path)
                attempts.clear()
            console.say(results.in_words(numbers))
        except Stopped:
            console.say(f"stopped by a signal after {tries} tries, which are kept; run the same command to go on")
            sys.exit(stop.exit_code)


def in_words(row: dict[str, Any], tries: int) -> str:
    """Return a try as a line for people."""
    after = "not finite" if row["after"] is None else f"{row['after']:.6g}"
    return (
        f"{row['step']}/{tries}  {row['module']}  rank {row['rank_before']} -> {row['rank']}  {row['measure']} "
        f"{row['before']:.6g} -> {after}  {'kept' if row['accepted'] else 'restored'}  {row['seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
