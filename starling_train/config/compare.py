"""The configuration of the `compare` command."""

import re
from dataclasses import dataclass
from typing import ClassVar

from starling_train.config.fields import (
    UserError,
    check_one_process,
    did_you_mean,
    number,
    run_name,
    section,
    setting,
)
from starling_train.config.ppo import PpoConfig
from starling_train.config.ppo import check as check_ppo
from starling_train.config.sections import KL, is_less_better

# metrics that every evaluation has
ALWAYS = ("eval/score_mean", "eval/score_std", KL, "eval/length_mean", "eval/eos_fraction")
OWN = ("compare.", "run_dir=", "name=", "dry_run=")  # arguments of compare itself, which the runs do not get
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


def _check_rates(key: str, rates: list[float]) -> None:
    for rate in rates:
        if type(rate) not in (int, float) or not 0 < rate <= 1:
            raise UserError(f"{key}: {rate} is not a learning rate; give numbers above 0, up to 1, e.g. [1e-4, 3e-4]")
    if len(set(rates)) < len(rates):
        raise UserError(f"{key}: a learning rate is there twice; leave one of the two out")


@dataclass
class CompareSection:
    """The runs, and what is compared."""

    strategies: dict[str, list[str]] = setting(
        STRATEGIES,
        "settings of each, on top of the recipe's: lists of KEY=VALUE; LAYERS stands for freeze.top_percent of the "
        "model's layers, about as many parameters as snr has; lora usually wants a higher optim.learning_rate: add it; "
        "+compare.strategies.NAME=\"['KEY=VALUE']\" adds one",
    )
    only: list[str] = setting([], "names of those to run now; empty = all")
    reference: str = setting("snr", "the strategy that the others are compared with")
    seeds: int = number(5, 1, 1000, doc="runs of each strategy")
    first_seed: int = number(0, 0, 2**31, doc="of the `seeds` seeds in a row")
    reward: str = setting("eval/score_mean", "the metric of held-out reward")
    skills: list[str] | None = setting(
        None,
        "metrics of the skills to keep; null = those of evaluation.suites, and without suites eval/kl_reference, how "
        "far the policy has moved",
    )
    level: float | None = number(None, 1e-9, doc="gain of reward to compare skills at; null = what all runs reach")
    kl_level: float | None = number(
        None, 1e-9, doc="KL to the start, in nats an answer, to compare reward and skills at; null likewise"
    )
    processes: int = number(1, 1, 1024, doc="runs side by side")
    search: list[float] = setting(
        [],
        "learning rates that every strategy is first tried with, on other seeds; it then runs with the one that gained "
        "most reward at the last step; empty = no search",
        check=_check_rates,
    )
    search_seeds: int = number(2, 1, 1000, doc="runs of each strategy and rate in the search")
    search_first_seed: int = number(1000, 0, 2**31, doc="of them in a row, none of which is compared")

    def compared_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def searched_seeds(self) -> range:
        return range(self.search_first_seed, self.search_first_seed + self.search_seeds)


@dataclass
class CompareConfig(PpoConfig):
    """`python -m starling_train.compare`: a run's keys (config.yaml), and what is compared.

    Finished runs are not repeated, and an interrupted one resumes: run the same command again to continue, or with
    compare.only=[NAME] in another process to add a strategy. compare.md has the table, compare.png the plot.
    """

    folder: ClassVar[str] = "compare"

    name: str = run_name("compare", "everything goes to runs/<name>, or runs/<a recipe's name>-compare, or to run_dir")
    compare: CompareSection = section(CompareSection)

    def skills(self) -> list[str]:
        """Return the metrics of the skills that are compared."""
        if self.compare.skills is not None:
            return self.compare.skills
        skills = [f"eval/{suite}" for suite in dict.fromkeys(self.evaluation.suites)]
        if "perplexity" in self.evaluation.suites and (texts := self.evaluation.perplexity.texts):
            skills += [f"eval/perplexity_{name}" for name in texts]
            if not self.evaluation.perplexity.path:
                skills.remove("eval/perplexity")  # of all texts together
        return skills or [KL]


def check(config: CompareConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_ppo(config)
    section = config.compare
    for key, names in (("only", section.only), ("reference", [section.reference])):
        for name in names:
            if name not in section.strategies:
                known = ", ".join(section.strategies)
                raise UserError(
                    f"compare.{key}: there is no strategy '{name}'; "
                    f"{did_you_mean(name, section.strategies)}use {known}, or add one: "
                    f"+compare.strategies.{name}=['KEY=VALUE']"
                )
    for name in section.strategies:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"compare.strategies: '{name}' becomes the name of a directory; use letters, digits and _")
    if not config.evaluation.every:
        raise UserError("evaluation.every: 0 measures nothing to compare; give a number of steps")
    if not config.skills():
        raise UserError("compare.skills: empty; give metrics that are evaluated, e.g. [eval/function_calling]")
    check_metrics(config)
    if section.search:
        shared = sorted(set(section.compared_seeds()) & set(section.searched_seeds()))
        if shared:
            raise UserError(
                f"compare.search_first_seed: seed {shared[0]} would be searched with and compared; give at least "
                f"{section.compared_seeds().stop}"
            )
    check_one_process("compare")


def check_metrics(config: CompareConfig) -> None:
    """Raise UserError for a metric that none of the runs would log."""
    evaluation = config.evaluation
    known = [*ALWAYS, *(f"eval/{suite}" for suite in evaluation.suites)]
    known += [f"eval/{name}_mean" for name in evaluation.functions]
    known += [f"eval/score_{name}" for name in config.reward.terms]
    if "perplexity" in evaluation.suites:
        known += [f"eval/perplexity_{name}" for name in evaluation.perplexity.texts]
    if is_less_better(config.compare.reward):
        raise UserError(
            f"compare.reward: of {config.compare.reward} less is better; give a metric of which more is, e.g. "
            "eval/score_mean, and have this one in compare.skills"
        )
    for key, metrics in (("reward", [config.compare.reward]), ("skills", config.skills())):
        for metric in metrics:
            by_category = any(
                suite in evaluation.suites and metric.startswith(f"eval/{suite}_")
                for suite in ("function_calling", "instructions")
            )
            if metric not in known and not by_category:
                raise UserError(
                    f"compare.{key}: {metric} is not evaluated; add to evaluation.suites or evaluation.functions, or "
                    f"use some of: {', '.join(known)}"
                )
