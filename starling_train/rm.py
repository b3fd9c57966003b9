"""python -m starling_train.rm +recipe=NAME: a reward model from ranked answers, by K-wise maximum likelihood."""

from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.rm import RmConfig, check

if TYPE_CHECKING:
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime


@command(check, RmConfig, "rm")
def main(config: RmConfig) -> None:
    """Dry run, nothing to do, or train."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.run.directory import RunDirectory

    run = RunDirectory(config)
    if config.dry_run:
        from starling_train.training.reward_model import inputs

        print(inputs.describe(config))
    elif run.is_finished():
        print(f"{run.path} is finished, nothing to do; its reward model: {run.reward}")
    else:
        from starling_train.run.runtime import Runtime

        cluster = config.cluster
        runtime = Runtime(cluster.device, cluster.threads, config.seed, cluster.timeout_s)
        with runtime.together(), run.owned(runtime):
            train(config, run, runtime)
        if runtime.is_first:
            print(f"reward model: {run.reward.resolve()}")
            print(f"report: {(run.path / 'report.html').resolve()}")


def train(config: RmConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """All steps of one run, from wherever an earlier start left off."""
    from starling_train.data.prompts import PromptStream
    from starling_train.files import disk, whole
    from starling_train.models.budget import Budget, Remembered
    from starling_train.report import page
    from starling_train.run import skipped
    from starling_train.run import summary as run_summary
    from starling_train.run.records import Clock
    from starling_train.run.state import TrainState
    from starling_train.training import preflight, session
    from starling_train.training.reward_model import inputs, update
    from starling_train.training.session import Keeper

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    start = inputs.find(config)
    preflight.check_ranking(config, start, runtime, run.path)
    data = inputs.load_data(config)
    records = runtime.from_first(lambda: inputs.scan(config, start.directory, str(runtime.device), run.path))
    trainee = inputs.load_trainee(config, start, runtime, records)
    net = trainee.net
    model = inputs.scorer(config, start, net, runtime)
    held_out = update.encode(data.held_out, model)
    held_out_truncated = model.truncated
    steps = inputs.steps(config, len(data.training))
    stream = PromptStream(data.training, config.rm.prompts_per_step, config.seed)
    optimizer = inputs.optimizer(trainee, config.optim, config.cluster, runtime)

    # Where an earlier start left off.
    metrics_log = run.log(run.metrics)
    checkpoints = session.open_checkpoints(config.checkpoint, run, start.directory, runtime)
    state = session.restore(checkpoints, optimizer, metrics_log.last, runtime) or TrainState()
    disk.check_room(run.path, config.checkpoint, optimizer, net)

    session.begin(config.freeze, run, runtime, trainee)
    watched = "eval/preference_accuracy"
    keeper = Keeper(config, run, runtime, optimizer, checkpoints, state, metrics_log, steps, watched)
    console, stop = keeper.console, keeper.stop

    def evaluate() -> dict[str, float]:
        console.phase("evaluating")
        with stop.abandonable(), optimizer.gathered():
            net.eval()
            return update.evaluate(net, held_out, config.rm, runtime)

    # A signal while everything in memory is of one finished step: that is kept.
    with keeper.running():
        budget = Budget("rm.tokens_per_microbatch", config.rm.tokens_per_microbatch, console.say)
        budgets = Remembered([budget], state.budgets)
        console.say(data.report)
        if held_out_truncated:
            console.say(f"{held_out_truncated} held-out answers are longer than rm.max_length and lose their beginning")
        console.say(trainee.table.render())
        console.say(session.describe(optimizer, runtime, config.cluster.zero_stage))
        keeper.begin(evaluate)

        while state.step < steps:
            step = state.step + 1
            clock = Clock()

            # 1. ranked rows, in the reward model's own template
            truncated = model.truncated
            with stop.abandonable():
                whole_batch = stream.batch(step)
                batch = update.encode(runtime.share(whole_batch), model)
            clock.lap("encode")

            # 2. K-wise loss, one optimizer step
            console.phase("update")
            metrics = {"step": step, "episodes": state.episodes + len(whole_batch)}
            with stop.updating():
                net.train()
                runtime.seed_all("update", step)  # for the dropout of adapters; nothing else in it is random
                rate = optimizer.set_step(step, steps)
                metrics |= update.update(net, optimizer, batch, config.rm, runtime, budget)
                metrics["optim/learning_rate"] = rate
            if metrics["optim/skipped"]:
                keeper.skipped_log.write(
                    skipped.rows(step, "update", range(len(whole_batch)), [r.messages for r in whole_batch])
                )
            clock.lap("update")

            # 3. remember
            answers, tokens, cut = runtime.sum(
                [
                    sum(len(row.sequences) for row in batch),
                    sum(row.tokens() for row in batch),
                    model.truncated - truncated,
                ]
            )
            metrics["rm/truncated_answers"] = int(cut)
            metrics |= clock.metrics(int(answers), int(tokens))
            metrics["memory/peak_gb"] = runtime.peak_memory_gb()
            state.step, state.episodes = step, state.episodes + len(whole_batch)
            budgets.agree(runtime)
            state.budgets = budgets.fallen()
            keeper.end_step(metrics, clock, evaluate)

        # The reward model for whoever wants to score with it, and the page for whoever wants to know what happened.
        console.phase("writing the model")
        with stop.finishing(), optimizer.gathered():
            if runtime.is_first:
                whole.write_whole(run.reward, inputs.writer(config, net, start.tokenizer))
        keeper.finish()
        if runtime.is_first:
            run.write("summary.json", run_summary.to_json(config, run, trainee.table, state, runtime, command="rm"))
            page.write(run.path)


if __name__ == "__main__":
    main()
