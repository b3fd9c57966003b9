"""Which files of a model directory hold its weights: decided here for every reader, also of a repository on the hub.

The order is that of transformers 5 (`modeling_utils._get_resolved_checkpoint_files`), whose loader reads the same
directory after us: what config.json names as `transformers_weights`, then a single safetensors file, an index of
safetensors shards, a single `.bin`, an index of `.bin` shards. Of shards it reads every tensor, also those that the
index does not mention.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from starling_train.config.fields import UserError
from starling_train.files.json_object import read_json

SINGLES = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ORDER = tuple(name for pair in zip(SINGLES, INDEXES, strict=True) for name in pair)
INDEX = ".index.json"
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
# What may hold weights, whether it is read or not, and what a trainer leaves that never does.
SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth", ".h5", ".msgpack", f".safetensors{INDEX}", f".bin{INDEX}")
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "random_states", "scaler")
BROKEN = " (a link to nothing)"
POINTER = b"version https://git-lfs"  # what Git has of a large file until it is pulled
POINTER_BYTES = 1024
SHOWN = 3


@dataclass(frozen=True)
class WeightFiles:
    """Which files of a directory hold a model's weights.

    index: says which shards there are, if it is sharded.
    read: the file that holds everything, or the shards; empty without weights.
    unread: names of other files beside them that look like weights.
    """

    index: Path | None
    read: tuple[Path, ...]
    unread: tuple[str, ...]

    @property
    def first(self) -> Path | None:
        """The file that a reader opens first: the index, or the single file."""
        return self.index or next(iter(self.read), None)

    @property
    def size(self) -> int:
        """Bytes of the files that are read."""
        return sum(path.stat().st_size for path in self.read)

    def line(self) -> str | None:
        """Say which of two sets is read, in a line; None where there is one."""
        if not self.first or not self.unread:
            return None
        return f"reads {self.first.name}, not {shortened(self.unread)} beside it; remove what is of another model"

    def check_loadable(self) -> None:
        """Raise UserError for an index that transformers does not load, although it names every shard."""
        if self.index and not isinstance(read_json(self.index).get("metadata"), dict):
            raise UserError(f'{self.index}: has no "metadata", which transformers asks for; add "metadata": {{}} to it')


def weight_files(directory: Path, only: str = "") -> WeightFiles:
    """Find the weight files of a directory.

    only: `safetensors` or `bin`, for a layout that has no other. Raises UserError for a damaged index, for one that
    names shards which are missing, and for files that are empty or were not pulled from Git LFS.
    """
    names = names_in(directory)
    named = None if only else named_by_config(directory)
    first = choose(names, only, named)
    if first is None:
        return WeightFiles(None, (), unread(names, directory))
    if named and not (directory / named).is_file():
        raise UserError(f"{directory}/config.json: transformers_weights names {named}, which is missing; download it")
    index = directory / first if first.endswith(INDEX) else None
    read = shards(index) if index else {first: ""}
    for name, tensor in read.items():
        if not (directory / name).is_file():
            raise UserError(f"{index}: names {name} (tensor {tensor}), which is missing; download that shard")
        _check_file(directory / name, tensor)
    return WeightFiles(
        index, tuple(directory / name for name in read), unread(names - {first} - read.keys(), directory)
    )


def names_in(directory: Path) -> set[str]:
    """Return the names of a directory's files; none where it is not a directory. Raises UserError if it is closed."""
    try:
        return {path.name for path in directory.iterdir() if path.is_file()} if directory.is_dir() else set()
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}); change its permissions") from None


def choose(names: Collection[str], only: str = "", named: str | None = None) -> str | None:
    """Choose the file that is read first, an index or a single file, of all names in a directory; None without one.

    named: `transformers_weights` of config.json, which goes before.
    """
    return named or next((name for name in ORDER if only in name and name in names), None)


def named_by_config(directory: Path) -> str | None:
    """Return `transformers_weights` of config.json, a file that transformers then reads instead of its usual ones.

    Raises UserError where transformers would not read it. A damaged config.json is left to whoever reads that.
    """
    try:
        name = read_json(directory / "config.json").get("transformers_weights")
    except UserError:
        return None
    if name is None:
        return None
    right = isinstance(name, str) and name.endswith((".safetensors", f".safetensors{INDEX}"))
    if not right or not _is_inside(name):
        raise UserError(
            f"{directory}/config.json: transformers_weights is {str(name)[:80]!r}, not a safetensors file in this "
            "directory; remove that key"
        )
    return name


def shards(index: Path) -> dict[str, str]:
    """Map the shards that an index names, sorted, as transformers reads them, to the first tensor of each.

    Raises UserError for a damaged index.
    """
    firsts: dict[str, str] = {}
    for tensor, shard in weight_map(index).items():
        firsts.setdefault(shard, tensor)
    return dict(sorted(firsts.items()))


def weight_map(index: Path) -> dict[str, str]:
    """Read the shard of each tensor from an index. Raises UserError for a damaged one."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map; the index is damaged, download it again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard:
            raise UserError(f"{index}: names no file for tensor {tensor}; the index is damaged, download it again")
        if not _is_inside(shard):
            raise UserError(f"{index}: names {shard} for tensor {tensor}, outside of the directory; save it again")
    return weight_map


def _is_inside(name: str) -> bool:
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _check_file(path: Path, tensor: str) -> None:
    """Raise UserError for a file without weights in it. tensor: one that it should hold, if known."""
    size = path.stat().st_size
    if size == 0:
        held = f", with tensor {tensor}" if tensor else ""
        raise UserError(f"{path}: truncated to nothing{held}; download that file again")
    if size <= POINTER_BYTES and path.read_bytes().startswith(POINTER):
        raise UserError(f"{path}: a pointer of Git LFS in place of the weights; run `git lfs pull`, or download it")


def unread(names: Iterable[str], directory: Path | None = None) -> tuple[str, ...]:
    """Return those of the names that look like weights, sorted, and a directory's links to weights that are gone."""
    links = [path.name for path in directory.glob("*") if not path.exists()] if directory else []
    looking = [name for name in (*names, *links) if name.endswith(SUFFIXES) and not name.startswith(NO_WEIGHTS)]
    return tuple(f"{name}{BROKEN}" if name in links else name for name in sorted(looking))


def shortened(names: Collection[str]) -> str:
    """Render up to three names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


def without_weights(others: Collection[str], needed_by: str) -> str:
    """Say that a model has no weights, and what to do. others: names that look like weights and are not read."""
    if shard := next((name for name in others if SHARD.fullmatch(name)), None):
        return f"has {shard} but no index of its shards; download that too"
    if not others:
        return f"has no weights (*.safetensors or *.bin); {needed_by} needs them, download them"
    held = f"has no weights by a name that transformers reads ({', '.join(ORDER)}), only {shortened(others)}"
    first = next(iter(others))
    if first.endswith(BROKEN):
        return f"has no weights, only {shortened(others)}; download them again"
    if first.endswith(INDEX):
        return f"{held}; download the shards and name the index {INDEXES[0]}"
    if first.startswith("consolidated"):
        return f"{held}, in the format of its maker's own code; download the files in Hugging Face's format, or convert"
    if first.endswith((".safetensors", ".bin")):
        return f"{held}; if that is the whole model, rename it {SINGLES[first.endswith('.bin')]}"
    return f"{held}; download the model's safetensors files"
