"""Small reward models for tests: random weights, a letter-by-letter tokenizer, conversations to score."""

import random
import string

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from starling_train.models.reward import RewardNet
from starling_train.models.reward.model import load_reward_model

MAX_LENGTH = 400
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
PIECES = (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *string.printable[:94], "▁")
SIZE = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(PIECES),
}


def small_tokenizer():
    """Llama's kind of tokenizer with Yi's two turn tokens, so that it fits every template; fast to load."""
    pieces = {piece: index for index, piece in enumerate(PIECES)}
    backend = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(list(SPECIAL))
    template = "{% for m in messages %}{{ m.role + '\n' + m.content }}<|im_end|>{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


def fresh_net(seed=0):
    torch.manual_seed(seed)
    net = RewardNet.from_config(LlamaConfig(**SIZE))
    torch.nn.init.normal_(net.v_head.weight)
    return net


def conversations(count=7, seed=1):
    draw = random.Random(seed)
    words = ["the", "a", "model", "answers", "questions", "about", "code", ",", ".", "\n", "你好", "x1"]

    def text(longest):
        return " ".join(draw.choices(words, k=draw.randint(1, longest)))

    return [
        [{"role": "user", "content": text(8)}, {"role": "assistant", "content": text(12)}] * draw.randint(1, 2)
        for _ in range(count)
    ]


def load(kind, directory, **options):
    return load_reward_model(kind, directory, dtype="float32", **{"max_length": MAX_LENGTH} | options)
