"""What DeepSpeed is told, which needs neither DeepSpeed nor a second process."""

from types import SimpleNamespace

import pytest
import torch

from starling_train.config.sections import ClusterConfig, OptimConfig
from starling_train.planning.memory import BUCKET
from starling_train.training import zero


@pytest.mark.parametrize("device, overlaps", [("cpu", False), ("cuda", True)])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_travel_during_the_backward_pass_on_a_gpu_alone(device, overlaps, stage):
    runtime = SimpleNamespace(world=16, device=torch.device(device))
    told = zero.settings(OptimConfig(), ClusterConfig(zero_stage=stage), torch.bfloat16, runtime, 10**6)
    assert told["zero_optimization"]["overlap_comm"] is overlaps and told["zero_optimization"]["stage"] == stage
    assert told["train_batch_size"] == 16 and told["bf16"]["enabled"]
    assert told["zero_optimization"]["reduce_bucket_size"] == 10**6 < BUCKET  # no buffer larger than what trains
