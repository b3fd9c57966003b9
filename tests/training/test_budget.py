"""Out of memory: less at a time, and the same result as if it had been less from the start."""

import pytest
import torch
from minibatch import optimizer_of
from test_update import SCORES, actors, rollout, settings

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError, walk
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig
from starling_train.models.budget import Budget
from starling_train.run.out_of_memory import OutOfMemory, first_line, is_out_of_memory, without_memory
from starling_train.training.ppo.experience import make_experience
from starling_train.training.ppo.update import update


def test_halves_undoes_and_goes_on():
    said, undone = [], []
    budget = Budget("algorithm.tokens_per_microbatch", 1000, said.append)

    def phase(tokens):
        if tokens > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return tokens

    assert budget.halving(phase, undo=lambda: undone.append(1)) == budget.amount == 250
    assert len(said) == len(undone) == 2
    assert "algorithm.tokens_per_microbatch is 250" in said[1] and "\n" not in said[1]


def test_gives_up_where_the_least_is_too_much():
    def phase(tokens):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 99 bytes")

    with pytest.raises(UserError, match=r"algorithm\.tokens_per_microbatch: out of memory even at 1"):
        Budget("algorithm.tokens_per_microbatch", 100, lambda line: None).halving(phase)


def test_other_errors_pass_through():
    def phase(tokens):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget("algorithm.tokens_per_microbatch", 100).halving(phase)


def test_a_real_refusal_of_the_allocator_is_recognised():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "NCCL error in: ProcessGroupNCCL.cpp:3699, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 608 bytes",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_what_a_gpu_says_is_recognised(said):
    assert is_out_of_memory(RuntimeError(said))
    assert "\n" not in without_memory(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "NCCL error: unhandled system error. Last error:\nsocketProgress: Connection closed by remote peer",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: operation failed due to a previous error during capture",  # and nothing before it
        "CUDA error: invalid argument",
    ],
)
def test_what_is_another_error_is_not_taken_for_it(said):
    assert not is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


def capture_fails(reason: Exception):
    """As `torch.cuda.graph` does it: what goes wrong within the capture is only the context of what its end raises."""
    try:
        raise reason
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")


def test_of_a_capture_that_failed_the_first_error_counts():
    with pytest.raises(RuntimeError) as failed:
        capture_fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(failed.value) and first_line(failed.value).startswith("CUDA out of memory. Tried")
    with pytest.raises(RuntimeError) as failed:
        capture_fails(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(failed.value)
    assert Budget("rollout.slots", 8, lambda line: None).halving(refuse_capture_of_more_than(2)) == 2


def refuse_capture_of_more_than(rows: int):
    def phase(amount):
        if amount > rows:
            capture_fails(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
        return amount

    return phase


def test_what_cannot_be_done_again_names_the_key_and_half_of_it():
    def phase(tokens):
        raise torch.OutOfMemoryError(f"CUDA out of memory at {tokens}")

    budget = Budget("algorithm.tokens_per_microbatch", 1000)
    asks = r"out of memory at 1000 \(CUDA out of memory at 1000\); start again with algorithm.tokens_per_microbatch=500"
    with pytest.raises(OutOfMemory, match=asks):
        budget.once(phase)
    assert budget.once(lambda tokens: tokens) == 1000


@pytest.mark.parametrize("limit", [9, 13])
def test_a_step_is_the_one_of_the_smaller_budget(tiny_mistral, limit):
    """Memory for `limit` response tokens at a time: from 10,000 tokens, and from what that ended at."""
    found = []
    amount = 10_000
    for _ in range(2):
        model, config = actors(tiny_mistral), settings(epochs=2, tokens_per_microbatch=amount)
        optimizer = optimizer_of(model, learning_rate=1e-2)
        budget = Budget("algorithm.tokens_per_microbatch", amount, lambda line: None)
        model.policy.model.norm.register_forward_pre_hook(refuse_above(limit))
        experience = make_experience(model, rollout(), SCORES, config, 0.1, budget)
        update(model, optimizer, experience, config, torch.Generator().manual_seed(0), budget=budget)
        found.append((budget.amount, experience.values, {n: p.detach() for n, p in model.trainable().items()}))
        amount = budget.amount
    assert found[0][0] == found[1][0] < 10_000
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-5)
    for name, parameter in found[0][2].items():
        # a thousandth of a step of Adam, where a tiny gradient's rounding, which depends on the CPU, counts in full
        torch.testing.assert_close(parameter, found[1][2][name], atol=1e-5, rtol=1e-5, msg=name)


def test_what_ran_out_of_memory_leaves_no_gradients_behind(tiny_mistral):
    """The first micro-batch goes through, the second does not: bit by bit what the smaller budget gives."""
    found = []
    for amount in (28, 14):
        model, config = actors(tiny_mistral), settings(epochs=1, minibatches=1)
        optimizer = optimizer_of(model, learning_rate=1e-2)
        experience = make_experience(model, rollout(), SCORES, config, 0.1)
        budget = Budget("algorithm.tokens_per_microbatch", amount, lambda line: None)
        refused = iter([False, True, *[False] * 100]) if amount == 28 else iter([False] * 100)
        model.policy.model.norm.register_forward_pre_hook(refuse_when(refused))
        update(model, optimizer, experience, config, torch.Generator().manual_seed(0), budget=budget)
        assert budget.amount == 14
        found.append({n: p.detach() for n, p in model.trainable().items()})
    for name, parameter in found[0].items():
        assert torch.equal(parameter, found[1][name]), name


def refuse_when(refused):
    def hook(module, inputs):
        if next(refused):
            raise torch.OutOfMemoryError("CUDA out of memory")

    return hook


def refuse_above(tokens):
    def hook(module, inputs):
        if len(inputs[0]) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return hook


@pytest.mark.parametrize("section,schema", [("algorithm", PpoConfig), ("rm", RmConfig), ("dpo", DpoConfig)])
def test_a_run_goes_on_with_the_smaller_budget_that_the_line_asks_for(section, schema):
    free = {key for key, _, _, is_free in walk(schema()) if is_free}
    assert f"{section}.tokens_per_microbatch" in free
    assert f"{section}.prompts_per_step" not in free
