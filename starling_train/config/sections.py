"""The sections that commands share, as typed dataclasses, and their checks across keys.

A docstring is the section's comment in `conf/`; `fields` describes what else a key declares.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from starling_train.config.fields import (
    NotSet,
    UserError,
    check_betas,
    check_header,
    check_server_url,
    check_url,
    choice,
    did_you_mean,
    given,
    local_path,
    number,
    path_to,
    require,
    section,
    sections,
    setting,
    variable,
)

REWARD_MODELS = ("starling_7b", "starling_34b", "sequence_classification")  # the others have no weights here
# reward.function: package.module:name, or FILE.py:name
FUNCTION = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|.+\.py):[^\W\d]\w*")
SCORERS = (*REWARD_MODELS, "server", "function")
VLLM = ("vllm", "vllm_server")  # rollout engines with weights of their own
TERM = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # the name of a term, which is a part of its metrics' names
NOT_A_TERM = ("mean", "std")  # eval/score_mean and eval/score_std are the sum's


def _check_template(key: str, value: str) -> None:
    if value not in ("auto", "openchat", "own") and not value.endswith(".jinja"):
        raise UserError(f"{key}: '{value}' is not a template; use auto, openchat, own, or a file FILE.jinja")


@dataclass
class ModelConfig:
    """The policy: a chat model, with the template that it is used with."""

    path: str = path_to("openchat/openchat-3.5-0106", "Hugging Face directory or hub id")
    revision: str | None = setting(None, "of a hub id")
    dtype: str = choice("bfloat16", ("bfloat16", "float32"), doc="of weights and activations: bfloat16, float32")
    attention: str = choice("sdpa", ("sdpa", "eager", "flash_attention_2"))
    load_in: str | None = choice(
        None,
        (None, "8bit", "4bit"),
        doc="8bit, 4bit: quantised, with freeze.adapter=lora, on an NVIDIA GPU; null = in dtype",
    )
    gradient_checkpointing: bool = setting(False, "recompute layers backwards: less memory, a third more time")
    template: str = setting(
        "auto",
        "openchat; own (the tokenizer's chat template); a file of one, FILE.jinja; auto: openchat where tokenizer and "
        "template are Openchat's, else own",
        check=_check_template,
    )
    template_kwargs: dict[str, Any] = setting({}, "values of the template's variables, e.g. {enable_thinking: false}")


@dataclass
class LoraConfig:
    """The adapters."""

    rank: int = number(64, 1, doc="of A and B")
    alpha: float = number(16.0, 1e-9, doc="B A counts alpha / rank")
    dropout: float = number(0.0, 0.0, 0.99, doc="of what enters A; PPO needs 0")


@dataclass
class FreezeConfig:
    """What trains: per module type, the matrices with the highest signal-to-noise ratio."""

    method: str = choice(
        "snr",
        ("snr", "layers", "last_layers", "random", "lowest", "none"),
        doc="snr; its controls random and lowest; layers, last_layers; none: everything trains",
    )
    unit: str = choice(
        "matrix",
        ("matrix", "layer"),
        doc="matrix (matrices that share a tensor, such as stacked experts, together), or layer: whole decoder layers; "
        "both by the mean rank of their matrices",
    )
    scope: str = choice("type", ("type", "global"), doc="type: rank within each module type; global: one ranking")
    top_percent: float = number(25.0, 0.0, 100.0, doc="percent of each module type, for snr, random and lowest")
    max_trainable: int | None = number(None, 1, doc="parameters of matrices that may train; replaces top_percent")
    max_memory_gb: float | None = number(None, 0.0, doc="decimal GB for training them, 20 bytes a parameter; likewise")
    layers: list[int] = setting([], "decoder layers, counted from 0, for layers")
    last_layers: int = number(4, 1, doc="how many, for last_layers")
    lowest_layer: int = number(
        0, 0, doc="layers below this decoder layer never train; they are computed once for all models"
    )
    dialect: str = choice(
        "spectrum",
        ("spectrum", "laserrmt", "gavish_donoho"),
        doc="how signal is separated from noise: spectrum, laserrmt, gavish_donoho; with scan, the scan's",
    )
    scan: str | None = path_to(
        None, "an existing scan (ours or Spectrum's JSON), or a directory with the model's; null = scan now"
    )
    embeddings: bool = setting(False, "also train the input embeddings (nothing can then be shared below them)")
    head: bool = setting(False, "also train the output head")
    norms: bool = setting(False, "also train the norms of the layers that train, and the final norm")
    adapter: str | None = choice(
        None,
        (None, "lora"),
        doc="lora: adapters on the selected matrices train instead of the matrices (and on the head, with head); "
        "null = the matrices",
    )
    lora: LoraConfig = section(LoraConfig)


@dataclass
class ScorerConfig:
    """What gives scores: a reward model, a server of one, or a function."""

    section = "reward"  # where its keys are, for messages; not a key

    kind: str = choice(
        "starling_7b",
        SCORERS,
        doc="starling_7b (Llama-2 template), starling_34b (Yi), sequence_classification (one label, own template), "
        "server (the keys from url on), function (the keys function and arguments)",
    )
    path: str = path_to("berkeley-nest/Starling-RM-7B-alpha", "Hugging Face directory or hub id")
    tokenizer: str | None = path_to(None, "directory or hub id of its tokenizer; null = path")
    dtype: str = choice("bfloat16", ("bfloat16", "float16", "float32"))
    load_in: str | None = choice(None, (None, "8bit", "4bit"), doc="null, 8bit, 4bit (GPUs, needs bitsandbytes)")
    device_map: str | None = choice(None, (None, "auto"), free=True, doc="null = one device; auto = over all GPUs")
    offload: bool = setting(
        False, "true: weights in host memory, on the device only while they score; false = always there", free=True
    )
    position: str = choice(
        "last_token",
        ("last_token", "card"),
        doc="where the head is read: last_token, or card: the last of max_length padded positions",
    )
    trailing_newline: bool = setting(False, "starling_34b: end with a newline, as in its training, not in its PPO")
    empty_response: float | None = number(
        None, doc="score of an answer without text, in the reward's own units; null = what the reward gives it"
    )
    max_length: int = number(2048, 8, doc="tokens; longer conversations lose their beginning")
    tokens_per_batch: int = number(16384, 1, doc="padded tokens per forward pass")
    scale: str = choice("running", ("none", "running"), doc="running: by mean and deviation of all scores so far; none")
    clip: float = number(10.0, 0.0, doc="scaled scores are clipped to [-clip, clip]; 0 = not")
    function: str | None = setting(
        None, "package.module:name or FILE.py:name, called with a list of conversations; gives a score or None for each"
    )
    arguments: dict[str, Any] = setting(
        {}, "given to the function by name; a parameter called like a column of the data gets the column's values"
    )
    url: str | None = setting(None, "address of the server, e.g. http://127.0.0.1:8000", free=True)
    protocol: str = choice(
        "starling",
        ("starling", "openrlhf", "vllm", "sglang", "tei"),
        doc="starling (serve_reward's), openrlhf (url is the whole address), vllm, sglang, tei (a classifier of one "
        "label there, asked for raw scores); with all but starling, tokenizer makes what is sent",
    )
    served_model: str | None = setting(
        None, "name to ask vllm or sglang for, where several are served; null = none is sent"
    )
    token_header: str = setting(
        "Authorization",
        "header that carries the token; others than this one carry it alone",
        free=True,
        check=check_header,
    )
    token_env: str | None = variable(
        "STARLING_REWARD_TOKEN", "variable that holds the bearer token; unset = none is sent", free=True
    )
    connections: int = number(8, 1, 1024, free=True, doc="requests under way at the same time")
    conversations_per_request: int = number(8, 1, free=True, doc="conversations in one request")
    timeout_s: float = number(120.0, 0.001, 86400.0, free=True, doc="seconds until a request is sent again")
    patience_s: float = number(300.0, 0.0, free=True, doc="seconds of retrying until the run gives up, its state saved")

    @property
    def has_weights(self) -> bool:
        """Whether `path` names weights that this process loads."""
        return self.kind in REWARD_MODELS


@dataclass
class TermConfig(ScorerConfig):
    """A term of the reward, with what gives its scores."""

    kind: str = choice("", SCORERS)
    path: str = path_to("", "Hugging Face directory or hub id")
    scale: str = choice("none", ("none", "running"), doc="running: by mean and deviation of its scores so far; none")
    weight: float = number(1.0, doc="of the term in the sum; below 0: a penalty")


TERM_KEYS = tuple(item.name for item in fields(TermConfig))


@dataclass
class RewardConfig(ScorerConfig):
    """The reward model. It has its own tokenizer and template: responses are decoded, put into its template, tokenised
    again."""

    kind: str = choice(
        "starling_7b",
        (*SCORERS, "terms"),
        doc="starling_7b (Llama-2 template), starling_34b (Yi), sequence_classification (one label, own template), "
        "server (the keys from url on), function (the keys function and arguments), terms (the key terms)",
    )
    probe: bool = setting(
        True,
        "score empty, cut and repeated stand-ins for some of the first answers, once, and warn where they score well",
        free=True,
    )
    terms: dict[str, TermConfig] = sections(
        TermConfig,
        "what is added up, by a name of yours: each with kind, weight, a scale of its own, and the keys of this "
        "section that its kind reads",
    )

    def __post_init__(self) -> None:
        for name, term in self.terms.items():
            term.section = f"reward.terms.{name}"

    @property
    def scorers(self) -> dict[str, ScorerConfig]:
        """What gives scores, by the name of the term; of a reward that is not a sum, itself, by an empty name."""
        return dict(self.terms) if self.kind == "terms" else {"": self}

    @property
    def length_key(self) -> str:
        """What sets the length beyond which conversations lose their beginning, for messages."""
        return "max_length of a term" if self.kind == "terms" else "reward.max_length"

    @property
    def has_weights(self) -> bool:
        """Whether this process loads weights of a reward model."""
        return any(one.kind in REWARD_MODELS for one in self.scorers.values())


@dataclass
class SourceConfig:
    """Rows of a data set."""

    path: str | None = path_to(None, "file (.parquet, .jsonl, .json, .csv), directory or hub id")
    subset: str | None = setting(None, "of a data set that has several; null = it has one")
    split: str = setting(
        "train", "of the data set, e.g. train_prefs, or train[:300] for its first rows; a file is all of train"
    )
    columns: dict[str, str] = setting({}, "names that its columns have: ours: theirs, e.g. {prompt: question}")


@dataclass
class RowsConfig(SourceConfig):
    """Prompts with ranked answers."""

    path: str = path_to(
        "berkeley-nest/Nectar",
        "file (.parquet, .jsonl, .json, .csv), directory or hub id; docs/data.md has the forms of its rows",
    )
    eval_prompts: int = number(256, 1, doc="prompts held out for evaluation, chosen by the seed")
    good_natured_only: bool = setting(False, "only rows that Nectar marks good_natured")
    exclude: list[str] = setting([], "files whose prompts are dropped, e.g. MT-Bench's question.jsonl")


@dataclass
class DataConfig(RowsConfig):
    """The prompts; for dpo with ranked answers, or pairs of `chosen` and `rejected`."""

    eval_prompts: int = number(64, 1, doc="prompts held out for evaluation, chosen by the seed")
    max_prompt_tokens: int = number(1024, 1, doc="longer prompts are dropped and counted")


@dataclass
class RolloutConfig:
    """How responses are generated, on the training weights or a copy of them."""

    engine: str = choice(
        "slots",
        ("slots", "hf", *VLLM),
        doc="slots: refilled as responses end; hf: transformers' generate, the reference; vllm: in this process, on a "
        "copy of the weights; vllm_server: at url, on its own",
    )
    slots: int = number(64, 1, doc="sequences side by side; fewer where a GPU has no memory for their keys and values")
    max_new_tokens: int = number(1024, 1, doc="of a response")
    min_new_tokens: int = number(
        0,
        0,
        doc="of a response in training, held-out evaluation and the reward suite: none of the first ends the turn",
    )
    temperature: float = number(1.0, 1e-3, doc="also divides the logits wherever log-probabilities are computed")
    top_p: float = number(1.0, 1e-3, 1.0, doc="below 1 the sampled distribution is not the scored one: expect odd KL")
    top_k: int = number(0, 0, doc="0 = off; as top_p")
    stop_strings: list[str] | None = setting(
        None,
        "end a response, which then counts as not ended; null = the template's own: Openchat's two turns, else none",
        once=["GPT4 Correct User:", "GPT4 Correct Assistant:"],
    )
    correction: float | None = number(
        None,
        1.0,
        doc="vllm, vllm_server: weigh each token's advantage by its probability here over that there, at most this; "
        "null = not",
    )
    cache_gb: float = number(4.0, 0.001, free=True, doc="vllm: decimal GB for its keys and values")
    url: str | None = setting(None, "vllm_server: its address, e.g. http://127.0.0.1:8000", free=True)
    weights_dir: str | None = path_to(
        None,
        "vllm_server: a folder that it sees by the same name, for weights on their way; null = this machine's /dev/shm",
        free=True,
    )
    token_env: str | None = variable(
        "STARLING_VLLM_TOKEN",
        "vllm_server: variable that holds its API key; unset = none is sent",
        free=True,
    )
    timeout_s: float = number(
        600.0, 0.001, 86400.0, free=True, doc="vllm_server: seconds until a request is sent again"
    )
    patience_s: float = number(
        300.0, 0.0, free=True, doc="vllm_server: seconds of retrying until the run gives up, its state saved"
    )

    @property
    def connections(self) -> int:
        """Requests to a server under way at the same time: a sequence each."""
        return self.slots


@dataclass
class KLConfig:
    """The penalty that holds the policy to its reference."""

    coefficient: float = number(0.01, 0.0, doc="weight of the KL penalty per token; where a controller starts")
    target: float | None = number(None, 1e-6, doc="KL to the reference per response, nats; null = coefficient is fixed")
    horizon: float = number(10000.0, 1.0, doc="episodes, of the adaptive controller")
    estimator: str = choice("k1", ("k1", "k2", "k3"), doc="of the penalty: k1, k2, k3")
    where: str = choice("reward", ("reward", "loss"), doc="reward (subtracted from it), loss (added to it: k2 or k3)")
    stop: float | None = number(None, 1e-6, doc="KL(rollout policy || policy) per token, nats, that ends the epochs")


@dataclass
class AlgorithmConfig:
    """One step: responses_per_prompt responses to each of prompts_per_step prompts, then `epochs` passes over them in
    `minibatches` updates each."""

    name: str = choice("ppo", ("ppo", "apa", "rloo", "grpo"))
    # more steps make a run longer, and with it a schedule that falls to 0 at its end
    steps: int = number(1000, 1, free=True, doc="of rollout, scoring and update")
    prompts_per_step: int = number(64, 1, doc="different ones, as long as there are enough")
    responses_per_prompt: int = number(1, 1, doc="the group that rloo and grpo compare a response with: 2 or more")
    epochs: int = number(2, 1, doc="passes over a step's responses")
    minibatches: int = number(4, 1, doc="optimizer updates per epoch")
    tokens_per_microbatch: int = number(8192, 1, free=True, doc="padded, of the update; changes memory, not the result")
    prefix_device_gb: float = number(
        8.0,
        0.0,
        free=True,
        doc="decimal GB on the device for hidden states below the lowest trained layer; beyond: host memory",
    )
    gamma: float = number(1.0, 0.0, 1.0, doc="discount per token")
    gae_lambda: float = number(0.95, 0.0, 1.0, doc="generalised advantage estimation: 1 = rewards to go, 0 = one-step")
    scale_by_group: bool = setting(True, "grpo: advantages in deviations of their group; false: Dr. GRPO")
    clip: float = number(0.2, 1e-6, doc="of the probability ratio; not in apa")
    clip_high: float | None = number(None, 1e-6, doc="how far it may rise, DAPO's 0.28; null = as far as it may fall")
    ratio: str = choice(
        "token",
        ("token", "sequence", "sequence_mean"),
        doc="token, sequence (the product over a response), sequence_mean (its geometric mean: GSPO)",
    )
    loss_mean: str = choice(
        "tokens",
        ("tokens", "sequences", "length"),
        doc="tokens (each counts alike), sequences (each response does), length (loss_length tokens a response)",
    )
    loss_length: int = number(1024, 1, follows="rollout.max_new_tokens", doc="tokens, for loss_mean=length")
    drop_truncated: bool = setting(False, "leave responses that were cut at the limit out of the loss")
    value_clip: float = number(0.2, 0.0, doc="of the change of a value, score units; 0 = not")
    value_coefficient: float = number(1.0, 0.0, doc="weight of the value loss")
    apa_lambda: float = number(0.1, 1e-6, doc="apa's lambda: larger = smaller steps")
    critic: str = choice(
        "head",
        ("head", "twin", "separate", "none"),
        doc="head on the policy, twin (own copies of what trains), separate (a whole model), none (rloo, grpo)",
    )
    critic_warmup_steps: int = number(0, 0, doc="first steps in which only the critic learns")
    missing_eos_penalty: float = number(
        1.0, 0.0, doc="subtracted from the scaled score of a response that did not end itself"
    )
    length_penalty: float = number(0.0, doc="subtracted from the scaled score per 100 response tokens")
    kl: KLConfig = section(KLConfig)

    @property
    def responses_per_step(self) -> int:
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def has_groups(self) -> bool:
        """Whether responses are compared with the others to their prompt, instead of with a critic's values."""
        return self.name in ("rloo", "grpo")


@dataclass
class OptimConfig:
    """AdamW, with float32 master copies of trainable tensors that are stored in a shorter type."""

    learning_rate: float = number(2e-7, 0.0, 1.0, doc="of the policy, or of the reward model's transformer, per update")
    critic_learning_rate: float | None = number(
        None,
        0.0,
        1.0,
        was="head_learning_rate",
        doc="of the critic's own tensors and value head; in rm of its head; null = the same",
    )
    betas: list[float] = setting([0.9, 0.95], "decay of the two moments", check=check_betas)
    eps: float = number(1e-5, 0.0, doc="added to the root of the second moment")
    weight_decay: float = number(1e-6, 0.0, doc="times the learning rate, per update")
    schedule: str = choice("linear", ("linear", "constant", "cosine"), doc="linear (to 0), constant, cosine (to 0)")
    warmup_steps: int = number(0, 0, doc="steps of a linear rise from 0; 0 = warmup_percent of the run's steps")
    warmup_percent: float = number(0.0, 0.0, 100.0, doc="percent of the steps in which the rate rises from 0")
    max_gradient_norm: float = number(1.0, 1e-9, doc="L2 over all trainable tensors; larger ones are scaled to it")
    eight_bit: bool = setting(
        False, "Adam's moments in 8 bits (bitsandbytes, GPU): saves 6 bytes a trainable parameter"
    )


@dataclass
class ClusterConfig:
    """The devices. Several processes are started by a launcher: torchrun -m starling_train.ppo ..., or accelerate
    launch."""

    device: str = choice("auto", ("auto", "cpu", "cuda"), doc="auto (cuda if there is one), cpu, cuda; a process a GPU")
    threads: int | None = number(None, 1, 1024, doc="CPU threads of a process; null = torch's choice")
    cudnn_attention: bool = setting(
        False, "let torch use cuDNN's attention on a GPU: it builds a plan for every new shape, 20 to 500 ms each"
    )
    zero_stage: int = number(0, 0, 3, doc="DeepSpeed ZeRO: shards of 0 nothing, 1 optimizer, 2 gradients, 3 weights")
    offload: str | None = choice(
        None,
        (None, "optimizer"),
        doc="optimizer: Adam's moments and float32 copies in host memory, updated by the CPU; null = on the device",
    )
    timeout_s: float = number(1800.0, 1.0, doc="seconds that a process waits for the others before it ends the run")


@dataclass
class CheckpointConfig:
    """Trainable tensors, optimizer, and everything an exact resume needs."""

    every: int = number(50, 0, doc="steps; 0 = only at the end")
    keep: int = number(2, 1, doc="newest checkpoints kept")
    grace_s: float = number(300.0, 0.0, doc="seconds after SIGTERM, SIGUSR1: an update is finished if that fits")


@dataclass
class FunctionCallingConfig:
    """Function calling, by the Berkeley leaderboard's rules."""

    path: str | None = path_to(None, "directory with the leaderboard's BFCL_v4_*.json and possible_answer/")
    cases: int | None = number(None, 1, doc="in all, the first ones of each category in turn; null = all")
    max_new_tokens: int = number(256, 1, doc="of an answer")


@dataclass
class PerplexityConfig(SourceConfig):
    """Perplexity of text."""

    path: str | None = path_to(None, "plain text, or rows (as data.path) with `text`, conversations or preferences")
    texts: dict[str, str] = setting(
        {}, "texts with a perplexity each, name: as path, or stdlib:FILE of Python's library -> eval/perplexity_<name>"
    )
    tokens: int | None = number(None, 2, doc="only the first tokens, of each text; null = all")
    window: int = number(2048, 2, doc="tokens that are read together, at most the model's positions")


@dataclass
class InstructionsConfig:
    """Instructions that a program can check (so many items, a word, an ending, JSON), on prompts that come along."""

    prompts: int | None = number(None, 1, doc="in all, the first ones of each kind in turn; null = all, 144")
    max_new_tokens: int = number(128, 1, doc="of an answer")


@dataclass
class HeldOutConfig:
    """On held-out prompts, before the first step, every `every` steps, and after the last."""

    every: int = number(50, 0, doc="steps; 0 = never")


@dataclass
class EvaluationConfig(HeldOutConfig):
    """On held-out prompts, before the first step, every `every` steps, and after the last."""

    suites: list[str] = setting(
        [], "what to measure as well: function_calling (percent), instructions (percent), perplexity (of text)"
    )
    functions: dict[str, str] = setting(
        {}, "own measures of a list of conversations, name: package.module:function -> eval/<name>_mean"
    )
    function_calling: FunctionCallingConfig = section(FunctionCallingConfig)
    instructions: InstructionsConfig = section(InstructionsConfig)
    perplexity: PerplexityConfig = section(PerplexityConfig)


TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")


def _check_trackers(key: str, names: list[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            meant = did_you_mean(name, TRACKERS)
            raise UserError(f"{key}: '{name}' is not an option; {meant}use some of: {', '.join(TRACKERS)}")


@dataclass
class TrackingConfig:
    """The trackers that follow the run."""

    wandb: str = choice("disabled", ("disabled", "offline", "online"))
    trackers: list[str] = setting(
        [],
        "where metrics go too: wandb (online, or as `wandb` above or WANDB_MODE says), tensorboard, mlflow, trackio",
        check=_check_trackers,
    )
    project: str = setting("starling_train", "W&B's project, MLflow's experiment, Trackio's project")
    entity: str | None = setting(None, "W&B's user or team; null = your default one")
    tags: list[str] = setting([], "of the run in W&B and MLflow")


@dataclass
class LoggingConfig(TrackingConfig):
    """The trackers that follow the run, and the responses that are kept."""

    samples: int = number(16, 1, doc="held-out prompts whose responses are kept at each evaluation")


KL = "eval/kl_reference"
# beginnings of the names of metrics
LESS_IS_BETTER = ("eval/perplexity", KL)


def is_less_better(metric: str) -> bool:
    """Whether a smaller value of an `eval/*` metric is the better one."""
    return metric.startswith(LESS_IS_BETTER)


# what each needs a path to; "": nothing
SUITES = {
    "function_calling": "the directory of the leaderboard's BFCL_v4_*.json",
    "instructions": "",
    "perplexity": "a text file, or JSONL with texts",
}


def check_reward(reward: RewardConfig) -> None:
    """Check the keys of `reward` against one another, and those of each term. Raises UserError."""
    if reward.kind != "terms":
        if reward.terms:
            raise UserError(f"reward.terms: set, but reward.kind={reward.kind} does not read it; use reward=terms")
        _check_scorer(reward)
        return
    require("reward.terms", reward.terms, "terms with a kind each, e.g. +reward.terms.model.kind=starling_7b")
    for key in ("empty_response", "offload", "function", "arguments", "url"):
        if getattr(reward, key) not in (None, False, {}):
            raise UserError(f"reward.{key}: set, but reward.kind=terms reads it of a term; use reward.terms.NAME.{key}")
    for name, term in reward.terms.items():
        if not TERM.fullmatch(name) or name in NOT_A_TERM:
            raise UserError(
                f"reward.terms: '{name}' cannot be the name of a term; use letters, digits and _, and neither "
                f"{' nor '.join(NOT_A_TERM)}"
            )
        with in_term(term):
            _check_scorer(term)


def about_term(section: str, text: str) -> str:
    """Return a message about the section `reward` as one about a term. section: the term's, `reward.terms.NAME`."""
    text = re.sub(rf"\breward\.(?=(?:{'|'.join(TERM_KEYS)})\b)", f"{section}.", text)
    return re.sub(rf"\breward=(?=(?:{'|'.join(SCORERS)})\b)", f"{section}.kind=", text)


@contextmanager
def in_term(scorer: ScorerConfig) -> Iterator[None]:
    """Name the keys of a term in the message of any UserError raised inside; those of `reward` stay as they are."""
    try:
        yield
    except UserError as error:
        if scorer.section != "reward":
            error.args = (about_term(scorer.section, str(error)),)
            if isinstance(error, NotSet):
                error.key = about_term(scorer.section, error.key)
        raise


def _check_scorer(reward: ScorerConfig) -> None:
    if reward.offload and not reward.has_weights:
        raise UserError(f"reward.offload: set, but reward.kind={reward.kind} has no weights here; leave it out")
    for key in ("function", "arguments"):
        if getattr(reward, key) and reward.kind != "function":
            raise UserError(f"reward.{key}: set, but reward.kind={reward.kind} does not read it; use reward=function")
    {"server": _check_server, "function": _check_function}.get(reward.kind, _check_model)(reward)


def _check_function(reward: ScorerConfig) -> None:
    require("reward.function", reward.function, "package.module:name or FILE.py:name")
    if not FUNCTION.fullmatch(given(reward.function)):
        raise UserError(
            f"reward.function: '{reward.function}' is not of the form package.module:name or FILE.py:name; name the "
            "function behind a colon"
        )


def _check_server(reward: ScorerConfig) -> None:
    require("reward.url", reward.url, "the address of a reward server, e.g. http://127.0.0.1:8000")
    check_url(given(reward.url), reward.protocol)
    if reward.protocol != "starling" and not reward.tokenizer:
        raise UserError(
            f"reward.tokenizer: not set; with reward.protocol={reward.protocol} its chat template makes what is sent; "
            "give the directory of the served model, or one with its tokenizer"
        )
    if reward.served_model and reward.protocol not in ("vllm", "sglang"):
        raise UserError(f"reward.served_model: reward.protocol={reward.protocol} has no name for a model; leave it out")


def _check_model(reward: ScorerConfig) -> None:
    require("reward.path", reward.path, "the reward model: a Hugging Face directory or hub id")
    for key in ("load_in", "device_map"):
        if reward.offload and (value := getattr(reward, key)):
            raise UserError(f"reward.offload: reward.{key}={value} needs its weights on the GPU; use one of the two")
    if reward.position == "card" and reward.kind != "starling_7b":
        raise UserError(f"reward.position: card is Starling-RM-7B-alpha's, not {reward.kind}'s; use last_token")
    if reward.trailing_newline and reward.kind != "starling_34b":
        raise UserError(f"reward.trailing_newline: the template of {reward.kind} does not have one; use false")


def check_rollout(rollout: RolloutConfig) -> None:
    """Check the keys of `rollout` against one another. Raises UserError."""
    if rollout.min_new_tokens > rollout.max_new_tokens:
        raise UserError(
            f"rollout.min_new_tokens: {rollout.min_new_tokens} exceeds rollout.max_new_tokens="
            f"{rollout.max_new_tokens}; lower it"
        )
    if rollout.engine == "vllm_server":
        require("rollout.url", rollout.url, "the address of a vLLM server, http://HOST:PORT")
        check_server_url(given(rollout.url), "rollout.url", "rollout.token_env")
    if rollout.correction is not None and rollout.engine not in VLLM:
        raise UserError(
            f"rollout.correction: {rollout.engine} draws from the weights that train, with nothing to correct; leave "
            "it out"
        )
    if "" in (rollout.stop_strings or ()):
        raise UserError("rollout.stop_strings: an empty string would end every response at once; leave it out")


def check_evaluation(rollout: RolloutConfig, evaluation: EvaluationConfig) -> None:
    """Check the rollout, and the suites and functions of an evaluation. Raises UserError."""
    check_rollout(rollout)
    for suite in evaluation.suites:
        if suite not in SUITES:
            meant = did_you_mean(suite, SUITES)
            raise UserError(f"evaluation.suites: '{suite}' is not a suite; {meant}use some of: {', '.join(SUITES)}")
    for suite, what in SUITES.items():
        if suite == "perplexity" in evaluation.suites:
            check_texts(evaluation.perplexity, "evaluation.perplexity")
        elif what and suite in evaluation.suites:
            path = getattr(evaluation, suite).path
            require(f"evaluation.{suite}.path", path, f"{what}, or leave {suite} out of evaluation.suites")
    for name, target in evaluation.functions.items():
        if ":" not in target:
            raise UserError(f"evaluation.functions.{name}: '{target}' is not of the form package.module:function")


def check_texts(perplexity: PerplexityConfig, key: str) -> None:
    """Check that there is a text, and that each name can be a metric's. Raises UserError. key: the section's name."""
    if not perplexity.texts:
        require(f"{key}.path", perplexity.path, f"{SUITES['perplexity']}, or leave perplexity out of the suites")
    for name, path in perplexity.texts.items():
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"{key}.texts: '{name}' becomes a metric's name; use letters, digits and _")
        require(f"{key}.texts.{name}", path, SUITES["perplexity"])
        local_path(path, f"{key}.texts.{name}")


def check_offload(cluster: ClusterConfig, optim: OptimConfig) -> None:
    """Check that what goes to host memory can be updated there. Raises UserError."""
    if cluster.offload and optim.eight_bit:
        raise UserError(
            "cluster.offload: optim.eight_bit=true keeps moments in 8 bits, which a GPU alone updates; use one of both"
        )


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
    """Check the keys that a quantised base restricts. Raises UserError."""
    if model.load_in and not freeze.adapter:
        raise UserError(
            f"model.load_in: weights in {model.load_in} cannot train themselves; use freeze.adapter=lora, or leave it "
            "out"
        )
    if model.load_in and zero_stage == 3:
        raise UserError("model.load_in: quantised weights cannot be sharded; use cluster.zero_stage=2 or lower")
