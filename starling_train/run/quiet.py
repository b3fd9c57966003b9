"""What libraries say to those who build on them, and not to those who run a command.

What is left out is named line by line, with the reason; all else that a library says comes through. What is imported at
the top is of the standard library, for `--help` waits for it.
"""

import logging
import os
import sys

# logger, how its line begins
NOISE = (
    # said to everyone who has no GPU, in the middle of a run; a run's opening lines name its device
    ("DeepSpeed", "Setting accelerator to CPU"),
    # of a published model's generation_config.json, which sampling here does not follow
    ("transformers.generation.configuration_utils", "The following generation flags are not valid"),
)
# bars of the hub, transformers and datasets; in a file each step of a bar is a line
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


class Without(logging.Filter):
    """Lets every line of a logger through but those that begin in one way."""

    def __init__(self, beginning: str):
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


def hush() -> None:
    """Leave out `NOISE`, and bars where the output is not a terminal; before the libraries are imported."""
    for name, beginning in NOISE:
        logger = logging.getLogger(name)
        if not any(isinstance(one, Without) and one.beginning == beginning for one in logger.filters):
            logger.addFilter(Without(beginning))
    if not sys.stderr.isatty():
        for variable in BARS:
            os.environ.setdefault(variable, "1")


def no_bars_of_loading() -> None:
    """Switch off transformers' bars over the tensors and files of a model: they tear the bar of a run apart.

    The hub's own bars stay as they are, because a download takes long.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as theirs

    shows_downloads = not are_progress_bars_disabled()
    theirs.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
