"""The suites of `evaluate`, a class each: what it needs is found and checked first, then it is measured.

`identity` is all that a result depends on, as JSON: models by a fingerprint of their weights, data by its contents.
A result holds shares from 0 to 1.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from starling_train.config import Config, FunctionCallingConfig, RewardConfig, UserError
from starling_train.data import nectar_files
from starling_train.engine import preflight, setup
from starling_train.engine.runtime import Runtime
from starling_train.evals import function_calling, held_out, preference
from starling_train.models import identity, load
from starling_train.models import preflight as model_preflight
from starling_train.models.reward_client import RewardClient

ANSWERS_AT_A_TIME = 1024
# of the reward section: what scores depend on beside the model itself
SCORED_BY = ("dtype", "load_in", "position", "trailing_newline", "max_length")

Row = tuple[str, float, int]  # part of the suite ("" for the whole), share of right ones, of how many


class Suite(Protocol):
    name: str
    identity: dict[str, Any]

    def plan(self) -> str:
        """What it would do, in words."""

    def check(self, dry_run: bool) -> None:
        """What can be found wrong without loading weights. Raises UserError."""

    def measure(self, say: Callable[[str], None]) -> dict[str, Any]:
        """The result, strict JSON. say: told how far it is."""

    def rows(self, result: dict[str, Any]) -> list[Row]:
        """A result as rows of a table, the whole first."""


@dataclass
class Preference:
    """How often the reward model prefers what is ranked higher."""

    config: RewardConfig
    runtime: Runtime
    comparisons: list[preference.Comparison]
    identity: dict[str, Any]
    client: RewardClient | None = None
    name: str = "preference"

    @classmethod
    def find(cls, path: str, rows: int | None, config: RewardConfig, runtime: Runtime, weights: bool) -> "Preference":
        """Read the preference set and look up the reward model. weights: fetch a hub id's too. Raises UserError."""
        local = Path(path).expanduser()
        if not local.exists() and not nectar_files.HUB_ID.fullmatch(path):
            raise UserError(f"preference.path: no such file or directory: {local}; give JSONL, or Nectar's parquet")
        with _about("preference.path"):
            comparisons = preference.load(path)[:rows]
        data = _digest([row.conversations, row.ranks] for row in comparisons)
        identity = {"suite": cls.name, "model": _reward_model(config, weights), "data": {"path": _named(path)} | data}
        served = config.kind == "server"
        settings = {} if served else {key: getattr(config, key) for key in SCORED_BY}
        return cls(config, runtime, comparisons, identity | {"settings": settings})

    def plan(self) -> str:
        ranks = [row.ranks for row in self.comparisons]
        pairs, answers = preference.pair_accuracy(ranks, ranks).pairs, sum(map(len, ranks))
        where = f"{self.identity['data']['path']} with {self.config.place()} ({self.config.kind})"
        return f"{pairs:,} pairs among {answers:,} answers to {len(ranks):,} prompts of {where}"

    def check(self, dry_run: bool) -> None:
        if self.config.kind != "server":
            preflight.check_reward(self.config, weights=not dry_run)
        elif not dry_run:  # asks the server
            self.client = setup.load_reward(self.config, self.runtime)

    def measure(self, say: Callable[[str], None]) -> dict[str, Any]:
        model = self.client or setup.load_reward(self.config, self.runtime)

        def score(conversations: list[list[dict]]) -> list[float]:
            scores: list[float] = []
            while len(scores) < len(conversations):
                scores += model.score(conversations[len(scores) : len(scores) + ANSWERS_AT_A_TIME])
                say(f"{self.name}: {len(scores):,} of {len(conversations):,} answers scored")
            if wrong := sum(not math.isfinite(value) for value in scores):
                raise UserError(f"reward: {wrong} of {len(scores)} scores are not finite; try reward.dtype=float32")
            return scores

        with _about("preference"):
            found = preference.evaluate(self.comparisons, score)
        by_distance = [
            {"distance": distance, "accuracy": right / pairs, "pairs": pairs}
            for distance, (right, pairs) in found.by_distance.items()
        ]
        result = {"accuracy": found.accuracy, "pairs": found.pairs, "by_distance": by_distance}
        return result | {"truncated_answers": model.truncated}

    def rows(self, result: dict[str, Any]) -> list[Row]:
        parts = result["by_distance"]
        named = [(f"ranks {part['distance']:g} apart", part["accuracy"], part["pairs"]) for part in parts]
        return [("", result["accuracy"], result["pairs"]), *named]


@dataclass
class FunctionCalling:
    """How many of the leaderboard's cases the policy answers rightly."""

    config: Config
    runtime: Runtime
    directory: Path
    cases: list[function_calling.Case]
    max_new_tokens: int
    identity: dict[str, Any]
    name: str = "function_calling"

    @classmethod
    def find(cls, how: FunctionCallingConfig, config: Config, runtime: Runtime, weights: bool) -> "FunctionCalling":
        """Read the cases and look up the policy. weights: fetch a hub id's too. Raises UserError."""
        with _about("function_calling.path"):
            cases = function_calling.load_cases(Path(how.path).expanduser(), limit=how.cases)
        directory = load.resolve(config.model.path, "model.path", config.model.revision, weights=weights)
        settings = {
            "max_new_tokens": how.max_new_tokens,
            "dtype": config.model.dtype,
            "attention": config.model.attention,
            "engine": config.rollout.engine,
            "stop_strings": list(config.rollout.stop_strings),
        }
        identity = {
            "suite": cls.name,
            "model": {"path": _named(config.model.path)} | _fingerprint(directory),
            "data": {"path": _named(how.path)} | _digest(asdict(case) for case in cases),
            "settings": settings,
        }
        return cls(config, runtime, directory, cases, how.max_new_tokens, identity)

    def plan(self) -> str:
        where = f"{self.identity['data']['path']} with {self.config.model.path}"
        return f"{len(self.cases):,} cases of {where}, greedy, up to {self.max_new_tokens} tokens an answer"

    def check(self, dry_run: bool) -> None:
        model_preflight.check_acceleration(attention=self.config.model.attention)
        model_config = load.load_config(self.directory, "model.path")
        setup.check_vocabulary(model_config, setup.load_tokenizer(self.config, self.directory))
        if not dry_run:
            model_preflight.check_policy(self.directory, model_config, "model.path")

    def measure(self, say: Callable[[str], None]) -> dict[str, Any]:
        model = self.config.model
        policy = load.load_causal_lm(
            self.directory, "model.path", dtype=model.dtype, attention=model.attention, device=str(self.runtime.device)
        )
        tokenizer = setup.load_tokenizer(self.config, self.directory)
        limits = replace(self.config.rollout, max_new_tokens=self.max_new_tokens)
        found = held_out.call_functions(self.cases, policy, tokenizer, limits, self.runtime)
        cases = Counter(case.category for case in self.cases)
        by_category = [
            {"category": name, "accuracy": percent / 100, "cases": cases[name]}
            for name, percent in found.by_category.items()
        ]
        return {"accuracy": found.accuracy / 100, "cases": len(self.cases), "by_category": by_category}

    def rows(self, result: dict[str, Any]) -> list[Row]:
        parts = [(part["category"], part["accuracy"], part["cases"]) for part in result["by_category"]]
        return [("", result["accuracy"], result["cases"]), *parts]


def _reward_model(config: RewardConfig, weights: bool) -> dict[str, Any]:
    """Which reward model this is. A served one is known by its address alone."""
    tokenizer = {"tokenizer": _named(config.tokenizer) if config.tokenizer else None}
    if config.kind == "server":
        return {"kind": "server", "url": config.url, "protocol": config.protocol} | tokenizer
    # as in setup.load_reward: a tokenizer's directory may bring the config.json
    directory = load.resolve(config.path, "reward.path", weights=weights, needs_config=not config.tokenizer)
    if config.tokenizer:
        load.resolve(config.tokenizer, "reward.tokenizer", weights=False)
    return {"kind": config.kind, "path": _named(config.path)} | tokenizer | _fingerprint(directory)


def _named(path: str) -> str:
    """A local path from the root, a hub id as it is."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def _fingerprint(directory: Path) -> dict[str, str]:
    return {"fingerprint": identity.fingerprint(directory)}


def _digest(rows: Iterable[Any]) -> dict[str, str]:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return {"sha256": digest.hexdigest()}


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Name the key in an error that names a file or a line only."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("reward"):
            raise
        raise UserError(f"{key}: {error}") from error
