"""Shared by the benchmarks: models with random weights in a few shapes, prompts, a tokenizer, peak memory.

The policies end their responses as trained ones do, at varied lengths: the end of turn has about the same probability
at every token, so that lengths are close to geometric, with the requested mean.
"""

import contextlib
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from starling_train.config.sections import FreezeConfig
from starling_train.data.openchat import END_OF_TURN, PAD
from starling_train.models.reward.net import RewardNet
from starling_train.run.records import Clock
from starling_train.selection import freeze

SPECIALS = ("<unk>", "<s>", END_OF_TURN, PAD)
BOS_ID, END_ID = SPECIALS.index("<s>"), SPECIALS.index(END_OF_TURN)

# layers, hidden, intermediate, heads, key-value heads, vocabulary
_SIZES = {
    "toy": (2, 64, 224, 4, 2, 512),
    "9m": (8, 256, 896, 4, 2, 4096),  # 9.2 M parameters
    "20m": (8, 384, 1344, 6, 2, 8192),  # 21.8 M
    "100m": (12, 768, 2688, 12, 4, 8192),  # 106 M
    "7b": (32, 4096, 14336, 32, 8, 32000),  # 7.24 B
}
SHAPES: dict[str, dict[str, Any]] = {
    name: {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768 if name == "7b" else 4096,
    }
    for name, (layers, hidden, intermediate, heads, key_value_heads, vocabulary) in _SIZES.items()
}


def policy(
    shape: str,
    mean_response: float = 48.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    limit: int = 128,
) -> MistralForCausalLM:
    """Make a Mistral with random weights, the same for the same seed, device and dtype.

    mean_response: of its responses at temperature 1, cut at `limit`, end of turn included, in tokens.
    """
    torch.manual_seed(seed)
    config = MistralConfig(**SHAPES[shape], sliding_window=4096 if shape == "7b" else None)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS_ID, END_ID, SPECIALS.index(PAD)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _carry_constant(model)
    _end_at(model, mean_response, limit, seed)
    return model


@torch.no_grad()
def _carry_constant(model: nn.Module) -> None:
    """Make hidden dimension 0 one constant at every token and in every layer: no layer writes to it.

    Embeddings of unit size, and what layers write scaled by 1 / sqrt(2 x layers) as in GPT-2, keep the constant's
    share of the hidden state's norm, and with it what the final norm leaves of it, about the same for any depth.
    """
    embeddings = model.get_input_embeddings().weight
    embeddings.normal_()
    embeddings[:, 0] = embeddings.shape[1] ** 0.5
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight *= (2 * len(model.model.layers)) ** -0.5
            projection.weight[0] = 0.0


@torch.no_grad()
def _end_at(model: nn.Module, mean_response: float, limit: int, seed: int) -> None:
    """Let the head's row of the end of turn read dimension 0 only, with the weight that gives the mean length."""
    head = model.get_output_embeddings().weight
    prompt, words = 32, len(SPECIALS)
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(words, len(head), (16, prompt + limit), generator=random)
    hidden = model.model(ids.to(model.device), use_cache=False).last_hidden_state[:, prompt:]
    others = torch.stack([(row @ head[words:].T).float().logsumexp(-1) for row in hidden])
    constant = hidden[..., 0].float()
    low, high = 0.0, 64.0
    for _ in range(40):
        weight = (low + high) / 2
        too_short = _mean_length((weight * constant - others).sigmoid()) < mean_response
        low, high = (low, weight) if too_short else (weight, high)
    head[:words] = 0.0
    head[:words, 0] = -4 * weight  # the other special tokens are never drawn
    head[END_ID, 0] = weight


def _mean_length(ending: Tensor) -> float:
    """Return the mean length, in tokens, of responses that end at each token with these probabilities (rows, limit)."""
    going_on = (1 - ending).cumprod(-1)[:, :-1]
    return float(1 + going_on.sum(-1).mean())


def reward_net(
    shape: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 1
) -> RewardNet:
    """Make a Llama of the policy's size and vocabulary with a random linear head on the last token; it never trains."""
    torch.manual_seed(seed)
    with torch.device(device):
        net = RewardNet.from_config(LlamaConfig(**SHAPES[shape], num_labels=1), dtype)
    nn.init.normal_(net.v_head.weight, std=0.02)
    return net.eval().requires_grad_(False)


def train_last_layers(model: nn.Module, percent: float = 25.0) -> freeze.FreezeTable:
    """Let only the seven matrices of each of the last `percent` % of the layers train; norms, embeddings, head do not."""
    layers = model.config.num_hidden_layers
    return train_layers(model, range(layers - max(1, round(layers * percent / 100)), layers))


def train_layers(model: nn.Module, layers: Iterable[int]) -> freeze.FreezeTable:
    """Let only the seven matrices of each of these layers train, counted from 0."""
    names = [
        name
        for layer in layers
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"model.layers.{layer}.")
    ]
    return freeze.apply(FreezeConfig(), model, names)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """Make a tokenizer in which every id is a word, `t17` for 17; Openchat's end of turn is eos, padding on the left."""
    words = [*SPECIALS, *(f"t{index}" for index in range(len(SPECIALS), vocabulary))]
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    # splits `<s>` that stands in a text, so that it does not become the special token
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END_OF_TURN,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def prompts(count: int, shape: str, low: int = 16, high: int = 48, seed: int = 0) -> list[list[int]]:
    """Draw random token ids after BOS; lengths uniform from `low` to `high` tokens, without other special tokens."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=random).tolist()
    vocabulary = SHAPES[shape]["vocab_size"]
    return [
        [BOS_ID, *torch.randint(len(SPECIALS), vocabulary, (length - 1,), generator=random).tolist()]
        for length in lengths
    ]


PHASES = ("rollout", "scoring", "update")


class Steps:
    """Seconds and tokens of the steps of a run; the first step warms up and is left out."""

    def __init__(self) -> None:
        self._laps: list[dict[str, float]] = []
        self._tokens: list[int] = []
        self.begin()

    def begin(self) -> None:
        """Begin a step; `clock.lap` takes the time of its PHASES."""
        self.clock = Clock()

    def end(self, samples: int, tokens: int) -> None:
        """End a step and begin the next. tokens: of all responses together."""
        self._laps.append(self.clock.metrics(samples, tokens))
        self._tokens.append(tokens)
        self.begin()

    def result(self, samples: int) -> dict[str, Any]:
        """Return means over the steps; `mean_response` in tokens, `phases_s` in seconds a step."""
        laps, tokens = self._laps[1:], statistics.mean(self._tokens[1:])
        seconds = statistics.mean(lap["time/step_s"] for lap in laps)
        return {
            "samples_per_s": samples / seconds,
            "seconds_per_step": seconds,
            "steps_s": [lap["time/step_s"] for lap in self._laps],
            "mean_response": tokens / samples,
            "phases_s": {name: statistics.mean(lap[f"time/{name}_s"] for lap in laps) for name in PHASES},
        }


class PeakMemory:
    """Peak resident memory of this process above its use when this object is made (Linux)."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # where the kernel forbids it, the peak counts from the start
            Path("/proc/self/clear_refs").write_text("5")
        self._base = _status_kb("VmRSS")

    def mb(self) -> float:
        """Return the peak in decimal MB."""
        return (_status_kb("VmHWM") - self._base) * 1024 / 1e6


def _status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
