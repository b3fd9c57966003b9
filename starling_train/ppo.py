"""python -m starling_train.ppo +recipe=NAME: PPO from AI feedback on the selected layers, from prompts to report."""

from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.ppo import PpoConfig, check

if TYPE_CHECKING:
    from starling_train.run.directory import RunDirectory
    from starling_train.run.runtime import Runtime
    from starling_train.training.measured import Measured


@command(check, PpoConfig)
def main(config: PpoConfig) -> None:
    """Describe the run (dry run), or train unless it is finished."""
    # torch and transformers take seconds to import: only once the configuration is known to be right
    from starling_train.training.ppo.inputs import describe
    from starling_train.training.start import start

    start(config, describe, train)


def train(config: PpoConfig, run: "RunDirectory", runtime: "Runtime") -> None:
    """Make all steps of one run, from wherever an earlier start left off; every process of the run does the same."""
    from starling_train.core.ppo import KLController
    from starling_train.data.prompts import Stream
    from starling_train.evals.held_out import HeldOut, answered, evaluate
    from starling_train.models.budget import Budgets
    from starling_train.report import page
    from starling_train.rewards import kinds
    from starling_train.training import start_check
    from starling_train.training.optimizer import make_optimizer
    from starling_train.training.policy import load_policy
    from starling_train.training.ppo import experience, metrics, update
    from starling_train.training.ppo.first_answers import FirstAnswers
    from starling_train.training.ppo.inputs import PpoInputs
    from starling_train.training.session import Session

    algorithm = config.algorithm

    # Inputs, the cheap ones first. Nothing is written before all of them are known to be right.
    inputs = PpoInputs.find(config, run, runtime)
    held_out = HeldOut.from_config(config, inputs.data.held_out, inputs.chat)
    policy = load_policy(config, inputs.source, inputs.chat, run.path, runtime)  # scan, select, load, freeze
    reward_model = kinds.load(config.reward, runtime)

    # Policy, reference and critic share what is frozen; only what the selection names is copied and trains.
    actors = inputs.actors(config, policy, runtime)
    notes = "\n".join([inputs.data.report, *start_check.notes(actors, config, inputs.chat)])
    optimizer = make_optimizer(actors, actors.groups(), config.optim, config.cluster, runtime)

    # Where an earlier start left off.
    session = Session(config, run, runtime, optimizer, policy, algorithm.steps, "eval/score_mean", page.write)
    tokens = session.budget("algorithm.tokens_per_microbatch", algorithm.tokens_per_microbatch)
    slots = session.budget("rollout.slots", config.rollout.slots)
    session.follow(reward_model)
    kl = session.remember("kl", KLController(algorithm.kl.coefficient, algorithm.kl.target, algorithm.kl.horizon))
    guard = session.watch(config, lambda: kl.coefficient)
    scale = experience.RewardScale(config.reward, session.remember)
    prompts = Stream(inputs.data.training, algorithm.prompts_per_step, config.seed)

    def measure() -> "Measured":
        return evaluate(held_out, actors, reward_model, config, runtime, Budgets(tokens, slots))

    with session:
        session.say(notes)
        for step in session.steps(measure):
            with session.abandonable():
                with session.phase("rollout"):
                    # 1. prompts, this process's share of them, 2. responses to each, drawn from the live weights
                    batch = prompts.batch(step.number)
                    rollout = experience.draw(actors, inputs.chat, batch, config, slots, step.number, runtime)
                with session.phase("score"):
                    # 3. scores: decode, the reward model's own template and tokenizer, its head
                    asked = experience.repeated(runtime.shard(batch), algorithm.responses_per_prompt)
                    conversations = answered(asked, rollout, inputs.chat, config)
                    scores = experience.score(reward_model, conversations, runtime, [one.columns for one in asked])
                    if step.number == 1:  # before anything trains: are answers too long, does the reward like others?
                        first = FirstAnswers.of(asked, conversations, scores.of_all, algorithm.responses_per_prompt)
                        step.metrics |= first.look(reward_model, config, rollout, runtime, session.say)
                    scale.update(scores)  # last: whoever leaves before it has changed nothing
                with session.phase("update"):
                    # 4. log-probs, reference, values, advantages
                    rewards = experience.sequence_rewards(scale.rewards(scores), rollout, algorithm)
                    cut = rollout.is_at_limit(config.rollout.max_new_tokens) if algorithm.drop_truncated else None
                    learned = experience.make_experience(
                        actors, rollout, rewards, algorithm, guard.coefficient, tokens, runtime, cut
                    ).corrected(config.rollout.correction)

            # 5. a few epochs of the algorithm's loss on what trains
            train_policy = step.number > algorithm.critic_warmup_steps
            with session.updating(train_policy):
                order = runtime.generator("update", step.number)
                updated = update.update(actors, optimizer, learned, algorithm, order, train_policy, tokens, runtime)
            learned.shared_states = None  # gigabytes that the next rollout can use

            # 6. what the step measured, and what later steps depend on
            step.metrics |= metrics.step_metrics(learned, scores, guard.coefficient, runtime) | updated.metrics
            step.metrics |= metrics.answer_metrics(conversations, rollout, config.rollout, runtime)
            step.skipped = metrics.skipped_rows(step.number, learned, scores, updated.skipped, conversations, runtime)
            step.count(len(batch), samples=algorithm.responses_per_step, tokens=sum(learned.token_counts))
            kl.update(step.metrics["kl/reference"], algorithm.responses_per_step)

        planned_gb = inputs.planned_gb(config, policy.table, runtime)
        session.finish("ppo", lambda: policy.write(run.policy, inputs.chat), planned_gb, inputs.baseline_gb)


if __name__ == "__main__":
    main()
