"""What a policy's first answers show before anything has trained: are they cut, and does the reward like stand-ins?

Three stand-ins for each of some answers: no text at all, the answer's beginning, and one of its sentences again and
again. A reward model that never saw such answers may like them, and PPO finds that out.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import about_term
from starling_train.data.conversations import with_answer
from starling_train.data.prompts import Prompt
from starling_train.models.patient_http import Unreachable
from starling_train.rewards.scorer import Scorer
from starling_train.rollout.responses import Rollout
from starling_train.run.runtime import Runtime

PROMPTS = 16  # of all processes
CUT = 3  # of a cut answer, the first third of the words stays; of a long one without spaces, of the characters
LONG = 12  # characters
# up to a full stop with space behind it, or to one of Chinese, which needs none
SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f])|\S.*", re.DOTALL)
SENTENCES, WORDS = 4, 20  # in an answer that repeats itself: of the sentence at least, of its words at most
NAMES = {"empty": "an empty answer", "cut": "an answer cut to a third", "repeated": "an answer that repeats a sentence"}
TOO_GOOD = 0.5  # of the first answers: a stand-in that beats more is warned about
OFTEN = 0.2  # of the first answers at the limit: more is warned about


def stand_ins(answer: str) -> dict[str, str]:
    """Make the stand-ins for an answer, by name; one that needs words is left out where the answer has too few."""
    made = {"empty": ""}
    ends = [word.end() for word in re.finditer(r"\S+", answer)]
    if len(ends) < CUT and len(answer) >= LONG:
        ends = list(range(1, len(answer) + 1))
    if len(ends) >= CUT:
        made["cut"] = answer[: ends[len(ends) // CUT - 1]]
    if found := SENTENCE.search(answer):
        sentence = " ".join(found[0].split()[:WORDS])
        made["repeated"] = " ".join([sentence] * max(SENTENCES, -(-len(answer) // (len(sentence) + 1))))
    return made


@dataclass(frozen=True)
class FirstAnswers:
    """The answers of the first step.

    prompts: this process's. conversations: the same, with their answers. scores: of the answers of all processes, those
    that are finite.
    """

    prompts: Sequence[Prompt]
    conversations: Sequence[list[dict]]
    scores: Sequence[float]

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], conversations: Sequence[list[dict]], scores: Sequence[float], group: int
    ) -> "FirstAnswers":
        """Take the first of each group of so many answers to the same prompt; scores are of all."""
        return cls(prompts[::group], conversations[::group], scores)

    def look(
        self,
        reward_model: Scorer,
        config: PpoConfig,
        rollout: Rollout,
        runtime: Runtime,
        say: Callable[[str], object],
    ) -> dict[str, float]:
        """Say what the answers show, and return `reward/probe_*` metrics; raises nothing but Unreachable.

        reward_model: scores stand-ins, unless reward.probe is off.
        config: the run's configuration.
        rollout: this process's answers.
        runtime: the processes; all take part.
        say: takes lines.
        """
        metrics: dict[str, float] = {}
        cut, count = runtime.sum([sum(rollout.is_at_limit(config.rollout.max_new_tokens)), len(rollout)])
        lines = limit_lines(cut / count, config)
        if config.reward.probe:
            metrics, probed = self.probe(reward_model, runtime)
            lines += probed
        for line in lines:  # what can be set for a reward is set for a term where it is a sum
            say(about_term("reward.terms.NAME", line) if config.reward.kind == "terms" else line)
        return metrics

    def probe(self, reward_model: Scorer, runtime: Runtime) -> tuple[dict[str, float], list[str]]:
        """Score stand-ins for some of the answers: metrics, and lines on them. Global random numbers stay the same."""
        own = self.conversations[: len(runtime.shard(range(PROMPTS)))]
        made = [stand_ins(conversation[-1]["content"]) for conversation in own]
        rows: list[tuple[str, float | str]] = []
        with _same_random_numbers():
            for name in NAMES:  # one after the other: what cannot score one of them may score the others
                having = [index for index, texts in enumerate(made) if name in texts]
                asked = [with_answer(self.prompts[index].messages, made[index][name]) for index in having]
                scored = _scored(reward_model, asked, [self.prompts[index].columns for index in having])
                rows += [(name, value) for value in scored]
        return _described(runtime.gather(rows), self.scores)


def limit_lines(share: float, config: PpoConfig) -> list[str]:
    """Return the line for a run whose first answers often run into the limit. share: those that do, of all."""
    if share <= OFTEN:
        return []
    penalty = config.algorithm.missing_eos_penalty
    lower = f", or lower algorithm.missing_eos_penalty={penalty:g}, which pays for ending early" if penalty else ""
    return [
        f"warning: {100 * share:.0f} % of the first answers ran into rollout.max_new_tokens="
        f"{config.rollout.max_new_tokens}: raise it{lower}"
    ]


def _scored(reward_model: Scorer, asked: list[list[dict]], columns: list[dict[str, Any]]) -> list[float | str]:
    """Return scores, or what is wrong in words, which any process can receive.

    Raises Unreachable where the server is lost: the step begins again when the run does, and looks then.
    """
    try:
        values = reward_model.score_each(asked, columns) if asked else []
    except Unreachable:
        raise
    except UserError as error:  # of one or of all; which one, it says
        return [str(error)] * len(asked)
    return [str(value) if isinstance(value, UserError) else float(value) for value in values]


def _described(rows: Sequence[tuple[str, float | str]], scores: Sequence[float]) -> tuple[dict[str, float], list[str]]:
    """Return means and shares of each stand-in, and the lines on them. scores: of the first answers."""
    metrics: dict[str, float] = {}
    parts = []
    for name, what in NAMES.items():
        values = torch.tensor([value for key, value in rows if key == name and isinstance(value, float)])
        values = values[values.isfinite()]
        if not len(values):
            continue
        mean = float(values.mean(dtype=torch.float64))
        above = sum(score < mean for score in scores) / len(scores)
        metrics |= {f"reward/probe_{name}": mean, f"reward/probe_{name}_above": above}
        parts.append(f"{what} scores {mean:.3g}, above {100 * above:.0f} % of the first answers")
    lines = [f"reward: {'; '.join(parts)}"] if parts else []
    liked = [name for name in NAMES if metrics.get(f"reward/probe_{name}_above", 0.0) > TOO_GOOD]
    if liked:
        lines.append(_warning(liked))
    errors = [value for _, value in rows if isinstance(value, str)]
    if errors:
        lines.append(f"warning: {len(errors)} of {len(rows)} stand-ins for answers were not scored: {errors[0]}")
    return metrics, lines


def _warning(liked: list[str]) -> str:
    """Return the warning about stand-ins that beat most answers, with what helps against each. liked: names."""
    *others, last = [NAMES[name] for name in liked]
    listed = f"{', '.join(others)} and {last}" if others else last
    helps = ["set rollout.min_new_tokens"] if {"empty", "cut"} & set(liked) else []
    helps += ["set reward.empty_response"] if "empty" in liked else []
    helps += ["give repetition a penalty"] if "repeated" in liked else []
    return (
        f"warning: {listed} beat{'' if others else 's'} most of the first answers, and PPO may exploit that: "
        f"{', '.join(helps)}, or change the reward so that such answers score low"
    )


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Put the global generators back to where they were: a reward function may draw from them."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
