"""The two Starling reward checkpoints on disk: what tensors they hold, checked reading, and writing.

starling_7b: `pytorch_model.bin` with the causal LM (`model.model.*`, `model.lm_head.weight`), the transformer again
(`transformer.*`) and `v_head.weight`. starling_34b: sharded safetensors, `transformer.*` and `v_head.weight`.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from starling_train.config.fields import UserError
from starling_train.files.tensors import Entry
from starling_train.files.weight_files import INDEXES, SINGLES, shortened, weight_files
from starling_train.models import written
from starling_train.models.header_checks import check_shapes
from starling_train.models.reward.net import RewardNet

Held = TypeVar("Held", Tensor, Entry, Tensor | Entry)

ONE_FILE, SEVEN_B_FILE = SINGLES
INDEX_FILE = INDEXES[0]
SUFFIX_OF = {"starling_7b": "bin", "starling_34b": "safetensors"}  # of a layout's weight files


def read_7b(directory: Path) -> dict[str, Tensor]:
    """Read `transformer.*` and `v_head.weight`, memory-mapped; second transformer and LM head stay on disk.

    If both copies exist, `transformer.*` counts: the card's loading code writes it last.
    """
    file = directory / SEVEN_B_FILE
    if not file.is_file():
        raise UserError(f"{directory}: no {SEVEN_B_FILE}; reward.kind=starling_7b reads Starling-RM-7B-alpha's layout")
    tensors = _plain_tensors(file)
    copy = {
        f"transformer.{name.removeprefix('model.model.')}": name for name in tensors if name.startswith("model.model.")
    }
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    if any(name.startswith("transformer.") for name in own):
        return own
    return own | {target: tensors[name] for target, name in copy.items()}


def _plain_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.bin`; nothing pickled in it is run."""
    unreadable = f"{file}: not a readable file of plain tensors; download it again"
    try:
        # torch before 1.6 wrote no zip files, and only those can be mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(unreadable) from error
    if not isinstance(tensors, dict):
        raise UserError(unreadable)
    odd = [name for name, tensor in tensors.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if odd:
        raise UserError(f"{file}: {odd[0]} is not a tensor; save the model's state_dict alone")
    return tensors


def read_34b(directory: Path) -> dict[str, Tensor]:
    """Read all tensors of the safetensors shards, memory-mapped."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in shards(directory):
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file}: not a readable safetensors file; download it again") from error
    return tensors


def check(tensors: Mapping[str, Tensor | Entry], expected: dict[str, torch.Size], source: str) -> None:
    """Raise UserError, naming `source` and tensors, unless names and shapes are the expected ones."""
    if "v_head.weight" not in tensors:
        raise UserError(f"{source}: no v_head.weight in it, so it is not a reward model; check reward.path")
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing:
        raise UserError(f"{source}: {shortened(missing)} missing; is config.json this checkpoint's?")
    if extra:
        raise UserError(f"{source}: {shortened(extra)} unknown; is config.json this checkpoint's?")
    check_shapes(expected, {name: tensor.shape for name, tensor in tensors.items()}, source)


def drop_rotary(tensors: Mapping[str, Held]) -> dict[str, Held]:
    """Drop the rotary frequencies that older transformers saved; they are computed from the config."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def write_starling_7b(net: RewardNet, directory: str | Path, tokenizer) -> None:
    """Write a RewardNet in Starling-RM-7B-alpha's layout, with config and tokenizer.

    The two copies of the transformer share their bytes in the file, and the embedding matrix stands in for
    the causal LM's head: nothing reads either.
    """
    directory = _with_config(net, directory, tokenizer, "LlamaForCausalLM")
    transformer = net.transformer.state_dict()
    tensors = {f"model.model.{name}": tensor for name, tensor in transformer.items()}
    tensors["model.lm_head.weight"] = transformer["embed_tokens.weight"]
    tensors |= {f"transformer.{name}": tensor for name, tensor in transformer.items()}
    tensors["v_head.weight"] = net.v_head.weight.detach()
    torch.save(tensors, directory / SEVEN_B_FILE)
    written.complete(directory)


def write_starling_34b(net: RewardNet, directory: str | Path, tokenizer, shard_bytes: int = 5 * 10**9) -> None:
    """Write a RewardNet in Starling-RM-34B's layout, in shards of at most `shard_bytes` or one tensor."""
    from safetensors.torch import save_file

    directory = _with_config(net, directory, tokenizer, "LlamaForCausalLM")
    tensors = {f"transformer.{name}": tensor for name, tensor in net.transformer.state_dict().items()}
    tensors["v_head.weight"] = net.v_head.weight.detach()
    shards = _cut(tensors, shard_bytes)
    shard_of: dict[str, str] = {}
    for number, held in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name].contiguous() for name in held}, directory / file, {"format": "pt"})
        shard_of |= dict.fromkeys(held, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": shard_of}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2))
    written.complete(directory)


def _with_config(net: RewardNet, directory: str | Path, tokenizer, architecture: str) -> Path:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    net.transformer.config.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text()) | {"architectures": [architecture]}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save_pretrained(str(directory))
    return directory


def shards(directory: Path) -> list[Path]:
    """List the safetensors files in Starling-RM-34B's layout. Raises UserError if there are none."""
    files = weight_files(directory, only=SUFFIX_OF["starling_34b"])
    if not files.read:
        raise UserError(f"{directory}: neither {INDEX_FILE} nor {ONE_FILE}; check reward.path and reward.kind")
    return list(files.read)


def _cut(tensors: dict[str, Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += tensor.nbytes
    return shards
