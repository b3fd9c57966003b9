"""PPO on the toy with optimizer and reward model in host memory: the numbers and files of a run that has them on its
device, to the bit, wherever a part of the run had them."""

import json
from pathlib import Path

import pytest
import torch
from cut_run import cut_after_the_first_step
from safetensors.torch import load_file

from starling_train import ppo
from starling_train.config.sections import RewardConfig
from starling_train.rewards import directory
from starling_train.run.runtime import Runtime

ELSEWHERE = ["cluster.offload=optimizer", "reward.offload=true"]
MEASURED = ("time/", "throughput/", "memory/")


def train(folder: Path, dtype: str, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = ["+recipe=debug", f"model.dtype={dtype}", "algorithm.critic=twin", "run_dir=run", *arguments]
        patch.setattr("sys.argv", ["ppo", *given])
        ppo.main()
    return folder / "run"


def same(one: Path, other: Path) -> None:
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    kept = [[{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in run] for run in rows]
    assert kept[0] == kept[1] and len(kept[0]) > 2
    for name in ("trainable.safetensors", "optimizer.safetensors"):
        files = [load_file(run / "checkpoints" / "step_000002" / name) for run in (one, other)]
        assert files[0].keys() == files[1].keys()
        assert all(torch.equal(tensor, files[1][key]) for key, tensor in files[0].items())


@pytest.mark.slow  # 4 runs of the toy for each type: the whole command's numbers, and the switch turned in between
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_switches_change_no_number_and_may_be_turned_between_two_starts(dtype, toy, tmp_path):
    folders = [tmp_path / name for name in ("plain", "elsewhere", "turned_on", "turned_off")]
    for folder in folders:
        folder.mkdir()
    plain, elsewhere = train(folders[0], dtype), train(folders[1], dtype, *ELSEWHERE)
    same(plain, elsewhere)
    cut_after_the_first_step(plain, folders[2] / "run")
    same(plain, train(folders[2], dtype, *ELSEWHERE))
    cut_after_the_first_step(elsewhere, folders[3] / "run")
    same(plain, train(folders[3], dtype))


def test_the_toy_s_scores_are_the_same_when_weights_come_for_them_alone(toy):
    """To the bit, and the weights are elsewhere before and after."""
    conversations = [
        [{"role": "user", "content": "What is the sea?"}, {"role": "assistant", "content": answer}]
        for answer in ("It is wide.", "I do not know. " * 20, "")
    ]
    models = [
        directory.load(RewardConfig(path=str(toy / "reward"), dtype="float32", offload=offload), Runtime("cpu"))
        for offload in (False, True)
    ]
    resident, visiting = models
    weights = dict(visiting.net.named_parameters())
    homes, seen = {name: p.data_ptr() for name, p in weights.items()}, []
    visiting.net.register_forward_pre_hook(lambda *_: seen.append({n: p.data_ptr() for n, p in weights.items()}))
    visiting._packed = None  # through the network itself, which has the hook
    resident._packed = None
    assert visiting.score(conversations) == resident.score(conversations)
    assert seen and not set(seen[0].values()) & set(homes.values())
    assert {name: p.data_ptr() for name, p in weights.items()} == homes
