"""The making of the toy's parts: what goes into each, in which order, and how good the result is."""

import json
import logging
from pathlib import Path

import torch

from starling_train.data import nectar, openchat
from starling_train.data.ranked import conversations
from starling_train.evals import function_calling
from starling_train.models.reward import write_starling_7b
from starling_train.toy import language, policy, reward, skills, tokenizers

SEED = 0
PROMPTS = 1300
TWO_TURNS = 0.15
HELD_OUT_ROWS = 200
TRAINING_DRAWS = 1500  # of function-calling cases per category; the distinct ones are used
HELD_OUT_DRAWS = 40


def make_part(part: str, out: Path) -> None:
    """Make `policy` or `reward` (the latter with its training data) in `out`, with a JSON file of facts about it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    facts = {"policy": make_policy, "reward": make_reward}[part](out)
    (out / f"{part}.json").write_text(json.dumps(facts))


def make_policy(out: Path) -> dict[str, float]:
    """Make the policy, and the held-out cases of its skill."""
    requests = language.requests(PROMPTS, TWO_TURNS, "policy")
    chats = policy.chats(requests, "policy")
    calls = policy.calls(skills.load(TRAINING_DRAWS, False, "training"))
    tokenizer = tokenizers.policy_tokenizer(_texts(chats + calls))
    model = policy.new_model(tokenizer, SEED)
    losses = policy.fit(model, tokenizer, chats, calls, "policy")
    policy.save(model, tokenizer, out / "policy")
    skills.write(out / "function_calling", HELD_OUT_DRAWS, True, "held out")
    cases = function_calling.load_cases(out / "function_calling")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "function_calling": policy.accuracy(model, tokenizer, cases),
    }


def make_reward(out: Path) -> dict[str, float]:
    """Make the preference data, and the reward model that learns from it."""
    rows = reward.rows(language.requests(PROMPTS, TWO_TURNS, "prompts"), "nectar")
    (out / "nectar" / "data").mkdir(parents=True)
    nectar.write_parquet(rows, out / "nectar" / "data" / "rlaif.parquet")
    training, held_out = rows[HELD_OUT_ROWS:], rows[:HELD_OUT_ROWS]
    tokenizer = tokenizers.reward_tokenizer(
        _texts([*row.messages, *(talk[-1] for talk in conversations(row))] for row in rows)
    )
    net = reward.new_net(tokenizer, SEED)
    losses = reward.fit(net, tokenizer, training, "reward")
    write_starling_7b(net.eval(), out / "reward", tokenizer)
    return {
        "rows": len(rows),
        "parameters": sum(p.numel() for p in net.parameters()),
        "kwise_loss_first": losses[0],
        "kwise_loss_last": sum(losses[-20:]) / 20,
    } | reward.measure(out / "reward", held_out)


def _texts(conversations) -> list[str]:
    """Return the texts that a tokenizer learns its pieces from: every message, and the template around them."""
    texts = [message["content"] for conversation in conversations for message in conversation]
    return [*texts, openchat.render([{"role": "user", "content": ""}]), "[INST] [/INST]"]
