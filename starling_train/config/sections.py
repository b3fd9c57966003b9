"""The configuration as typed dataclasses, and its checks.

`conf/` holds the same keys with the same defaults and a comment on each (a test compares them). Checks on one key
stand beside the key (`config/fields.py`), checks across keys in `check`. Only the standard library is used, so that a
wrong key is told before anything heavy is imported.
"""

from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_url,
    choice,
    number,
    optional_number,
    variable,
)

REWARD_MODELS = ("starling_7b", "starling_34b", "sequence_classification")  # the others have no weights here


@dataclass
class RewardConfig:
    kind: str = choice("starling_7b", *REWARD_MODELS, "server")
    path: str = "berkeley-nest/Starling-RM-7B-alpha"
    tokenizer: str | None = None
    dtype: str = choice("bfloat16", "bfloat16", "float16", "float32")
    load_in: str | None = choice(None, None, "8bit", "4bit")
    device_map: str | None = choice(None, None, "auto")
    position: str = choice("last_token", "last_token", "card")
    trailing_newline: bool = False
    max_length: int = number(2048, 8)
    tokens_per_batch: int = number(16384, 1)
    scale: str = choice("running", "none", "running")
    clip: float = number(10.0, 0.0)
    url: str | None = None
    protocol: str = choice("starling", "starling", "openrlhf")
    token_env: str | None = variable("STARLING_REWARD_TOKEN")
    connections: int = number(8, 1, 1024)
    conversations_per_request: int = number(8, 1)
    timeout_s: float = number(120.0, 0.001, 86400.0)
    patience_s: float = number(300.0, 0.0)

    @property
    def has_weights(self) -> bool:
        """Whether `path` names weights that this process loads."""
        return self.kind in REWARD_MODELS


@dataclass
class DataConfig:
    path: str = "berkeley-nest/Nectar"
    max_prompt_tokens: int = number(1024, 1)
    eval_prompts: int = number(64, 1)
    good_natured_only: bool = False
    exclude: list[str] = field(default_factory=list)


@dataclass
class RolloutConfig:
    engine: str = choice("slots", "slots", "hf")
    slots: int = number(64, 1)
    max_new_tokens: int = number(1024, 1)
    temperature: float = number(1.0, 1e-3)
    top_p: float = number(1.0, 1e-3, 1.0)
    top_k: int = number(0, 0)
    stop_strings: list[str] = field(default_factory=lambda: ["GPT4 Correct User:", "GPT4 Correct Assistant:"])


@dataclass
class KLConfig:
    coefficient: float = number(0.01, 0.0)
    target: float | None = optional_number(1e-6)
    horizon: float = number(10000.0, 1.0)
    estimator: str = choice("k1", "k1", "k2", "k3")
    stop: float | None = optional_number(1e-6)


@dataclass
class AlgorithmConfig:
    name: str = choice("ppo", "ppo", "apa")
    steps: int = number(1000, 1)
    prompts_per_step: int = number(64, 1)
    epochs: int = number(2, 1)
    minibatches: int = number(4, 1)
    tokens_per_microbatch: int = number(8192, 1)
    prefix_device_gb: float = number(8.0, 0.0)
    gamma: float = number(1.0, 0.0, 1.0)
    gae_lambda: float = number(0.95, 0.0, 1.0)
    clip: float = number(0.2, 1e-6)
    value_clip: float = number(0.2, 0.0)
    value_coefficient: float = number(1.0, 0.0)
    apa_lambda: float = number(0.1, 1e-6)
    critic: str = choice("head", "head", "twin", "separate")
    critic_warmup_steps: int = number(0, 0)
    missing_eos_penalty: float = number(1.0, 0.0)
    length_penalty: float = number(0.0)
    kl: KLConfig = field(default_factory=KLConfig)


@dataclass
class OptimConfig:
    learning_rate: float = number(2e-7, 0.0, 1.0)
    critic_learning_rate: float | None = optional_number(0.0, 1.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = number(1e-5, 0.0)
    weight_decay: float = number(1e-6, 0.0)
    schedule: str = choice("linear", "linear", "constant", "cosine")
    warmup_steps: int = number(0, 0)
    max_gradient_norm: float = number(1.0, 1e-9)
    eight_bit: bool = False


@dataclass
class ClusterConfig:
    device: str = choice("auto", "auto", "cpu", "cuda")
    threads: int | None = optional_number(1, 1024)
    zero_stage: int = number(0, 0, 3)
    timeout_s: float = number(1800.0, 1.0)


@dataclass
class CheckpointConfig:
    every: int = number(50, 0)
    keep: int = number(2, 1)
    grace_s: float = number(300.0, 0.0)


@dataclass
class FunctionCallingConfig:
    path: str | None = None
    cases: int | None = optional_number(1)
    max_new_tokens: int = number(256, 1)


@dataclass
class PerplexityConfig:
    path: str | None = None
    tokens: int | None = optional_number(2)
    window: int = number(2048, 2)


@dataclass
class EvaluationConfig:
    every: int = number(50, 0)
    suites: list[str] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)
    function_calling: FunctionCallingConfig = field(default_factory=FunctionCallingConfig)
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)


@dataclass
class LoggingConfig:
    wandb: str = choice("disabled", "disabled", "offline", "online")
    samples: int = number(16, 1)


SUITES = ("function_calling", "perplexity")


def check_reward(reward: RewardConfig) -> None:
    """Check the keys of `reward` against one another. Raises UserError."""
    (_check_model if reward.has_weights else _check_server)(reward)


def _check_server(reward: RewardConfig) -> None:
    if not reward.url:
        raise UserError("reward.url: not set; give the address of a reward server, e.g. http://127.0.0.1:8000")
    check_url(reward.url, reward.protocol)
    if reward.protocol == "openrlhf" and not reward.tokenizer:
        raise UserError("reward.tokenizer: not set; with reward.protocol=openrlhf its chat template makes the text")


def _check_model(reward: RewardConfig) -> None:
    if not reward.path:
        raise UserError("reward.path: not set; give the reward model: a Hugging Face directory or hub id")
    if reward.position == "card" and reward.kind != "starling_7b":
        raise UserError(f"reward.position: card is Starling-RM-7B-alpha's, not {reward.kind}'s; use last_token")
    if reward.trailing_newline and reward.kind != "starling_34b":
        raise UserError(f"reward.trailing_newline: the template of {reward.kind} has none; use false")


def check_evaluation(rollout: RolloutConfig, evaluation: EvaluationConfig) -> None:
    """Check what an evaluation is made of. Raises UserError."""
    if "" in rollout.stop_strings:
        raise UserError("rollout.stop_strings: an empty string would end every response at once; leave it out")
    for suite in evaluation.suites:
        if suite not in SUITES:
            raise UserError(f"evaluation.suites: '{suite}' is not a suite; use some of: {', '.join(SUITES)}")
    for suite, section, what in (
        ("function_calling", evaluation.function_calling, "the directory of the leaderboard's BFCL_v4_*.json"),
        ("perplexity", evaluation.perplexity, "a text file, or JSONL with texts"),
    ):
        if suite in evaluation.suites and not section.path:
            raise UserError(f"evaluation.{suite}.path: not set; give {what}, or leave {suite} out of evaluation.suites")
    for name, target in evaluation.functions.items():
        if ":" not in target:
            raise UserError(f"evaluation.functions.{name}: '{target}' is not of the form package.module:function")


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
