"""The models that `evaluate` measures: found by name, identified by every byte, one at a time in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from starling_train.config.evaluate import EvaluateConfig
from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, RolloutConfig
from starling_train.data import openchat
from starling_train.data.prompts import with_answer
from starling_train.evals.suite import ANSWERS_AT_A_TIME, Progress, Say, check_finite, named
from starling_train.files.journal import Journal
from starling_train.models import causal_lm as load
from starling_train.models import header_checks as model_preflight
from starling_train.models import quantisation
from starling_train.models.reward.source import RewardSource
from starling_train.models.source import ModelSource
from starling_train.rewards import load as rewards_load
from starling_train.rewards.served import RewardClient
from starling_train.rollout.generate import generate
from starling_train.run.runtime import Runtime
from starling_train.training import policy as setup

# of the reward section: what scores depend on beside the model itself
SCORED_BY = ("dtype", "load_in", "position", "trailing_newline", "max_length")


class Subjects:
    """The policy, the reward model, and others, loaded when a suite needs them; the one before is let go.

    known: hashes of files from an earlier evaluation, by directory, so that files that did not change are not read
    again; `hashed` is what is known now.
    """

    def __init__(self, config: EvaluateConfig, runtime: Runtime, known: dict[str, Any]):
        self.config, self.runtime, self.hashed = config, runtime, dict(known)
        self._held: tuple[str, Any] = ("", None)
        self._checked: set[str] = set()

    @cached_property
    def source(self) -> ModelSource:
        """The policy's directory. Raises UserError."""
        model = self.config.model
        return ModelSource.open(model.path, "model.path", model.revision, weights=not self.config.dry_run)

    @cached_property
    def tokenizer(self) -> Any:
        """The policy's, checked to speak Openchat's template. Raises UserError."""
        return setup.load_tokenizer(self.source)

    def policy_identity(self) -> dict[str, Any]:
        return self.identify(self.source)

    def policy_settings(self) -> dict[str, Any]:
        """What any answer or log-probability of the policy depends on beside its weights."""
        model = self.config.model
        return {"dtype": model.dtype, "attention": model.attention, "load_in": model.load_in}

    def identify(self, source: ModelSource) -> dict[str, Any]:
        """A model by its name and the SHA-256 of its files."""
        where = str(source.directory.resolve())
        identity = source.identify(self.hashed.get(where))
        self.hashed[where] = identity.files
        return {"path": named(source.path), "sha256": identity.sha256}

    def reward_identity(self) -> dict[str, Any]:
        """Which reward model this is, and how it is read. A served one is known by its address alone."""
        config = self.config.reward
        tokenizer = {"tokenizer": named(config.tokenizer) if config.tokenizer else None}
        if config.kind == "server":
            return {"kind": "server", "url": config.url, "protocol": config.protocol} | tokenizer
        source = RewardSource.of(config, weights=not self.config.dry_run)
        return {"kind": config.kind} | tokenizer | self.identify(source.model)

    def reward_settings(self) -> dict[str, Any]:
        served = self.config.reward.kind == "server"
        return {} if served else {key: getattr(self.config.reward, key) for key in SCORED_BY}

    def check_policy(self) -> None:
        """What can be found wrong with the policy without loading it. Raises UserError."""
        if "policy" in self._checked:
            return
        model = self.config.model
        quantisation.check_acceleration(attention=model.attention, policy_load_in=model.load_in)
        setup.check_vocabulary(self.source.policy_config, self.tokenizer)
        if not self.config.dry_run:
            model_preflight.check_policy(self.source)
        self._checked.add("policy")

    def check_room(self, tokens: int, what: str, key: str) -> None:
        """Raise UserError if `what`, a conversation of so many tokens, can outgrow the policy's positions."""
        positions = self.source.policy_config.max_position_embeddings
        if tokens > positions:
            raise UserError(
                f"{key}: {what} can be {tokens} tokens long, more than the model's {positions} positions; lower it"
            )

    def check_reward(self) -> None:
        """As `check_policy`; a server is asked whether it answers."""
        config: RewardConfig = self.config.reward
        if config.kind != "server":
            rewards_load.check_reward(config, weights=not self.config.dry_run)
        elif not self.config.dry_run:
            self.reward()

    def policy(self) -> nn.Module:
        return self.causal_lm(self.source)

    def causal_lm(self, source: ModelSource) -> nn.Module:
        """A causal language model, loaded as the policy is."""
        model = self.config.model
        return self._hold(
            str(source.directory),
            lambda: load.load_causal_lm(
                source,
                dtype=model.dtype,
                attention=model.attention,
                device=str(self.runtime.device),
                load_in=model.load_in,
            ).eval(),
        )

    def reward(self) -> Any:
        """A reward model, or the client of a served one: `.score`, `.truncated`."""
        if self.config.reward.kind == "server":  # takes no memory, so nothing is let go for it
            return self._client
        return self._hold("reward", lambda: rewards_load.load_reward(self.config.reward, self.runtime))

    @cached_property
    def _client(self) -> RewardClient:
        return rewards_load.load_reward(self.config.reward, self.runtime)

    def _hold(self, name: str, make: Callable[[], Any]) -> Any:
        if self._held[0] != name:
            self._held = ("", None)  # its memory is free before the next one needs some
            self._held = (name, make())
        return self._held[1]

    def answer(
        self,
        questions: dict[str, list[int]],
        journal: Journal,
        limits: RolloutConfig,
        progress: Progress,
        *,
        greedy: bool,
        purpose: Sequence[str | int] = ("evaluation",),
    ) -> None:
        """Have the policy answer what the journal has no answer to: {"response", "ids", "ended"} by key.

        questions: token ids up to where the answer begins, by key. With engine `slots` each sampled answer depends on
        its place among the questions, not on how many were answered by an earlier start.
        """
        missing = [(place, key) for place, key in enumerate(questions) if key not in journal]
        if not missing:
            return
        tokenizer = self.tokenizer
        eos = openchat.end_of_turn_id(tokenizer)

        def take(index: int, ids: list[int]) -> None:
            key = missing[index][1]
            if key in journal:
                return  # answered once more because memory ran out
            text = with_answer([], ids, tokenizer, limits.stop_strings)[-1]["content"]
            journal.add(key, {"response": text, "ids": list(ids), "ended": ids[-1] == eos})
            progress.step()

        policy = self.policy()
        self.runtime.seed_all(*purpose)
        prompts, places = [questions[key] for _, key in missing], [place for place, _ in missing]
        generate(policy, tokenizer, prompts, limits, greedy=greedy, places=places, on_done=take)

    def limits(self, max_new_tokens: int, **changed: Any) -> RolloutConfig:
        """The rollout's settings with another limit."""
        return replace(self.config.rollout, max_new_tokens=max_new_tokens, **changed)

    def greedy_settings(self, max_new_tokens: int) -> dict[str, Any]:
        """What a greedy answer depends on, for an identity."""
        rollout = self.config.rollout
        return {
            "max_new_tokens": max_new_tokens,
            **self.policy_settings(),
            "engine": rollout.engine,
            "stop_strings": list(rollout.stop_strings),
        }


def score(conversations: list[list[dict]], subjects: Subjects, journal: Journal, suite: str, say: Say) -> list[float]:
    """A score for every conversation, from the journal where it has one: {"score", "truncated"} by place.

    truncated: of a group's answers, how many were too long for the reward model; it stands at the group's first.
    Raises UserError for a score that is not finite.
    """
    places = [place for place in range(len(conversations)) if str(place) not in journal]
    progress = Progress(say, suite, "answers scored", len(conversations), len(journal.rows))
    model: Any = subjects.reward() if places else None
    for start in range(0, len(places), ANSWERS_AT_A_TIME):
        group = places[start : start + ANSWERS_AT_A_TIME]
        before = model.truncated
        scores = model.score([conversations[place] for place in group])
        check_finite(scores)
        for place, value in zip(group, scores, strict=True):
            journal.add(str(place), {"score": value, "truncated": model.truncated - before})
            before = model.truncated
            progress.step()
    return [journal.rows[str(place)]["score"] for place in range(len(conversations))]
