"""One step of ours beside TRL's, on a CPU, alternating in one run: PPO, GRPO or RLOO.

python benchmarks/against_trl.py install DIR             TRL into a separate folder, beside the installed packages
python benchmarks/against_trl.py run DIR                 --rounds pairs of processes for each critic; a table
python benchmarks/against_trl.py run DIR --side ours     one process, one line of JSON
python benchmarks/against_trl.py run --algorithm grpo    or rloo: step by step in turn, for each of --trained; a table
python benchmarks/against_trl.py run --algorithm grpo --profile     where the time of ours goes

PPO is TRL's PPOTrainer (1.12.0, the last TRL with PPO); GRPO and RLOO are those of the installed TRL, and what is equal
there stands in `group_steps.py`. Two processes of a pair, one for each side, do their steps by turns: one waits, idle,
while the other works.

In PPO equal on both sides: policy (same random weights, lengths of responses close to geometric), reward model and its
input (the prompt's and the response's ids, head on the last token), the prompts that steps draw from, the tensors that
train (the matrices of the last --percent % of the layers, in policy and critic), critic's start (value 0 everywhere),
samples a step, mini-batches, epochs, response limit, temperature 1, dtype (--dtype, float32), AdamW's settings, KL
coefficient and estimator, gamma, lambda, clipping, value coefficient, unscaled scores without penalties, threads,
allocator settings.

Not equal, because TRL has no choice there:
- TRL's critic is a whole model of its own with a linear head (here: the policy's weights, the same tensors frozen);
  ours is a twin that shares the frozen tensors (`twin`) or the policy itself (`head`), and a two-layer head.
- TRL steps the optimizer once per --minibatches only with a per-device batch of all samples; a smaller one accumulates
  over the epoch and saves it optimizer steps (`--trl-batches`; the fastest counts, which is in TRL's favour).
- TRL draws other random numbers, so lengths differ by chance; it pads on the left and to the longest of the step, takes
  old log-probs from the generation's logits, never rescores, and puts the score one token later.
- With --dtype bfloat16 TRL's AdamW updates bfloat16 weights; ours has float32 master copies, which cost time and memory.
- Ours clips the gradient's norm, computes exact metrics from masks, and whitens over the whole batch.

- Ours passes ids to the reward model as they are, as TRL must; in `ppo` they go through text and its own template.
- TRL generates all of a step at once, its default; that sets its peak of memory. Ours cuts micro-batches at
  --tokens-per-microbatch.

Seconds and samples/s are of the steps after the first, which warms up. Memory is the peak of the process above what it
held after importing everything, before any model was made. TRL runs without gradient checkpointing, logging, saving
and sample generation; its phases are read where its module calls its own functions.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForSequenceClassification, MistralForSequenceClassification, TrainerCallback

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

import group_steps
import models

from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import AlgorithmConfig, KLConfig, OptimConfig, RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models.actors import Actors
from starling_train.models.reward.model import RewardModel
from starling_train.rollout.generate import generate
from starling_train.training.local import LocalOptimizer
from starling_train.training.ppo.experience import layer_to_keep, make_experience
from starling_train.training.ppo.update import update

Result = dict[str, Any]
VERSION = "1.12.0"
LEARNING_RATE, BETAS, EPSILON = 1e-6, (0.9, 0.95), 1e-5
GAMMA, LAMBDA, CLIP, VALUE_CLIP, VALUE_COEFFICIENT, KL = 1.0, 0.95, 0.2, 0.2, 0.1, 0.05
OPTIONS = {"critic": "critics", "trained": "trained"}  # by what the rows of a table differ in
# of both sides; without the first glibc makes an arena per thread, the others silence warnings
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


def install(arguments: argparse.Namespace) -> None:
    """Install TRL alone: torch, transformers and accelerate are those of this environment."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(arguments.directory)]
    subprocess.run([*command, f"trl=={VERSION}"], check=True)


def ours(arguments: argparse.Namespace) -> Result:
    """Run our steps: those of ppo.py, but the reward model gets ids instead of decoded text."""
    config = our_settings(arguments)
    memory = models.PeakMemory()
    policy, net, tokenizer, prompts = inputs(arguments)
    lowest = models.train_last_layers(policy, arguments.percent).lowest_layer
    reward = RewardModel(net, tokenizer, "starling_7b", tokens_per_batch=arguments.tokens_per_microbatch)
    actors = Actors(policy, arguments.critics[0], lowest).train()
    optimizer = LocalOptimizer(actors, actors.groups(), config.optim)
    order = torch.Generator().manual_seed(arguments.round)
    torch.manual_seed(arguments.round)
    steps = models.Steps()
    for step in range(1, arguments.steps + 2):
        batch = prompts[(step - 1) * arguments.prompts : step * arguments.prompts]
        keep_layer = layer_to_keep(actors, batch, config)
        rollout = generate(actors.policy, Chat(tokenizer), batch, config.rollout, keep_layer=keep_layer)
        steps.clock.lap("rollout")
        scores = reward.score_ids([p + r for p, r in zip(rollout.prompts, rollout.responses, strict=True)])
        experience = make_experience(actors, rollout, torch.tensor(scores), config.algorithm, KL)
        steps.clock.lap("scoring")
        optimizer.set_rates(step, arguments.steps + 1)
        update(actors, optimizer, experience, config.algorithm, order)
        steps.clock.lap("update")
        steps.end(len(rollout), sum(map(len, rollout.responses)))
    return steps.result(arguments.prompts) | {"peak_mb": memory.mb()}


def our_settings(arguments: argparse.Namespace) -> PpoConfig:
    """Return the library's configuration of rollout, algorithm and optimizer."""
    algorithm = AlgorithmConfig(
        prompts_per_step=arguments.prompts, epochs=arguments.epochs, minibatches=arguments.minibatches,
        tokens_per_microbatch=arguments.tokens_per_microbatch, gamma=GAMMA, gae_lambda=LAMBDA, clip=CLIP,
        value_clip=VALUE_CLIP, value_coefficient=VALUE_COEFFICIENT, critic=arguments.critics[0],
        missing_eos_penalty=0.0, kl=KLConfig(coefficient=KL),
    )  # fmt: skip
    return PpoConfig(
        rollout=RolloutConfig(arguments.engine, arguments.slots, arguments.limit, stop_strings=[]),
        algorithm=algorithm,
        optim=OptimConfig(LEARNING_RATE, betas=list(BETAS), eps=EPSILON, weight_decay=0.0, schedule="constant"),
    )


def inputs(arguments: argparse.Namespace) -> tuple[Any, Any, Any, list[list[int]]]:
    """Make policy, reward net, tokenizer and prompts: the same on both sides.

    One batch of prompts more than steps: at its data's end TRL would step the optimizer without accumulating.
    """
    dtype = getattr(torch, arguments.dtype)
    return (
        models.policy(arguments.shape, arguments.mean_response, dtype=dtype, limit=arguments.limit),
        models.reward_net(arguments.shape, dtype=dtype),
        models.tokenizer(models.SHAPES[arguments.shape]["vocab_size"]),
        models.prompts(arguments.prompts * (arguments.steps + 2), arguments.shape),
    )


def trl(arguments: argparse.Namespace) -> Result:
    """Run `PPOTrainer.train()`, with a clock in its callbacks and in the functions that its module calls."""
    sys.path.insert(0, str(arguments.directory))
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    memory = models.PeakMemory()
    policy, net, tokenizer, prompts = inputs(arguments)
    models.train_last_layers(policy, arguments.percent)
    with torch.device("meta"):  # the classes that TRL expects, around the weights that both sides have
        reward, value = LlamaForSequenceClassification(net.config), MistralForSequenceClassification(policy.config)
    reward.model, reward.score = net.transformer, net.v_head
    value.model = copy.deepcopy(policy.model)
    value.score = nn.Linear(policy.config.hidden_size, 1, bias=False, dtype=policy.dtype)
    nn.init.zeros_(value.score.weight)
    steps = models.Steps()
    with tempfile.TemporaryDirectory() as directory:
        trainer = PPOTrainer(
            trl_settings(arguments, directory),
            processing_class=tokenizer,
            model=policy,
            ref_model=None,  # TRL copies the policy
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[watch(ppo_trainer, steps, arguments.prompts)],
        )
        trainer.remove_callback(PrinterCallback)
        steps.begin()
        trainer.train()
    return steps.result(arguments.prompts) | {"peak_mb": memory.mb()}


def trl_settings(arguments: argparse.Namespace, directory: str) -> Any:
    """Return TRL's PPOConfig: whole batches without gradients, no extras."""
    from trl.experimental.ppo import PPOConfig

    batch = arguments.trl_batches[0]
    return PPOConfig(
        output_dir=directory, seed=arguments.round, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True, num_sample_generations=0,
        total_episodes=arguments.prompts * (arguments.steps + 1), num_ppo_epochs=arguments.epochs,
        per_device_train_batch_size=batch, gradient_accumulation_steps=arguments.prompts // batch,
        num_mini_batches=arguments.minibatches, local_rollout_forward_batch_size=arguments.prompts,
        response_length=arguments.limit, temperature=1.0, stop_token="eos", missing_eos_penalty=None,
        kl_coef=KL, kl_estimator="k1", gamma=GAMMA, lam=LAMBDA, cliprange=CLIP, cliprange_value=VALUE_CLIP,
        vf_coef=VALUE_COEFFICIENT, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPSILON,
    )  # fmt: skip


def watch(module: Any, steps: models.Steps, samples: int) -> Any:
    """Return a callback that ends a step, and wrap TRL's functions to note time or tokens."""
    plain_generation, plain_truncate, plain_forward = module.batch_generation, module.truncate_response, module.forward
    seen = {"tokens": 0, "scored": False}

    def batch_generation(*args, **kwargs):
        result = plain_generation(*args, **kwargs)
        steps.clock.lap("rollout")
        return result

    def truncate_response(stop: int, pad: int, responses):
        result = plain_truncate(stop, pad, responses)
        seen["tokens"] += int((result != pad).sum())
        return result

    def forward(*args, **kwargs):
        if torch.is_grad_enabled() and not seen["scored"]:  # the first of the update
            steps.clock.lap("scoring")
            seen["scored"] = True
        return plain_forward(*args, **kwargs)

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            steps.clock.lap("update")
            steps.end(samples, seen["tokens"])
            seen.update(tokens=0, scored=False)

    for function in (batch_generation, truncate_response, forward):
        setattr(module, function.__name__, function)
    return StepEnds()


def compare(arguments: argparse.Namespace) -> None:
    """Measure ours, TRL, ours, TRL ..., for each critic; TRL with the fastest of its batches."""
    tried, batch = fastest_batch(arguments, {"critic": "twin"})
    turns = itertools.product(arguments.critics, range(arguments.rounds), ("ours", "trl"))
    results = [process(arguments, side, {"critic": critic}, n, batch, arguments.steps) for critic, n, side in turns]
    report(arguments, results, "critic", arguments.critics, tried)


def compare_groups(arguments: argparse.Namespace) -> None:
    """Measure both sides by turns, for each selection that trains; TRL with the fastest of its batches for it."""
    results, tried = [], {}
    for trained in arguments.trained:
        tried[trained], batch = fastest_batch(arguments, {"trained": trained})
        for number in range(arguments.rounds):
            results += step_by_step(arguments, {"trained": trained}, number, batch)
    report(arguments, results, "trained", arguments.trained, tried)


def fastest_batch(arguments: argparse.Namespace, setting: dict[str, str]) -> tuple[dict[int, float], int]:
    """Try TRL with each of its batches, if there are several: (samples a second of each, the fastest)."""
    batches = arguments.trl_batches
    tried = {n: process(arguments, "trl", setting, 0, n, 1)["samples_per_s"] for n in batches if len(batches) > 1}
    return tried, max(tried, key=tried.get, default=batches[0])


def report(
    arguments: argparse.Namespace, results: list[Result], column: str, values: list[str], tried: dict[Any, Any]
) -> None:
    """Print the table, and write --out. column: what the rows differ in; values: of it."""
    print(table(results, arguments, column, values))
    if arguments.out:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("run", "directory", "out")}
        content = {"settings": settings, "torch": torch.__version__, "trl_batches": tried, "results": results}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def process(
    arguments: argparse.Namespace, side: str, setting: dict[str, str], number: int, batch: int, steps: int
) -> Result:
    """Measure one side in a separate process, with this process's options; setting: a critic, or what trains."""
    one = start(arguments, side, setting, number, batch, steps)
    output, _ = one.communicate()
    if one.returncode:
        raise subprocess.CalledProcessError(one.returncode, one.args)
    return noted(output.splitlines()[-1], setting, number, batch)


def step_by_step(arguments: argparse.Namespace, setting: dict[str, str], number: int, batch: int) -> list[Result]:
    """Measure both sides in two processes, of which one works at a time: a step of ours, one of TRL's, one of ours ..."""
    sides = {
        side: start(arguments, side, setting, number, batch, arguments.steps, "--in-turn") for side in ("ours", "trl")
    }
    lines = {side: until_ready(one) for side, one in sides.items()}  # both have made their models
    for _ in range(arguments.steps + 1):
        for side, one in sides.items():
            one.stdin.write("\n")
            one.stdin.flush()
            lines[side] = until_ready(one)
    return [noted(line, setting, number, batch) for line in lines.values()]


def until_ready(one: subprocess.Popen) -> str:
    """Read a side's lines until its next step may begin, or to the last one. Raises CalledProcessError if it failed."""
    last = ""
    for line in one.stdout:
        if line.strip() == group_steps.READY:
            return line
        last = line
    if code := one.wait():
        raise subprocess.CalledProcessError(code, one.args)
    return last


def start(
    arguments: argparse.Namespace,
    side: str,
    setting: dict[str, str],
    number: int,
    batch: int,
    steps: int,
    *options: str,
) -> subprocess.Popen:
    """Start one side in a separate process. number: of the round; the others as in `process`."""
    own = {OPTIONS[key]: value for key, value in setting.items()}
    own |= {"side": side, "round": number, "trl-batches": batch, "steps": steps}
    command = [sys.executable, __file__, *sys.argv[1:], *options, *(f"--{key}={value}" for key, value in own.items())]
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(arguments.threads)}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def noted(line: str, setting: dict[str, str], number: int, batch: int) -> Result:
    """Return what a side said in its last line, after noting it on stderr."""
    result = setting | {"round": number, "trl_batch": batch} | json.loads(line)
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def table(results: list[Result], arguments: argparse.Namespace, column: str, values: list[str]) -> str:
    """Return Markdown: medians over the rounds; the ratios are of the two processes of a pair."""
    lines = [
        f"{workload(arguments)}{arguments.shape}, {arguments.dtype}, {arguments.prompts * arguments.group} samples a step, {arguments.threads} threads, medians of rounds:\n",
        f"| {column} | side | samples/s | s a step: rollout, scoring, update | mean response | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for value in values:
        left, right = ([r for r in results if (r[column], r["side"]) == (value, side)] for side in ("ours", "trl"))
        lines += [row(value, "ours", left), row(value, "TRL", right)]
        speed = [a["samples_per_s"] / b["samples_per_s"] for a, b in zip(left, right, strict=True)]
        memory = statistics.median(a["peak_mb"] / b["peak_mb"] for a, b in zip(left, right, strict=True))
        speeds = f"{statistics.median(speed):.2f} ({', '.join(f'{ratio:.2f}' for ratio in speed)})"
        lines.append(f"| {value} | ours / TRL | {speeds} | | | {memory:.2f} |")
    return "\n".join(lines)


def workload(arguments: argparse.Namespace) -> str:
    """Return what a step of GRPO or RLOO is made of, for the head of its table; nothing for PPO."""
    if arguments.algorithm == "ppo":
        return ""
    passes = f"{arguments.epochs} epochs of {arguments.minibatches} mini-batches"
    return f"{arguments.algorithm}, {arguments.prompts} x {arguments.group} responses, {passes}, reward {arguments.reward}; "


def row(value: str, side: str, found: list[Result]) -> str:
    """Return one side's line of the table."""
    keys = ("samples_per_s", "seconds_per_step", "mean_response", "peak_mb")
    samples, seconds, length, peak = (statistics.median(one[key] for one in found) for key in keys)
    phases = ", ".join(f"{statistics.median(one['phases_s'][name] for one in found):.1f}" for name in models.PHASES)
    return f"| {value} | {side} | {samples:.2f} | {seconds:.1f}: {phases} | {length:.1f} | {peak:.0f} |"


def run(arguments: argparse.Namespace) -> None:
    """Measure all pairs, or the one requested side, or profile ours."""
    torch.set_num_threads(arguments.threads)
    is_ppo = arguments.algorithm == "ppo"
    if arguments.profile:
        for trained in arguments.trained:
            one = argparse.Namespace(**(vars(arguments) | {"trained": [trained]}))
            print(f"trained: {trained}\n\n{group_steps.profile(one)}\n")
    elif arguments.side:
        module = sys.modules[__name__] if is_ppo else group_steps
        side = module.ours if arguments.side == "ours" else module.trl
        print(json.dumps({"side": arguments.side} | side(arguments)))
    else:
        (compare if is_ppo else compare_groups)(arguments)


# what differs by algorithm, unless it is given
OF_PPO = {"prompts": 64, "group": 1, "epochs": 4, "minibatches": 4, "mean_response": 48.0}
OF_GROUPS = {"prompts": 8, "group": 8, "epochs": 1, "minibatches": 1}  # mean_response: a third of the limit


def complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in what was not given, and refuse what does not fit together."""
    is_ppo = arguments.algorithm == "ppo"
    defaults = OF_PPO if is_ppo else OF_GROUPS | {"mean_response": arguments.limit / 3}
    for key, value in defaults.items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    samples = arguments.prompts * arguments.group
    whole = samples if is_ppo else samples // arguments.minibatches
    arguments.trl_batches = arguments.trl_batches or (
        [whole, 8] if is_ppo or (whole > 8 and whole % 8 == 0) else [whole]
    )
    if is_ppo and not arguments.directory:
        parser.error("run: PPO is measured against an older TRL; give the DIR of `install DIR`")
    if is_ppo and (arguments.profile or arguments.group != 1):
        parser.error("--profile and --group are of --algorithm grpo and rloo")
    if not is_ppo and (bad := [n for n in arguments.trl_batches if samples % (arguments.minibatches * n)]):
        parser.error(f"--trl-batches: {samples} samples are not {arguments.minibatches} mini-batches of n x {bad[0]}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("install")
    command.add_argument("directory", type=Path, help="of TRL")
    command.set_defaults(run=install)
    command = commands.add_parser("run")
    command.add_argument("directory", type=Path, nargs="?", help="of TRL, for ppo")
    command.set_defaults(run=run)
    command.add_argument("--algorithm", default="ppo", choices=["ppo", "grpo", "rloo"])
    command.add_argument("--side", choices=["ours", "trl"])
    command.add_argument("--critics", nargs="+", default=["twin", "head"], choices=["twin", "head"], help="of ppo")
    command.add_argument("--steps", type=int, default=2, help="timed ones, after one that warms up")
    command.add_argument("--round", type=int, default=0, help="seed of what is drawn; weights and prompts stay")
    command.add_argument("--shape", default="20m", choices=models.SHAPES)
    command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    command.add_argument("--percent", type=float, default=25.0, help="of the layers that train")
    command.add_argument("--limit", type=int, default=128, help="tokens of a response")
    command.add_argument("--mean-response", type=float, help="tokens; 48 in ppo, a third of the limit in the others")
    command.add_argument("--engine", default=RolloutConfig.engine, help="of our rollout")
    command.add_argument("--tokens-per-microbatch", type=int, default=2048, help="ours, padded")
    command.add_argument("--trl-batches", type=int, nargs="+", help="per device; all samples and 8 if not given")
    numbers = {"rounds": 3, "slots": 64, "threads": 2}
    for name, default in numbers.items():
        command.add_argument(f"--{name}", type=int, default=default)
    for name in ("prompts", "minibatches", "epochs"):
        command.add_argument(f"--{name}", type=int, help=f"{OF_PPO[name]} in ppo, {OF_GROUPS[name]} in the others")
    command.add_argument("--out", type=Path)
    add_group_options(command)
    arguments = parser.parse_args()
    if arguments.run is run:
        complete(command, arguments)
    arguments.run(arguments)


def add_group_options(command: argparse.ArgumentParser) -> None:
    """Add the options of GRPO and RLOO alone."""
    options = command.add_argument_group("grpo and rloo")
    options.add_argument("--group", type=int, help="responses to a prompt, 8")
    options.add_argument(
        "--trained", nargs="+", default=["last", "everything"],
        help="what trains, one after the other: last (--percent), layers as in 4,6, or everything",
    )  # fmt: skip
    options.add_argument("--reward", default="function", choices=["function", "model"], help="the same on both sides")
    options.add_argument("--kl", type=float, help="coefficient; that of our configuration if not given")
    options.add_argument("--trl-checkpointing", action="store_true", help="of TRL's gradients: its default, slower")
    options.add_argument("--profile", action="store_true", help="ours alone: what takes its time, by phase")
    options.add_argument("--in-turn", action="store_true", help="of one side: each step waits for a line on stdin")


if __name__ == "__main__":
    main()
