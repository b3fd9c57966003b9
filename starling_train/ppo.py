"""python -m starling_train.ppo +recipe=NAME: PPO from AI feedback on the selected layers, from prompts to report."""

from typing import TYPE_CHECKING

from starling_train import assets
from starling_train.cli import command
from starling_train.config.ppo import PpoConfig, check

if TYPE_CHECKING:
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime


@command(check)
def main(config: PpoConfig) -> None:
    """Dry run, nothing to do, or train."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.run.directory import RunDirectory

    if config.prepare:
        assets.ensure(config.prepare)
    run = RunDirectory(config)
    if config.dry_run:
        from starling_train.training.ppo import inputs

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


def train(config: PpoConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """All steps of one run, from wherever an earlier start left off; the same on every process of the run."""
    import torch

    from starling_train.core.ppo import KLController
    from starling_train.core.running_moments import RunningMoments
    from starling_train.data.prompts import PromptStream
    from starling_train.evals import held_out as held_out_suite
    from starling_train.files import disk
    from starling_train.models import causal_lm
    from starling_train.models.actors import Actors
    from starling_train.models.budget import Budgets
    from starling_train.planning import planner
    from starling_train.report import page
    from starling_train.rewards import kinds
    from starling_train.rollout.generate import generate
    from starling_train.run import skipped
    from starling_train.run import summary as run_summary
    from starling_train.run.records import Clock
    from starling_train.run.state import TrainState
    from starling_train.selection import scans
    from starling_train.training import policy as setup
    from starling_train.training import preflight, session
    from starling_train.training.ppo import inputs
    from starling_train.training.ppo import metrics as summary
    from starling_train.training.ppo.experience import finite_scores, layer_to_keep, pay, scale, score_tokens
    from starling_train.training.ppo.update import update
    from starling_train.training.session import Keeper
    from starling_train.training.zero import make_optimizer

    algorithm = config.algorithm
    base_gb = runtime.peak_memory_gb()  # on a CPU: interpreter and libraries

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    directory = causal_lm.resolve(config.model.path, "model.path", config.model.revision)
    chat = setup.load_chat(directory)
    model_config = causal_lm.load_config(directory, "model.path")
    setup.check_lengths(config, model_config, chat)
    inputs.check_shares(config, runtime)
    preflight.check_run(config, directory, model_config, runtime, run.path)
    data = inputs.load_data(config, chat)
    held_out = held_out_suite.HeldOut.from_config(config, data.held_out, chat)
    records = runtime.from_first(lambda: scans.scan_or_list(config.freeze, directory, str(runtime.device), run.path))
    selected = scans.select(config.freeze, records, config.seed)
    reward_model = kinds.of(config.reward).load(config.reward, runtime)
    policy = setup.load_selected_policy(config, directory, runtime, records, selected)

    # Policy, reference and critic share what is frozen; only what the selection names is copied and trains.
    runtime.seed_all("value head")
    actors = Actors(policy.model, algorithm.critic, policy.table.lowest_layer, config.rollout.temperature)
    actors.to(runtime.device).train()
    optimizer = make_optimizer(actors, config.optim, config.cluster, runtime)

    # Where an earlier start left off.
    metrics_log = run.log(run.metrics)
    beside = setup.adapter_files(config, policy.table, "policy.")
    checkpoints = session.open_checkpoints(config.checkpoint, run, directory, runtime, beside)
    fresh = TrainState(kl_coefficient=algorithm.kl.coefficient)
    state = session.restore(checkpoints, optimizer, metrics_log.last, runtime) or fresh
    kl = KLController(state.kl_coefficient, algorithm.kl.target, algorithm.kl.horizon)
    moments = RunningMoments()
    moments.load_state_dict(state.reward_moments or moments.state_dict())
    prompts = PromptStream(data.training, algorithm.prompts_per_step, config.seed)
    disk.check_room(run.path, config.checkpoint, optimizer, actors.policy)

    session.begin(config.freeze, run, runtime, policy)
    samples_log = run.log(run.samples, state.logged)
    keeper = Keeper(
        config, run, runtime, optimizer, checkpoints, state, metrics_log, algorithm.steps, watched="eval/score_mean"
    )
    console, stop = keeper.console, keeper.stop

    def evaluate() -> dict[str, float]:
        console.phase("evaluating")
        with stop.abandonable(), optimizer.gathered():
            measured, samples = held_out_suite.evaluate(held_out, actors, reward_model, config, runtime, budgets)
        samples_log.write([{"step": state.step} | sample for sample in samples])
        return measured

    # A signal, or the loss of a served reward model, while everything in memory is of one finished step: that is kept.
    with keeper.running():
        budgets = Budgets(config, reward_model, state.budgets, console.say)
        console.say(data.report)
        console.say(policy.table.render())
        console.say(session.describe(optimizer, runtime, config.cluster.zero_stage))
        keeper.begin(evaluate)

        while state.step < algorithm.steps:
            step = state.step + 1
            clock = Clock()

            with stop.abandonable(), optimizer.gathered():
                # 1. prompts, this process's share of them, 2. responses on the live weights
                console.phase("rollout")
                whole_batch = prompts.batch(step)
                batch, indices = runtime.share(whole_batch), runtime.share(range(len(whole_batch)))
                runtime.seed_all("rollout", step)
                ids = [prompt.ids for prompt in batch]
                keep_layer = layer_to_keep(actors, ids, config)
                rollout = generate(
                    actors.policy, chat, ids, config.rollout,
                    keep_layer=keep_layer, budget=budgets.slots, indices=indices,
                )  # fmt: skip
                clock.lap("rollout")

                # 3. scores: decode, the reward model's own template and tokenizer, its head
                console.phase("scoring")
                truncated = reward_model.truncated
                answered = held_out_suite.answered(batch, rollout, chat, config)
                scores, everyones = finite_scores(torch.tensor(reward_model.score(answered)), runtime)
                moments.update(everyones)
                scaled = scale(scores, moments, config.reward)
                clock.lap("score")

                # 4. log-probs, reference, values, advantages
                console.phase("update")
                paid = pay(scaled, rollout, algorithm)
                experience = score_tokens(actors, rollout, paid, algorithm, kl.coefficient, budgets.tokens, runtime)

            # 5. clipped PPO (or APA) on what trains
            with stop.updating():
                train_policy = step > algorithm.critic_warmup_steps
                rate = optimizer.set_step(step, algorithm.steps, train_policy)
                order = runtime.generator("update", step)
                updated = update(actors, optimizer, experience, algorithm, order, train_policy, budgets.tokens, runtime)
            experience.prefix = None  # gigabytes that the next rollout has use for
            clock.lap("update")

            # 6. remember
            episodes = state.episodes + len(whole_batch)
            metrics = summary.step_metrics(step, episodes, experience, scores, kl.coefficient, runtime)
            metrics |= updated.metrics | {"optim/learning_rate": rate}
            metrics["reward/truncated_answers"] = int(runtime.sum([reward_model.truncated - truncated])[0])
            skipped_rows = skipped.left_out(step, scores, experience.fit, answered)
            for suspects in updated.skipped:
                skipped_rows += skipped.rows(step, "update", suspects, answered)
            keeper.skipped_log.write(runtime.gather(skipped_rows))
            metrics |= clock.metrics(len(whole_batch), sum(experience.token_counts))
            metrics["memory/peak_gb"] = runtime.peak_memory_gb()
            kl.update(metrics["kl/reference"], len(whole_batch))
            state.step, state.episodes, state.kl_coefficient = step, episodes, kl.coefficient
            budgets.agree(runtime)
            state.reward_moments, state.budgets = moments.state_dict(), budgets.fallen()
            keeper.end_step(metrics, clock, evaluate)

        # The full model for whoever wants to use it, and the page for whoever wants to know what happened.
        console.phase("writing the model")
        with stop.finishing(), optimizer.gathered():
            if runtime.is_first:
                whole = setup.whole_policy(config, directory, actors.policy)
                causal_lm.save_model(whole, run.policy, chat.save)
        keeper.finish()
        planned_gb = planner.of_run(config, model_config, policy.table, runtime.device.type, runtime.world)
        console.say(planner.against(planned_gb, runtime.peak_memory_gb() - base_gb))
        if runtime.is_first:
            run.write(
                "summary.json", run_summary.to_json(config, run, policy.table, state, runtime, planned_gb=planned_gb)
            )
            page.write(run.path)


if __name__ == "__main__":
    main()
