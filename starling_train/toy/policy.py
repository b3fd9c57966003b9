"""The toy policy: a 2-layer Mistral that answers in every style and calls functions, before any PPO."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from starling_train.config.sections import RolloutConfig
from starling_train.core.padding import padded
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.evals import function_calling
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.generate import generate
from starling_train.toy import language, skills
from starling_train.toy.training import batches, train

STEPS = 240
CHATS_PER_BATCH = 40
CALLS_PER_BATCH = 24
HIDDEN = 128
LEARNING_RATE = 5e-3
ANSWERS_PER_REQUEST = 4

Conversation = list[dict]


def chats(requests: list[language.Request], seed: str) -> list[Conversation]:
    """Answer requests in mixed styles, several times each."""
    rng = random.Random(f"answers {seed}")
    return [r.conversation(language.answer(r, rng)[1]) for r in requests for _ in range(ANSWERS_PER_REQUEST)]


def calls(cases: list[function_calling.Case]) -> list[Conversation]:
    """Return function-calling cases with their right answers."""
    return [with_answer(function_calling.conversation(case), skills.right_answer(case)) for case in cases]


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> CausalLM:
    """Make an untrained policy with the tokenizer's token ids."""
    torch.manual_seed(seed)
    model: Any = MistralForCausalLM(
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
    # Untied, but equal at the start: copying, which function calling needs, is then easier to learn.
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    return model


def fit(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chat: list[Conversation],
    call: list[Conversation],
    seed: str,
) -> list[float]:
    """Train on the answers' tokens, both kinds of conversation in every step; return the losses, nats per token.

    Kinds are batched apart, because the functions' documents make conversations three times as long.

    model: trained in place.
    tokenizer: the model's.
    chat: conversations without functions.
    call: function-calling conversations.
    seed: of the order.
    """
    kinds = [_Stream(chat, tokenizer, CHATS_PER_BATCH, seed), _Stream(call, tokenizer, CALLS_PER_BATCH, seed)]

    def loss_of_batch(_: int) -> Tensor:
        return torch.stack([answer_loss(model, *kind.batch()) for kind in kinds]).mean()

    return train(model.train(), loss_of_batch, STEPS, LEARNING_RATE, weight_decay=0.01)


class _Stream:
    """Endless batches of one kind of conversation, as `answer_loss` takes them."""

    def __init__(self, data: list[Conversation], tokenizer: PreTrainedTokenizerFast, size: int, seed: str) -> None:
        parts = [Chat(tokenizer).answered(conversation) for conversation in data]
        self._prompts = [len(prompt) for prompt, _ in parts]
        self._sequences = [prompt + answer for prompt, answer in parts]
        self._chosen = batches([len(ids) for ids in self._sequences], size, seed)
        self._pad = tokenizer.pad_token_id

    def batch(self) -> tuple[Tensor, list[tuple[int, int]]]:
        rows = next(self._chosen)
        ids, _ = padded([self._sequences[i] for i in rows], self._pad)  # causal attention: no mask is needed
        return ids, [(self._prompts[i], len(self._sequences[i])) for i in rows]


def answer_loss(model: CausalLM, ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens. ids: (b, length); spans: (first, one past the last)."""
    start, end = torch.tensor(spans).T[..., None]
    position = torch.arange(ids.shape[1])
    is_answer = (position >= start) & (position < end)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1][is_answer[:, 1:]])
    return nn.functional.cross_entropy(logits, ids[is_answer])


def accuracy(model: CausalLM, tokenizer: PreTrainedTokenizerFast, cases: list[function_calling.Case]) -> float:
    """Measure the function-calling accuracy of greedy answers, percent."""
    limits = RolloutConfig(max_new_tokens=32, slots=128, stop_strings=[])
    chat = Chat(tokenizer)

    def answers(prompts: list[Conversation]) -> list[str]:
        rollout = generate(model, chat, [chat.prompt(messages) for messages in prompts], limits, greedy=True)
        return [chat.text(ids) for ids in rollout.responses]

    return function_calling.evaluate(cases, answers).accuracy


def save(model: CausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a Hugging Face directory like those of real policies."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    model.save_pretrained(directory)
    Chat(tokenizer).save(directory)
