"""The suites by name, each imported when it is requested: `evaluate` measures them, training those with a skill."""

from importlib import import_module
from typing import Any

from starling_train.config.fields import given
from starling_train.data.chat import Chat
from starling_train.evals.suite import Skill, Suite

# name -> module and class
SUITES = {
    "reward": ("starling_train.evals.reward", "Reward"),
    "preference": ("starling_train.evals.preference", "Preference"),
    "function_calling": ("starling_train.evals.function_calling.suite", "FunctionCalling"),
    "instructions": ("starling_train.evals.instructions.suite", "Instructions"),
    "perplexity": ("starling_train.evals.perplexity", "Perplexity"),
    "mt_bench": ("starling_train.evals.mt_bench", "MtBench"),
    "lm_eval": ("starling_train.evals.lm_eval", "LmEval"),
}


def suite(name: str) -> type[Suite]:
    """Return the class of a suite."""
    module, class_name = SUITES[name]
    return getattr(import_module(module), class_name)


def skills(config: Any, chat: Chat) -> list[Skill]:
    """Return the skills that a run's `evaluation.suites` requests, in table order. Raises UserError."""
    made = [suite(name).during_training for name in SUITES if name in config.evaluation.suites]
    return [given(make)(config, chat) for make in made]
