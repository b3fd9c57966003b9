"""python -m starling_train.rm +recipe=NAME: a reward model from ranked answers, by the K-wise loss."""

from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.rm import RmConfig, check

if TYPE_CHECKING:
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime


@command(check, RmConfig, "rm")
def main(config: RmConfig) -> None:
    """Describe the run (dry run), or train unless it is finished."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.training.reward_model.inputs import describe
    from starling_train.training.start import start

    start(config, describe, train)


def train(config: RmConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """Make all steps of one run, from wherever an earlier start left off."""
    from starling_train.data.prompts import Stream
    from starling_train.models.reward.reading import cut_conversations
    from starling_train.report import page
    from starling_train.training.measured import Measured
    from starling_train.training.optimizer import make_optimizer
    from starling_train.training.reward_model import inputs as rm_inputs
    from starling_train.training.reward_model import update
    from starling_train.training.session import Session

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    inputs = rm_inputs.RmInputs.find(config, run, runtime)
    trainee = rm_inputs.load_trainee(config, inputs.start, run.path, runtime)  # scan, select, load, freeze
    net = trainee.model
    model = rm_inputs.scorer(config, inputs.start, net, runtime)
    held_out = update.encode(inputs.data.held_out, model)
    held_out_cut = cut_conversations(model.shortened, model.truncated, "rm.max_length", "held-out ")
    stream = Stream(inputs.data.training, config.rm.prompts_per_step, config.seed)
    optimizer = make_optimizer(net, trainee.groups(), config.optim, config.cluster, runtime)

    # Where an earlier start left off.
    steps = rm_inputs.steps(config, len(inputs.data.training))
    session = Session(config, run, runtime, optimizer, trainee, steps, "eval/preference_accuracy", page.write)
    tokens = session.budget("rm.tokens_per_microbatch", config.rm.tokens_per_microbatch)

    def evaluate() -> Measured:
        net.eval()
        return Measured(update.evaluate(net, held_out, config.rm, runtime))

    with session:
        session.say(inputs.data.report)
        if held_out_cut:
            session.say(held_out_cut)
        for step in session.steps(evaluate):
            with session.abandonable(), session.phase("encode"):
                # 1. this process's share of the ranked rows, in the reward model's own template
                before = model.truncated, model.shortened
                batch = stream.batch(step.number)
                rows = update.encode(runtime.shard(batch), model)

            # 2. K-wise loss, one optimizer step
            with session.updating():
                net.train()
                runtime.seed_all("update", step.number)  # for the dropout of adapters; nothing else in it is random
                step.metrics |= update.update(optimizer, rows, config.rm, runtime, tokens)

            # 3. what the step measured
            answers, seen, *cut = update.counts(rows, model.truncated - before[0], model.shortened - before[1], runtime)
            step.metrics |= dict(zip(("rm/truncated_answers", "rm/truncated_prompts"), cut, strict=True))
            if step.metrics["optim/skipped"]:
                step.skipped = update.skipped_rows(step.number, batch)
            step.count(len(batch), samples=answers, tokens=seen)

        planned_gb = inputs.planned_gb(config, trainee.table, runtime)
        session.finish("rm", lambda: rm_inputs.write(inputs.start, net, run.reward), planned_gb, inputs.baseline_gb)


if __name__ == "__main__":
    main()
