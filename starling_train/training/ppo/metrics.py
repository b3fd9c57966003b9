"""The numbers of a step, and what it could not learn from."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from starling_train.config.sections import RolloutConfig
from starling_train.rewards.empty_answers import is_empty
from starling_train.rollout.responses import Rollout
from starling_train.run import skipped
from starling_train.run.runtime import Runtime
from starling_train.training.ppo.experience import Experience, Scores


def step_metrics(experience: Experience, scores: Scores, kl_coefficient: float, runtime: Runtime) -> dict[str, Any]:
    """Return `reward/*`, `kl/*` and `response/*` of one step, and how many sequences were left out."""
    rollout = experience.rollout
    lengths = [len(response) for response in rollout.responses]
    own = (scores.own, experience.total, experience.kl_per_sequence(), experience.fit, lengths, rollout.ended)
    rows = runtime.gather(list(zip(*(torch.as_tensor(column).tolist() for column in own), strict=True)))
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    score, total, kl, fit, length, ended = columns
    is_scored, fit = score.isfinite(), fit.bool()
    score, total, kl = score[is_scored], total[fit], kl[fit]
    return (
        {
            "reward/score_mean": float(score.mean()),
            "reward/score_std": float(score.std(correction=0)),
            "reward/total_mean": float(total.mean()),
            "kl/reference": float(kl.mean()),
            "kl/coefficient": kl_coefficient,
            "response/length_mean": float(length.mean()),
            "response/length_max": int(length.max()),
            "response/eos_fraction": float(ended.mean()),
            "reward/unscored": int((~is_scored).sum()),
            "reward/truncated_answers": scores.truncated,
            "reward/truncated_prompts": scores.shortened,
            "optim/left_out": int((~fit).sum()),
        }
        | term_metrics(scores)
        | engine_gap(experience, runtime)
    )


def engine_gap(experience: Experience, runtime: Runtime) -> dict[str, float]:
    """Return `policy/engine_gap_*`: |log-prob - that under which the token was drawn|, nats, over all tokens.

    Nothing where the live weights drew them.
    """
    drawn = experience.drawn()
    if drawn is None:
        return {}
    gaps = (experience.logprobs - drawn).abs()[experience.is_response]
    everyones = torch.tensor(runtime.gather(gaps.tolist()), dtype=torch.float64)
    last = max(1, math.ceil(0.99 * len(everyones)))
    return {
        "policy/engine_gap_mean": float(everyones.mean()),
        "policy/engine_gap_p99": float(everyones.kthvalue(last).values),
    }


def term_metrics(scores: Scores) -> dict[str, float]:
    """Return `reward/terms/*`: mean, deviation and number of missing scores of each term, over all processes."""
    metrics: dict[str, float] = {}
    for name, term in scores.terms.items():
        finite = term.finite()
        metrics |= {
            f"reward/terms/{name}_mean": float(finite.mean()),
            f"reward/terms/{name}_std": float(finite.std(correction=0)),
            f"reward/terms/{name}_unscored": len(term.of_all) - len(finite),
        }
    return metrics


def answer_metrics(
    conversations: Sequence[Sequence[dict]], rollout: Rollout, config: RolloutConfig, runtime: Runtime
) -> dict[str, float]:
    """Return the shares of the answers of all processes without text, and at the limit of their length.

    conversations: this process's, with their answers.
    rollout: the answers' ids.
    config: the limit.
    runtime: the processes.
    """
    cut = sum(rollout.is_at_limit(config.max_new_tokens))
    count, empty, at_limit = runtime.sum([len(rollout), sum(map(is_empty, conversations)), cut])
    return {"response/empty_fraction": empty / count, "response/limit_fraction": at_limit / count}


def skipped_rows(
    step: int,
    experience: Experience,
    scores: Scores,
    suspects: list[list[int]],
    conversations: list[list[dict]],
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """Make rows for skipped.jsonl, of all processes: sequences left out, and those that updates were skipped for.

    suspects: for each skipped update, this process's sequences that it was most likely skipped for.
    """
    of_terms = {name: term.own for name, term in scores.terms.items()}
    rows = skipped.unusable(step, scores.own, experience.fit, conversations, of_terms)
    for indices in suspects:
        rows += skipped.rows(step, "update", indices, conversations)
    return runtime.gather(rows)
