"""The policy and what of it trains: the sections `model` and `freeze` of the configuration."""

from dataclasses import dataclass, field

from starling_train.config_values import UserError, choice, number, optional_number


@dataclass
class ModelConfig:
    path: str = "openchat/openchat-3.5-0106"
    revision: str | None = None
    dtype: str = choice("bfloat16", "bfloat16", "float32")
    attention: str = choice("sdpa", "sdpa", "eager", "flash_attention_2")
    load_in: str | None = choice(None, None, "8bit", "4bit")
    gradient_checkpointing: bool = False


@dataclass
class LoraConfig:
    rank: int = number(64, 1)
    alpha: float = number(16.0, 1e-9)
    dropout: float = number(0.0, 0.0, 0.99)


@dataclass
class FreezeConfig:
    method: str = choice("snr", "snr", "layers", "last_layers", "random", "lowest", "none")
    unit: str = choice("matrix", "matrix", "layer")
    scope: str = choice("type", "type", "global")
    top_percent: float = number(25.0, 0.0, 100.0)
    max_trainable: int | None = optional_number(1)
    max_memory_gb: float | None = optional_number(0.0)
    layers: list[int] = field(default_factory=list)
    last_layers: int = number(4, 1)
    lowest_layer: int = number(0, 0)
    dialect: str = choice("spectrum", "spectrum", "laserrmt", "gavish_donoho")
    scan: str | None = None
    embeddings: bool = False
    head: bool = False
    norms: bool = False
    adapter: str | None = choice(None, None, "lora")
    lora: LoraConfig = field(default_factory=LoraConfig)


def check_freeze(freeze: FreezeConfig) -> None:
    """Check the keys of `freeze` against one another. Raises UserError."""
    if freeze.method == "layers" and not freeze.layers:
        raise UserError(
            "freeze.layers: empty with freeze.method=layers; give layer numbers, e.g. freeze.layers=[10,11]"
        )
    if freeze.method in ("snr", "random", "lowest") and freeze.top_percent == 0:
        raise UserError("freeze.top_percent: 0 selects nothing to train; give a percentage above 0, e.g. 25")
    for key in ("max_trainable", "max_memory_gb"):
        if freeze.adapter and getattr(freeze, key) is not None:
            raise UserError(f"freeze.{key}: counts whole matrices; with freeze.adapter use freeze.top_percent")
    for key in ("embeddings", "norms"):
        if freeze.adapter and getattr(freeze, key):
            raise UserError(f"freeze.{key}: adapters are for matrices; leave it out, or freeze.adapter")


def check_adapter(model: ModelConfig, freeze: FreezeConfig, zero_stage: int) -> None:
    """Check what a quantised base allows. Raises UserError."""
    if model.load_in and not freeze.adapter:
        raise UserError(
            f"model.load_in: weights in {model.load_in} cannot train themselves; use freeze.adapter=lora, or leave it "
            "out"
        )
    if model.load_in and zero_stage == 3:
        raise UserError("model.load_in: quantised weights cannot lie in parts; use cluster.zero_stage=2 or lower")
