"""A weighted sum of scores as the reward: of a reward model and a function, for instance.

A term is a source of its own with the keys `reward.terms.NAME.*`; a sum has all that its terms have: columns, budgets,
servers, what they refuse. A sum is nan where one of its terms is not finite.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, ScorerConfig, TermConfig, about_term, in_term
from starling_train.models.budget import Budget
from starling_train.models.source import ModelSource
from starling_train.rewards import sources
from starling_train.rewards.admission import Admission
from starling_train.rewards.scorer import Mark, Scorer
from starling_train.run.runtime import Runtime

LOCATION, SCORED_BY = "terms", ()


def check(config: RewardConfig, weights: bool = True) -> None:
    """Check each term, as its kind does. Raises UserError."""
    for term in config.terms.values():
        with in_term(term):
            sources.of(term).check(term, weights)


def load(config: RewardConfig, runtime: Runtime) -> "Sum":
    """Load each term, or connect to it. Raises UserError."""
    loaded = {}
    for name, term in config.terms.items():
        with in_term(term):
            loaded[name] = Term(term, sources.load(term, runtime))
    return Sum(loaded)


def identity(
    config: RewardConfig,
    identify: Callable[[ModelSource], dict[str, Any]],
    weights: bool = True,
) -> dict[str, Any]:
    """Identify each term, and everything else that the sum depends on. Raises UserError."""
    return {"terms": {name: _identity(term, identify, weights) for name, term in config.terms.items()}}


def _identity(term: TermConfig, identify: Callable[[ModelSource], dict[str, Any]], weights: bool) -> dict[str, Any]:
    source = sources.of(term)
    with in_term(term):
        who = source.identity(term, identify, weights)
    stated = {} if term.empty_response is None else {"empty_response": term.empty_response}
    settings = {key: getattr(term, key) for key in source.SCORED_BY}
    return {"kind": term.kind, "tokenizer": term.tokenizer, "weight": term.weight} | settings | who | stated


def columns(config: RewardConfig) -> tuple[str, ...]:
    """Return the names of the columns of the data that some term takes, where they exist. Raises UserError."""
    names: dict[str, None] = {}
    for term in config.terms.values():
        with in_term(term):
            names |= dict.fromkeys(sources.of(term).columns(term))
    return tuple(names)


def admit(
    config: RewardConfig,
    prompts: Sequence[list[dict]],
    rows: Sequence[dict[str, Any]],
    asks: Callable[[ScorerConfig], bool],
) -> Admission:
    """Ask each term: a prompt that one refuses is refused. See `kinds.admit`. Raises UserError if all are refused."""
    refused: dict[int, str] = {}
    lines: list[str] = []
    for term in filter(asks, config.terms.values()):
        with in_term(term):
            admission = sources.of(term).admit(term, prompts, rows)
        for index, reason in admission.refused.items():
            refused.setdefault(index, _of_term(term, reason))
        lines += [about_term(term.section, line) for line in admission.lines]
    if prompts and len(refused) == len(prompts):
        raise UserError(f"reward.terms: the terms together refuse all {len(prompts)} prompts: {refused[0]}")
    return Admission(refused, lines)


def described(config: RewardConfig) -> str:
    """Describe the sum: each term's weight, where it is, and its kind."""
    return " + ".join(f"{term.weight:g} x {name}: {sources.described(term)}" for name, term in config.terms.items())


def described_each(config: RewardConfig) -> list[str]:
    """Describe each term in a line, with its scale; no line for a reward that is not a sum."""
    if config.kind != "terms":
        return []
    width = max(map(len, config.terms))
    scaled = {"running": ", by its own mean and deviation so far", "none": ""}
    return [
        f"  {name:<{width}}  {term.weight:g} x {sources.described(term)}{scaled[term.scale]}"
        for name, term in config.terms.items()
    ]


def _of_term(term: TermConfig, reason: str) -> str:
    """Return a reason as one of a term, which it names."""
    text = about_term(term.section, reason)
    return text if text.startswith(term.section) else f"{term.section}: {text}"


class Term(NamedTuple):
    """A term of a sum."""

    config: TermConfig
    scorer: Scorer


class Sum:
    """Scores conversations by all terms, one term after the other.

    Budgets, marks and what may be left out are each term's own: see `parts`.
    """

    budget: Budget | None = None
    mark: Mark | None = None

    def __init__(self, terms: Mapping[str, Term]):
        self.terms = dict(terms)
        self.truncated = self.shortened = 0
        self.may_leave_out = any(term.scorer.may_leave_out for term in self.terms.values())
        self.facts: dict[str, Any] = {
            f"{name}.{what}": value for name, term in self.terms.items() for what, value in term.scorer.facts.items()
        }

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one sum a conversation, in order, of unscaled scores. Raises UserError."""
        return self.sums(self.score_terms(conversations, columns))

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Return one sum a conversation, or what the first term that cannot score it says."""
        return self.sums_or_errors(self.score_terms_each(conversations, columns))

    def score_terms(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, list[float]]:
        """Return the scores of each term, by its name. Raises UserError."""
        scores = {}
        with self._counting():
            for name, term in self.terms.items():
                with in_term(term.config):
                    scores[name] = term.scorer.score(conversations, columns)
        return scores

    def score_terms_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, list[float | UserError]]:
        """Return the scores of each term, or what is wrong with a conversation."""
        scores: dict[str, list[float | UserError]] = {}
        with self._counting():
            for name, term in self.terms.items():
                with in_term(term.config):
                    found = term.scorer.score_each(conversations, columns)
                scores[name] = [_checked(term.config, value) for value in found]
        return scores

    def sums(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """Add up the scores of the terms by their weights, in the order of their names."""
        weights = {name: self.terms[name].config.weight for name in sorted(self.terms)}
        rows = zip(*(scores[name] for name in weights), strict=True)
        return [sum(weight * score for weight, score in zip(weights.values(), row, strict=True)) for row in rows]

    def sums_or_errors(self, scores: Mapping[str, Sequence[float | UserError]]) -> list[float | UserError]:
        """Add up as `sums`; where a term has an error, the first one."""
        results: list[float | UserError] = []
        for row in zip(*scores.values(), strict=True):
            error = next((value for value in row if isinstance(value, UserError)), None)
            results.append(error or self.sums({name: [value] for name, value in zip(scores, row, strict=True)})[0])
        return results

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count what was too long for the term that it was too long for most often: an answer counts once."""
        scorers = [term.scorer for term in self.terms.values()]
        before = [(one.truncated, one.shortened) for one in scorers]
        yield
        now = zip(scorers, before, strict=True)
        cut = [(one.truncated - truncated, one.shortened - shortened) for one, (truncated, shortened) in now]
        self.truncated += max(truncated for truncated, _ in cut)
        self.shortened += max(shortened for _, shortened in cut)


def _checked(term: TermConfig, score: float | UserError) -> float | UserError:
    if isinstance(score, UserError):
        return UserError(_of_term(term, str(score)))
    return score if math.isfinite(score) else UserError(f"{term.section}: gave a score that is not finite")


def parts(scorer: Scorer) -> dict[str, Scorer]:
    """Return what gives the scores of each term, by name; of a reward that is not a sum, itself, by an empty name."""
    if isinstance(scorer, Sum):
        return {name: term.scorer for name, term in scorer.terms.items()}
    return {"": scorer}


def scored(
    scorer: Scorer, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
) -> tuple[list[float], dict[str, list[float]]]:
    """Return (a score a conversation, those of each term by name: of none where the reward is not a sum).

    Raises UserError.
    """
    if not isinstance(scorer, Sum):
        return scorer.score(conversations, columns), {}
    of_terms = scorer.score_terms(conversations, columns)
    return scorer.sums(of_terms), of_terms


def scored_each(
    scorer: Scorer, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
) -> tuple[list[float | UserError], dict[str, list[float | UserError]]]:
    """Return as `scored`, with what is wrong with a conversation in place of its score."""
    if not isinstance(scorer, Sum):
        return scorer.score_each(conversations, columns), {}
    of_terms = scorer.score_terms_each(conversations, columns)
    return scorer.sums_or_errors(of_terms), of_terms
