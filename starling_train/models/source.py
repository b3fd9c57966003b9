"""A model directory, opened once: what scan, checks, plan and loading know about it without reading a weight."""

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from starling_train.config.fields import NoDirectory, UserError, local_path
from starling_train.files import adapter_files, hub_files, identity, tensors
from starling_train.files.json_object import read_json
from starling_train.files.weight_files import WeightFiles, weight_files, without_weights

# What transformers raises, in one function or another, for files that are damaged or of another model.
UNUSABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, ImportError, EOFError,
)  # fmt: skip

_told: set[Path] = set()  # directories whose second set of weights this process has told of


class ModelSource:
    """A directory with config.json, tokenizer and weights; each is read once, on first use.

    path: what the user calls it. directory: where it lies. key: the configuration key that names it, for messages.
    only: `safetensors` or `bin`, for a layout whose weights are in no other files; else "".
    known_identity: who it is by every byte, once somebody has read them all; None until then.
    """

    def __init__(self, directory: Path, key: str, path: str | None = None, only: str = ""):
        self.directory, self.key, self.path, self.only = directory, key, path or str(directory), only
        self.known_identity: identity.Identity | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        key: str = "model.path",
        revision: str | None = None,
        *,
        weights: bool = True,
        needs_config: bool = True,
        only: str = "",
    ) -> "ModelSource":
        """Open `path` itself, or the snapshot of a hub id, downloaded if necessary.

        weights=False fetches configuration and tokenizer only. Raises UserError if `path` is neither a directory nor
        available from the hub, and for an adapter, alone or left beside weights.
        """
        directory = local_directory(path, key)
        is_local = directory is not None
        directory = directory or hub_files.download(str(path), revision, key, weights=weights, only=only)
        source = cls(directory, key, str(path), only)
        source.check_files()
        if needs_config and is_local:
            source.check_config()
        return source

    @classmethod
    def open_tokenizer(cls, path: str | Path, key: str, revision: str | None = None) -> "ModelSource":
        """Open a directory or a hub id for its tokenizer and configuration alone, whatever weights lie there."""
        directory = local_directory(path, key) or hub_files.download(str(path), revision, key, weights=None)
        return cls(directory, key, str(path))

    def check_files(self) -> None:
        """Raise UserError for an adapter; say once on stderr which of two sets of weights is read."""
        adapter_files.check(self.directory, self.key)
        if (line := self.files.line()) and self.directory not in _told and os.environ.get("RANK", "0") == "0":
            _told.add(self.directory)
            print(f"warning: {self.key}: {self.directory}: {line}", file=sys.stderr)

    @property
    def has_config(self) -> bool:
        return (self.directory / "config.json").is_file()

    def check_config(self) -> None:
        """Raise UserError if there is no config.json."""
        if not self.has_config:
            raise UserError(f"{self.key}: {self.directory} has no config.json; give a Hugging Face model directory")

    @cached_property
    def values(self) -> dict[str, Any]:
        """config.json as an object, empty where there is none. Raises UserError where it is damaged."""
        file = self.directory / "config.json"
        try:
            values = read_json(file) if self.has_config else {}
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None
        for name, kind, what in (("model_type", str, "a name"), ("text_config", dict, "an object")):
            if not isinstance(values.get(name), kind | None):
                raise UserError(f"{self.key}: {file}: {name} is {values[name]!r}, not {what}; download it again")
        return values

    @cached_property
    def config(self) -> Any:
        """The transformers configuration, of any architecture. Whoever changes it copies it first."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        self.check_config()
        _ = self.values  # its own errors have better messages
        try:
            return AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        except (*UNUSABLE, StrictDataclassError) as error:
            raise UserError(
                f"{self.key}: {self.directory}/config.json: {first_line(error)}; download it again"
            ) from error

    @cached_property
    def policy_config(self) -> Any:
        """The transformers configuration; raises UserError if transformers has no causal language model of its type."""
        from transformers import AutoModelForCausalLM

        if type(self.config) not in AutoModelForCausalLM._model_mapping:
            raise UserError(
                f"{self.key}: transformers has no causal language model of type '{self.config.model_type}'; give a "
                "model that AutoModelForCausalLM loads"
            )
        return self.config

    @cached_property
    def text_config(self) -> Any:
        """The part of `policy_config` that describes the language model: itself, but for models that see images."""
        return self.policy_config.get_text_config()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as transformers makes it. Raises UserError."""
        return self.load_tokenizer()

    def load_tokenizer(self, *, as_written: bool = False, remedy: str = "download its tokenizer files again") -> Any:
        """Load the tokenizer as transformers makes it, or exactly as tokenizer.json, if there is one, describes it.

        transformers 5 rebuilds a Llama tokenizer from its vocabulary alone and guesses where spaces go in front of
        text. remedy: the end of the message for a tokenizer that cannot be used.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            if as_written and (self.directory / "tokenizer.json").is_file():
                return PreTrainedTokenizerFast.from_pretrained(self.directory)
            return AutoTokenizer.from_pretrained(self.directory, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exceptions for what it cannot read
            raise UserError(
                f"{self.key}: no usable tokenizer in {self.directory} ({first_line(error)}); {remedy}"
            ) from error

    @cached_property
    def generation_ends(self) -> list[int]:
        """The ids that end an answer by generation_config.json, or by config.json without one. Raises UserError."""
        file = self.directory / "generation_config.json"
        try:
            ends = (read_json(file) if file.is_file() else self.values).get("eos_token_id")
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if not all(type(index) is int for index in ends):
            raise UserError(f"{self.key}: {self.directory}: eos_token_id is {ends}, not ids; download it again")
        return ends

    @cached_property
    def files(self) -> WeightFiles:
        return weight_files(self.directory, self.only)

    @cached_property
    def entries(self) -> list[tensors.Entry]:
        """Every tensor, from headers alone; empty where there are no weights. Raises UserError for damaged files."""
        return tensors.read_headers(self.files)

    def check_present(self, needed_by: str) -> None:
        """Raise UserError if there are no weights. needed_by: what needs them."""
        if not self.entries:
            raise UserError(f"{self.key}: {self.directory} {without_weights(self.files.unread, needed_by)}")

    @cached_property
    def fingerprint(self) -> str:
        """A quick guess at which model it is."""
        return identity.fingerprint(self.directory)

    def identify(self, known: dict[str, dict[str, Any]] | None = None) -> identity.Identity:
        """Identify the model by every byte. known: see `identity.identify`."""
        return identity.identify(self.directory, known, self.files)


def local_directory(path: str | Path, key: str) -> Path | None:
    """Return the directory at a path; None for a hub id. Raises UserError for what is neither."""
    local, path = local_path(path, key), str(path)
    if local.is_dir():
        return local
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise NoDirectory(key, local, "give a Hugging Face model directory or a hub id")
    return None


def cached_config(hub_id: str) -> Path | None:
    """Find the directory in this machine's hub cache that holds the config.json of a model; None without one."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def first_line(error: Exception) -> str:
    """Return the error's first line, with the second where the first only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
