"""Some steps of PPO in several processes, started by torchrun: python -m torch.distributed.run ... processes.py

Arguments: zero stage, critic, steps, output file, type, step to go on after, [what lies in host memory]. For rloo and
grpo, which have no critic, their name stands in its place.
Writes the metrics of each step and the trained tensors.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from starling_train.config.sections import AlgorithmConfig, ClusterConfig, KLConfig, LoraConfig, OptimConfig
from starling_train.files.tensor_file import whole
from starling_train.models import adapters
from starling_train.models.actors import Actors
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime
from starling_train.training.optimizer import Optimizer, make_optimizer
from starling_train.training.ppo.experience import make_experience
from starling_train.training.ppo.update import update
from starling_train.training.zero import ZeroOptimizer

# in the place of a critic: two responses to each of five prompts
GROUPS = {
    "rloo": AlgorithmConfig(name="rloo", ratio="sequence", loss_mean="sequences", kl=KLConfig(coefficient=0.1)),
    "grpo": AlgorithmConfig(
        name="grpo",
        ratio="sequence_mean",
        loss_mean="tokens",
        kl=KLConfig(coefficient=0.1, estimator="k3", where="loss"),
    ),
}


def main() -> None:
    stage, critic, steps, out = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    dtype = getattr(torch, sys.argv[5])
    first = int(sys.argv[6]) if len(sys.argv) > 6 else 0
    offload = sys.argv[7] if len(sys.argv) > 7 else None
    torch.set_num_threads(1)
    runtime = Runtime("cpu", timeout_s=60)
    with runtime.fails_together():
        torch.manual_seed(0)
        shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        policy = MistralForCausalLM(MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).to(dtype)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("layers.1.mlp" in name or "layers.2.self_attn.q" in name)
        if critic == "adapters":  # and a twin critic with its own
            critic = "twin"
            names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
            adapters.add(policy, [*names, "lm_head.weight"], LoraConfig(rank=4))
        has_critic, group = critic not in GROUPS, 2 if critic in GROUPS else 1
        kind = critic if has_critic else "none"
        actors = Actors(policy, kind, lowest=1).train()
        if has_critic:
            torch.nn.init.normal_(actors.value_head.out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        algorithm = replace(
            GROUPS.get(critic, AlgorithmConfig(kl=KLConfig(coefficient=0.1))),
            epochs=2, minibatches=2, tokens_per_microbatch=40, responses_per_prompt=group, critic=kind,
        )  # fmt: skip
        optim = OptimConfig(learning_rate=1e-2, schedule="constant")
        cluster = ClusterConfig("cpu", zero_stage=stage, offload=offload)
        optimizer = make_optimizer(actors, actors.groups(), optim, cluster, runtime)
        if first:
            saved = torch.load(out.with_suffix(".state"), weights_only=True)
            optimizer.load(saved["trainable"], saved["optimizer"])
        rows = []
        for step in range(first + 1, first + steps + 1):
            everyones = rollout(step, group)
            own = runtime.shard(range(len(everyones) // group))  # prompts
            mine = everyones.only([prompt * group + place for prompt in own for place in range(group)])
            everyones_scores = torch.linspace(-1, 1, len(everyones)).view(-1, group)
            if step == 3:  # all those of a second process are not finite
                everyones_scores[1::2] = torch.nan
            scores = everyones_scores[own].flatten()
            with optimizer.gathered():
                experience = make_experience(actors, mine, scores, algorithm, 0.1, runtime=runtime)
            train_policy = step > 1 or not has_critic
            optimizer.set_rates(step, 100, train_policy)
            order = runtime.generator("update", step)
            rows.append(update(actors, optimizer, experience, algorithm, order, train_policy, None, runtime).metrics)
        bytes_here = runtime.gather([bytes_of(optimizer)])
        tensors = {"trainable": whole(optimizer.trainable_tensors()), "optimizer": whole(optimizer.state_tensors())}
        if runtime.is_main:
            torch.save(tensors, out.with_suffix(".state"))
            out.write_text(json.dumps({"metrics": rows, "bytes": bytes_here}))


def bytes_of(optimizer: Optimizer) -> int:
    """Bytes of optimizer state in this process: of the shard, or of the whole."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.bytes_here()
    return sum(tensor.numel() * tensor.element_size() for tensor in optimizer.state_tensors().values())


def rollout(step: int, group: int) -> Rollout:
    """The responses of all processes, one to each of seven prompts, or two to each of five."""
    random = torch.Generator().manual_seed(step)
    sizes = [(4, 6), (7, 2), (3, 9), (5, 1), (2, 4), (6, 6), (3, 3)] + (group - 1) * [(4, 5), (2, 8), (3, 1)]
    draw = [[torch.randint(97, (n,), generator=random).tolist() for n in pair] for pair in sizes]
    prompts = [draw[index - index % group][0] for index in range(len(draw))]
    return Rollout(prompts, [response for _, response in draw], [True] * len(draw))


if __name__ == "__main__":
    main()
