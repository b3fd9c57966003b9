"""Tiny models with random weights in the layouts that families of models are published in, by name."""

from pathlib import Path
from typing import Any

import openchat_tokenizer
import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

from starling_train.data.chat import Chat

ROPE_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
ALTERNATING = ["sliding_attention", "full_attention"] * 2
FIVE_TO_ONE = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# model_type and what a published configuration of the family has besides the sizes of SIZES
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"model_type": "llama", "rope_parameters": ROPE_LLAMA3, "tie_word_embeddings": False},
    "llama3_tied": {"model_type": "llama", "rope_parameters": ROPE_LLAMA3, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2.5": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.0, "sliding_window": 5, "layer_types": ALTERNATING, "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5,
        "layer_types": FIVE_TO_ONE, "tie_word_embeddings": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    },
    "phi3": {"model_type": "phi3", "sliding_window": 9, "pad_token_id": 0},
    "olmo2": {"model_type": "olmo2"},
    "granite": {
        "model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125, "logits_scaling": 8.0, "tie_word_embeddings": True,
    },
    "smollm3": {
        "model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1], "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, "decoder_sparse_step": 1, **MOE},
    "olmoe": {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2},
    "stablelm": {
        "model_type": "stablelm",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "cohere": {"model_type": "cohere", "logit_scale": 0.0625, "pad_token_id": 0},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2"},
}  # fmt: skip
SIZES = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
GPT2 = {"n_embd": 48, "n_inner": 96, "n_layer": 4, "n_head": 4, "n_positions": 512}


def config_of(name: str, vocab_size: int = 160, **changed: Any) -> Any:
    """The configuration of a tiny model of the family."""
    values = FAMILIES[name] | {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 2} | changed
    sizes = GPT2 if values["model_type"] == "gpt2" else SIZES
    return AutoConfig.for_model(**(sizes | values))


def model_of(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    """A model of the family with random weights, biases and norms included, large enough to tell ways apart."""
    config = config_of(name, **changed)
    torch.manual_seed(seed)
    supports = AutoModelForCausalLM.from_config(config)
    kind = "sdpa" if type(supports)._supports_sdpa else "eager"
    supports.set_attn_implementation(kind)
    with torch.no_grad():
        for parameter_name, parameter in supports.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15
            if parameter.ndim == 1 and "norm" in parameter_name and not name.startswith("gemma"):
                parameter.copy_(1 + scale * torch.randn_like(parameter))
            else:
                parameter.copy_(scale * torch.randn_like(parameter))
    return supports.to(dtype).eval()


def write(name: str, directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """A directory as published: model, generation configuration, a small tokenizer of Openchat's template."""
    tokenizer = openchat_tokenizer.small()
    model = model_of(name, seed, dtype, vocab_size=len(tokenizer), **changed)
    model.save_pretrained(directory)
    Chat(tokenizer).save(directory)
    return directory


def qwen_tokenizer() -> Any:
    """A tokenizer of Qwen's class, a piece a byte, with ChatML."""
    pieces = {
        piece: index for index, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"])
    }
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab=pieces, merges=[], eos_token="<|im_end|>", extra_special_tokens=special)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer
