"""The toy policy: a 2-layer Mistral that answers in every style and calls functions, before any PPO."""

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from starling_train.data import openchat
from starling_train.evals import function_calling
from starling_train.toy import language, skills
from starling_train.toy.training import batches, right_padded, train

STEPS = 400
BATCH = 64
HIDDEN = 96
LEARNING_RATE = 3e-3
ANSWERS_PER_REQUEST = 4

Conversation = list[dict]


def conversations(requests: list[language.Request], cases: list[function_calling.Case], seed: str) -> list[Conversation]:
    """What the policy learns from: answers in mixed styles, and right calls."""
    rng = random.Random(f"answers {seed}")
    mixed = [r.conversation(language.answer(r, rng)[1]) for r in requests for _ in range(ANSWERS_PER_REQUEST)]
    return mixed + [[*function_calling.conversation(c), _assistant(skills.right_answer(c))] for c in cases]


def _assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> MistralForCausalLM:
    """Untrained, with the token ids of the tokenizer."""
    torch.manual_seed(seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=None,
            rms_norm_eps=1e-5,
            initializer_range=0.05,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )
    # Untied, but equal at the start: copying, which function calling is made of, then has less to learn.
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    return model


def fit(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, data: list[Conversation], seed: str) -> list[float]:
    """Supervised training on the answers' tokens; returns the loss of every step, nats per token."""
    prompts = [len(openchat.encode(c[:-1], tokenizer)) for c in data]
    sequences = [openchat.encode(c, tokenizer, add_generation_prompt=False) for c in data]
    chosen = batches([len(ids) for ids in sequences], BATCH, seed)

    def loss_of_batch(_: int) -> Tensor:
        rows = next(chosen)
        ids = right_padded([sequences[i] for i in rows], tokenizer.pad_token_id)
        return answer_loss(model, ids, [(prompts[i], len(sequences[i])) for i in rows])

    return train(model.train(), loss_of_batch, STEPS, LEARNING_RATE, weight_decay=0.01)


def answer_loss(model: MistralForCausalLM, ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Mean cross-entropy of the answers' tokens. ids: (b, length); spans: (first, one past the last) of each answer."""
    start, end = torch.tensor(spans).T[..., None]
    position = torch.arange(ids.shape[1])
    is_answer = (position >= start) & (position < end)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return nn.functional.cross_entropy(logits, ids[is_answer])


def save(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """A Hugging Face directory, as the real policies come."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model.save_pretrained(directory)
    openchat.save_tokenizer(tokenizer, directory)
