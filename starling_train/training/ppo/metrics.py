"""The numbers of a step, and what it could not learn from."""

from typing import Any

import torch

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
    return {
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
    rows = skipped.unusable(step, scores.own, experience.fit, conversations)
    for indices in suspects:
        rows += skipped.rows(step, "update", indices, conversations)
    return runtime.gather(rows)
