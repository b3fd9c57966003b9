"""Which files of a model directory hold its weights: decided here for every reader."""

from dataclasses import dataclass
from pathlib import Path

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
# How a sharded model's files are named, for models without an index.
SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")


@dataclass(frozen=True)
class WeightFiles:
    """Which files hold a model's weights.

    index: says which shard holds what, if there is one.
    single: the file that holds everything, without an index.
    unindexed: shards without an index.
    every: all files with weights, also those that do not count, by name.
    """

    index: Path | None
    single: Path | None
    unindexed: tuple[Path, ...]
    every: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(path.stat().st_size for path in self.every)


def weight_files(directory: Path, only: str = "") -> WeightFiles:
    """Find the weight files of a directory: an index counts before a single file, safetensors before `.bin`.

    only: `safetensors` or `bin`, for a layout that has no other.
    """
    index = next(_files(directory, INDEXES, only), None)
    single = None if index else next(_files(directory, SINGLES, only), None)
    shards = () if index else sorted(file for pattern in SHARDS for file in directory.glob(pattern))
    every = sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")])
    return WeightFiles(index, single, tuple(shards), tuple(every))


def _files(directory: Path, names: tuple[str, ...], only: str):
    return (directory / name for name in names if only in name and (directory / name).is_file())
