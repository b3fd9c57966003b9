"""Attention over a slot cache, where no GPU is: its arithmetic, and that torch's kernel takes what it is given."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig

from starling_train.rollout import attention


def test_heads_that_share_keys_go_together():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 8, 1, 16), torch.randn(3, 2, 40, 16), torch.randn(3, 2, 40, 16)
    mask = torch.zeros(3, 1, 1, 40).masked_fill(
        torch.arange(40) > torch.tensor([3, 39, 20])[:, None, None, None], -1e38
    )
    right = scaled_dot_product_attention(queries, keys, values, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attention.grouped(queries, keys, values, mask, 0.3), right)


@pytest.mark.parametrize("window", [None, 100, 4096])
def test_torch_takes_the_arguments_by_their_names_and_shapes(window):
    """No kernel runs: torch's description of it, on a device that is made up, checks what it is called with."""
    assert attention._takes_lengths()
    with FakeTensorMode():
        queries = torch.empty(8, 32, 128, dtype=torch.bfloat16, device="cuda")
        keys, values = (torch.empty(32 * 2048, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        rows = torch.empty(9, dtype=torch.int32, device="cuda")
        lengths = torch.empty(8, dtype=torch.int32, device="cuda")
        found = attention.by_lengths(queries, keys, values, (rows, rows), lengths, 2048, window, 0.1)
    assert (found.shape, found.dtype, found.device.type) == ((8, 32, 128), torch.bfloat16, "cuda")


def test_the_kernel_is_checked_against_plain_attention(monkeypatch):
    from test_graph_steps import row_by_row

    cpu, given = torch.device("cpu"), (8, 2, 16, torch.bfloat16)
    attention.agrees.cache_clear()
    assert not attention.agrees(*given, cpu, None)  # there is none for a CPU: refused without a traceback
    attention.agrees.cache_clear()
    monkeypatch.setattr(attention, "by_lengths", row_by_row)
    assert attention.agrees(*given, cpu, None) and attention.agrees(*given, cpu, 4096)
    attention.agrees.cache_clear()
    monkeypatch.setattr(attention, "by_lengths", lambda *given: row_by_row(*given[:6], None, given[7]))  # no window
    assert attention.agrees(*given, cpu, None) and not attention.agrees(*given, cpu, 4096)
    attention.agrees.cache_clear()


class Policy:
    """What `has_lengths` asks a policy for, on a GPU that is made up."""

    def __init__(self, dtype, **sizes):
        self.device, self.dtype = torch.device("cuda"), dtype
        own = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
        self.config = MistralConfig(**own | sizes)


def test_other_types_sizes_and_older_gpus_go_by_mask(monkeypatch):
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    asked = []
    monkeypatch.setattr(attention, "agrees", lambda *given: asked.append(given) or True)
    assert attention.has_lengths(Policy(torch.bfloat16))
    assert asked == [(8, 2, 64, torch.bfloat16, torch.device("cuda"), 4096)]
    assert not attention.has_lengths(Policy(torch.float32))
    assert not attention.has_lengths(Policy(torch.bfloat16, head_dim=512))
    capability[0] = (7, 5)
    assert not attention.has_lengths(Policy(torch.bfloat16))
    assert len(asked) == 1
