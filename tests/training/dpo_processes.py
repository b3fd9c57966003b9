"""Some steps of DPO in several processes, started by torchrun as `processes.py` is, with the same arguments.

Writes the metrics of each step, with a validation after the last, and the trained tensors.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from processes import bytes_of
from transformers import MistralConfig, MistralForCausalLM

from starling_train.config.dpo import DpoLossConfig
from starling_train.config.sections import ClusterConfig, OptimConfig
from starling_train.evals.held_out_pairs import pair_metrics
from starling_train.files.tensor_file import whole
from starling_train.models.actors import Actors
from starling_train.models.budget import Budget
from starling_train.run.runtime import Runtime
from starling_train.training.dpo import update
from starling_train.training.dpo.update import EncodedPairedRow
from starling_train.training.optimizer import make_optimizer


def main() -> None:
    stage, loss, steps, out = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    dtype, first = getattr(torch, sys.argv[5]), int(sys.argv[6])
    torch.set_num_threads(1)
    runtime = Runtime("cpu", timeout_s=60)
    with runtime.fails_together():
        torch.manual_seed(0)
        shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
        policy = MistralForCausalLM(MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).to(dtype)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("layers.1.mlp" in name or "layers.2.self_attn.q" in name)
        net, budget = Actors(policy, "none", lowest=1, has_reference=False), Budget("test", 40)
        settings = DpoLossConfig(beta=0.3, loss=loss, tokens_per_microbatch=40)
        optim = OptimConfig(learning_rate=1e-2, schedule="constant")
        optimizer = make_optimizer(net, net.groups(), optim, ClusterConfig("cpu", zero_stage=stage), runtime)
        given = [rows(step) for step in range(first + steps + 1)]
        with optimizer.gathered():
            known = [update.logprobs_of(net, everyones, budget, runtime) for everyones in given]
        given = [
            [replace(r, reference=v) for r, v in zip(*pair, strict=True)] for pair in zip(given, known, strict=True)
        ]
        if first:
            saved = torch.load(out.with_suffix(".state"), weights_only=True)
            optimizer.load(saved["trainable"], saved["optimizer"])
        found = []
        for step in range(first + 1, first + steps + 1):
            optimizer.set_rates(step, 100)
            mine = runtime.shard(given[step])
            found.append(update.update(net, optimizer, mine, settings, runtime, budget).metrics)
        with optimizer.gathered():
            found[-1] |= pair_metrics(net, [given[0]], settings, budget, runtime)
        bytes_here = runtime.gather([bytes_of(optimizer)])
        tensors = {"trainable": whole(optimizer.trainable_tensors()), "optimizer": whole(optimizer.state_tensors())}
        if runtime.is_main:
            torch.save(tensors, out.with_suffix(".state"))
            out.write_text(json.dumps({"metrics": found, "bytes": bytes_here}))


def rows(step: int) -> list[EncodedPairedRow]:
    """Five prompts with two or three answers; a process may have micro-batches that the other one lacks."""
    random = torch.Generator().manual_seed(step)

    def draw(count: int) -> list[int]:
        return torch.randint(97, (count,), generator=random).tolist()

    made = []
    for place, (asked, *answers) in enumerate([(4, 6, 3), (7, 2, 9, 4), (3, 1, 2), (5, 20, 19), (9, 4, 2)]):
        prompt, pairs = draw(asked), [(0, 1)] if len(answers) == 2 else [(0, 1), (0, 2), (1, 2)]
        made.append(EncodedPairedRow(place, [prompt] * len(answers), [draw(count) for count in answers], pairs, []))
    return made


if __name__ == "__main__":
    main()
