"""Run directories with made-up numbers, in the files and keys that the commands write."""

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = (
    "</div><script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" & 'single' $name ${tiles} "
    "https://example.org/x.js \x00\u202e\ud800"
)
TYPES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "mlp.up_proj")


def write_run(path: Path, steps: int = 40, every: int = 10, layers: int = 6, slim: bool = False) -> Path:
    """A whole run: the score rises, function calling falls a little. Returns `path`.

    `slim` leaves most metrics out, because each plot takes its time.
    """
    path.mkdir(parents=True)
    noise = random.Random(0)
    lines = [metrics_line(step, steps, every, noise) for step in range(steps + 1)]
    if slim:
        lines = [{k: v for k, v in line.items() if k == "step" or k.startswith(("eval", "kl"))} for line in lines]
    write_lines(path / "metrics.jsonl", lines)
    evals = [line for line in lines if "eval/score_mean" in line]
    write_lines(path / "samples.jsonl", [s for e in evals for s in samples(e["step"], prompts=8)])
    write_selection(path, layers, noise)
    (path / "config.yaml").write_text(CONFIG.replace("STEPS", str(steps)))
    (path / "summary.json").write_text(json.dumps(summary(evals, steps, layers)))
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def metrics_line(step: int, steps: int, every: int, noise: random.Random) -> dict[str, Any]:
    """One line of metrics.jsonl; step 0 has `eval/*` keys only."""
    done = step / max(1, steps)
    line: dict[str, Any] = {"step": step}
    if step > 0:
        rollout, update = 1.2 + 0.4 * done, 0.8 + noise.uniform(0, 0.1)
        line |= {
            "episodes": 32 * step,
            "reward/score_mean": -0.5 + 1.9 * done + noise.uniform(-0.2, 0.2),
            "reward/score_std": 0.9 - 0.3 * done,
            "reward/total_mean": -0.5 + 1.5 * done,
            "kl/reference": 6.5 * (1 - math.exp(-3 * done)) + noise.uniform(-0.2, 0.2),
            "kl/coefficient": 0.05 * math.exp(done),
            "policy/loss": noise.uniform(-0.05, 0.05),
            "policy/entropy": 2.1 - 0.8 * done,
            "policy/clip_fraction": 0.04 + noise.uniform(0, 0.05),
            "policy/approx_kl": 0.004,
            "policy/ratio_first": 2.4e-6,
            "value/loss": 0.9 * math.exp(-2 * done),
            "value/explained_variance": None if step == 1 else 0.8 * (1 - math.exp(-5 * done)) - 0.1,
            "value/clip_fraction": 0.02,
            "response/length_mean": 30.0 + 8 * done,
            "response/length_max": 64,
            "response/eos_fraction": 0.8 + 0.19 * done,
            "optim/learning_rate": 3e-4 * (1 - done),
            "optim/gradient_norm": 0.7 + noise.uniform(0, 0.4),
            "optim/skipped": 0,
            "time/rollout_s": rollout,
            "time/score_s": 0.3,
            "time/update_s": update,
            "time/step_s": rollout + update + 0.45,
            "throughput/samples_per_s": 14.2,
            "throughput/tokens_per_s": 520 + noise.uniform(-30, 30),
            "memory/peak_gb": 1.32,
        }
    if step % every == 0 or step == steps:
        line |= {
            "eval/score_mean": -0.512345 + 1.75 * done,
            "eval/score_std": 0.9 - 0.3 * done,
            "eval/gold_mean": 0.31 + 0.33 * done,
            "eval/kl_reference": 6.2 * done,
            "eval/length_mean": 30.5 + 7 * done,
            "eval/eos_fraction": 0.82 + 0.17 * done,
            "eval/function_calling": 92.0 - 1.5 * done,
            "eval/function_calling_simple": 96.0 - done,
            "eval/function_calling_irrelevance": 88.0 - 2 * done,
        }
    return line


def samples(step: int, prompts: int) -> list[dict[str, Any]]:
    """The same prompts at every step; the first prompt and answer try to break out of the page."""
    rows = []
    for index in range(prompts):
        prompt = HOSTILE if index == 0 else f"Prompt number {index}: what should I cook tonight?"
        answer = (
            HOSTILE if index == 0 else f"Answer {index} at step {step}. " + "Soup, bread and a salad. " * (index + 1)
        )
        row = {"step": step, "prompt": prompt, "response": answer, "score": -0.4 + step / 30 + index / 10}
        rows.append(row | {"kl": step / 7, "gold": 0.3 + step / 100, "ended": index != 3})
    return rows


def write_selection(path: Path, layers: int, noise: random.Random) -> None:
    """snr.json of a made-up scan, and the best quarter of each type in unfrozen.yaml."""
    records: dict[str, dict[str, Any]] = {}
    for layer in range(layers):
        for kind in TYPES:
            records[f"model.layers.{layer}.{kind}"] = {"snr": round(noise.uniform(1, 20), 4), "type": kind}
    lines = ["# highest 25 percent of each type", "unfrozen_parameters:"]
    for kind in TYPES:
        ranked = sorted((n for n, r in records.items() if r["type"] == kind), key=lambda n: -records[n]["snr"])
        lines.append(f"# {kind}")
        lines += [f"- ^{name.replace('.', chr(92) + '.')}\\.weight$" for name in ranked[: max(1, layers // 4)]]
    (path / "snr.json").write_text(json.dumps(records, allow_nan=False))
    (path / "unfrozen.yaml").write_text("\n".join(lines) + "\n")


def summary(evals: list[dict[str, Any]], steps: int, layers: int) -> dict[str, Any]:
    """summary.json of a finished run."""
    ends = [{k: v for k, v in line.items() if k.startswith("eval/")} for line in (evals[0], evals[-1])]
    taken = max(1, layers // 4)
    kinds = [{"type": kind, "matrices": taken, "of": layers, "parameters": 65536 * taken} for kind in TYPES]
    return {
        "name": "toy",
        "command": "ppo",
        "finished": True,
        "steps": steps,
        "first_eval": ends[0],
        "last_eval": ends[1],
        "throughput": {"samples_per_s": 14.2, "tokens_per_s": 519.75},
        "peak_memory_gb": 1.32,
        "wall_time_s": 187.4,
        "trainable": {
            "parameters": 65536 * taken * len(TYPES),
            "of": 2_345_678,
            "matrices": taken * len(TYPES),
            "by_type": kinds,
        },
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "device": "cpu, 2 threads",
    }


CONFIG = """\
name: toy
seed: 0
model:
  path: assets/toy/policy
  dtype: float32
freeze:
  method: snr
  top_percent: 25.0
reward:
  kind: server
  path: assets/toy/reward
  url: http://user:hunter2@127.0.0.1:8000/score
  token: sesame-open
data:
  path: assets/toy/prompts
  max_prompt_tokens: 128
algorithm:
  name: ppo
  steps: STEPS
  kl:
    target: 6.0
"""
