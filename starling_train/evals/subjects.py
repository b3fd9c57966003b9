"""The models that `evaluate` measures: opened by name, identified by every byte, one at a time in memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from starling_train.config.evaluate import EvaluateConfig
from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.evals.suite import StartProgress, SuiteProgress, check_finite, complete, named
from starling_train.files.journal import Journal
from starling_train.models import causal_lm, header_checks, quantisation
from starling_train.models.budget import Budget
from starling_train.models.causal_lm import CausalLM
from starling_train.models.families.positions import positions_of
from starling_train.models.families.ways import ways_of
from starling_train.models.source import ModelSource
from starling_train.rewards import kinds, terms
from starling_train.rewards.scorer import Scorer
from starling_train.rollout import exclusions, start_check
from starling_train.rollout.generate import generate
from starling_train.run.runtime import Runtime
from starling_train.training import policy


class Subjects:
    """The policy, the reward model and others, loaded when a suite needs them; the previous one is released.

    known: hashes of files from an earlier evaluation, by directory, so that unchanged files are not read again;
        `hashed` has those known by now.
    """

    def __init__(self, config: EvaluateConfig, runtime: Runtime, known: dict[str, Any]):
        self.config, self.runtime, self.hashed = config, runtime, dict(known)
        self._held: tuple[str, Any] = ("", None)
        self._checked: set[str] = set()

    @cached_property
    def source(self) -> ModelSource:
        """The policy's directory, opened on first use. Raises UserError."""
        model = self.config.model
        return ModelSource.open(model.path, "model.path", model.revision, weights=not self.config.dry_run)

    @cached_property
    def chat(self) -> Chat:
        """The policy's tokenizer and template, loaded on first use. Raises UserError."""
        return policy.load_chat(self.source, self.config.model)

    def lines(self) -> list[str]:
        """Say what the policy's chat template does, and which ids no answer has, where a suite has needed it."""
        if "chat" not in vars(self):
            return []
        return [*self.chat.lines(), *exclusions.lines(self.source.policy_config, self.chat)]

    def policy_identity(self) -> dict[str, Any]:
        return self.identify(self.source)

    def identity_of(
        self,
        suite: str,
        data: dict[str, Any],
        settings: dict[str, Any],
    ) -> dict[str, Any]:
        """Return everything the policy's behaviour in a suite depends on."""
        return {"suite": suite, "model": self.policy_identity(), "data": data, "settings": settings}

    def policy_settings(self) -> dict[str, Any]:
        """Return everything the policy's answers and log-probabilities depend on beside its weights."""
        model = self.config.model
        loaded = {"dtype": model.dtype, "attention": model.attention, "load_in": model.load_in}
        return loaded | self.chat.template.identity()

    def identify(self, source: ModelSource) -> dict[str, Any]:
        """Identify a model by its name and the SHA-256 of its files."""
        directory = str(source.directory.resolve())
        identity = source.identify(self.hashed.get(directory))
        self.hashed[directory] = identity.files
        return {"path": named(source.path), "sha256": identity.sha256}

    def reward_identity(self) -> dict[str, Any]:
        """Return which reward model this is, and how it is read."""
        config = self.config.reward
        tokenizer = named(config.tokenizer) if config.tokenizer else None
        who = kinds.of(config).identity(config, self.identify, not self.config.dry_run)
        return {"kind": config.kind, "tokenizer": tokenizer, **who}

    def reward_settings(self) -> dict[str, Any]:
        reward = self.config.reward
        stated = {} if reward.empty_response is None else {"empty_response": reward.empty_response}
        return {key: getattr(reward, key) for key in kinds.of(reward).SCORED_BY} | stated

    def check_policy(self) -> None:
        """Check everything about the policy that does not require loading it. Raises UserError."""
        if "policy" in self._checked:
            return
        model = self.config.model
        quantisation.check_acceleration(attention=model.attention, policy_load_in=model.load_in)
        policy.check_vocabulary(self.source.policy_config, self.chat)
        if not self.config.dry_run:
            start_check.check(self.config.rollout, model.load_in)
            header_checks.check_policy(self.source)
        self._checked.add("policy")

    def check_room(self, tokens: int, what: str, key: str) -> None:
        """Raise UserError if `what`, a conversation of so many tokens, can outgrow the policy's positions."""
        positions = positions_of(self.source.policy_config)
        if tokens > positions.most:
            raise UserError(
                f"{key}: {what} can be {tokens} tokens long, more than the model's {positions.what}; lower it"
            )

    def check_reward(self) -> None:
        """Check the reward model as `check_policy` does the policy; ask a server whether it answers."""
        kinds.of(self.config.reward).check(self.config.reward, not self.config.dry_run)

    def admit(self, prompts: Sequence[list[dict]], columns: Sequence[dict[str, Any]]) -> None:
        """Show the reward side prompts that it will score answers to. Raises UserError for one that it refuses.

        prompts: messages up to where an answer begins. columns: of each prompt's row of the data.
        """
        asks = kinds.without_weights if self.config.dry_run else kinds.everyone
        admission = kinds.admit(self.config.reward, prompts, columns, asks)
        if admission.refused:
            told = admission.described(prompts)[0]
            raise UserError(f"reward: {len(admission.refused)} of {len(prompts)} prompts cannot be scored; {told}")

    def policy(self) -> CausalLM:
        return self.causal_lm(self.source)

    def causal_lm(self, source: ModelSource) -> CausalLM:
        """Load a causal language model as the policy is loaded."""

        def load() -> CausalLM:
            how = self.config.model
            model = causal_lm.load_causal_lm(
                source,
                dtype=how.dtype,
                attention=how.attention,
                device=str(self.runtime.device),
                load_in=how.load_in,
            ).eval()
            if line := start_check.line(model, ways_of(model), self.config.rollout.engine, source.key):
                print(line, flush=True)
            return model

        return self._hold(str(source.directory), load)

    def reward(self) -> Scorer:
        """Load the reward model, or connect to it."""
        if self.config.reward.has_weights:
            return self._hold("reward", self._load_reward)
        return self._light_reward  # no other model is released for it

    @cached_property
    def _light_reward(self) -> Scorer:
        return self._load_reward()

    def _load_reward(self) -> Scorer:
        return kinds.load(self.config.reward, self.runtime)

    def token_budget(self) -> Budget:
        """Return a new budget of tokens for forward passes that measure log-probabilities."""
        return Budget("algorithm.tokens_per_microbatch", self.config.algorithm.tokens_per_microbatch)

    def _hold(self, name: str, make: Callable[[], Any]) -> Any:
        if self._held[0] != name:
            self._held = ("", None)  # free its memory before the next model is loaded
            self._held = (name, make())
        return self._held[1]

    def answer(
        self,
        questions: dict[str, list[int]],
        journal: Journal,
        limits: RolloutConfig,
        progress: SuiteProgress,
        *,
        greedy: bool,
        purpose: Sequence[str | int] = ("evaluation",),
    ) -> None:
        """Have the policy answer the questions that the journal has no answer to: {"response", "ids", "ended"} by key.

        With engine `slots` each sampled answer depends on its index among the questions, not on how many were answered
        by an earlier start.

        questions: token ids up to where the answer begins, by key.
        journal: the answers of earlier starts; the new ones are added.
        limits: the sampling settings.
        progress: counts the answers.
        greedy: whether the likeliest token is taken, instead of sampling.
        purpose: seeds the random numbers.
        """
        missing = {key: index for index, key in enumerate(questions) if key not in journal}
        if not missing:
            return
        keys, chat = list(missing), self.chat
        stops = chat.stop_strings(limits.stop_strings)

        def take(number: int, ids: list[int]) -> None:
            key = keys[number]
            if key in journal:
                return  # answered once more because memory ran out
            text = chat.text(ids, stops, limits.min_new_tokens)
            journal.add(key, {"response": text, "ids": list(ids), "ended": ids[-1] in chat.end_ids})
            progress.step()

        model = self.policy()
        longest = max(map(len, questions.values()))
        self._say_once(start_check.opened(model, chat, limits, longest))
        self.runtime.seed_all(*purpose)
        prompts, indices = [questions[key] for key in keys], list(missing.values())
        generate(model, chat, prompts, limits, greedy=greedy, indices=indices, on_done=take)

    def _say_once(self, lines: list[str]) -> None:
        for line in lines:
            if line not in self._checked:
                print(line, flush=True)
            self._checked.add(line)

    def limits(self, max_new_tokens: int, **changed: Any) -> RolloutConfig:
        """Return the rollout's settings with another limit, and no floor: a benchmark takes answers as they come."""
        return replace(self.config.rollout, max_new_tokens=max_new_tokens, min_new_tokens=0, **changed)

    def greedy_settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Return everything a greedy answer depends on, for an identity."""
        rollout = self.config.rollout
        return {
            "max_new_tokens": max_new_tokens,
            **self.policy_settings(),
            "engine": rollout.engine,
            "stop_strings": self.chat.stop_strings(rollout.stop_strings),
            # only where there are any: answers of former versions, which drew them, are as good without
            **({"ids_without_token": without} if (without := self._ids_without_token()) else {}),
        }

    def _ids_without_token(self) -> int:
        return len(self.chat.ids_without_token(self.source.text_config.vocab_size))

    def sampled_settings(self, max_new_tokens: int, temperature: float | None) -> dict[str, Any]:
        """Return everything a sampled answer depends on, for an identity."""
        rollout = self.config.rollout
        return {
            **self.greedy_settings(max_new_tokens),
            "temperature": temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "seed": self.config.seed,
        }


class Scored(NamedTuple):
    """Scores of conversations.

    scores: None where a reward function leaves the answer out.
    cut: what was too long for the reward model, as a part of a suite's result: `truncated_answers` lost their
        beginning, `truncated_prompts` counts all conversations that did.
    terms: of each term of a sum, by name.
    """

    scores: list[float | None]
    cut: dict[str, int]
    terms: dict[str, list[float | None]]


def score(
    conversations: list[list[dict]],
    subjects: Subjects,
    journal: Journal,
    progress: StartProgress,
    columns: Sequence[dict[str, Any]] | None = None,
) -> Scored:
    """Score conversations, as far as the journal has no scores of them.

    Raises UserError for a score that is not finite, unless it is a function's.

    conversations: the answers with their prompts.
    subjects: the reward model is loaded from here.
    journal: {"score", "truncated", "shortened", and "terms" of a sum} by index; the first row of a group has the counts
        of all of it.
    progress: counts the scores.
    columns: of each conversation's row of the data, for a reward function.
    """

    def make(indices: list[int]) -> Iterator[dict[str, Any]]:
        model = subjects.reward()
        before = model.truncated, model.shortened
        given = [columns[index] for index in indices] if columns else None
        scores, of_terms = terms.scored(model, [conversations[index] for index in indices], given)
        for name, one in terms.parts(model).items():
            if not one.may_leave_out:
                check_finite(of_terms.get(name, scores), f"reward.terms.{name}" if name else "reward")
        for position, value in enumerate(scores):
            cut = {"truncated": model.truncated - before[0], "shortened": model.shortened - before[1]}
            each = {name: _or_none(values[position]) for name, values in of_terms.items()}
            yield {"score": _or_none(value)} | cut | ({"terms": each} if each else {})
            before = model.truncated, model.shortened

    rows = complete(journal, [str(index) for index in range(len(conversations))], make, progress)
    cut = {"truncated_answers": "truncated", "truncated_prompts": "shortened"}
    counts = {
        name: sum(row.get(key, 0) for row in rows) for name, key in cut.items()
    }  # older journals have one of them
    names = rows[0].get("terms", {}) if rows else {}
    of_terms = {name: [row["terms"][name] for row in rows] for name in names}
    return Scored([row["score"] for row in rows], counts, of_terms)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
