"""The toy reward model: a small Llama with a scalar head, trained on ranked toy answers to estimate the gold score."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedTokenizerFast

from starling_train.core.padding import padded
from starling_train.core.preference import count_pairs, kwise_loss
from starling_train.data.nectar import Answer, RankedRow
from starling_train.data.ranked import conversations
from starling_train.models.reward import RewardNet, encode_conversation
from starling_train.models.reward.model import load_reward_model
from starling_train.toy import gold, language
from starling_train.toy.training import train

STEPS = 260
ROWS_PER_BATCH = 12
LEARNING_RATE = 5e-3
LANGUAGE = 0.5  # weight of language modelling
ANSWERS = 7
NOISE = 0.3  # deviation of the judge's error: rankings follow the gold score, but not always


def rows(requests: Sequence[language.Request], seed: str) -> list[RankedRow]:
    """Draw seven answers to each request, ranked by gold score plus noise, as a judge would rank them."""
    rng = random.Random(f"rows {seed}")
    return [RankedRow(request.conversation(), _ranked(request, rng), ["toy"], True) for request in requests]


def _ranked(request: language.Request, rng: random.Random) -> list[Answer]:
    drawn: dict[str, str] = {}
    while len(drawn) < ANSWERS:
        style, text = language.answer(request, rng, language.JUDGED_WEIGHTS)
        drawn.setdefault(text, style)
    judged = {text: gold.score(request.conversation(text)) + rng.gauss(0.0, NOISE) for text in drawn}
    best_first = sorted(judged, key=lambda text: -judged[text])
    return [Answer(text, drawn[text], float(rank)) for rank, text in enumerate(best_first, start=1)]


def new_net(tokenizer: PreTrainedTokenizerFast, seed: int) -> RewardNet:
    """Make an untrained reward model."""
    torch.manual_seed(seed)
    return RewardNet.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
            dtype="float32",
        )
    )


def fit(net: RewardNet, tokenizer: PreTrainedTokenizerFast, ranked: Sequence[RankedRow], seed: str) -> list[float]:
    """Train by the K-wise loss on ranked rows; return that loss of every step, which starts at log(7!)/6 = 1.42.

    Language modelling is trained along with it, in place of the pre-training of a real reward model: the text itself
    teaches which words belong together, the rankings which answers are good.

    net: trained in place.
    tokenizer: the model's.
    ranked: the rows.
    seed: of the batches.
    """
    encoded = [[encode_conversation("starling_7b", c, tokenizer) for c in conversations(row)] for row in ranked]
    rng = random.Random(f"batches {seed}")
    ranking: list[float] = []

    def loss_of_batch(_: int) -> Tensor:
        chosen = rng.sample(encoded, ROWS_PER_BATCH)
        scores, language_loss = _scores_and_language_loss(net, [ids for row in chosen for ids in row])
        loss = kwise_loss(scores.reshape(-1, ANSWERS))
        ranking.append(loss.item())
        return loss + LANGUAGE * language_loss

    train(net.train(), loss_of_batch, STEPS, LEARNING_RATE, weight_decay=0.01)
    return ranking


def _scores_and_language_loss(net: RewardNet, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return scores (n,) at the last tokens, and the cross-entropy of every next token (the embeddings as head)."""
    ids, is_real = padded(sequences)
    hidden = net.transformer(input_ids=ids, use_cache=False).last_hidden_state
    scores = net.v_head(hidden[torch.arange(len(ids)), is_real.sum(-1) - 1]).squeeze(-1)
    is_next = is_real[:, 1:]
    logits = hidden[:, :-1][is_next] @ net.transformer.embed_tokens.weight.T
    return scores, nn.functional.cross_entropy(logits, ids[:, 1:][is_next])


def measure(directory: Path, held_out: Sequence[RankedRow]) -> dict[str, float]:
    """Measure held-out pair accuracy and correlation with the gold score, of the model as PPO would load it."""
    model = load_reward_model("starling_7b", directory, dtype="float32")
    talks = [talk for row in held_out for talk in conversations(row)]
    scores, true = torch.tensor(model.score(talks)), torch.tensor(gold.scores(talks))
    return {
        "pair_accuracy": count_pairs(scores.view(-1, ANSWERS).tolist(), [range(ANSWERS)] * len(held_out)).accuracy,
        "correlation_with_gold": float(torch.corrcoef(torch.stack([scores, true]))[0, 1]),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
    }
