"""python -m starling_train.rm +recipe=NAME: a reward model from ranked answers, by K-wise maximum likelihood."""

from typing import TYPE_CHECKING, Any

from starling_train import assets
from starling_train.cli import command
from starling_train.config_rm import RmConfig, check_rm

if TYPE_CHECKING:
    from starling_train.engine.run_dir import RunDirectory
    from starling_train.engine.runtime import Runtime


@command(check_rm, RmConfig, "rm")
def main(config: RmConfig) -> None:
    """Dry run, nothing to do, or train."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.engine.run_dir import RunDirectory

    if config.prepare:
        assets.ensure(config.prepare)
    run = RunDirectory(config)
    if config.dry_run:
        from starling_train.engine import ranking_setup

        print(ranking_setup.describe(config))
    elif run.is_finished():
        print(f"{run.path} is finished, nothing to do; its reward model: {run.reward}")
    else:
        from starling_train.engine.runtime import Runtime

        cluster = config.cluster
        runtime = Runtime(cluster.device, cluster.threads, config.seed, cluster.timeout_s)
        with runtime.together(), run.owned(runtime):
            train(config, run, runtime)
        print(f"reward model: {run.reward.resolve()}")
        print(f"report: {(run.path / 'report.html').resolve()}")


def train(config: RmConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """All steps of one run, from wherever an earlier start left off."""
    from starling_train.data.prompts import PromptStream
    from starling_train.engine import disk, preflight, ranking, ranking_setup, setup, skipped, summary
    from starling_train.engine.checkpoint import Checkpoints, known_base
    from starling_train.engine.clock import Clock
    from starling_train.engine.console import Console
    from starling_train.engine.metrics import strict, tracker
    from starling_train.engine.state import TrainState
    from starling_train.engine.stop import StopRequest, leave_saved
    from starling_train.models import freeze, identity, save
    from starling_train.models.budget import Budget
    from starling_train.report import page

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    start = ranking_setup.find(config)
    preflight.check_ranking(config, start, runtime, run.path)
    data = ranking_setup.load_data(config)
    records = runtime.from_first(lambda: ranking_setup.scan(config, start.directory, str(runtime.device), run.path))
    trainee = ranking_setup.load_trainee(config, start, runtime, records)
    net = trainee.net
    model = ranking_setup.scorer(config, start, net, runtime)
    held_out = ranking.encode(data.held_out, model)
    held_out_truncated = model.truncated
    steps = ranking_setup.steps(config, len(data.training))
    stream = PromptStream(data.training, config.rm.prompts_per_step, config.seed)
    optimizer = ranking_setup.optimizer(trainee, config.optim, steps, config.cluster, runtime)

    # Where an earlier start left off.
    metrics_log = run.log(run.metrics)
    base = runtime.from_first(lambda: identity.identify(start.directory, known_base(run.checkpoints)))
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep, base)
    state = setup.restore(checkpoints, optimizer, metrics_log.last, runtime) or TrainState()
    disk.check_room(run.path, config.checkpoint, optimizer, net)

    if runtime.is_first:
        run.create()
        if config.freeze.method in setup.SCORED:
            setup.write_scan(trainee.records, run.path)
        freeze.write_unfrozen_yaml(trainee.selected, trainee.records, run.path / "unfrozen.yaml", trainee.table.names)
    skipped_log = run.log(run.skipped, state.logged)
    wandb = config.logging.wandb if runtime.is_first else "disabled"
    tracking = tracker(wandb, config.name, run.path, run.settings, state.tracker)
    state.tracker = tracking.id

    def evaluate() -> dict[str, float]:
        console.phase("evaluating")
        with stop.abandonable(), optimizer.gathered():
            net.eval()
            return ranking.evaluate(net, held_out, config.rm, runtime)

    def record(metrics: dict[str, Any], left_s: float | None = None) -> None:
        metrics_log.write([metrics])
        state.note(metrics["step"], metrics.get("eval/preference_accuracy"))
        tracking.log(metrics)
        console.step(metrics, left_s)

    def save_state() -> None:
        console.phase("saving")
        tensors = optimizer.trainable_tensors(), optimizer.state_tensors()  # under ZeRO all processes put them together
        if runtime.is_first:
            checkpoints.save(*tensors, state)

    def keep() -> None:
        if state.step:
            save_state()
            console.say(f"state saved after step {state.step}; run the same command to go on")

    # A signal while everything in memory is of one finished step: that is kept.
    with (
        StopRequest(config.checkpoint.grace_s, runtime) as stop,
        Console(steps, state.step, is_quiet=not runtime.is_first) as console,
        leave_saved(stop, keep, lambda: checkpoints.saved, console.say),
    ):
        budget = Budget("rm.tokens_per_microbatch", config.rm.tokens_per_microbatch, console.say)
        budget.fall_to(state.budgets.get(budget.key, budget.amount))
        console.say(data.report)
        if held_out_truncated:
            console.say(f"{held_out_truncated} held-out answers are longer than rm.max_length and lose their beginning")
        console.say(trainee.table.render())
        console.say(setup.describe(optimizer, runtime))
        if state.step:
            console.say(f"resumed after step {state.step}")
            if state.unlogged:
                record(state.unlogged | evaluate())
                state.unlogged = {}
        elif config.evaluation.every:
            record({"step": 0, "episodes": 0} | evaluate())

        while state.step < steps:
            step = state.step + 1
            clock = Clock()

            # 1. ranked rows, in the reward model's own template
            truncated = model.truncated
            with stop.abandonable():
                whole_batch = stream.batch(step)
                batch = ranking.encode(runtime.share(whole_batch), model)
            clock.lap("encode")

            # 2. K-wise loss, one optimizer step
            console.phase("update")
            metrics = {"step": step, "episodes": state.episodes + len(whole_batch)}
            with stop.updating():
                net.train()  # no dropout in it: only gradient checkpointing asks
                rate = optimizer.set_step(step, steps)
                metrics |= ranking.update(net, optimizer, batch, config.rm, runtime, budget)
                metrics["optim/learning_rate"] = rate
            if metrics["optim/skipped"]:
                skipped_log.write(
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
            state.budgets = {budget.key: budget.amount} if budget.amount < config.rm.tokens_per_microbatch else {}
            last = step == steps
            if config.evaluation.every and (last or step % config.evaluation.every == 0):
                state.unlogged = strict(metrics)
                metrics |= evaluate()
                state.unlogged = {}
            state.seconds += clock.total()
            record(metrics, left_s=state.seconds / step * (steps - step))
            if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                save_state()
            if optimizer.skipped_in_a_row >= skipped.IN_A_ROW:
                keep()
                raise skipped.too_many(optimizer.skipped_in_a_row, run.skipped)

        # The reward model for whoever wants to score with it, and the page for whoever wants to know what happened.
        console.phase("writing the model")
        with stop.finishing(), optimizer.gathered():
            if runtime.is_first:
                save.write_whole(run.reward, ranking_setup.writer(config, net, start.tokenizer))
        tracking.finish()
        if runtime.is_first:
            run.write("summary.json", summary.to_json(config, run, trainee.table, state, runtime, command="rm"))
            page.write(run.path)


if __name__ == "__main__":
    main()
