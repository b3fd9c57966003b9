"""One PPO step by phase: seconds, tokens, operations and bytes, beside what the machine can do; one JSON object out.

python benchmarks/ppo_step.py --model-shape 20m                       on two CPU cores
python benchmarks/ppo_step.py --model-shape 7b --device cuda --dtype bfloat16 --prompt 256 --limit 512 \
    --mean-response 512 --critic head --gradient-checkpointing        on one GPU of 80 GB
python benchmarks/ppo_step.py sweep --out benchmarks/plots            cost against size: figures and plots

Policy, reward net and prompts are those of benchmarks/models.py: random weights, responses that end at varied lengths.
The step is that of `starling_train.ppo`, from prompts to updated weights, except that the reward model gets the
responses' ids, not decoded and encoded again, and without stop strings. The first step warms up and is left out.
Operations are counted as executed, in scoring and update, including padding and gradient checkpointing's repetitions.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import machine
import models
from torch.utils.flop_counter import FlopCounterMode

from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import AlgorithmConfig, KLConfig, LoraConfig, OptimConfig, RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models import adapters
from starling_train.models.actors import Actors
from starling_train.models.reward.model import RewardModel
from starling_train.rollout import decode_step, graph_steps
from starling_train.rollout.generate import generate
from starling_train.rollout.responses import Rollout
from starling_train.training.local import LocalOptimizer
from starling_train.training.ppo.experience import layer_to_keep, make_experience
from starling_train.training.ppo.update import update


class Job:
    """Everything one step needs, made from the command line."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, shape = arguments, arguments.model_shape
        dtype, device = getattr(torch, arguments.dtype), arguments.device
        policy = models.policy(shape, arguments.mean_response, device, dtype, limit=arguments.limit)
        if arguments.gradient_checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.table = select(policy, arguments)
        if arguments.adapter:  # on the same matrices
            adapters.add(policy, self.table.names, LoraConfig(rank=arguments.adapter))
        self.tokenizer = models.tokenizer(models.SHAPES[shape]["vocab_size"])
        low, high = arguments.prompt // 2, arguments.prompt * 3 // 2
        self.prompts = models.prompts(arguments.prompts * (arguments.steps + 1), shape, low, high)
        net = models.reward_net(shape, device, dtype)
        self.reward = RewardModel(
            net, self.tokenizer, "starling_7b", tokens_per_batch=arguments.tokens_per_microbatch, device=device
        )
        self.config = settings(arguments)
        self.actors = Actors(policy, arguments.critic, self.table.lowest_layer).to(device).train()
        optimizer = LocalOptimizer(self.actors, self.actors.groups(), self.config.optim)
        optimizer.set_rates(1, 2)
        self.optimizer = optimizer
        self.order = torch.Generator().manual_seed(0)

    def rollout(self, step: int) -> Rollout:
        count = self.arguments.prompts
        batch = self.prompts[step * count : (step + 1) * count]
        keep = layer_to_keep(self.actors, batch, self.config)
        return generate(self.actors.policy, Chat(self.tokenizer), batch, self.config.rollout, keep_layer=keep)

    def score(self, rollout: Rollout) -> Any:
        scores = self.reward.score_ids([p + r for p, r in zip(rollout.prompts, rollout.responses, strict=True)])
        return make_experience(self.actors, rollout, torch.tensor(scores), self.config.algorithm, 0.05)

    def update(self, experience: Any) -> None:
        update(self.actors, self.optimizer, experience, self.config.algorithm, self.order)


def settings(arguments: argparse.Namespace) -> PpoConfig:
    config = PpoConfig()
    config.rollout = RolloutConfig(arguments.engine, arguments.slots, arguments.limit, stop_strings=[])
    config.algorithm = AlgorithmConfig(
        prompts_per_step=arguments.prompts, epochs=arguments.epochs, minibatches=arguments.minibatches,
        tokens_per_microbatch=arguments.tokens_per_microbatch, critic=arguments.critic, missing_eos_penalty=0.0,
        kl=KLConfig(coefficient=0.05),
    )  # fmt: skip
    config.optim = OptimConfig(1e-6, schedule="constant", eight_bit=arguments.eight_bit)
    return config


def select(policy: torch.nn.Module, arguments: argparse.Namespace) -> Any:
    """Let the last `percent` % of the layers train; with --lowest-layer, as many spread evenly from there to the top."""
    from starling_train.config.sections import FreezeConfig
    from starling_train.selection import freeze

    layers = policy.config.num_hidden_layers
    if arguments.percent * layers < 100:  # less than a layer: the matrices that write to the hidden state
        last = f"model.layers.{layers - 1}"
        return freeze.apply(FreezeConfig(), policy, [f"{last}.self_attn.o_proj", f"{last}.mlp.down_proj"])
    if arguments.lowest_layer is None:
        return models.train_last_layers(policy, arguments.percent)
    count = max(1, round(layers * arguments.percent / 100))
    span = layers - 1 - arguments.lowest_layer
    chosen = {arguments.lowest_layer + round(i * span / max(1, count - 1)) for i in range(count)}
    names = [
        name
        for name, module in policy.named_modules()
        if isinstance(module, torch.nn.Linear) and any(name.startswith(f"model.layers.{i}.") for i in chosen)
    ]
    return freeze.apply(FreezeConfig(), policy, names)


class DecodeTraffic:
    """Return the bytes that decoding must read: all weights once a step, and the keys and values of running rows."""

    def __init__(self, policy: torch.nn.Module):
        config, size = policy.config, policy.dtype.itemsize
        self.steps = self.bytes = 0
        embeddings = policy.get_input_embeddings().weight.numel()
        self._weights = (sum(p.numel() for p in policy.parameters()) - embeddings) * size
        self._per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * size

    def see(self, positions: list[int]) -> None:
        self.steps += 1
        self.bytes += self._weights + self._per_position * (sum(positions) + len(positions))


def watch_decoding(traffic: DecodeTraffic) -> None:
    """Count every decoding step from now on, captured in a graph or not."""
    for kind in (decode_step.DecodeStep, graph_steps.GraphSteps):
        plain = kind.__call__

        def call(self: Any, tokens: Any, positions: Any, plain: Any = plain) -> Any:
            traffic.see(list(positions))
            return plain(self, tokens, positions)

        kind.__call__ = call


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run timed steps, then one more that counts operations."""
    torch.manual_seed(0)
    limits = None
    if not arguments.no_rates:
        limits = (
            machine.matrix_rate(arguments.device, getattr(torch, arguments.dtype)),
            machine.copy_bandwidth(arguments.device),
        )
    memory = machine.peak_memory(arguments.device)
    torch.backends.cuda.enable_cudnn_sdp(arguments.cudnn_attention)
    job = Job(arguments)
    traffic = DecodeTraffic(job.actors.policy)
    steps, lengths, peaks = models.Steps(), [], {"made": memory()}
    for step in range(arguments.steps + 1):
        if step == 1:
            watch_decoding(traffic)
        rollout = job.rollout(step)
        machine.wait(arguments.device)
        steps.clock.lap("rollout")
        peaks[f"{step} rollout"] = memory()
        experience = job.score(rollout)
        machine.wait(arguments.device)
        steps.clock.lap("scoring")
        peaks[f"{step} scoring"] = memory()
        job.update(experience)
        machine.wait(arguments.device)
        steps.clock.lap("update")
        peaks[f"{step} update"] = memory()
        lengths += rollout.lengths()
        steps.end(len(rollout), sum(map(len, rollout.responses)))
    found = steps.result(arguments.prompts)
    found |= {"peak_gb": memory(), "trainable": sum(p.numel() for p in job.actors.policy_parameters().values())}
    found |= {"peaks_gb": peaks, "planned_gb": planned_gb(job, arguments, lengths)}  # each: the highest until then
    found["settings"] = {key: value for key, value in vars(arguments).items() if key != "out"}
    return found | ({"rates": rates(job, found, traffic, limits, arguments)} if limits else {})


def planned_gb(job: Job, arguments: argparse.Namespace, lengths: list[int]) -> dict[str, Any]:
    """Return what the plan says of these lengths, decimal GB by part."""
    import plan

    made = plan.planned(job, argparse.Namespace(**(vars(arguments) | {"steps": arguments.steps + 1})), lengths)
    phases = {name: getattr(made, name) for name in ("held", "rollout", "scoring", "update", "step")}
    parts = {name: {part: size / 1e9 for part, size in sizes.items()} for name, sizes in phases.items()}
    return {"total": made.total / 1e9} | parts


def rates(
    job: Job,
    found: dict[str, Any],
    traffic: DecodeTraffic,
    limits: tuple[float, float],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return each phase's share of the machine's matrix rate, and decoding's share of its bandwidth."""
    (limit, bandwidth), operations = limits, {}
    # read before the rollout that is counted, which is one more
    decode_steps, decode_bytes = traffic.steps / arguments.steps, traffic.bytes / arguments.steps
    rollout = job.rollout(arguments.steps)
    with FlopCounterMode(display=False) as counter:
        experience = job.score(rollout)
    operations["scoring"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        job.update(experience)
    operations["update"] = counter.get_total_flops()
    phases = found["phases_s"]
    return {
        "matrix_tflops": limit / 1e12,
        "copy_gb_per_s": bandwidth / 1e9,
        "operations": operations,
        "share_of_matrix_rate": {p: operations[p] / phases[p] / limit for p in operations},
        "decode_steps": decode_steps,
        "decode_share_of_bandwidth": decode_bytes / phases["rollout"] / bandwidth,
        "decode_tokens_per_s": found["mean_response"] * arguments.prompts / phases["rollout"],
    }


SWEEPS = {
    "fraction trained, percent": ("--percent", [5, 25, 50, 100]),
    "lowest trained layer": ("--lowest-layer", [0, 2, 4, 6]),
    "mean response, tokens": ("--mean-response", [12, 24, 48, 96]),
    "prompts a step": ("--prompts", [8, 16, 32, 64]),
}


def sweep(arguments: argparse.Namespace) -> None:
    """Measure each size in a separate process; write figures to sweep.json, and one plot."""
    found: dict[str, list[dict[str, Any]]] = {}
    for title, (option, values) in SWEEPS.items():
        for value in values:
            command = [sys.executable, __file__, "--model-shape", arguments.model_shape, "--device", arguments.device]
            command += [
                "--dtype",
                arguments.dtype,
                "--threads",
                str(arguments.threads),
                "--steps",
                str(arguments.steps),
            ]
            command += ["--prompts", str(arguments.prompts), "--no-rates", option, str(value)]
            if option == "--mean-response":  # the limit stays at 8/3 of the mean
                command += ["--limit", str(value * 8 // 3)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.setdefault(title, []).append({"value": value} | json.loads(output.splitlines()[-1]))
            print(title, value, f"{found[title][-1]['seconds_per_step']:.2f} s a step", flush=True)
            # after every size: a sweep that is stopped keeps what it has
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "sweep.json").write_text(json.dumps(found, indent=1) + "\n")
            machine.plot_sweep(found, arguments.out / "sweep.png")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="step", choices=["step", "sweep"])
    parser.add_argument("--model-shape", default="20m", choices=models.SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--critic", default="twin", choices=["head", "twin", "separate"])
    parser.add_argument("--percent", type=float, default=25.0, help="of the layers that train")
    parser.add_argument("--lowest-layer", type=int, help="spread what trains from this layer to the last")
    parser.add_argument("--prompts", type=int, default=64, help="a step")
    parser.add_argument("--prompt", type=int, default=32, help="mean tokens of a prompt")
    parser.add_argument("--limit", type=int, default=128, help="tokens of a response")
    parser.add_argument("--mean-response", type=float, default=48.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--tokens-per-microbatch", type=int, default=1024)
    parser.add_argument("--engine", default="slots", choices=["slots", "hf"])
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="timed ones")
    parser.add_argument(
        "--no-rates", action="store_true", help="leave out what the machine can do, and the shares of it"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--adapter", type=int, help="train LoRA adapters of this rank on what would train")
    parser.add_argument("--cudnn-attention", action="store_true", help="let torch choose it, on a GPU")
    parser.add_argument("--eight-bit", action="store_true", help="Adam's moments, on a GPU")
    parser.add_argument("--out", type=Path, help="file for the JSON; with sweep, a directory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "sweep":
        sweep(arguments)
        return
    text = json.dumps(run(arguments), default=str)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
