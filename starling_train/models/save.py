"""A model directory that is complete or absent."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn


def save_model(model: nn.Module, directory: Path, tokenizer: Any) -> Path:
    """Write a causal LM with tokenizer and chat template in Hugging Face format, safetensors, then rename into place."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return directory
