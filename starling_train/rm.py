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
    from starling_train.engine import disk, preflight, ranking, ranking_setup, setup, summary
    from starling_train.engine.checkpoint import Checkpoints, known_base
    from starling_train.engine.clock import Clock
    from starling_train.engine.console import Console
    from starling_train.engine.metrics import JsonLines, strict, tracker
    from starling_train.engine.state import TrainState
    from starling_train.engine.stop import StopRequest, leave_saved
    from starling_train.models import freeze, identity, save
    from starling_train.report import page

    runtime.refuse_company("rm")

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    start = ranking_setup.find(config)
    preflight.check_ranking(config, start, runtime, run.path)
    data = ranking_setup.load_data(config)
    trainee = ranking_setup.load_trainee(config, start, runtime, run.path)
    net = trainee.net
    model = ranking_setup.scorer(config, start, net, runtime)
    held_out = ranking.encode(data.held_out, model)
    held_out_truncated = model.truncated
    steps = ranking_setup.steps(config, len(data.training))
    stream = PromptStream(data.training, config.rm.prompts_per_step, config.seed)
    optimizer = ranking_setup.optimizer(trainee, config.optim, steps)

    # Where an earlier start left off.
    metrics_log = JsonLines(run.metrics)
    base = identity.identify(start.directory, known_base(run.checkpoints))
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint.keep, base)
    state = setup.restore(checkpoints, optimizer, metrics_log.last, runtime) or TrainState()
    disk.check_room(run.path, config.checkpoint, optimizer, net)

    run.create()
    if config.freeze.method in setup.SCORED:
        setup.write_scan(trainee.records, run.path)
    freeze.write_unfrozen_yaml(trainee.selected, trainee.records, run.path / "unfrozen.yaml", trainee.table.names)
    tracking = tracker(config.logging.wandb, config.name, run.path, run.settings, state.tracker)
    state.tracker = tracking.id

    def evaluate() -> dict[str, float]:
        console.phase("evaluating")
        with stop.abandonable():
            net.eval()
            return ranking.evaluate(net, held_out, config.rm)

    def record(metrics: dict[str, Any], left_s: float | None = None) -> None:
        metrics_log.write([metrics])
        state.note(metrics["step"], metrics.get("eval/preference_accuracy"))
        tracking.log(metrics)
        console.step(metrics, left_s)

    def keep() -> None:
        if state.step:
            console.phase("saving")
            checkpoints.save(trainee.trainable(), optimizer.state_tensors(), state)
            console.say(f"state saved after step {state.step}; run the same command to go on")

    # A signal while everything in memory is of one finished step: that is kept.
    with (
        StopRequest(config.checkpoint.grace_s) as stop,
        Console(steps, state.step) as console,
        leave_saved(stop, keep, lambda: checkpoints.saved, console.say),
    ):
        console.say(data.report)
        if held_out_truncated:
            console.say(f"{held_out_truncated} held-out answers are longer than rm.max_length and lose their beginning")
        console.say(trainee.table.render())
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
                batch = ranking.encode(stream.batch(step), model)
            clock.lap("encode")

            # 2. K-wise loss, one optimizer step
            console.phase("update")
            metrics = {"step": step, "episodes": state.episodes + len(batch)}
            with stop.updating():
                net.train()  # no dropout in it: only gradient checkpointing asks
                rate = optimizer.set_step(step, steps)
                metrics |= ranking.update(net, optimizer, batch, config.rm) | {"optim/learning_rate": rate}
            clock.lap("update")

            # 3. remember
            metrics["rm/truncated_answers"] = model.truncated - truncated
            metrics |= clock.metrics(sum(len(row.sequences) for row in batch), sum(row.tokens() for row in batch))
            metrics["memory/peak_gb"] = runtime.peak_memory_gb()
            state.step, state.episodes = step, state.episodes + len(batch)
            last = step == steps
            if config.evaluation.every and (last or step % config.evaluation.every == 0):
                state.unlogged = strict(metrics)
                metrics |= evaluate()
                state.unlogged = {}
            state.seconds += clock.total()
            record(metrics, left_s=state.seconds / step * (steps - step))
            if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                console.phase("saving")
                checkpoints.save(trainee.trainable(), optimizer.state_tensors(), state)

        # The reward model for whoever wants to score with it, and the page for whoever wants to know what happened.
        console.phase("writing the model")
        with stop.finishing():
            save.write_whole(run.reward, ranking_setup.writer(config, net, start.tokenizer))
        run.write("summary.json", summary.to_json(config, run, trainee.table, state, runtime, command="rm"))
        tracking.finish()
        page.write(run.path)


if __name__ == "__main__":
    main()
