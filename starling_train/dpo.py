"""python -m starling_train.dpo +recipe=NAME: direct preference optimisation on the selected layers, from pairs."""

from functools import partial
from typing import TYPE_CHECKING

from starling_train import assets
from starling_train.cli import command
from starling_train.config.dpo import DpoConfig, check_dpo

if TYPE_CHECKING:
    from starling_train.data.pairs import PairedRow
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime


@command(check_dpo, DpoConfig, "dpo")
def main(config: DpoConfig) -> None:
    """Dry run, nothing to do, or train."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.run.directory import RunDirectory

    if config.prepare:
        assets.ensure(config.prepare)
    run = RunDirectory(config)
    if config.dry_run:
        from starling_train.training.dpo import inputs

        print(inputs.describe(config))
    elif run.is_finished():
        print(f"{run.path} is finished, nothing to do; its report: {run.path / 'report.html'}")
    else:
        from starling_train.run.runtime import Runtime

        cluster = config.cluster
        runtime = Runtime(cluster.device, cluster.threads, config.seed, cluster.timeout_s)
        with runtime.together(), run.owned(runtime):
            train(config, run, runtime)
        if runtime.is_first:
            print(f"report: {(run.path / 'report.html').resolve()}")


def train(config: DpoConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """All steps of one run, from wherever an earlier start left off; the same on every process of the run."""
    from starling_train.data.prompts import PromptStream
    from starling_train.evals import held_out as held_out_suite
    from starling_train.evals import held_out_pairs
    from starling_train.files import disk
    from starling_train.models import causal_lm
    from starling_train.models.budget import Budget, Remembered
    from starling_train.models.lone_policy import LonePolicy
    from starling_train.report import page
    from starling_train.run import checkpoints as checkpoint
    from starling_train.run import skipped
    from starling_train.run import summary as run_summary
    from starling_train.run.records import Clock
    from starling_train.run.state import TrainState
    from starling_train.selection import scans
    from starling_train.training import policy as setup
    from starling_train.training import preflight, session
    from starling_train.training.dpo import inputs, update
    from starling_train.training.dpo import reference as dpo_reference
    from starling_train.training.session import Keeper

    dpo = config.dpo

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    directory = causal_lm.resolve(config.model.path, "model.path", config.model.revision)
    chat = setup.load_chat(directory)
    model_config = causal_lm.load_config(directory, "model.path")
    inputs.check_lengths(config, model_config, chat)
    inputs.check_shares(config, runtime)
    preflight.check_preferences(config, directory, model_config, runtime, run.path)
    data = inputs.load_data(config, chat)
    held_out = held_out_suite.HeldOut.from_config(config, data.asked, chat)
    base = runtime.from_first(lambda: checkpoint.identify_base(run.checkpoints, directory))
    reference = inputs.find_reference(config, run.path, data, base.sha256, chat, runtime)
    records = runtime.from_first(lambda: scans.scan_or_list(config.freeze, directory, str(runtime.device), run.path))
    selected = scans.select(config.freeze, records, config.seed)
    policy = setup.load_selected_policy(config, directory, runtime, records, selected)

    # One policy; what it is compared with are numbers.
    net = LonePolicy(policy.model, policy.table.lowest_layer)
    net.to(runtime.device)
    steps = inputs.steps(config, len(data.training))
    optimizer = inputs.optimizer(net, inputs.optim(config.optim, steps), config.cluster, runtime)

    # Where an earlier start left off.
    metrics_log = run.log(run.metrics)
    beside = setup.adapter_files(config, policy.table, "policy.")
    checkpoints = session.open_checkpoints(config.checkpoint, run, base, runtime, beside)
    state = session.restore(checkpoints, optimizer, metrics_log.last, runtime) or TrainState()
    dpo_reference.check_complete(reference, state.step, run.path / dpo_reference.FILE)
    disk.check_room(run.path, config.checkpoint, optimizer, net)

    session.begin(config.freeze, run, runtime, policy)
    samples_log = run.log(run.samples, state.logged)
    keeper = Keeper(
        config, run, runtime, optimizer, checkpoints, state, metrics_log, steps, watched="eval/preference_accuracy"
    )
    console, stop = keeper.console, keeper.stop
    encode = partial(update.encode, chat=chat, max_length=dpo.max_length)

    def refer(rows: "list[PairedRow]") -> list[list[float]]:
        with stop.abandonable(), optimizer.gathered():
            net.eval()
            return update.logprobs_of(net, [encode(row, 0) for row in rows], tokens, runtime)

    def evaluate() -> dict[str, float]:
        console.phase("evaluating")
        with stop.abandonable(), optimizer.gathered():
            net.eval()
            measured, samples = held_out_pairs.evaluate(held_out, net, held_out_rows, config, tokens, slots, runtime)
        samples_log.write([{"step": state.step} | sample for sample in samples])
        return measured

    # A signal while everything in memory is of one finished step: that is kept.
    with keeper.running():
        tokens = Budget("dpo.tokens_per_microbatch", dpo.tokens_per_microbatch, console.say)
        slots = Budget("rollout.slots", config.rollout.slots, console.say)
        budgets = Remembered([tokens, slots], state.budgets)
        console.say(data.report)
        console.say(policy.table.render())
        console.say(session.describe(optimizer, runtime, config.cluster.zero_stage))

        # The reference's log-probabilities, while the policy is still its own reference.
        log = run.log(run.path / dpo_reference.FILE)
        console.phase("reference")
        reference.complete(refer, log, console.say)
        data = inputs.usable(data, reference)
        console.say(data.report)
        stream = PromptStream(data.training, dpo.prompts_per_step, config.seed)
        held_out_rows = [[encode(row, 0) for row in piece] for piece in dpo_reference.pieces(data.held_out)]
        keeper.begin(evaluate)

        while state.step < steps:
            step = state.step + 1
            clock = Clock()

            # 1. pairs, in Openchat's template
            with stop.abandonable():
                whole_batch = stream.batch(step)
                batch = [encode(row, place) for place, row in runtime.share(list(enumerate(whole_batch)))]
            clock.lap("encode")

            # 2. DPO on what trains, one optimizer step
            console.phase("update")
            with stop.updating():
                net.train()
                runtime.seed_all("dropout", step)  # of adapters
                rate = optimizer.set_step(step, steps)
                updated = update.update(net, optimizer, batch, dpo, runtime, tokens)
            clock.lap("update")

            # 3. remember
            better = {place: whole_batch[place].conversations()[0] for place in updated.skipped}
            keeper.skipped_log.write(skipped.rows(step, "update", updated.skipped, better))
            episodes = state.episodes + len(whole_batch)
            counts = [[len(row.responses), row.tokens(), row.cut] for row in batch]
            answers, seen, cut = map(int, runtime.sum([sum(column) for column in zip(*counts, strict=True)]))
            metrics = {"step": step, "episodes": episodes} | updated.metrics
            metrics |= {"dpo/truncated_answers": cut, "optim/learning_rate": rate}
            metrics |= clock.metrics(answers, seen)
            metrics["memory/peak_gb"] = runtime.peak_memory_gb()
            budgets.agree(runtime)
            state.step, state.episodes, state.budgets = step, episodes, budgets.fallen()
            keeper.end_step(metrics, clock, evaluate)

        # The full model for whoever wants to use it, and the page for whoever wants to know what happened.
        console.phase("writing the model")
        with stop.finishing(), optimizer.gathered():
            if runtime.is_first:
                whole = setup.whole_policy(config, directory, net.policy)
                causal_lm.save_model(whole, run.policy, chat.save)
        keeper.finish()
        if runtime.is_first:
            run.write("summary.json", run_summary.to_json(config, run, policy.table, state, runtime, command="dpo"))
            page.write(run.path)


if __name__ == "__main__":
    main()
