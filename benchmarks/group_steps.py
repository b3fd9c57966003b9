"""One step of GRPO or RLOO: ours, and that of TRL's GRPOTrainer or RLOOTrainer (1.16). `against_trl.py` compares them.

Equal on both sides: policy (same random weights, lengths of responses close to geometric), reference (the policy at the
start), the prompts and their order, responses to a prompt, the tensors that train, passes over a step's responses and
optimizer steps a pass, response limit, temperature 1 without top-k and top-p, the id that ends a response, dtype,
threads, allocator settings. TRL's settings are read from ours: clipping of the ratio, KL coefficient, AdamW's numbers, a
constant rate, the limit of the gradient's norm. The loss is the same formula: in GRPO token by token with the mean over
sequences, advantages in deviations of their group, k3 in the loss; in RLOO a response as one action, k1 in the reward.
Scores come from the same code: a function of the response's ids (--reward function), or a reward model of the policy's
size, in micro-batches of --tokens-per-microbatch (--reward model); TRL calls either as a custom reward function.

Not equal, because each works in its own way:
- TRL draws all of a step at once, until the longest response ends; it pads every pass to the longest of the step, and
  computes a prompt for each response to it. In the reward model it has what ours has: the prompt once.
- TRL's reference is a second whole model, read from disk; ours shares what is frozen.
- TRL's GRPO with one pass and one mini-batch takes the old log-probabilities from the update's own forward; its RLOO, and
  ours always, score the responses again.
- TRL deals a step's responses into mini-batches once; ours anew in every pass, alike in tokens.
- TRL decodes the responses; ours gives the ids to the reward as they are, and in `ppo` decodes too.
- TRL accumulates over micro-batches of a fixed number of sequences (--trl-batches, the fastest counts, in its favour) and
  runs without gradient checkpointing, which is faster than its default; --trl-checkpointing turns it on.
- With --dtype bfloat16 TRL's AdamW updates bfloat16 weights; ours has float32 master copies, which cost time and memory.
- Random numbers are other ones, so lengths differ by chance: the table has the mean of each side.

Seconds are of the steps after the first, which warms up: from prompts to updated weights, without logging and saving.
Memory is the peak of the process above what it held after importing everything, before any model was made.
"""

import argparse
import contextlib
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch
from transformers import TrainerCallback

from starling_train.config.ppo import PpoConfig, check_algorithm
from starling_train.config.sections import AlgorithmConfig, FreezeConfig, KLConfig, OptimConfig, RolloutConfig
from starling_train.data.chat import Chat
from starling_train.data.prompts import Prompt
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.models.reward.model import RewardModel
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.selection import freeze
from starling_train.selection.select import EVERYTHING
from starling_train.training.local import LocalOptimizer
from starling_train.training.ppo.experience import Experience, draw, make_experience
from starling_train.training.ppo.update import update

Scorer = Callable[[list[list[int]], list[list[int]]], list[float]]  # prompts, responses: of ids
KL = {"grpo": 0.04, "rloo": 0.03}  # what the configurations of ours say
READY = "ready"  # a line that says: the next step may begin


def settings(arguments: argparse.Namespace) -> PpoConfig:
    """Return the library's configuration of rollout, algorithm and optimizer, which TRL's is made from."""
    name, is_grpo = arguments.algorithm, arguments.algorithm == "grpo"
    algorithm = AlgorithmConfig(
        name=name, prompts_per_step=arguments.prompts, responses_per_prompt=arguments.group, epochs=arguments.epochs,
        minibatches=arguments.minibatches, tokens_per_microbatch=arguments.tokens_per_microbatch,
        ratio="token" if is_grpo else "sequence", loss_mean="sequences", critic="none", missing_eos_penalty=0.0,
        kl=KLConfig(
            KL[name] if arguments.kl is None else arguments.kl,
            estimator="k3" if is_grpo else "k1", where="loss" if is_grpo else "reward",
        ),
    )  # fmt: skip
    check_algorithm(algorithm)
    return PpoConfig(
        rollout=RolloutConfig(arguments.engine, arguments.slots, arguments.limit, stop_strings=[]),
        algorithm=algorithm,
        optim=OptimConfig(1e-6, betas=[0.9, 0.95], eps=1e-5, weight_decay=0.0, schedule="constant"),
    )


def make_policy(arguments: argparse.Namespace) -> tuple[Any, int]:
    """Make the policy and freeze what does not train; return the lowest layer that trains too."""
    dtype, trained = getattr(torch, arguments.dtype), arguments.trained[0]
    policy = models.policy(arguments.shape, arguments.mean_response, dtype=dtype, limit=arguments.limit)
    if trained == "everything":
        return policy, freeze.apply(FreezeConfig(), policy, [EVERYTHING]).lowest_layer
    if trained == "last":
        return policy, models.train_last_layers(policy, arguments.percent).lowest_layer
    return policy, models.train_layers(policy, map(int, trained.split(","))).lowest_layer


def make_prompts(arguments: argparse.Namespace) -> list[list[int]]:
    """Make the prompts of all steps, and of one more."""
    return models.prompts(arguments.prompts * (arguments.steps + 2), arguments.shape)


def make_scorer(arguments: argparse.Namespace, tokenizer: Any) -> Scorer:
    """Make what scores responses, on both sides."""
    if arguments.reward == "function":
        return lambda prompts, responses: [share_of_even(response) for response in responses]
    net = models.reward_net(arguments.shape, dtype=getattr(torch, arguments.dtype))
    model = RewardModel(net, tokenizer, "starling_7b", tokens_per_batch=arguments.tokens_per_microbatch)
    return lambda prompts, responses: model.score_ids([p + r for p, r in zip(prompts, responses, strict=True)])


def share_of_even(response: list[int]) -> float:
    """Return which share of a response's tokens has an even id."""
    return sum(token % 2 == 0 for token in response) / len(response)


class OurStep:
    """Our step, phase by phase: that of ppo.py, but the reward gets ids instead of decoded text."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.config = arguments, settings(arguments)
        policy, lowest = make_policy(arguments)
        tokenizer = models.tokenizer(models.SHAPES[arguments.shape]["vocab_size"])
        self.chat, self.prompts = Chat(tokenizer), [Prompt([], ids) for ids in make_prompts(arguments)]
        self.scorer = make_scorer(arguments, tokenizer)
        self.actors = Actors(policy, "none", lowest).train()
        self.optimizer = LocalOptimizer(self.actors, self.actors.groups(), self.config.optim)
        self.slots = Budget("rollout.slots", arguments.slots)
        self.runtime = Runtime("cpu", arguments.threads, seed=arguments.round)

    def rollout(self, step: int) -> Rollout:
        """Draw the responses of a step, counted from 1."""
        count = self.arguments.prompts
        batch = self.prompts[(step - 1) * count : step * count]
        return draw(self.actors, self.chat, batch, self.config, self.slots, step, self.runtime)

    def score(self, rollout: Rollout) -> Experience:
        """Score responses, and estimate what they were worth."""
        scores, algorithm = self.scorer(rollout.prompts, rollout.responses), self.config.algorithm
        return make_experience(
            self.actors, rollout, torch.tensor(scores), algorithm, algorithm.kl.coefficient, runtime=self.runtime
        )

    def update(self, step: int, experience: Experience) -> None:
        """Train on them."""
        self.optimizer.set_rates(step, self.arguments.steps + 1)
        order = self.runtime.generator("update", step)
        update(self.actors, self.optimizer, experience, self.config.algorithm, order, runtime=self.runtime)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run our steps."""
    memory = models.PeakMemory()
    one, steps = OurStep(arguments), models.Steps()
    for step in range(1, arguments.steps + 2):
        wait_for_turn(arguments.in_turn)
        steps.begin()
        rollout = one.rollout(step)
        steps.clock.lap("rollout")
        experience = one.score(rollout)
        steps.clock.lap("scoring")
        one.update(step, experience)
        steps.clock.lap("update")
        steps.end(len(rollout), sum(map(len, rollout.responses)))
        del rollout, experience  # the next rollout would hold the states of this one besides its own
    return result(arguments, steps, memory)


def result(arguments: argparse.Namespace, steps: models.Steps, memory: models.PeakMemory) -> dict[str, Any]:
    """Return what a side measured; `threads`: those that torch had at the end."""
    found = steps.result(arguments.prompts * arguments.group)
    return found | {"peak_mb": memory.mb(), "threads": torch.get_num_threads()}


def wait_for_turn(in_turn: bool) -> None:
    """Say that the next step may begin, and wait until the other process has done its own."""
    if in_turn:
        print(READY, flush=True)
        if not sys.stdin.readline():
            raise SystemExit("the process that gives the turns has ended")


def trl(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `GRPOTrainer.train()` or `RLOOTrainer.train()`, with a clock in its methods and callbacks."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer, RLOOTrainer

    with contextlib.suppress(ImportError):
        import deepspeed  # noqa: F401  where it is installed accelerate imports it, with the first model: not TRL's memory
    memory = models.PeakMemory()
    config = settings(arguments)
    policy, _ = make_policy(arguments)
    tokenizer = models.tokenizer(models.SHAPES[arguments.shape]["vocab_size"])
    prompts, scorer = make_prompts(arguments), make_scorer(arguments, tokenizer)

    def reward(completion_ids: list[list[int]], ids: list[list[int]], **_: Any) -> list[float]:
        return scorer(ids, completion_ids)

    texts = [" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in prompts]
    assert tokenizer(texts)["input_ids"] == prompts, "both sides have the same prompts"
    steps = models.Steps()
    with tempfile.TemporaryDirectory() as directory:
        policy.save_pretrained(directory)
        policy.config._name_or_path = directory  # where TRL reads the reference
        trainer_class = GRPOTrainer if arguments.algorithm == "grpo" else RLOOTrainer
        trainer = trainer_class(
            model=policy,
            reward_funcs=reward,
            args=trl_settings(config, arguments, directory),
            train_dataset=Dataset.from_dict({"prompt": texts, "ids": prompts}),
            processing_class=tokenizer,
        )
        assert set(trainer.eos_token_ids) == Chat(tokenizer).end_ids, "the same id ends a response"
        trainer.remove_callback(PrinterCallback)
        watch(trainer, steps, arguments)
        trainer.train()
    return result(arguments, steps, memory)


def trl_settings(config: PpoConfig, arguments: argparse.Namespace, directory: str) -> Any:
    """Return TRL's GRPOConfig or RLOOConfig that does what ours does, without extras."""
    from trl import GRPOConfig, RLOOConfig

    algorithm, optim, rollout = config.algorithm, config.optim, config.rollout
    batch, minibatches = arguments.trl_batches[0], algorithm.minibatches
    common = {
        "output_dir": directory, "seed": arguments.round, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": arguments.trl_checkpointing, "dataloader_pin_memory": False, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "shuffle_dataset": False,
        "num_generations": algorithm.responses_per_prompt, "num_iterations": algorithm.epochs,
        "per_device_train_batch_size": batch, "steps_per_generation": algorithm.responses_per_step // batch,
        "gradient_accumulation_steps": algorithm.responses_per_step // (minibatches * batch),
        "max_steps": (arguments.steps + 1) * algorithm.epochs * minibatches,
        "max_completion_length": rollout.max_new_tokens, "temperature": rollout.temperature, "top_p": rollout.top_p,
        "top_k": 0, "beta": algorithm.kl.coefficient, "epsilon": algorithm.clip, "learning_rate": optim.learning_rate,
        "lr_scheduler_type": "constant", "weight_decay": optim.weight_decay, "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1], "adam_epsilon": optim.eps, "max_grad_norm": optim.max_gradient_norm,
    }  # fmt: skip
    if algorithm.name == "rloo":
        return RLOOConfig(**common)
    return GRPOConfig(**common, loss_type="grpo", scale_rewards="group", use_bias_correction_kl=False)


def watch(trainer: Any, steps: models.Steps, arguments: argparse.Namespace) -> None:
    """Note time and tokens in the trainer's own methods; its callback ends a step after the last pass."""
    plain_generate, plain_step = trainer._generate, trainer._generate_and_score_completions
    seen = {"tokens": 0}

    def generate(*args: Any, **kwargs: Any) -> Any:
        done = plain_generate(*args, **kwargs)
        steps.clock.lap("rollout")
        seen["tokens"] = sum(map(len, done[1]))
        return done

    def generate_and_score(*args: Any, **kwargs: Any) -> Any:
        wait_for_turn(arguments.in_turn)
        steps.begin()
        done = plain_step(*args, **kwargs)
        steps.clock.lap("scoring")
        return done

    class StepEnds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (arguments.epochs * arguments.minibatches) == 0:
                steps.clock.lap("update")
                steps.end(arguments.prompts * arguments.group, seen["tokens"])

    trainer._generate, trainer._generate_and_score_completions = generate, generate_and_score
    trainer.add_callback(StepEnds())


def profile(arguments: argparse.Namespace, lines: int = 15) -> str:
    """Profile our step by phase, after one that warms up: torch's operators in the second, functions in the third."""
    one, parts = OurStep(arguments), []
    for step, work in ((1, plainly), (2, by_operators), (3, by_functions)):
        rollout, first = work(lambda step=step: one.rollout(step), lines)
        experience, second = work(lambda rollout=rollout: one.score(rollout), lines)
        _, third = work(lambda step=step, experience=experience: one.update(step, experience), lines)
        parts += [f"{name}, {text}" for name, text in zip(models.PHASES, (first, second, third), strict=True) if text]
        del rollout, experience
    return "\n\n".join(parts)


def plainly(phase: Callable[[], Any], lines: int) -> tuple[Any, str]:
    """Return what a phase returns, and nothing about it."""
    return phase(), ""


def by_operators(phase: Callable[[], Any], lines: int) -> tuple[Any, str]:
    """Return what a phase returns, and torch's operators in which most of its time passed, without what they call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        done = phase()
        seconds = time.perf_counter() - start
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        f"{event.self_cpu_time_total / 1e6:8.3f} {event.self_cpu_time_total / total:6.1%} {event.count:8} {event.key}"
        for event in events[:lines]
    ]
    return done, "\n".join([f"{total / 1e6:.2f} of {seconds:.2f} s in torch's operators: seconds, share, calls", *rows])


def by_functions(phase: Callable[[], Any], lines: int) -> tuple[Any, str]:
    """Return what a phase returns, and the functions in which most of its time passed, without what they call."""
    profiler = cProfile.Profile()
    done = profiler.runcall(phase)
    # by (file, line, name): calls without recursive ones, all calls, seconds without and with what it calls, callers
    functions: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats
    total = sum(of[2] for of in functions.values())
    rows = [
        f"{of[2]:8.3f} {of[2] / total:6.1%} {of[1]:8} {name} ({'/'.join(Path(file).parts[-2:])}:{line})"
        for (file, line, name), of in sorted(functions.items(), key=lambda row: -row[1][2])[:lines]
    ]
    return done, "\n".join([f"{total:.2f} s in functions: seconds, share, calls", *rows])
