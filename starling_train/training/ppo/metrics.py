"""The numbers of a step, and of a whole run."""

from typing import Any

import torch
from torch import Tensor

from starling_train.run.runtime import Runtime
from starling_train.training.ppo.experience import Experience


def step_metrics(
    step: int, episodes: int, experience: Experience, scores: Tensor, kl_coefficient: float, runtime: Runtime
) -> dict[str, Any]:
    """`step`, `episodes`, `reward/*`, `kl/*` and `response/*` of one step.

    Also how many sequences were left out. scores: the reward model's own, unscaled; nan where they were not finite.
    """
    lengths = [len(response) for response in experience.rollout.responses]
    found = (scores, experience.total, experience.kl_per_sequence(), experience.fit, lengths, experience.rollout.ended)
    rows = runtime.gather(list(zip(*(torch.as_tensor(column).tolist() for column in found), strict=True)))
    columns = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    score, total, kl, fit, length, ended = columns
    is_scored, fit = score.isfinite(), fit.bool()
    score, total, kl = score[is_scored], total[fit], kl[fit]
    return {
        "step": step,
        "episodes": episodes,
        "reward/score_mean": float(score.mean()),
        "reward/score_std": float(score.std(correction=0)),
        "reward/total_mean": float(total.mean()),
        "kl/reference": float(kl.mean()),
        "kl/coefficient": kl_coefficient,
        "response/length_mean": float(length.mean()),
        "response/length_max": int(length.max()),
        "response/eos_fraction": float(ended.mean()),
        "reward/unscored": int((~is_scored).sum()),
        "optim/left_out": int((~fit).sum()),
    }
