"""The compiled steps of a lean decoder, beside torch's and transformers' own."""

import shutil

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from starling_train.core import sampling
from starling_train.rollout import kernels

KERNELS = kernels.compiled()
needs_compiler = pytest.mark.skipif(KERNELS is None, reason="no g++ on this machine")
TYPES = {torch.float32: 2e-5, torch.bfloat16: 0.02}
ROWS, CAPACITY = 3, 90


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_they_are_compiled_where_there_is_a_compiler():
    """Nothing else would notice: everything works without them, more slowly."""
    assert KERNELS is not None


def inputs(dtype, heads, shared, size):
    torch.manual_seed(0)
    projected = torch.randn(ROWS, (heads + 2 * shared) * size).to(dtype)
    angle = torch.rand(ROWS, size // 2).repeat(1, 2) * 6
    cache = torch.randn(2, ROWS + 1, shared, CAPACITY, size).to(dtype)
    return projected, (angle.cos().to(dtype), angle.sin().to(dtype)), (cache[0], cache[1])


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "shared", "size"), [(9, 3, 64), (5, 1, 64), (6, 2, 128), (4, 2, 16), (2, 2, 64)])
@pytest.mark.parametrize("window", [0, 7])
def test_attention_is_transformers_and_reads_no_position_that_a_row_does_not_have(dtype, heads, shared, size, window):
    projected, angles, (keys, values) = inputs(dtype, heads, shared, size)
    norms = [Qwen3RMSNorm(size, eps=1e-5).to(dtype) for _ in range(2)] if window else None
    positions = torch.tensor([80, 0, 33])
    right = []
    for row, position in enumerate(positions.tolist()):
        parts = projected[row].view(1, -1, 1, size).split([heads, shared, shared], 1)
        query, key, value = parts if norms is None else (norms[0](parts[0]), norms[1](parts[1]), parts[2])
        query, key = apply_rotary_pos_emb(query, key, *(part[row : row + 1, None] for part in angles))
        begin = max(0, position - window + 1) if window else 0
        all_keys = torch.cat([keys[row : row + 1, :, begin:position], key], 2).float()
        all_values = torch.cat([values[row : row + 1, :, begin:position], value], 2).float()
        mixed = scaled_dot_product_attention(query.float(), all_keys, all_values, scale=0.2, enable_gqa=True)
        right.append(mixed.reshape(-1))
        for tensor in (keys, values):  # whatever else is read would spread
            tensor[row, :, position:] = torch.nan
            tensor[row, :, :begin] = torch.nan
    weights = None if norms is None else (norms[0].weight.detach(), norms[1].weight.detach())
    call = [projected, weights, angles, (keys, values), positions, window, 0.2, 1e-5]
    found = KERNELS.attend(*call)
    torch.testing.assert_close(found.float(), torch.stack(right), atol=TYPES[dtype], rtol=TYPES[dtype])
    assert torch.equal(values[0, :, 80], projected[0].view(-1, size)[-shared:])  # written
    assert values[0, :, 81:].isnan().all() and keys[3].isfinite().all()
    # a row alone, and more threads, give the same bits
    torch.set_num_threads(2)
    try:
        again = KERNELS.attend(*call)
    finally:
        torch.set_num_threads(1)
    first = [projected[:1], weights, (angles[0][:1], angles[1][:1]), (keys, values), positions[:1], window, 0.2, 1e-5]
    assert torch.equal(again, found) and torch.equal(KERNELS.attend(*first), found[:1])


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
def test_norm_is_the_modules(dtype):
    module = Qwen3RMSNorm(48, eps=1e-5).to(dtype)
    torch.manual_seed(0)
    torch.nn.init.normal_(module.weight)
    states = torch.randn(5, 48).to(dtype)
    found = KERNELS.norm(states, module.weight.detach(), 1e-5)
    torch.testing.assert_close(found, module(states).detach(), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.01)
    assert KERNELS.norm(states.clone().fill_(torch.nan), module.weight.detach(), 1e-5).isnan().all()


@needs_compiler
def test_a_draw_inverts_the_distribution():
    # weights 1, 2, 0, 3, 2 of 8
    logits = torch.tensor([1.0, 2.0, 0.0, 3.0, 2.0]).log()
    uniforms = torch.tensor([0.0, 0.124, 0.126, 0.374, 0.376, 0.749, 0.751, 1 - 2**-24])
    for dtype in TYPES:
        rows = logits.clamp_min(torch.finfo(dtype).min).to(dtype).expand(len(uniforms), -1).contiguous()
        assert KERNELS.draw(rows, uniforms, 1.0).tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    # of temperature 1/2 the weights are squares: 1, 4, 0, 9, 4 of 18
    rows = logits.clamp_min(-1e30).expand(4, -1).contiguous()
    assert KERNELS.draw(rows, torch.tensor([0.054, 0.057, 0.28, 0.79]), 0.5).tolist() == [0, 1, 3, 4]


@needs_compiler
def test_draws_over_many_blocks_are_torchs_but_at_borders():
    torch.manual_seed(0)
    logits, uniforms = 3 * torch.randn(400, 5000), torch.rand(400)
    logits[:, ::7] = torch.finfo(torch.float32).min
    uniforms[:2] = torch.tensor([0, 1 - 2**-24])
    found = KERNELS.draw(logits, uniforms, 0.7)
    theirs = sampling.draw(sampling.distribution(logits, 0.7), uniforms)
    assert (found == theirs).float().mean() > 0.98 and (found - theirs).abs().max() <= 2
    assert bool((found % 7 != 0).all())


def test_without_a_compiler_there_are_none(monkeypatch, tmp_path):
    build = kernels.compiled.__wrapped__
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert build() is None
        compiler = tmp_path / "g++"
        compiler.write_text("#!/bin/sh\nexit 1\n")
        compiler.chmod(0o755)
        assert build() is None  # one that fails
