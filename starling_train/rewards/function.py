"""A Python function as the reward: conversations -> scores, with arguments, and columns of the data.

    def score(conversations: list[list[dict]], **arguments) -> list[float | None]

A parameter called like a column of the data gets that column's values, one for each conversation (as in TRL's reward
functions), which is how a verifier gets its ground truth. None, nan and inf: this answer is not scored.
"""

import hashlib
import json
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, ClassVar

import torch

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig
from starling_train.data.conversations import with_answer
from starling_train.models.source import ModelSource
from starling_train.rewards.admission import Admission, first_words
from starling_train.rewards.user_function import UserFunction, said
from starling_train.run.runtime import Runtime

LOCATION, SCORED_BY = "function", ("function", "arguments")
MADE_UP = ("What is 2 + 2?", "Name a colour of the rainbow.")
ANSWER = "I think that it is 4."


def check(config: ScorerConfig, weights: bool = True) -> None:
    """Import the function and compare its parameters with `reward.arguments`. Raises UserError."""
    UserFunction.find(config)


def load(config: ScorerConfig, runtime: Runtime | None = None) -> "FunctionReward":
    """Make the function a reward. Raises UserError."""
    is_quiet = runtime is not None and not runtime.is_main
    return FunctionReward(UserFunction.find(config), is_quiet, f"{config.section}.function")


def identity(
    config: ScorerConfig,
    identify: Callable[[ModelSource], dict[str, Any]] | None = None,
    weights: bool = True,
) -> dict[str, Any]:
    """Identify the function by its name, its arguments and its text. Raises UserError."""
    return UserFunction.find(config).identity()


def columns(config: ScorerConfig) -> tuple[str, ...]:
    """Return the names of the columns of the data that the function takes, where they exist. Raises UserError."""
    return UserFunction.find(config).columns


def admit(config: ScorerConfig, prompts: Sequence[list[dict]], rows: Sequence[dict[str, Any]]) -> Admission:
    """Call the function once, on two prompts of the data with a made-up answer; nothing is refused.

    prompts: messages up to where an answer begins; none: made-up ones.
    rows: the columns of each prompt.

    Raises UserError for a column that it needs and no row has, for what it raises, and for what are no scores.
    """
    function = UserFunction.find(config)
    everywhere = set().union(*rows)
    for name in function.needed:
        if name not in everywhere and name in ("completions", "completion_ids"):
            raise UserError(
                f"reward.function: {function.target} needs `{name}`, as TRL's reward functions do: here it gets a "
                "list of conversations, each a list of messages with the answer last; see docs/your_own.md"
            )
        if name not in everywhere:
            has = f"the data has {', '.join(sorted(everywhere))}" if everywhere else "the data has no such column"
            raise UserError(
                f"reward.function: {function.target} needs `{name}`: {has}; add it to the data, set "
                f"+reward.arguments.{name}=..., or give the parameter a default"
            )
    made_up = [[{"role": "user", "content": text}] for text in MADE_UP]
    asked = [with_answer(messages, ANSWER) for messages in (prompts or made_up)[:2]]
    FunctionReward(function).score(asked, rows[:2] if prompts else None)
    lines = []
    for name in function.columns:
        missing = sum(row.get(name) is None for row in rows)
        if name in everywhere and missing:
            lines.append(f"{missing} of {len(rows)} prompts have no `{name}`: reward.function gets None for them")
    return Admission({}, lines)


class FunctionMark:
    """A number that tells one function's text from another's, kept in checkpoints.

    A changed function is said and not refused: it may have been repaired after what it raised ended the run.
    """

    def __init__(self, function: UserFunction, is_quiet: bool, key: str):
        self._target, self._is_quiet, self._key = function.target, is_quiet, key
        text = json.dumps(function.identity(), sort_keys=True)
        self._number = int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)

    def state_dict(self) -> dict[str, float]:
        """Return the number, for a checkpoint."""
        return {"identity": self._number}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Compare with a checkpoint's, and say if they differ."""
        if state.get("identity") != self._number and not self._is_quiet:
            print(
                f"{self._key}: the text of {self._target} is not the one that earlier steps were scored with; "
                "scores before and after may not compare",
                file=sys.stderr,
            )


class FunctionReward:
    """Scores conversations with the user's function, in this process."""

    budget = None
    truncated = shortened = 0
    may_leave_out = True
    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, function: UserFunction, is_quiet: bool = False, key: str = "reward.function") -> None:
        self._function = function
        self.mark = FunctionMark(function, is_quiet, key)

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one score a conversation, in order; nan for one that the function does not score.

        columns: the columns of each conversation's row of data. Raises UserError.
        """
        if not conversations:
            return []
        try:
            return self._call(conversations, columns)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self._raised(error, conversations, columns) from error

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Score as `score`; a conversation without a score has an error instead."""
        unscored = UserError(f"reward.function: {self._function.target} gave no score")
        scores = self.score(conversations, columns)
        return [unscored if math.isnan(score) else score for score in scores]

    def _call(self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None) -> list[float]:
        function = self._function
        copies = [[dict(message) for message in messages] for messages in conversations]
        with torch.no_grad():
            result = function.call(copies, **function.arguments, **self._named(columns or []))
            if isinstance(result, str | bytes | dict | set) or not isinstance(result, Iterable):
                raise self._wrong(f"a {type(result).__name__}")
            scores = list(result)
        if len(scores) != len(conversations):
            raise self._wrong(f"{len(scores)} scores for {len(conversations)} conversations")
        return [self._number(score, index) for index, score in enumerate(scores)]

    def _named(self, columns: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Return the values of the columns that it takes, by name; None where a row has none."""
        present = set().union(*columns)
        missing = [name for name in self._function.needed if name not in present]
        if missing and not columns:
            raise UserError(
                f"reward.function: {self._function.target} needs the column `{missing[0]}`, and there is none here; "
                f"set +reward.arguments.{missing[0]}=..., or give the parameter a default"
            )
        taken = [name for name in self._function.columns if name in present or name in missing]
        return {name: [row.get(name) for row in columns] for name in taken}

    def _number(self, score: Any, index: int) -> float:
        plain = score
        if hasattr(score, "item"):  # a number of numpy or torch
            try:
                plain = score.item()
            except (ValueError, RuntimeError, TypeError) as error:  # more than one
                raise self._wrong(f"a {type(score).__name__} of several numbers", index) from error
        if plain is None:
            return math.nan
        if not isinstance(plain, numbers.Real | Decimal):
            raise self._wrong(f"{repr(plain)[:40]} (a {type(plain).__name__})", index)
        try:
            value = float(plain)
        except (OverflowError, ValueError):  # an integer of hundreds of digits, a signalling nan
            return math.nan
        return value if math.isfinite(value) else math.nan

    def _wrong(self, what: str, index: int | None = None) -> UserError:
        where = "" if index is None else f" for conversation {index}"
        return UserError(
            f"reward.function: {self._function.target} gave {what}{where}; it must give a list with a number or None "
            "for each conversation"
        )

    def _raised(
        self, error: BaseException, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None
    ) -> UserError:
        """Return the line for what the function raised, with the first conversation that it raises for alone."""
        where = f"somewhere in conversations 0 to {len(conversations) - 1}"
        for index, messages in enumerate(conversations):
            try:
                self._call([messages], [columns[index]] if columns else None)
            except UserError:
                continue
            except (Exception, SystemExit) as alone:
                error, where = alone, f"for conversation {index}, {first_words(messages)}"
                break
        place = self._function.place_of(error)
        return UserError(
            f"reward.function: {self._function.target} raised {type(error).__name__}: {said(error)} "
            f"{where}{place and f' ({place})'}; debug=true shows its traceback"
        )
