"""Tokenizers for Openchat's template: the real one, from files that pip installs, and one of 400 pieces.

Loading the real one of 32,002 pieces takes 0.3 s, and models for it are large: it is for tests of tokens themselves.
"""

import json
import shutil
import string
import tempfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from starling_train.toy import tokenizers

SPECIAL = {"0": "<unk>", "1": "<s>", "2": "</s>", "32000": "<|end_of_turn|>", "32001": "<|pad_0|>"}


# every word of them is one piece; other text is spelled in letters and bytes
TEXTS = (
    "GPT4 Correct User: GPT4 Correct Assistant: What is and How is good fine fair weak bad longer long same size",
    " ".join(string.printable),
)


def small() -> PreTrainedTokenizerBase:
    """Build the small one: it passes `check_tokenizer` and has no id in common with the model card's."""
    return tokenizers.policy_tokenizer(TEXTS)


def write(directory: Path) -> Path:
    """Write tokenizer.model and tokenizer_config.json as in openchat-3.5-0106 (pad_token is null)."""
    package = pytest.importorskip("mistral_common", reason="mistral-common ships the sentencepiece model")
    directory.mkdir(parents=True, exist_ok=True)
    model = Path(package.__file__).parent / "data" / "tokenizer.model.v1"
    shutil.copyfile(model, directory / "tokenizer.model")
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|end_of_turn|>",
        "unk_token": "<unk>",
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {index: {"content": text, **flags} for index, text in SPECIAL.items()},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def build() -> PreTrainedTokenizerBase:
    """The tokenizer itself; skips the test where mistral-common is not installed."""
    with tempfile.TemporaryDirectory() as directory:
        return AutoTokenizer.from_pretrained(write(Path(directory)))
