"""The suite `function_calling`: how many of the leaderboard's cases a policy answers rightly, greedily."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from starling_train.config.fields import given
from starling_train.config.ppo import PpoConfig
from starling_train.data.chat import Chat
from starling_train.evals.function_calling.cases import Case, Result, evaluate, load_cases
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, Skill, Suite, about, data_of, shares, unique
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.generate import generate
from starling_train.run.runtime import Runtime
from starling_train.training.measured import Measured

VERDICT = "bfcl-eval"  # results from before the verdicts were the leaderboard's own are measured again


def during_training(config: PpoConfig, chat: Chat) -> Skill:
    """Read the cases that `evaluation.function_calling` names, and return the skill, in percent; processes share it."""
    how = config.evaluation.function_calling
    cases = load_cases(given(how.path), limit=how.cases)
    limits = replace(config.rollout, max_new_tokens=how.max_new_tokens, min_new_tokens=0)
    stops = chat.stop_strings(limits.stop_strings)

    def measure(policy: CausalLM, slots: Budget, tokens: Budget, runtime: Runtime) -> Measured:
        def answer(conversations: list[list[dict]]) -> list[str]:
            prompts = [chat.prompt(chat.adapted(messages)) for messages in runtime.shard(conversations)]
            rollout = generate(policy, chat, prompts, limits, greedy=True, budget=slots)
            return runtime.gather([chat.text(ids, stops) for ids in rollout.responses])

        result = evaluate(cases, answer)
        by_category = {f"eval/function_calling_{name}": value for name, value in result.by_category.items()}
        metrics = {"eval/function_calling": result.accuracy, "eval/function_calling_cases": len(cases)} | by_category
        return Measured(metrics, cases=outcomes(result))

    return measure


def outcomes(result: Result) -> dict[str, str]:
    """Return which cases were right, as `Measured.cases`: of all, and of each category."""
    digits = {"eval/function_calling": "".join("01"[record["correct"]] for record in result.records)}
    for name in result.by_category:
        of_category = [record["correct"] for record in result.records if record["category"] == name]
        digits[f"eval/function_calling_{name}"] = "".join("01"[right] for right in of_category)
    return digits


@dataclass
class FunctionCalling(Suite):
    """The suite: the share of the leaderboard's cases that the policy answers rightly.

    answered: everything the answers depend on, whatever the verdict on them is.
    """

    cases: list[Case]
    answered: dict[str, Any]

    name = "function_calling"
    during_training = staticmethod(during_training)

    @classmethod
    def find(cls, subjects: Subjects) -> "FunctionCalling":
        how = subjects.config.function_calling
        with about("function_calling.path"):
            cases = load_cases(given(how.path), limit=how.cases)
        data = data_of(given(how.path), (asdict(case) for case in cases))
        answered = subjects.identity_of(cls.name, data, subjects.greedy_settings(how.max_new_tokens))
        return cls(subjects, answered | {"verdict": VERDICT}, cases, answered)

    def plan(self) -> str:
        config = self.subjects.config
        where = f"{self.identity['data']['path']} with {config.model.path}"
        limit = config.function_calling.max_new_tokens
        return f"{len(self.cases):,} cases of {where}, greedy, up to {limit} tokens an answer"

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        keys = unique([case.id for case in self.cases])
        subjects, progress = self.subjects, self.progress(say, "answers")
        limits = subjects.limits(subjects.config.function_calling.max_new_tokens)
        with self.journal(folder, "answers", self.answered) as journal:

            def answer(conversations: list[list[dict]]) -> list[str]:
                chat = subjects.chat
                prompts = [chat.prompt(chat.adapted(messages)) for messages in conversations]
                questions = dict(zip(keys, prompts, strict=True))
                subjects.answer(questions, journal, limits, progress(len(keys), len(journal.rows)), greedy=True)
                return [journal.rows[key]["response"] for key in keys]

            result = evaluate(self.cases, answer)
        cases = Counter(case.category for case in self.cases)
        by_category = [
            {"category": name, "accuracy": percent / 100, "cases": cases[name]}
            for name, percent in result.by_category.items()
        ]
        return {
            "accuracy": result.accuracy / 100,
            "cases": len(self.cases),
            "by_category": by_category,
            "function_calling_lenient": result.lenient / 100,
        }

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        parts = [(part["category"], part["accuracy"], part["cases"]) for part in result["by_category"]]
        return shares([("", result["accuracy"], result["cases"]), *parts])

    def notes(self, result: dict[str, Any]) -> list[str]:
        lenient = result["function_calling_lenient"]
        if lenient == result["accuracy"]:
            return []
        return [
            f"function_calling_lenient {100 * lenient:.2f} %: with what stands in a code fence taken for the answer, "
            "which the leaderboard does not do where the fence has a label or words around it"
        ]
