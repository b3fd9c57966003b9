"""Memory of a run by part, by arithmetic: no weights are loaded."""

from dataclasses import dataclass
from typing import Any

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Layers of the published reward models, for plans made where their config.json is not at hand (model cards).
KNOWN_REWARD_MODELS: dict[str, dict[str, int]] = {
    "starling_7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "starling_34b": {
        "hidden_size": 7168,
        "intermediate_size": 20480,
        "num_hidden_layers": 60,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
        "vocab_size": 64000,
    },
}


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """config: a transformers configuration, or a dict with its keys."""
        values = config if isinstance(config, dict) else config.to_dict()
        return cls(
            values["hidden_size"],
            values["intermediate_size"],
            values["num_hidden_layers"],
            values["num_attention_heads"],
            values.get("num_key_value_heads") or values["num_attention_heads"],
            values["vocab_size"],
        )

    def decoder_parameters(self) -> int:
        """Embeddings, layers and norms, without an output head (Llama and Mistral, no biases)."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp + 2 * self.hidden) + self.vocabulary * self.hidden + self.hidden


@dataclass(frozen=True)
class Plan:
    """Bytes by part: `held` for the whole run, and what the rollout and the update need on top, one after the other."""

    held: dict[str, float]
    rollout: dict[str, float]
    update: dict[str, float]

    @property
    def total(self) -> float:
        """The peak: what is held and the larger of the two phases."""
        return sum(self.held.values()) + max(sum(self.rollout.values()), sum(self.update.values()))

    def render(self) -> str:
        """A line per part, decimal GB."""
        rows = [*self.held.items(), *_during("rollout", self.rollout), *_during("update", self.update)]
        rows.append(("peak", self.total))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {size / 1e9:8.2f} GB" for name, size in rows)


def _during(phase: str, parts: dict[str, float]) -> list[tuple[str, float]]:
    return [(f"during {phase}: {name}", size) for name, size in parts.items()]


def plan(
    policy: Shape,
    parameters: int,
    trainable: int,
    reward_parameters: int,
    *,
    dtype: str,
    reward_dtype: str,
    reward_load_in: str | None,
    critic: str,
    slots: int,
    sequence_tokens: int,
    tokens_per_microbatch: int,
    gradient_checkpointing: bool,
    layers_above_lowest: int,
    kept_tokens: int = 0,
    kept_limit: float = float("inf"),
    eight_bit: bool = False,
) -> Plan:
    """Memory of PPO in one process. parameters, trainable: counts of the policy; sequence_tokens: prompt + response.

    kept_tokens: tokens of a step whose hidden states are kept, at most kept_limit bytes of them, where layers are
    frozen below the lowest that trains. eight_bit: Adam's moments.
    """
    size = BYTES[dtype]
    value_head = 2 * policy.hidden * policy.hidden + 4 * policy.hidden + 1
    critic_trunk = {"head": 0, "twin": trainable, "separate": policy.decoder_parameters()}[critic]
    learning = trainable + critic_trunk
    master = 0 if dtype == "float32" else 4  # bytes of a float32 copy, and of its gradient
    kv = 2 * policy.layers * policy.kv_heads * (policy.hidden // policy.heads) * size
    activations = _activation_bytes(policy, size, layers_above_lowest, gradient_checkpointing)
    moments = 2 if eight_bit else 8
    shares = layers_above_lowest < policy.layers
    return Plan(
        held={
            "policy weights": parameters * size,
            "reference: own copies of what trains": trainable * size,
            f"critic ({critic})": critic_trunk * size + value_head * 4,
            "optimizer: moments, master copies": learning * (moments + master) + value_head * moments,
            "hidden states below the lowest trained layer": shares
            * min(kept_tokens * policy.hidden * size, kept_limit),
            "reward model": reward_parameters * {"8bit": 1.0, "4bit": 0.55, None: BYTES[reward_dtype]}[reward_load_in],
        },
        rollout={"KV cache": slots * sequence_tokens * kv},
        update={
            "gradients": learning * (size + master) + value_head * 4,
            "activations": tokens_per_microbatch * activations,
            "logits, one chunk": 3 * 1024 * policy.vocabulary * 4,
        },
    )


def plan_ranking(
    model: Shape,
    parameters: int,
    trainable: int,
    *,
    dtype: str,
    tokens_per_microbatch: int,
    gradient_checkpointing: bool,
    layers_above_lowest: int,
) -> Plan:
    """Memory of training a reward model on ranked answers, in one process."""
    size = BYTES[dtype]
    master = 0 if dtype == "float32" else 4  # bytes of a float32 copy, and of its gradient
    activations = _activation_bytes(model, size, layers_above_lowest, gradient_checkpointing)
    return Plan(
        held={"weights": parameters * size, "optimizer: moments, master copies": trainable * (8 + master)},
        rollout={},
        update={
            "gradients": trainable * (size + master),
            "activations": tokens_per_microbatch * activations,
        },
    )


def _activation_bytes(shape: Shape, size: int, layers: int, checkpointing: bool) -> int:
    """Bytes per token kept for the backward pass: inputs of the linear maps, norms and the gate, by layer."""
    one_layer = (10 * shape.hidden + 4 * shape.intermediate) * size
    return layers * shape.hidden * size + one_layer if checkpointing else layers * one_layer
