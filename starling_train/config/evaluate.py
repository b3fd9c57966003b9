"""The configuration of the `evaluate` command, in the way of `config/sections.py`; its YAML is `conf/evaluate.yaml`."""

import math
from dataclasses import dataclass, field

from starling_train.config.fields import (
    UserError,
    check_name,
    check_one_process,
    check_server_url,
    check_values,
    number,
    optional_number,
    variable,
)
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import FunctionCallingConfig, PerplexityConfig, check_reward

SUITES = ("reward", "preference", "function_calling", "perplexity", "mt_bench", "lm_eval")
OF_THE_REWARD_MODEL = ("reward", "preference")
OF_THE_POLICY = ("reward", "function_calling", "perplexity", "mt_bench", "lm_eval")


@dataclass
class RewardSuiteConfig:
    path: str | None = None
    rows: int | None = optional_number(1)
    base: str | None = None


@dataclass
class PreferenceSuiteConfig:
    path: str | None = None
    rows: int | None = optional_number(1)


@dataclass
class JudgeConfig:
    url: str = "https://api.openai.com/v1"
    model: str | None = None
    key_env: str | None = variable("OPENAI_API_KEY")
    max_tokens: int = number(2048, 1)
    connections: int = number(8, 1, 1024)
    timeout_s: float = number(120.0, 0.001, 86400.0)
    patience_s: float = number(300.0, 0.0)
    prompt_price: float | None = optional_number(0.0)
    completion_price: float | None = optional_number(0.0)


@dataclass
class MtBenchConfig:
    path: str | None = None
    questions: int | None = optional_number(1)
    max_new_tokens: int = number(1024, 1)
    temperature: float | None = optional_number(0.0)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class LmEvalConfig:
    tasks: list[str] = field(default_factory=list)
    include: str | None = None
    limit: int | None = optional_number(1)
    fewshot: int | None = optional_number(0)
    chat_template: bool = False


@dataclass
class EvaluateConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and what is measured."""

    name: str = "evaluate"
    suites: list[str] = field(default_factory=list)
    reward_suite: RewardSuiteConfig = field(default_factory=RewardSuiteConfig)
    preference: PreferenceSuiteConfig = field(default_factory=PreferenceSuiteConfig)
    function_calling: FunctionCallingConfig = field(default_factory=FunctionCallingConfig)
    perplexity: PerplexityConfig = field(default_factory=PerplexityConfig)
    mt_bench: MtBenchConfig = field(default_factory=MtBenchConfig)
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)


def check_evaluate(config: EvaluateConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    check_name(config.name)
    if not config.suites:
        raise UserError(f"suites: none is given; give some of: suites=[{','.join(SUITES)}]")
    for suite in config.suites:
        if suite not in SUITES:
            raise UserError(f"suites: '{suite}' is not a suite; use some of: {', '.join(SUITES)}")
    asked = set(config.suites)
    if asked & set(OF_THE_REWARD_MODEL):
        check_reward(config.reward)
    if asked & set(OF_THE_POLICY) and not config.model.path:
        raise UserError("model.path: not set; give the policy: a Hugging Face directory or hub id")
    for suite, path, what in (
        ("preference", config.preference.path, "JSONL of chosen and rejected answers, or Nectar's parquet"),
        ("function_calling", config.function_calling.path, "the directory of the leaderboard's BFCL_v4_*.json"),
        ("perplexity", config.perplexity.path, "a text file, or JSONL with texts"),
        ("mt_bench", config.mt_bench.path, "the directory of question.jsonl and judge_prompts.jsonl"),
    ):
        if suite in asked and not path:
            raise UserError(f"{suite}.path: not set; give {what}")
    if "reward" in asked:
        _check_prompts(config)
    if "mt_bench" in asked:
        _check_judge(config.mt_bench.judge)
    if "lm_eval" in asked and not config.lm_eval.tasks:
        raise UserError("lm_eval.tasks: none is given; give some of the harness's, e.g. lm_eval.tasks=[truthfulqa_mc2]")
    check_one_process("evaluate")


def _check_prompts(config: EvaluateConfig) -> None:
    if not (config.reward_suite.path or config.data.path):
        raise UserError("reward_suite.path: not set, nor is data.path; give prompts: JSONL, or Nectar's parquet")
    if config.reward_suite.base == "":
        raise UserError("reward_suite.base: empty; give the model that the KL is taken to, or null")


def _check_judge(judge: JudgeConfig) -> None:
    check_server_url(judge.url, "mt_bench.judge.url", "mt_bench.judge.key_env")
    if not judge.model:
        raise UserError("mt_bench.judge.model: not set; give the judge's name as its server knows it, e.g. gpt-4")
    if (judge.prompt_price is None) != (judge.completion_price is None):
        missing = "prompt_price" if judge.prompt_price is None else "completion_price"
        raise UserError(f"mt_bench.judge.{missing}: not set; a cost needs both prices, or neither")
    if not math.isfinite(judge.timeout_s):
        raise UserError("mt_bench.judge.timeout_s: not finite; give seconds")
