"""The suite `instructions`: how many instructions that a program can check a policy's greedy answers follow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from starling_train.config.ppo import PpoConfig
from starling_train.data.chat import Chat
from starling_train.evals.instructions.checks import is_followed
from starling_train.evals.instructions.prompts import Instruction, load
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, Skill, Suite, digest, shares
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.rollout.generate import generate
from starling_train.run.runtime import Runtime
from starling_train.training.measured import Measured

METRIC = "eval/instructions"
CHECKED_BY = 1  # raised where a check's verdicts change: results are then measured again, answers are not


def during_training(config: PpoConfig, chat: Chat) -> Skill:
    """Return the skill, in percent of the prompts that `evaluation.instructions` asks for; processes share it."""
    how = config.evaluation.instructions
    asked = load(how.prompts)
    limits = replace(config.rollout, max_new_tokens=how.max_new_tokens, min_new_tokens=0)
    stops = chat.stop_strings(limits.stop_strings)

    def measure(policy: CausalLM, slots: Budget, tokens: Budget, runtime: Runtime) -> Measured:
        prompts = [chat.prompt(one.messages) for one in runtime.shard(asked)]
        rollout = generate(policy, chat, prompts, limits, greedy=True, budget=slots)
        answers = runtime.gather([chat.text(ids, stops) for ids in rollout.responses])
        followed = verdicts(asked, answers)
        metrics: dict[str, float] = {METRIC: 100 * fmean(followed), f"{METRIC}_cases": len(asked)}
        cases = {METRIC: _digits(followed)}
        for kind, part in by_kind(asked, followed).items():
            metrics[f"{METRIC}_{kind}"], cases[f"{METRIC}_{kind}"] = 100 * fmean(part), _digits(part)
        return Measured(metrics, cases=cases)

    return measure


def verdicts(asked: Sequence[Instruction], answers: Sequence[str]) -> list[bool]:
    """Return of each answer whether it follows its instruction."""
    return [is_followed(one.kind, one.argument, answer) for one, answer in zip(asked, answers, strict=True)]


def by_kind(asked: Sequence[Instruction], followed: Sequence[bool]) -> dict[str, list[bool]]:
    """Return the verdicts of each kind."""
    kinds: dict[str, list[bool]] = {}
    for one, verdict in zip(asked, followed, strict=True):
        kinds.setdefault(one.kind, []).append(verdict)
    return kinds


def _digits(followed: Sequence[bool]) -> str:
    return "".join("01"[verdict] for verdict in followed)


@dataclass
class Instructions(Suite):
    """The suite: the share of checkable instructions that the policy follows.

    answered: everything the answers depend on, whatever the verdict on them is.
    """

    asked: list[Instruction]
    answered: dict[str, Any]

    name = "instructions"
    during_training = staticmethod(during_training)

    @classmethod
    def find(cls, subjects: Subjects) -> "Instructions":
        how = subjects.config.instructions
        asked = load(how.prompts)
        data = digest(asdict(one) for one in asked)
        answered = subjects.identity_of(cls.name, data, subjects.greedy_settings(how.max_new_tokens))
        return cls(subjects, answered | {"verdict": CHECKED_BY}, asked, answered)

    def plan(self) -> str:
        config = self.subjects.config
        limit = config.instructions.max_new_tokens
        return f"{len(self.asked):,} prompts with {config.model.path}, greedy, up to {limit} tokens an answer"

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        subjects, progress = self.subjects, self.progress(say, "answers")
        limits = subjects.limits(subjects.config.instructions.max_new_tokens)
        questions = {one.id: subjects.chat.prompt(one.messages) for one in self.asked}
        with self.journal(folder, "answers", self.answered) as journal:
            subjects.answer(questions, journal, limits, progress(len(questions), len(journal.rows)), greedy=True)
            answers = [journal.rows[key]["response"] for key in questions]
        followed = verdicts(self.asked, answers)
        parts = [
            {"kind": kind, "accuracy": fmean(part), "prompts": len(part)}
            for kind, part in by_kind(self.asked, followed).items()
        ]
        return {"accuracy": fmean(followed), "prompts": len(followed), "by_kind": parts}

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        parts = [(part["kind"], part["accuracy"], part["prompts"]) for part in result["by_kind"]]
        return shares([("", result["accuracy"], result["prompts"]), *parts])
