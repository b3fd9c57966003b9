"""A model directory that is complete or absent."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn


def save_model(model: nn.Module, directory: Path, save_tokenizer: Callable[[Path], None]) -> Path:
    """Write a causal LM with its tokenizer in Hugging Face format, safetensors, then rename into place.

    save_tokenizer: writes the tokenizer, chat template included, into a given directory.
    """

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        save_tokenizer(partial)

    return write_whole(directory, write)


def write_whole(directory: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `directory`, then rename it into place."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return directory
