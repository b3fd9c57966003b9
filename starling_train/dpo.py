"""python -m starling_train.dpo +recipe=NAME: direct preference optimisation on the selected layers, from pairs."""

from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.dpo import DpoConfig, check

if TYPE_CHECKING:
    from starling_train.data.pairs import PairedRow
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime
    from starling_train.training.measured import Measured


@command(check, DpoConfig, "dpo")
def main(config: DpoConfig) -> None:
    """Describe the run (dry run), or train unless it is finished."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.training.dpo.inputs import describe
    from starling_train.training.start import start

    start(config, describe, train)


def train(config: DpoConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """Make all steps of one run, from wherever an earlier start left off; every process of the run does the same."""
    from starling_train.data.prompts import Stream
    from starling_train.evals import held_out_pairs
    from starling_train.evals.held_out import HeldOut
    from starling_train.models.actors import Actors
    from starling_train.report import page
    from starling_train.training import start_check
    from starling_train.training.dpo import inputs as dpo_inputs
    from starling_train.training.dpo import update
    from starling_train.training.dpo.reference import FILE, chunks
    from starling_train.training.optimizer import make_optimizer
    from starling_train.training.policy import load_policy
    from starling_train.training.session import Session

    dpo = config.dpo

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    inputs = dpo_inputs.DpoInputs.find(config, run, runtime)
    held_out = HeldOut.from_config(config, inputs.data.to_answer, inputs.chat)
    reference = dpo_inputs.find_reference(config, run, inputs, runtime)
    policy = load_policy(config, inputs.source, inputs.chat, run.path, runtime)  # scan, select, load, freeze

    # One policy; it is compared with numbers, not with a second model.
    actors = Actors(policy.model, "none", policy.table.lowest_layer, has_reference=False).to(runtime.device)
    notes = [inputs.data.report, *start_check.notes(actors, config, inputs.chat, bool(config.evaluation.responses))]
    optimizer = make_optimizer(actors, actors.groups(), config.optim, config.cluster, runtime)

    # Where an earlier start left off.
    steps = dpo_inputs.steps(config, len(inputs.data.training))
    session = Session(config, run, runtime, optimizer, policy, steps, "eval/preference_accuracy", page.write)
    reference.check_complete(session.state.step, run.path / FILE)
    tokens = session.budget("dpo.tokens_per_microbatch", dpo.tokens_per_microbatch)
    slots = session.budget("rollout.slots", config.rollout.slots)
    guard = session.watch(config)

    def encode(row: "PairedRow", index: int = 0) -> update.EncodedPairedRow:
        return update.encode(row, index, inputs.chat, dpo.max_length)

    def refer(rows: "list[PairedRow]") -> list[list[float]]:
        with session.abandonable():
            actors.eval()
            return update.logprobs_of(actors, list(map(encode, rows)), tokens, runtime)

    def evaluate() -> "Measured":
        actors.eval()
        return held_out_pairs.evaluate(held_out, actors, held_out_rows, config, tokens, slots, runtime)

    with session:
        for note in notes:
            session.say(note)
        # The reference's log-probabilities, while the policy is still its own reference.
        reference.complete(refer, run.log(run.path / FILE), session.say)
        data = dpo_inputs.usable(inputs.data, reference)
        session.say(data.report)
        stream = Stream(data.training, dpo.prompts_per_step, config.seed)
        held_out_rows = [[encode(row) for row in chunk] for chunk in chunks(data.held_out)]

        for step in session.steps(evaluate):
            with session.abandonable(), session.phase("encode"):
                # 1. this process's share of the step's pairs, in Openchat's template
                batch = stream.batch(step.number)
                rows = [encode(row, index) for index, row in runtime.shard(list(enumerate(batch)))]

            # 2. DPO on what trains, one optimizer step
            with session.updating():
                actors.train()
                runtime.seed_all("dropout", step.number)  # of adapters
                updated = update.update(actors, optimizer, rows, dpo, runtime, tokens, guard.coefficient)

            # 3. what the step measured
            answers, seen, cut = update.counts(rows, runtime)
            step.metrics |= updated.metrics | {"dpo/truncated_answers": cut}
            step.skipped = update.skipped_rows(step.number, updated.skipped, batch)
            step.count(len(batch), samples=answers, tokens=seen)

        planned_gb = inputs.planned_gb(config, policy.table, runtime)
        session.finish("dpo", lambda: policy.write(run.policy, inputs.chat), planned_gb, inputs.baseline_gb)


if __name__ == "__main__":
    main()
