"""The configuration of the `laser` command."""

from dataclasses import dataclass
from typing import ClassVar

from starling_train.config.fields import (
    UserError,
    check_one_process,
    check_values,
    choice,
    number,
    path_to,
    require,
    run_name,
    section,
    setting,
)
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import SourceConfig

LONGEST_WINDOW = 2048  # tokens, where laser.window leaves it to the model


@dataclass
class ReductionConfig:
    """Which matrices are tried, and what judges them."""

    measure: str = choice(
        "perplexity",
        ("perplexity", "preference_margin", "preference_share"),
        doc="must not get worse: perplexity; preference_margin (mean log-probability of a token of the preferred "
        "answer minus the other's); preference_share (of pairs with a margin above 0)",
    )
    percent: float = number(100.0, 0.0, 100.0, doc="of the candidates, the lowest raw SNR first")
    modules: list[str] = setting([], "only these matrices, by full name, e.g. [model.layers.0.mlp.down_proj]; [] = all")
    layers: list[int] = setting([], "only these decoder layers, counted from 0; [] = all")
    types: list[str] = setting([], "only these module types, e.g. [mlp.down_proj]; [] = all")
    samples: int | None = number(256, 1, doc="windows of text, or pairs, drawn by the seed; null = all")
    held_out_percent: float = number(25.0, 0.0, 90.0, doc="of the samples: they decide nothing, but show the effect")
    window: int | None = number(
        None,
        2,
        doc="tokens: text is cut into windows of this length, longer pairs are left out; null = the model's positions, "
        f"{LONGEST_WINDOW} at most",
    )
    tokens_per_batch: int = number(16384, 1, doc="tokens per forward pass; halved when memory runs out")
    factored: bool = setting(False, "also write run_dir/factored: accepted matrices as two thin ones where that saves")


@dataclass
class TextConfig(SourceConfig):
    """Text for laser.measure=perplexity."""

    path: str | None = path_to(
        "berkeley-nest/Nectar",
        "plain text (one document), or rows with `text`, conversations or preferences (their best answers)",
        follows="data.path",
    )
    subset: str | None = setting(None, "of a data set that has several", follows="data.subset")
    split: str = setting("train", "of the data set", follows="data.split")
    columns: dict[str, str] = setting({}, "names that its columns have: ours: theirs", follows="data.columns")


@dataclass
class PairsConfig(SourceConfig):
    """Pairs for the other measures."""

    path: str | None = path_to(
        "berkeley-nest/Nectar",
        "pairs or ranked answers",
        follows="data.path",
    )
    subset: str | None = setting(None, "of a data set that has several", follows="data.subset")
    split: str = setting("train", "of the data set", follows="data.split")
    columns: dict[str, str] = setting({}, "names that its columns have: ours: theirs", follows="data.columns")
    rows: int | None = number(None, 1, doc="only the first rows that have a pair; null = all")


@dataclass
class LaserConfig(PpoConfig):
    """`python -m starling_train.laser`: a run's keys (config.yaml), and how matrices are reduced in rank. A matrix
    keeps its singular values above the threshold of freeze.dialect; freeze.scan gives an existing scan.

    Every try is a line of run_dir/tries.jsonl; run the same command again to continue a search that was stopped.
    """

    folder: ClassVar[str] = "laser"

    name: str = run_name("laser", "everything goes to runs/<name>, or runs/<a recipe's name>-laser, or to run_dir")
    laser: ReductionConfig = section(ReductionConfig)
    perplexity: TextConfig = section(TextConfig)
    preference: PairsConfig = section(PairsConfig)


def check(config: LaserConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    require("model.path", config.model.path, "the model to reduce: a Hugging Face directory or hub id")
    if config.model.load_in:
        raise UserError(
            f"model.load_in: a {config.model.load_in} model has no matrices that could be replaced; use null"
        )
    if config.laser.percent == 0:
        raise UserError("laser.percent: 0 selects nothing to try; give a percentage above 0, e.g. 25")
    if config.laser.measure == "perplexity":
        require("perplexity.path", config.perplexity.path, "plain text, JSONL with `text` or `messages`, or Nectar's")
    else:
        what = "JSONL of chosen and rejected answers, or Nectar's parquet"
        require("preference.path", config.preference.path, what)
    check_one_process("laser")
