"""python -m starling_train.laser model.path=DIR: matrices at lower rank, each kept where the measure is not worse."""

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starling_train import assets
from starling_train.cli import command
from starling_train.config.fields import UserError
from starling_train.config.laser import LONGEST_WINDOW, LaserConfig, check

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from starling_train.evals.criteria import Criterion
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime
    from starling_train.selection.records import Record


@command(check, LaserConfig, "laser")
def main(config: LaserConfig) -> None:
    """Dry run, nothing to do, or search."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime

    if config.prepare:
        assets.ensure(config.prepare)
    # a recipe's name is that of the training run's directory already
    folder = config.name if "laser" in config.name else f"{config.name}-laser"
    config.run_dir = config.run_dir or os.path.join("runs", folder)
    run = RunDirectory(config)
    if not config.dry_run and run.is_finished(by_steps=False):
        print(f"{run.path} is finished, nothing to do; its model: {run.path / 'model'}")
        return
    runtime = Runtime(config.cluster.device, config.cluster.threads, config.seed)
    if config.dry_run:
        print(Inputs.find(config, runtime, run).describe())
        return
    with run.owned():
        search(config, run, runtime)
    print(f"model: {(run.path / 'model').resolve()}")
    print(f"report: {run.report.resolve()}")


@dataclass
class Inputs:
    """Everything that is known before a weight is read, and found to be right."""

    config: LaserConfig
    directory: "Path"
    tokenizer: Any
    listing: "dict[str, Record]"
    records: "dict[str, Record] | None"  # of freeze.scan; None: the model is to be scanned
    criterion: "Criterion"

    @classmethod
    def find(cls, config: LaserConfig, runtime: "Runtime", run: "RunDirectory") -> "Inputs":
        """Check, the cheap things first, and read the data. Raises UserError."""
        from starling_train.engine import rank_search
        from starling_train.files import disk
        from starling_train.models import causal_lm, header_checks, quantisation
        from starling_train.selection import scan, scans
        from starling_train.training import policy

        disk.check_directory(run.path, "run_dir")
        model, laser = config.model, config.laser
        directory = causal_lm.resolve(model.path, "model.path", model.revision, weights=not config.dry_run)
        quantisation.check_acceleration(attention=model.attention)
        model_config = causal_lm.load_config(directory, "model.path")
        tokenizer = policy.load_tokenizer(config, directory)
        policy.check_vocabulary(model_config, tokenizer)
        window = window_of(laser.window, model_config.max_position_embeddings)
        if not config.dry_run:
            header_checks.check_policy(directory, model_config, "model.path")
            scan.check_weights(directory)
        listing = scan.list_matrices(directory)
        rank_search.check_asked(listing, laser.modules, laser.layers, laser.types, laser.percent)
        records = scans.read_scan(config.freeze, directory) if config.freeze.scan else None
        if records and (unranked := [m for m, record in records.items() if record.rank is None or record.raw is None]):
            raise UserError(
                f"freeze.scan: {config.freeze.scan} says no rank of {unranked[0]}; give the snr.json of our own scan, "
                "or leave it out"
            )
        return cls(config, directory, tokenizer, listing, records, criterion_of(config, tokenizer, window, runtime))

    def describe(self) -> str:
        """What would be tried, and how it would be judged."""
        from starling_train.engine import rank_search

        laser = self.config.laser
        tries = rank_search.check_asked(self.listing, laser.modules, laser.layers, laser.types, laser.percent)
        return (
            f"would try {tries} of {len(self.listing)} matrices of {self.directory}, those "
            f"with the lowest raw SNR ({self.config.freeze.dialect}) first\n{self.judged()}"
        )

    def judged(self) -> str:
        """By what, in words."""
        found = self.criterion
        source = self.config.perplexity.path if found.name == "perplexity" else self.config.preference.path
        dropped = f"; {found.dropped} longer than laser.window left out" if found.dropped else ""
        return f"{found.name} on {len(found.judging)} {found.unit} of {source}, {len(found.held_out)} held out{dropped}"


def window_of(asked: int | None, positions: int) -> int:
    """Tokens that go through the model together. Raises UserError for more than it has positions."""
    if asked and asked > positions:
        raise UserError(f"laser.window: {asked} is more than the model's {positions} positions; lower it")
    return asked or min(positions, LONGEST_WINDOW)


def criterion_of(config: LaserConfig, tokenizer: Any, window: int, runtime: "Runtime") -> "Criterion":
    """The measure with its data. Raises UserError."""
    from starling_train.evals import criteria

    laser = config.laser
    split = criteria.Split(laser.samples, laser.held_out_percent, runtime.generator("laser"))
    if laser.measure == "perplexity":
        return criteria.of_text(config.perplexity.path, tokenizer, window, split)
    rows = config.preference.rows
    return criteria.of_preferences(laser.measure, config.preference.path, rows, tokenizer, window, split)


def search(config: LaserConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """All tries of one run, from wherever an earlier start left off; then the model, its numbers and its page."""
    from starling_train.engine import rank_results, rank_search
    from starling_train.models import causal_lm
    from starling_train.models.budget import Budget
    from starling_train.report import rank_page
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
            log = run.log(run.path / rank_search.LOG)
            tries = max(0, log.last)
            known = rank_results.read_start(run, inputs.directory, inputs.criterion.digest())
            rank_results.check_room(run, inputs.directory, config.laser.factored)

            # 2. The scan, whose journal knows what an interrupted start has done.
            run.create()
            console.say(inputs.judged())
            with stop.abandonable():
                records = inputs.records or scans.scan(config, inputs.directory, run.path)
            scans.write_scan(records, run.path)
            laser = config.laser
            candidates, uncut = rank_search.order(records, laser.modules, laser.layers, laser.types, laser.percent)

            # 3. The model, and how good it is before anything is changed.
            with stop.abandonable():
                model = causal_lm.load_causal_lm(
                    inputs.directory,
                    "model.path",
                    dtype=config.model.dtype,
                    attention=config.model.attention,
                    device=str(runtime.device),
                ).eval()
                budget = Budget("laser.tokens_per_batch", laser.tokens_per_batch, console.say)
                known = known or measure(inputs, model, budget)
            run.write(rank_results.START, json.dumps(known))

            # 4. One matrix after the other.
            judge = rank_search.Judge(
                laser.measure, lambda: inputs.criterion.measure(model, budget), inputs.criterion.is_not_worse
            )
            found = rank_search.Search(
                model, inputs.directory, candidates, judge, known["judging"], run.path, laser.factored
            )
            if tries:
                console.say(f"{tries} of {len(candidates)} tries are done already")
            if uncut:
                console.say(f"{uncut} matrices have nothing to cut, and are left as they are")
            for row in found.go_on(log, stop):
                tries = row["step"]
                console.say(told(row, len(candidates)))

            # 5. What came of it, for whoever wants to use it or to know what happened.
            with stop.abandonable():
                held_out = inputs.criterion.measure_held_out(model, budget)
            with stop.finishing():
                weights = rank_results.write(found, inputs.tokenizer, run, laser.factored)
                measured = {"judging": found.current(), "held_out": held_out}
                counts = {"judging": len(inputs.criterion.judging), "held_out": len(inputs.criterion.held_out)}
                numbers = rank_results.summarise(found, known, measured, counts, inputs.criterion.unit)
                run.write("summary.json", rank_results.to_json(config, numbers | weights, runtime))
                rank_page.write(run.path)
                found.clear()
            console.say(rank_results.told(numbers | weights))
        except Stopped:
            console.say(f"stopped by a signal after {tries} tries, which are kept; run the same command to go on")
            sys.exit(stop.exit_code)


def measure(inputs: Inputs, model: "nn.Module", budget: Any) -> dict[str, Any]:
    """Which model and data these are, and how good the model is. Raises UserError where that is no number."""
    import math

    from starling_train.files import identity

    judging = inputs.criterion.measure(model, budget)
    held_out = inputs.criterion.measure_held_out(model, budget)
    if not all(math.isfinite(value) for value in (judging, held_out) if value is not None):
        raise UserError(f"model.path: {inputs.criterion.name} of the model is not finite; try model.dtype=float32")
    which = {"model": identity.fingerprint(inputs.directory), "data": inputs.criterion.digest()}
    return which | {"judging": judging, "held_out": held_out}


def told(row: dict[str, Any], tries: int) -> str:
    """A try as a line for people."""
    after = "not finite" if row["after"] is None else f"{row['after']:.6g}"
    return (
        f"{row['step']}/{tries}  {row['module']}  rank {row['rank_before']} -> {row['rank']}  {row['measure']} "
        f"{row['before']:.6g} -> {after}  {'kept' if row['accepted'] else 'restored'}  {row['seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
