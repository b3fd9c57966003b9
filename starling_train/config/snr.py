"""The configuration of the `snr` command."""

from dataclasses import dataclass

from starling_train.config.fields import check_values, path_to, require, run_name, setting
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_freeze


@dataclass
class SnrConfig(PpoConfig):
    """`python -m starling_train.snr`: a run's keys (config.yaml), and what only a scan has. Only the matrices that are
    scanned are checked for NaN, infinity and quantised types: embeddings, head, norms and what is listed as not scanned
    are not read. A scan first removes an earlier scan's results from the run's directory, but does not compute again
    what they hold for unchanged weights."""

    name: str = run_name("snr", "results go to runs/<name>, or to run_dir")
    compare: str | None = path_to(None, "another scan (a file or directory, as scan): how far the two agree")
    spectra: list[str] = setting([], "modules whose singular values are plotted, e.g. [model.layers.0.mlp.down_proj]")


def check(config: SnrConfig) -> None:
    """Check the configuration of a scan. Raises UserError."""
    check_values(config)
    check_freeze(config.freeze)
    require("model.path", config.model.path, "the model to scan: a Hugging Face directory or hub id")
