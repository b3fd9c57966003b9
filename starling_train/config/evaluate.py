"""The configuration of the `evaluate` command."""

import math
from dataclasses import dataclass

from starling_train.config.fields import (
    UserError,
    check_header,
    check_one_process,
    check_server_url,
    check_values,
    choice,
    did_you_mean,
    number,
    path_to,
    require,
    run_name,
    section,
    setting,
    variable,
)
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import (
    FunctionCallingConfig,
    InstructionsConfig,
    PerplexityConfig,
    SourceConfig,
    check_reward,
    check_rollout,
    check_texts,
)

SUITES = ("reward", "preference", "function_calling", "instructions", "perplexity", "mt_bench", "lm_eval")
OF_THE_REWARD_MODEL = ("reward", "preference")
OF_THE_POLICY = ("reward", "function_calling", "instructions", "perplexity", "mt_bench", "lm_eval")


@dataclass
class RewardSuiteConfig(SourceConfig):
    """Sampled answers (rollout.*): scores, lengths, KL to a base."""

    path: str | None = path_to(
        None,
        "prompts, as data.path; null = the prompts of data.path that a run holds out (data.eval_prompts)",
    )
    rows: int | None = number(None, 1, doc="only the first prompts; null = all")
    base: str | None = path_to(None, "a model with the same tokenizer, to compute the KL to; null = no KL")


@dataclass
class PreferenceSuiteConfig(SourceConfig):
    """How often the reward model prefers the answer that people, or a stronger model, preferred."""

    path: str | None = path_to(None, "pairs or ranked answers, as data.path")
    rows: int | None = number(None, 1, doc="only the first rows that have a pair; null = all")


@dataclass
class JudgeConfig:
    """Any server that speaks OpenAI's chat completions; a score belongs to its judge."""

    url: str = setting("https://api.openai.com/v1", "its address, up to /chat/completions; a query (?...) stays behind")
    model: str | None = setting(None, "its name as the server knows it, e.g. gpt-4")
    key_env: str | None = variable("OPENAI_API_KEY", "environment variable that holds the key; null = none is sent")
    key_header: str = setting("Authorization", "header that carries the key; Azure's is api-key", check=check_header)
    temperature: float | None = number(
        0.0, 0.0, doc="of its replies; null = not sent, for judges that refuse any but their own"
    )
    max_tokens: int = number(2048, 1, doc="of a judgment, its reasoning included")
    max_tokens_name: str = choice(
        "max_tokens",
        ("max_tokens", "max_completion_tokens"),
        "what the judge calls that limit; max_tokens gives way where it asks for the other",
    )
    connections: int = number(8, 1, 1024, doc="judgments requested at a time")
    timeout_s: float = number(120.0, 0.001, 86400.0, doc="seconds for one judgment")
    patience_s: float = number(300.0, 0.0, doc="seconds of trying again (429, 5xx, no answer) before the command ends")
    prompt_price: float | None = number(None, 0.0, doc="of a million prompt tokens; null = no cost is reported")
    completion_price: float | None = number(None, 0.0, doc="of a million completion tokens")


@dataclass
class MtBenchConfig:
    """80 questions of two turns, each answer rated from 1 to 10 by a judge."""

    path: str | None = path_to(None, "directory of FastChat's question.jsonl, judge_prompts.jsonl, reference answers")
    questions: int | None = number(None, 1, doc="in all, the first ones of each category in turn; null = all")
    max_new_tokens: int = number(1024, 1, doc="of an answer")
    temperature: float | None = number(None, 0.0, doc="of all answers, 0 = greedy; null = the category's, 0 to 0.7")
    judge: JudgeConfig = section(JudgeConfig)


@dataclass
class LmEvalConfig:
    """EleutherAI's harness: pip install 'starling-train[lm_eval]'."""

    tasks: list[str] = setting([], "its names of tasks or groups, e.g. [truthfulqa_mc2, mmlu]")
    include: str | None = path_to(None, "directory with YAML of tasks of your own; they may run Python of yours")
    limit: int | None = number(None, 1, doc="requests of each task; null = all")
    fewshot: int | None = number(None, 0, doc="examples in front of a request; null = the task's own number")
    chat_template: bool = setting(False, "ask in the policy's chat template")


@dataclass
class EvaluateConfig(PpoConfig):
    """`python -m starling_train.evaluate`: a run's keys (config.yaml), and what is measured. Function calling,
    instructions and perplexity are a recipe's evaluation.* unless given.

    Suites that evaluation.json has for the same models, data and settings are not measured again. The reward model
    is given by reward=KIND reward.path=DIR, or by reward=server reward.url=http://HOST:PORT.
    """

    name: str = run_name("evaluate", "evaluation.json goes to runs/<name>, or to run_dir, which may be a run's")
    suites: list[str] = setting(
        [],
        "of the policy (model.path): reward, function_calling, instructions, perplexity, mt_bench, lm_eval; of the "
        "reward model: preference",
    )
    reward_suite: RewardSuiteConfig = section(RewardSuiteConfig)
    preference: PreferenceSuiteConfig = section(PreferenceSuiteConfig)
    function_calling: FunctionCallingConfig = section(FunctionCallingConfig, follows="evaluation.function_calling")
    instructions: InstructionsConfig = section(InstructionsConfig, follows="evaluation.instructions")
    perplexity: PerplexityConfig = section(PerplexityConfig, follows="evaluation.perplexity")
    mt_bench: MtBenchConfig = section(MtBenchConfig)
    lm_eval: LmEvalConfig = section(LmEvalConfig)


def check(config: EvaluateConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_one_process("evaluate")
    if not config.suites:
        raise UserError(f"suites: none is given; give some of: suites=[{','.join(SUITES)}]")
    for suite in config.suites:
        if suite not in SUITES:
            meant = did_you_mean(suite, SUITES)
            raise UserError(f"suites: '{suite}' is not a suite; {meant}use some of: {', '.join(SUITES)}")
    requested = set(config.suites)
    if requested & set(OF_THE_REWARD_MODEL):
        check_reward(config.reward)
    if requested & set(OF_THE_POLICY):
        require("model.path", config.model.path, "the policy: a Hugging Face directory or hub id")
    for suite, path, what in (
        ("preference", config.preference.path, "JSONL of chosen and rejected answers, or Nectar's parquet"),
        ("function_calling", config.function_calling.path, "the directory of the leaderboard's BFCL_v4_*.json"),
        ("mt_bench", config.mt_bench.path, "the directory of question.jsonl and judge_prompts.jsonl"),
    ):
        if suite in requested:
            require(f"{suite}.path", path, what)
    if "perplexity" in requested:
        check_texts(config.perplexity, "perplexity")
    if "reward" in requested:
        _check_prompts(config)
    if "mt_bench" in requested:
        _check_judge(config.mt_bench.judge)
    if "lm_eval" in requested and not config.lm_eval.tasks:
        raise UserError("lm_eval.tasks: none is given; give some of the harness's, e.g. lm_eval.tasks=[truthfulqa_mc2]")


def _check_prompts(config: EvaluateConfig) -> None:
    if not (config.reward_suite.path or config.data.path):
        raise UserError("reward_suite.path: not set, nor is data.path; give prompts: JSONL, or Nectar's parquet")
    if config.reward_suite.base == "":
        raise UserError("reward_suite.base: empty; give the model to compute the KL to, or null")
    check_rollout(config.rollout)


def _check_judge(judge: JudgeConfig) -> None:
    check_server_url(judge.url, "mt_bench.judge.url", "mt_bench.judge.key_env")
    require("mt_bench.judge.model", judge.model, "the judge's name as its server knows it, e.g. gpt-4")
    if (judge.prompt_price is None) != (judge.completion_price is None):
        missing = "prompt_price" if judge.prompt_price is None else "completion_price"
        raise UserError(f"mt_bench.judge.{missing}: not set; a cost needs both prices, or neither")
    if not math.isfinite(judge.timeout_s):
        raise UserError("mt_bench.judge.timeout_s: not finite; give seconds")
