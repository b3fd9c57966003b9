"""Which reward server answers: what it tells of itself, and its score of a made-up conversation.

A run keeps these facts in its config.yaml. Another server behind the same address may score on another scale, which no
address tells; its score of one and the same conversation does.
"""

import math
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig
from starling_train.models.patient_http import PatientHttp
from starling_train.rewards.protocols import PROTOCOLS

Facts = dict[str, Any]  # of a term: its name and a dot before each of them

KEPT = "reward_server"  # where config.yaml has the facts, beside the configuration
PROBE = "score_of_a_probe"
EARLIER = "earlier"  # the servers of earlier starts, in the facts that a run keeps
LIMITS = ("max_model_len", "context_length", "max_input_length")  # tokens that a served classifier takes
SAME = 0.05  # deviations of a score that batches and short types of numbers make, relative where it is above 1
# (question, answer): a classifier scores them differently; none is long, none has marks
MADE_UP = (
    ("What is 2 + 2?", "2 + 2 is 4."),
    ("What is 2 + 2?", "No."),
    ("Name a colour of the rainbow.", "Red is one of them, and so are green and blue."),
    ("Name a colour of the rainbow.", "dog dog dog dog dog dog dog dog"),
    ("Why is the sky blue?", "Air scatters short waves of light more than long ones."),
    ("Why is the sky blue?", "?"),
)


def made_up() -> list[list[dict]]:
    """Return a few conversations that are the same in every run."""
    return [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in MADE_UP]


def told(http: PatientHttp, config: ScorerConfig) -> Facts:
    """Ask the server what it tells. Raises UserError where it tells that it cannot give scores, or not these."""
    protocol = PROTOCOLS[config.protocol]
    base = protocol.base(config.url or "")
    facts: Facts = {}
    for route, names in protocol.about.items():
        content = http.told(f"{base.removesuffix('/get_reward')}{route}")
        if route == "/v1/models" and content:
            content = _model(content, config)
        for name in names:
            value = content.get(name)
            value = next(iter(value), None) if isinstance(value, dict) else value  # the kind of a model, of TEI
            if isinstance(value, str | int | float) and value != "":
                facts[name] = value
    _check(facts, config)
    return facts


def _model(content: Facts, config: ScorerConfig) -> Facts:
    """Return what is listed of the model that is asked for."""
    rows = content.get("data")
    listed = (
        {str(row["id"]): row for row in rows if isinstance(row, dict) and "id" in row} if isinstance(rows, list) else {}
    )
    if config.served_model and listed and config.served_model not in listed:
        raise UserError(
            f"reward.served_model: {config.url} does not serve {config.served_model}; it has {', '.join(listed)}"
        )
    return listed.get(config.served_model or next(iter(listed), ""), {})


def _check(facts: Facts, config: ScorerConfig) -> None:
    limit = next((name for name in LIMITS if isinstance(facts.get(name), int)), None)
    if limit and facts[limit] < config.max_length:
        raise UserError(
            f"reward.max_length: {config.max_length} is more than the {facts[limit]} tokens that {config.url} takes "
            f"({limit}); lower it"
        )
    if facts.get("is_generation") is True:
        raise UserError(f"reward.url: {config.url} serves a model that generates; start sglang with --is-embedding")
    if facts.get("model_type") == "embedding":
        raise UserError(f"reward.url: {config.url} serves an embedding model; serve a classifier with one label")


def check_raw(scores: list[float], url: str) -> str | None:
    """Look at the scores of `made_up`: return a line if they seem to have gone through a sigmoid.

    Raises UserError if they are all the same, as one label's are behind a softmax.
    """
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        raise UserError(
            f"reward.url: {url} gave no finite score for {len(scores)} short conversations; check the model"
        )
    if len(finite) > 1 and len(set(finite)) == 1:
        raise UserError(
            f"reward.url: {url} gave {finite[0]:g} for {len(finite)} different conversations, as a softmax over one "
            "label does; start the server so that it gives raw scores (docs/scoring.md)"
        )
    if all(0 <= score <= 1 for score in finite):
        return (
            f"reward.url: all scores of {len(finite)} made-up conversations lie between 0 and 1: {url} may put a "
            "sigmoid on them, and then they are not the classifier's own (docs/scoring.md)"
        )
    return None


def differences(before: Facts, now: Facts) -> list[str]:
    """Describe what differs between the facts of two servers, e.g. `max_length 2048, now 1024`."""
    different = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if name.endswith(PROBE) and isinstance(old, int | float) and isinstance(new, int | float):
            if abs(old - new) <= SAME * max(1.0, abs(old)):
                continue
            whose = name.removesuffix(PROBE).rstrip(".") or "its"
            different.append(f"{whose} score of a made-up conversation {old:.4g}, now {new:.4g}")
        elif old != new:
            different.append(f"{name} {_shown(old)}, now {_shown(new)}")
    return different


def succeeding(before: Any, now: Facts) -> tuple[Facts, str | None]:
    """Return (what config.yaml keeps of the server, a line if it is another one than in an earlier start).

    before: what it kept until now; None before the first start.
    """
    known = dict(before) if isinstance(before, dict) else {}
    earlier = known.pop(EARLIER, [])
    different = differences(known, now) if known else []
    if different:
        earlier = [*earlier, known]
    line = (
        f"warning: reward.url: another server than the one that scored earlier steps ({'; '.join(different)}); scores "
        "before and after may not compare; give the first server, or another run_dir"
    )
    return now | ({EARLIER: earlier} if earlier else {}), line if different else None


def described(kept: Any) -> str:
    """Describe what config.yaml keeps of a server, e.g. `version 0.32.0, id rm`; empty where it keeps nothing."""
    if not isinstance(kept, dict):
        return ""
    earlier = kept.get(EARLIER)
    told = [f"{name} {_shown(value)}" for name, value in kept.items() if name != EARLIER and not name.endswith(PROBE)]
    if isinstance(earlier, list) and earlier:
        told.append(f"after {len(earlier)} other in earlier starts")
    return ", ".join(told)


def _shown(value: Any) -> str:
    return "not told" if value is None else str(value)[:100]
