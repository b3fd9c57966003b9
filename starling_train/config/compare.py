"""TODO docstring."""

import re
from dataclasses import dataclass, field

from starling_train.config.fields import UserError, check_one_process, number, optional_number
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_run

ALWAYS = ("eval/score_mean", "eval/score_std", "eval/kl_reference", "eval/length_mean", "eval/eos_fraction")


PLAIN = "freeze.adapter=null"  # where the recipe has adapters


STRATEGIES = {
    "snr": ["freeze.method=snr", PLAIN],
    "lowest": ["freeze.method=lowest", PLAIN],
    "random": ["freeze.method=random", PLAIN],
    "last_layers": ["freeze.method=last_layers", "freeze.last_layers=LAYERS", PLAIN],
    "lora": [
        "freeze.method=snr", "freeze.adapter=lora", "freeze.lora.rank=8", "freeze.lora.alpha=16",
        "freeze.lora.dropout=0", "freeze.embeddings=false", "freeze.norms=false",
    ],
    "none": ["freeze.method=none", "freeze.embeddings=true", "freeze.head=true", "freeze.norms=true", PLAIN],
}  # fmt: skip


@dataclass
class CompareSection:
    strategies: dict[str, list[str]] = field(default_factory=lambda: {k: list(v) for k, v in STRATEGIES.items()})
    only: list[str] = field(default_factory=list)
    reference: str = "snr"
    seeds: int = number(5, 1, 1000)
    first_seed: int = number(0, 0, 2**31)
    reward: str = "eval/score_mean"
    skills: list[str] = field(default_factory=lambda: ["eval/function_calling"])
    level: float | None = optional_number(1e-9)
    processes: int = number(1, 1, 1024)


@dataclass
class CompareConfig(PpoConfig):
    """A run's configuration, so that recipes fit, and what is compared."""

    name: str = "compare"
    compare: CompareSection = field(default_factory=CompareSection)


def check(config: CompareConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_run(config)
    section = config.compare
    for key, names in (("only", section.only), ("reference", [section.reference])):
        for name in names:
            if name not in section.strategies:
                known = ", ".join(section.strategies)
                raise UserError(
                    f"compare.{key}: there is no strategy '{name}'; use {known}, or add one: "
                    f"+compare.strategies.{name}=['KEY=VALUE']"
                )
    for name in section.strategies:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"compare.strategies: '{name}' is to name a directory; use letters, digits and _")
    if not config.evaluation.every:
        raise UserError("evaluation.every: 0 measures nothing to compare; give a number of steps")
    if not section.skills:
        raise UserError("compare.skills: empty; give metrics that are evaluated, e.g. [eval/function_calling]")
    check_metrics(config)
    check_one_process("compare")


def check_metrics(config: CompareConfig) -> None:
    """Raise UserError for a metric that no run would log."""
    evaluation = config.evaluation
    known = [*ALWAYS, *(f"eval/{suite}" for suite in evaluation.suites)]
    known += [f"eval/{name}_mean" for name in evaluation.functions]
    for key, metrics in (("reward", [config.compare.reward]), ("skills", config.compare.skills)):
        for metric in metrics:
            by_category = "function_calling" in evaluation.suites and metric.startswith("eval/function_calling_")
            if metric not in known and not by_category:
                raise UserError(
                    f"compare.{key}: {metric} is not evaluated; add to evaluation.suites or evaluation.functions, or "
                    f"use some of: {', '.join(known)}"
                )


OWN = ("compare.", "run_dir=", "name=", "dry_run=")  # of the command line, not for the runs
