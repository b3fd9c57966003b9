"""The configuration of the `export` command."""

from dataclasses import dataclass

from starling_train.config.fields import check_values, path_to, require, setting


@dataclass
class ExportConfig:
    """`python -m starling_train.export`: which checkpoint of which run, and where the model goes. A run's own keys
    are read from its directory.

    Writes a whole Hugging Face model with tokenizer, chat template and README.md: the base model, with the tensors of
    the checkpoint in place of those that were trained. Refused if the base model has changed since. With `push` it is
    uploaded to the hub, too; where output holds this very export already, it is only uploaded.
    """

    run_dir: str | None = path_to(None, "of a training run, finished or not; its config.yaml says what it trains")
    checkpoint: str = setting("newest", "newest, best (highest held-out score), or a folder: step_000123")
    output: str | None = path_to(None, "directory of the model; must be new or empty")
    push: str | None = setting(
        None, "OWNER/NAME of a model on the hub, to upload to; the token is that of HF_TOKEN or `hf auth login`"
    )
    push_private: bool = setting(True, "whether `push` makes a repository private; one that exists stays as it is")
    base: str | None = path_to(None, "the base model's directory, if it has moved; null = as when the run trained")
    dry_run: bool = setting(False, "print what would be written, and how large; load no weights")
    debug: bool = setting(False, "show a traceback for a user's mistake too")


def check(config: ExportConfig) -> None:
    """Check the configuration. Raises UserError."""
    check_values(config)
    require("run_dir", config.run_dir, "run_dir=runs/NAME, the directory of a run")
    require("output", config.output, "output=DIR, a new directory for the model")
