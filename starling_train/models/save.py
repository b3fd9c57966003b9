"""A model directory that is complete or absent."""

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn


def save_model(model: nn.Module, directory: Path, save_tokenizer: Callable[[Path], None]) -> Path:
    """Write a causal LM with its tokenizer in Hugging Face format, safetensors, then rename into place.

    save_tokenizer: writes the tokenizer, chat template included, into a given directory.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    save_tokenizer(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return directory
