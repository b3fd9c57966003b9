"""The suite `reward`: answers sampled to prompts, their scores and lengths, and how far the policy is from a base.

KL: the sum over an answer of log p(token) - log p_base(token), at temperature 1, averaged over the answers; for answers
sampled at temperature 1 its expectation is the KL of the policy to the base, in nats an answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starling_train.config.evaluate import EvaluateConfig
from starling_train.config.fields import UserError
from starling_train.data import nectar, prompts
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.prompts import Prompt
from starling_train.data.rows.dropped import Dropped
from starling_train.evals.subjects import Subjects, score
from starling_train.evals.suite import ResultLine, Say, Suite, about, data_of, truncation
from starling_train.models import header_checks
from starling_train.models.sequence_logprobs import sequence_logprobs
from starling_train.models.source import ModelSource
from starling_train.rewards import kinds
from starling_train.rewards.empty_answers import is_empty
from starling_train.rollout.exclusions import exclusions
from starling_train.training import policy
from starling_train.training.ppo import inputs

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class Reward(Suite):
    """The suite: scores, lengths and KL of sampled answers to held-out prompts, or to the prompts of a file.

    answered: everything the answers depend on, whatever scores them.
    base: the model that the KL is computed to.
    dropped: rows of the suite's own file that are no prompts.
    """

    prompts: list[Prompt]
    answered: dict[str, Any]
    base: ModelSource | None
    dropped: Dropped

    name = "reward"

    @classmethod
    def find(cls, subjects: Subjects) -> "Reward":
        config = subjects.config
        requested, dropped = _prompts(config, subjects.chat)
        data = data_of(config.reward_suite.path or config.data.path, (prompt.messages for prompt in requested))
        settings = subjects.sampled_settings(config.rollout.max_new_tokens, config.rollout.temperature)
        if floor := config.rollout.min_new_tokens:
            settings["min_new_tokens"] = floor
        answered = subjects.identity_of(cls.name, data, settings)
        base = None
        if path := config.reward_suite.base:
            base = ModelSource.open(path, "reward_suite.base", weights=not config.dry_run)
        identity = answered | {
            "reward": {**subjects.reward_identity(), "settings": subjects.reward_settings()},
            "base": subjects.identify(base) if base else None,
        }
        return cls(subjects, identity, requested, answered, base, dropped)

    def plan(self) -> str:
        config = self.subjects.config
        base = config.reward_suite.base
        measured = f"scored by {kinds.described(config.reward)}" + (f", KL to {base}" if base else "")
        return (
            f"answers of {config.model.path} to {len(self.prompts):,} prompts of "
            f"{self.identity['data']['path']}, {measured}{self.dropped.told()}"
        )

    def check(self, dry_run: bool) -> None:
        limit = self.subjects.config.rollout.max_new_tokens
        longest = max(len(prompt.ids) for prompt in self.prompts)
        self.subjects.check_policy()
        self.subjects.check_room(longest + limit, "a prompt and its answer", "rollout.max_new_tokens")
        self.subjects.check_reward()
        if self.subjects.config.reward_suite.path:  # a run's own prompts were shown when they were read
            prompts = self.prompts
            self.subjects.admit([prompt.messages for prompt in prompts], [prompt.columns for prompt in prompts])
        if self.base:
            policy.check_vocabulary(self.base.policy_config, self.subjects.chat, "reward_suite.base")
            if not dry_run:
                header_checks.check_policy(self.base)

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        questions = {str(index): prompt.ids for index, prompt in enumerate(self.prompts)}
        with self.journal(folder, "answers", self.answered) as answers:
            progress = self.progress(say, "answers")(len(questions), len(answers.rows))
            self.subjects.answer(questions, answers, self.subjects.config.rollout, progress, greedy=False)
            rows = [answers.rows[key] for key in questions]
        kl = self._kl([row["ids"] for row in rows]) if self.base else None
        conversations = [
            with_answer(prompt.messages, row["response"]) for prompt, row in zip(self.prompts, rows, strict=True)
        ]
        scored = {key: self.identity[key] for key in ("suite", "reward")} | {"answers": self.answered}
        columns = [prompt.columns for prompt in self.prompts]
        with self.journal(folder, "scores", scored) as journal, about("reward_suite"):
            counted = self.progress(say, "answers scored")
            found = score(conversations, self.subjects, journal, counted, columns)
        scores = _given(found.scores)
        if not scores:
            raise UserError(f"reward: none of {len(rows)} answers was scored; try it with the command score")
        of_terms = {name: distribution(_given(values)) for name, values in found.terms.items()}
        return {
            "answers": len(rows),
            "unscored": len(rows) - len(scores),
            "score": distribution(scores),
            **({"terms": of_terms} if of_terms else {}),
            "length": distribution([len(row["ids"]) for row in rows]),
            "ended": sum(row["ended"] for row in rows) / len(rows),
            "empty": sum(map(is_empty, conversations)) / len(rows),
            **found.cut,
            "kl": kl,
        }

    def _kl(self, responses: list[list[int]]) -> dict[str, float]:
        """Measure the KL of the policy to the base on the policy's own answers, in nats."""
        own = self._logprobs(self.subjects.policy(), responses)
        base = self._logprobs(self.subjects.causal_lm(self.base), responses)
        kl = [of_own - of_base for of_own, of_base in zip(own, base, strict=True)]
        whole = distribution(kl)
        return {"mean": whole["mean"], "std": whole["std"], "per_token": math.fsum(kl) / sum(map(len, responses))}

    def _logprobs(self, model: Any, responses: list[list[int]]) -> list[float]:
        """Compute the log-probability of each answer, in nats."""
        sequences = [prompt.ids + ids for prompt, ids in zip(self.prompts, responses, strict=True)]
        answers = [range(len(p.ids), len(ids)) for p, ids in zip(self.prompts, sequences, strict=True)]
        # what the answers were drawn without is left out of both distributions
        chat, floor = self.subjects.chat, self.subjects.config.rollout.min_new_tokens
        excluded = exclusions(self.subjects.source.policy_config, chat, floor)
        parts = sequence_logprobs(model, sequences, self.subjects.token_budget(), answers, excluded)
        return [float(part.double().sum()) for part in parts]

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        count, score_, length = result["answers"], result["score"], result["length"]
        ends = f"{score_['quantiles']['0.05']:.4g} to {score_['quantiles']['0.95']:.4g}"
        lines = [
            ResultLine("mean score", f"{score_['mean']:.4g}", count),
            ResultLine("score, standard deviation", f"{score_['std']:.4g}", count),
            ResultLine("score, 5 % to 95 %", ends, count),
            *(
                ResultLine(f"mean of the term {name}", f"{term['mean']:.4g}", count)
                for name, term in result.get("terms", {}).items()
            ),
            ResultLine("length, tokens", f"{length['mean']:.4g}", count),
            ResultLine("ended by itself", f"{100 * result['ended']:.2f} %", count),
        ]
        if "empty" in result:  # results of former versions have none
            lines.append(ResultLine("without text", f"{100 * result['empty']:.2f} %", count))
        if kl := result["kl"]:
            lines += [
                ResultLine("KL to the base, nats an answer", f"{kl['mean']:.4g}", count),
                ResultLine("KL to the base, nats a token", f"{kl['per_token']:.4g}", count),
            ]
        return lines

    def notes(self, result: dict[str, Any]) -> list[str]:
        reward = self.identity["reward"]
        who = reward.get("path") or reward.get("url") or reward.get("function") or " and ".join(reward["terms"])
        count = result.get("unscored")
        left_out = [f"{count:,} answers were not scored"] if count else []
        return [f"scored by {who}", *left_out, *truncation(result)]


def _given(scores: Sequence[float | None]) -> list[float]:
    return [value for value in scores if value is not None]


def distribution(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, population standard deviation, and quantiles (linear interpolation) of numbers."""
    array = np.asarray(values, dtype=np.float64)
    quantiles = np.quantile(array, QUANTILES)
    return {
        "mean": float(array.mean()),
        "std": float(array.std()),
        "quantiles": {f"{share:g}": float(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _prompts(config: EvaluateConfig, chat: Chat) -> tuple[list[Prompt], Dropped]:
    """Read the prompts of the suite's own file, or those that a run with this configuration would hold out.

    Returns them and, of a file of its own, what was dropped.
    """
    how = config.reward_suite
    if how.path is None:
        asks = kinds.without_weights if config.dry_run else kinds.everyone
        return inputs.load_data(config, chat, asks).held_out[: how.rows], Dropped()
    with about("reward_suite.path"):
        data = nectar.load(
            how.path,
            subset=how.subset,
            split=how.split,
            columns=how.columns,
            answers=False,
            keep=kinds.of(config.reward).columns(config.reward),
            key="reward_suite",
        )
        rows, refused, _ = chat.accepted(data.rows, lambda row: [row.messages], lambda row: row.where)
    limit = config.data.max_prompt_tokens
    fitting, _ = prompts.tokenise([row.messages for row in rows], chat, limit, [row.columns for row in rows])
    dropped = data.drops()
    dropped.add_all(next(iter(refused), ""), nectar.lost(data.rows, rows))
    dropped.add_all(f"longer than {limit} tokens", nectar.lost(rows, fitting))
    return fitting[: how.rows], dropped
