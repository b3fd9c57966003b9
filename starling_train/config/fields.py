"""Keys of the configuration: what one may hold, what it is for, and the error class for a user's mistakes.

A key is a field of a dataclass, which says everything about it once: type, default, range or choices, its comment in
`conf/` (`doc`), whether it may change between two starts of a run (`free`), and how it was called before (`was`). Only
the standard library is used, so that a wrong key is reported before anything heavy is imported.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

# No count, size or factor of ours is larger; beyond it, floats of whole numbers and seeds of generators overflow.
LARGEST = 1e15
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

Value = TypeVar("Value")


class UserError(ValueError):
    """The user's input is wrong: one line that names the key or file, what is wrong, and what to do."""


def setting(default: Any, doc: str, **metadata: Any) -> Any:
    """Any value; the other kinds of keys are built on it, and take its further arguments.

    doc: the key's comment in `conf/`. metadata: free=True for a key that may change between two starts of a run: it
    changes neither its data nor what one step computes (but for rounding, where sequences go through a model in other
    groups). follows="a.b": in `conf/` the key is `${a.b}`. was="old": a former name, which still works. check: of the
    key and its value, raises UserError.
    """
    metadata["doc"] = doc
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def choice(default: str | None, choices: tuple[str | None, ...], doc: str = "", **metadata: Any) -> Any:
    """One of some texts; doc: "" where they speak for themselves."""
    return setting(default, doc or ", ".join(map(str, choices)), choices=choices, **metadata)


def number(default: float | None, low: float | None = None, high: float | None = None, *, doc: str, **more: Any) -> Any:
    """A number within [low, high]; None leaves a side open."""
    return setting(default, doc, range=(low, high), **more)


def path_to(default: str | None, doc: str, **metadata: Any) -> Any:
    """A file or directory, or where one is read, the id of one on the hub."""
    return setting(default, doc, path=True, **metadata)


def variable(default: str | None, doc: str, **metadata: Any) -> Any:
    """The name of an environment variable that holds a secret; never the secret itself."""
    return setting(default, doc, variable=True, **metadata)


def run_name(default: str, doc: str) -> Any:
    """The name of a run, which is the name of its directory."""
    return setting(default, doc, free=True, check=_check_name)


def section(kind: type, doc: str = "", group: str = "", free: bool = False, follows: str = "", **defaults: Any) -> Any:
    """Keys of a dataclass, with `defaults` other than its own.

    doc: the section's comment in `conf/`, if not the dataclass's docstring. group: the option of `conf/<section>/` that
    is the default; "": the section is written out where it is used. free, follows: of all its keys, as in `setting`.
    """
    metadata = {"doc": doc, "group": group, "free": free, "follows": follows}
    return field(default_factory=lambda: kind(**defaults), metadata=metadata)


def walk(config: Any, prefix: str = "", free: bool = False) -> Iterator[tuple[str, Field, Any, bool]]:
    """Every key of a configuration that is not a section: name with those of its sections, field, value, is free."""
    for item in fields(config):
        key, value, is_free = (
            f"{prefix}{item.name}",
            getattr(config, item.name),
            free or bool(item.metadata.get("free")),
        )
        if is_dataclass(value):
            yield from walk(value, f"{key}.", is_free)
        else:
            yield key, item, value, is_free


def former_names(schema: type) -> dict[str, str]:
    """Old key -> new key, of a command's configuration."""
    return {
        f"{key.rpartition('.')[0]}.{item.metadata['was']}".lstrip("."): key
        for key, item, _, _ in walk(schema())
        if "was" in item.metadata
    }


def changed(config: Any, written: dict[str, Any]) -> list[str]:
    """The keys that hold something else than a run has written of its configuration, and may not.

    written: nested as the configuration. A key that it lacks is newer than the run, which had its default.
    """
    defaults = {key: value for key, _, value, _ in walk(type(config)())}
    old = {new: name for name, new in former_names(type(config)).items()}
    different = []
    for key, _, value, is_free in walk(config):
        before = _at(written, key, _at(written, old.get(key, key), defaults[key]))
        if not is_free and before != value:
            different.append(key)
    return different


def _at(values: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return default
        values = values[name]
    return values


def local_path(path: str | Path, key: str) -> Path:
    """The path as the file system knows it, `~` expanded. Raises UserError for one that cannot be: too long, a null
    byte. key: the configuration key, for the message.
    """
    local = Path(path).expanduser()
    if reason := no_path(local):
        raise UserError(f"{key}: {str(local)[:80]!r} cannot be a path ({reason}); check it")
    return local


def check_values(config: Any, prefix: str = "") -> None:
    """Check every key against its own choices, range and kind. Raises UserError for the first that is wrong."""
    for key, item, value, _ in walk(config, prefix):
        limits = item.metadata
        choices = limits.get("choices")
        if choices and value not in choices:
            options = ", ".join("null" if c is None else c for c in choices)
            raise UserError(f"{key}: '{value}' is not an option; use one of: {options}")
        if "range" in limits and value is not None:
            _check_range(key, value, *limits["range"])
        if "variable" in limits and value is not None and not VARIABLE.fullmatch(value):
            # the value is not shown: it may be the secret
            raise UserError(
                f"{key}: what is given is no name of an environment variable (capitals, digits, _); put the token into "
                "a variable and give its name"
            )
        if limits.get("path") and value and (reason := no_path(Path(value))):
            raise UserError(f"{key}: {value[:80]!r} cannot be a path ({reason}); check it, or give another")
        if "check" in limits:
            limits["check"](key, value)


def _check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    # `not (a <= b)` rather than `a > b`: NaN fails too
    if (low is not None and not low <= value) or (high is not None and not value <= high):
        bounds = (
            f"from {low:g} to {high:g}"
            if low is not None and high is not None
            else (f"{low:g} or more" if low is not None else f"{high:g} or less")
        )
        raise UserError(f"{key}: {_shown(value)} is out of range; give a number {bounds}")
    if not abs(value) <= LARGEST:
        raise UserError(f"{key}: {_shown(value)} is out of range; give a finite number, at most {LARGEST:g}")


def _shown(value: float) -> str:
    """Short; an integer of hundreds of digits has no float to format."""
    return f"{value:g}" if isinstance(value, float) or abs(value) <= LARGEST else f"{str(value)[:12]}..."


def require(key: str, value: object, what: str) -> None:
    """Raise UserError for a key that is not set; what: to give."""
    if not value:
        raise UserError(f"{key}: not set; give {what}")


def given(value: Value | None) -> Value:
    """Say that a value which need not be there, such as a key's, is: a check before has refused what lacks it."""
    assert value is not None, "a check before this lets nothing through without it"
    return value


def check_one_process(command: str) -> None:
    """Raise UserError in a process that a launcher started beside others."""
    if (processes := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
        raise UserError(f"WORLD_SIZE: {processes} processes, but {command} runs in one; start it without a launcher")


def check_betas(key: str, betas: list[float]) -> None:
    """Raise UserError unless they are the decays of Adam's two moments."""
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"{key}: {betas} is wrong; give two numbers in [0, 1), e.g. [0.9,0.95]")


def no_path(path: Path) -> str | None:
    """Why no file system takes a path (too long, a null byte, links in a circle), or None; it need not be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror
    except ValueError as error:
        return str(error)
    return None


def _check_name(key: str, name: str) -> None:
    if not name.strip() or "\0" in name:
        raise UserError(f"{key}: empty, or not a file name; give the run a name, e.g. name=first")


@contextmanager
def named_in_errors(where: str) -> Iterator[None]:
    """Put a key, a file or a line before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_server_url(url: str, key: str, secret_key: str) -> None:
    """Raise UserError for what is no address of a server, and for one that holds a secret: it would be in every log.

    key: the configuration key, secret_key: the one that names a secret's environment variable, for messages.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, half a bracket
        known = False
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UserError(
            f"{key}: it holds a user name or password, which would be in logs and config.yaml; put the token into "
            f"the environment variable that {secret_key} names, and give http://HOST:PORT"
        )
    if not known:
        raise UserError(f"{key}: '{url}' is no address; give http://HOST:PORT")


def check_url(url: str, protocol: str) -> None:
    """As `check_server_url`, for a reward server. Raises UserError."""
    check_server_url(url, "reward.url", "reward.token_env")
    parts = urlsplit(url)
    if protocol == "starling" and (parts.query or parts.fragment):
        raise UserError(
            "reward.url: has something behind ? or #; give http://HOST:PORT, and a token in reward.token_env"
        )
