"""A model's repository on the hub: what is read of it is downloaded, nothing else; and what the hub refuses, in a line.

The names of all files come first, and the rule that chooses among a directory's files (`weight_files`) chooses among
them: of two sets of weights one is downloaded, and none of what no reader opens (`original/`, ONNX, GGUF, optimizers).
"""

import glob
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.files import adapter_files
from starling_train.files.weight_files import (
    INDEX,
    WeightFiles,
    choose,
    named_by_config,
    shards,
    unread,
    weight_files,
    without_weights,
)

# Configuration, tokenizer and chat templates: what AutoConfig, AutoTokenizer and GenerationConfig may open.
SMALL_SUFFIXES = (".json", ".model", ".jinja", ".tiktoken")
SMALL_NAMES = ("vocab.txt", "merges.txt", "added_tokens.txt", "spm.vocab")
TEMPLATES = "additional_chat_templates/"
STATES = ("trainer_state.json", "training_args.json")  # of a trainer: may be large, and nobody reads them
OFFLINE, OFFLINE_DATA = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "HF_DATASETS_OFFLINE"


def download(hub_id: str, revision: str | None, key: str, *, weights: bool | None = True, only: str = "") -> Path:
    """Return the directory of a repository's snapshot, with what is read of it downloaded, or in this machine's cache.

    hub_id: OWNER/NAME.
    revision: branch, tag or commit; None: the main branch.
    key: the configuration key that names it, for messages.
    weights: None or False: configuration and tokenizer only; None: an adapter's directory will do too.
    only: see `weight_files`.

    Raises UserError for what the hub does not give, for an adapter, and for a repository without the weights.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RevisionNotFoundError

    def fetch(patterns: Collection[str], cached: bool = False) -> Path:
        exact = [glob.escape(name) for name in patterns]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=exact, local_files_only=cached))

    try:
        try:
            listed = HfApi().model_info(hub_id, revision=revision).siblings or []
        except RevisionNotFoundError:
            raise
        except (HTTPError, OSError) as error:
            return _in_cache(fetch([], cached=True), hub_id, key, error, weights=bool(weights), only=only)
        names = {file.rfilename for file in listed}
        directory = fetch(small(names))
        at_root = {name for name in names if "/" not in name}
        if weights is not None and adapter_files.is_adapter(at_root):
            raise adapter_files.refusal(hub_id, key, at_root, directory / adapter_files.CONFIG)
        if weights:
            first = choose(at_root, only, None if only else named_by_config(directory))
            if first is None:
                raise UserError(f"{key}: '{hub_id}' {without_weights(unread(at_root), 'loading it')}")
            directory = fetch([first])
            if first.endswith(INDEX):
                fetch(_shards(directory / first, names))
        return directory
    except (HTTPError, OSError, HFValidationError, RuntimeError) as error:  # RuntimeError: of Xet, its transport
        said = refused(error, hub_id, revision) or (
            f"cannot be downloaded from the hub ({_short(error)}); try again, or download it and give its directory"
        )
        raise UserError(f"{key}: '{hub_id}' {said}") from error


def small(names: Collection[str]) -> list[str]:
    """Return those of a repository's files that configuration, tokenizer and templates are read from."""
    kept = []
    for name in names:
        is_template = name.startswith(TEMPLATES) and name.endswith(".jinja")
        is_small = name.endswith(SMALL_SUFFIXES) or name in SMALL_NAMES
        if is_template or ("/" not in name and is_small and not name.endswith(INDEX) and name not in STATES):
            kept.append(name)
    return sorted(kept)


def _shards(index: Path, names: Collection[str]) -> list[str]:
    named = list(shards(index))
    if missing := [name for name in named if name not in names]:
        raise UserError(f"{index}: names {missing[0]}, which the repository lacks; give another revision or model")
    return named


def _in_cache(directory: Path, hub_id: str, key: str, error: Exception, *, weights: bool, only: str) -> Path:
    """Return a snapshot of the cache, if it has what is needed; error: why the hub does not say what there is."""
    files = _complete_files(directory, only) if weights else None
    if weights and not (files and files.read) and not adapter_files.is_adapter(os.listdir(directory)):
        if not _is_unreachable(error):
            raise error
        raise UserError(f"{key}: the weights of '{hub_id}' are not all in this machine's hub cache, and {_why(error)}")
    return directory


def _complete_files(directory: Path, only: str) -> WeightFiles | None:
    try:
        return weight_files(directory, only)
    except UserError:
        return None


def refused(error: Exception, name: str, revision: str | None = None, page: str = "") -> str | None:
    """Say in a line why the hub does not give a repository, and what to do; None where it is not the hub's answer.

    error: what `huggingface_hub` or `datasets` raised; `datasets` passes the hub's answers on in words of its own.
    name: OWNER/NAME.
    revision: the requested one.
    page: `datasets/` before the name in a data set's address.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address, text = f"{constants.ENDPOINT}/{page}{name}", str(error)

    def is_a(*kinds: type[Exception]) -> bool:
        return any(isinstance(one, kinds) for one in chain(error))

    if is_a(GatedRepoError) or "is a gated dataset" in text:
        return (
            f"is gated on the hub: accept its licence at {address}, and set HF_TOKEN to a token of that account (or "
            "run `hf auth login`)"
        )
    if is_a(RevisionNotFoundError):
        return f"has no revision {revision!r} on the hub; give a branch, tag or commit that {address} has"
    if is_a(RepositoryNotFoundError) or "doesn't exist on the Hub or cannot be accessed" in text:
        return (
            f"is neither a local directory nor on the hub ({address}); check the name, or, if it is private, set "
            "HF_TOKEN to a token that may read it; or download it and give its directory"
        )
    if is_a(DisabledRepoError):
        return f"was disabled on the hub, see {address}; give another"
    if is_a(HFValidationError):
        return "is neither a local directory nor a hub id, OWNER/NAME; check the name, or download it"
    if statuses := [status for one in chain(error) if (status := status_of(one)) in (401, 403)]:
        return f"is refused by the hub ({statuses[0]}): set HF_TOKEN to a token that may read {address}"
    if _is_unreachable(error):
        return f"is neither a local directory nor in this machine's hub cache, and {_why(error, bool(page))}"
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_unreachable(error: Exception) -> bool:
    """Return whether the hub gave no answer, or one that says it is down."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return any(
        isinstance(one, OfflineModeIsEnabled | LocalEntryNotFoundError | ConnectionError)
        or "LocalEntryNotFoundError" in str(one)
        or (status_of(one) or 0) >= 500
        or (isinstance(one, HTTPError) and status_of(one) is None)  # no connection, no answer in time
        for one in chain(error)
    )


def _why(error: Exception, is_data: bool = False) -> str:
    """Say why the hub was not asked, for a model or a data set, and what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    variables = (*OFFLINE, OFFLINE_DATA) if is_data else OFFLINE
    named = next((name for name in variables if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    is_offline = any(isinstance(one, OfflineModeIsEnabled) for one in chain(error))
    if named and (is_offline or not any(status_of(one) for one in chain(error))):
        return f"{named} keeps it from being downloaded; unset {named}, or download it elsewhere and give its directory"
    return f"the hub does not answer ({_short(error)}); check the network, or download it and give its directory"


def _short(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
