"""What `--help` prints on two screens, and `--help-all` on many: usage, recipes, and keys with what they are for."""

import textwrap
from dataclasses import fields
from typing import Any

from starling_train.cli.packaged import find, recipes_of
from starling_train.config import conf_files
from starling_train.config.fields import walk
from starling_train.listing import commands

ALL = "--help-all"
WIDTH = 110
LONGEST_VALUE = 22
MODEL = ("model.path", "model.template")
TRAINED = ("freeze.method", "freeze.top_percent", "freeze.adapter")
OF_A_RUN = (
    "optim.learning_rate", "cluster.device", "cluster.zero_stage", "evaluation.every", "run_dir", "seed",
)  # fmt: skip
OF_PPO = (
    "reward.kind", "reward.path", "data.path", "rollout.max_new_tokens", "algorithm.steps",
    "algorithm.prompts_per_step", "algorithm.kl.coefficient",
)  # fmt: skip
REWARD = ("reward.kind", "reward.path", "reward.dtype", "reward.max_length", "reward.tokens_per_batch")
OWN_MODEL = ("ppo", "dpo", "rm")  # commands that need no recipe where model and data are given
# command -> the keys that people set, in the order of a job; --help-all has the others
KEYS = {
    "ppo": (*MODEL, *OF_PPO, *TRAINED, "evaluation.suites", *OF_A_RUN),
    "dpo": (
        *MODEL, "data.path", *TRAINED, "dpo.beta", "dpo.loss", "dpo.pairs", "dpo.epochs", "dpo.prompts_per_step",
        "dpo.max_length", "evaluation.suites", "evaluation.responses", *OF_A_RUN,
    ),
    "rm": (*MODEL, "data.path", *TRAINED, "rm.kind", "rm.epochs", "rm.prompts_per_step", *OF_A_RUN),
    "plan": (
        *MODEL[:1], "reward.kind", "rollout.max_new_tokens", "algorithm.prompts_per_step",
        "model.gradient_checkpointing", *TRAINED[1:], "plan.processes", "plan.gpu_gb",
    ),
    "compare": (
        "compare.only", "compare.seeds", "compare.processes", "compare.reference", "compare.skills", *MODEL, *OF_PPO,
        "evaluation.suites", "evaluation.every", "run_dir",
    ),
    "snr": (
        *MODEL[:1], *TRAINED[:2], "freeze.dialect", "freeze.scan", "compare", "spectra", "cluster.device", "run_dir",
    ),
    "laser": (
        *MODEL[:1], "data.path", "laser.measure", "laser.percent", "laser.modules", "laser.samples", "laser.factored",
        "cluster.device", "run_dir", "seed",
    ),
    "evaluate": (
        *MODEL, "suites", *REWARD[:2], "reward_suite.path", "reward_suite.base", "preference.path",
        "function_calling.path", "perplexity.path", "mt_bench.path", "mt_bench.judge.url", "mt_bench.judge.model",
        "lm_eval.tasks", "rollout.max_new_tokens", "cluster.device", "run_dir",
    ),
    "score": (*REWARD, "input", "output", "chunk", "cluster.device"),
    "serve_reward": (*REWARD, "host", "port", "token_env", "max_wait_ms", "cluster.device"),
}  # fmt: skip


def short(config_name: str, schema: type) -> str:
    """Return the page of `--help`, at most two screens of 24 lines.

    config_name: the file of `conf/` that the command starts from.
    schema: the command's dataclass.
    """
    name = _command(config_name)
    about, config = commands()[name], schema()
    known = {key: (item.metadata["doc"], value) for key, item, value, _ in walk(config)}
    recipes = recipes_of(config_name)
    takes = about.takes or "+recipe=NAME"
    lines = [f"starling {name}: {about.does}", "", f"Usage: starling {name} {takes} [section.key=value ...]"]
    if recipes and "+recipe" not in takes:
        lines.append(f"       starling {name} +recipe=NAME [section.key=value ...]")
    if name in OWN_MODEL:
        lines.append(f"       starling {name} model.path=DIR data.path=FILE [section.key=value ...]")
    if recipes:
        lines += ["", "Recipes: +recipe=NAME", *_table([(one, what) for one, what in recipes.items()])]
    lines += ["", f"Keys that people set, of {len(known)}"]
    lines += _table([(key, _shown(key, known[key][1], bool(recipes)), known[key][0]) for key in KEYS.get(name, known)])
    if groups := _groups(config, {key.partition(".")[0] for key in KEYS.get(name, ())}):
        lines += ["", *_wrapped("Sections, section=option: ", "; ".join(groups))]
    footer = " ".join((schema.__doc__ or "").partition("\n\n")[2].split())
    lines += ["", *textwrap.wrap(footer, WIDTH)] if footer else []
    return "\n".join([*lines, "", *_flags(hasattr(config, "dry_run"), bool(recipes))])


def whole(config_name: str, config: Any) -> str:
    """Return the page of `--help-all`: every key with its comment, and the value that it has with this command line."""
    about = commands()[_command(config_name)]
    return f"# starling {about.name}: {about.does}. Every key, with its value here.\n{conf_files.described(config)}"


def _command(config_name: str) -> str:
    return (
        "ppo" if config_name == "config" else config_name.partition("_of_")[0].removesuffix("_dpo").removesuffix("_rm")
    )


def _shown(key: str, value: Any, has_recipes: bool) -> str:
    if key == "model.path":
        return "a recipe's" if has_recipes else ""
    text = conf_files.scalar(value).strip('"')
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _groups(config: Any, named: set[str]) -> list[str]:
    """Return `section=options` for each of the named sections that has files in `conf/`."""
    sections = sorted(item.name for item in fields(config) if item.metadata.get("group") and item.name in named)
    options = {name: sorted(path.stem for path in (find("conf") / name).glob("*.yaml")) for name in sections}
    return [f"{name}={'|'.join(names)}" for name, names in options.items() if len(names) > 1]


def _flags(has_dry_run: bool, has_recipes: bool) -> list[str]:
    rows = [
        ("dry_run=true", "say what would be done, and what is wrong, without doing it") if has_dry_run else None,
        (ALL, "every key with its comment, and the value that it has with this command line"),
        ("--cfg job", "the configuration that this command line makes, as YAML"),
        ("-cd DIR", "recipes of your own, from DIR/recipe/NAME.yaml") if has_recipes else None,
    ]
    return _table([row for row in rows if row])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows in columns, the last one cut to the width."""
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]) - 1)]
    start = 2 + sum(widths)
    return [
        f"  {''.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=False))}"
        f"{_cut(row[-1], WIDTH - start)}".rstrip()
        for row in rows
    ]


def _cut(text: str, width: int) -> str:
    """Return a text that is too long up to the last semicolon that fits, or else up to a word."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    clauses = text[: width + 1].rpartition("; ")[0]
    return clauses if len(clauses) > width // 3 else textwrap.shorten(text, width, placeholder=" ...")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(head + text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
