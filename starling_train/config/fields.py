"""Keys of the configuration: what one may hold, what it is for, and the error class for a user's mistakes.

A key is a field of a dataclass, which says everything about it once: type, default, range or choices, its comment in
`conf/` (`doc`), whether it may change between two starts of a run (`free`), and its former name (`was`). Only the
standard library is used, so that a wrong key is reported before anything heavy is imported.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
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


class NotSet(UserError):
    """A key that must be given is not. key: its name."""

    def __init__(self, key: str, what: str):
        super().__init__(f"{key}: not set; give {what}")
        self.key = key


class NoDirectory(UserError):
    """A key names a directory that is not there. path: the directory."""

    def __init__(self, key: str, path: Path, remedy: str):
        super().__init__(f"{key}: no such directory: {path}; {remedy}")
        self.path = path


def setting(default: Any, doc: str, **metadata: Any) -> Any:
    """Declare a key of any value; the other kinds of keys are built on this one and take its further arguments.

    doc: the key's comment in `conf/`.
    metadata: what else is known of the key:
        free=True: it may change between two starts of a run, because it changes neither the run's data nor what one
            step computes (except for rounding, where sequences go through a model in other groups).
        follows="a.b": in `conf/` the key is `${a.b}`.
        was="old": a former name, which still works.
        once=value: what the default was in former versions, for runs that have written it; the present one means the
            same to them.
        check: function of the key and its value that raises UserError.
    """
    metadata["doc"] = doc
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def choice(default: str | None, choices: tuple[str | None, ...], doc: str = "", **metadata: Any) -> Any:
    """Declare a key that holds one of some texts.

    default: the text of a configuration that does not set the key.
    choices: all of them.
    doc: the comment in `conf/`; "" lists the choices.
    metadata: as in `setting`.
    """
    return setting(default, doc or ", ".join(map(str, choices)), choices=choices, **metadata)


def number(default: float | None, low: float | None = None, high: float | None = None, *, doc: str, **more: Any) -> Any:
    """Declare a key that holds a number.

    default: as in `choice`.
    low: the least allowed number; None: no limit.
    high: the largest; likewise.
    doc: the comment in `conf/`.
    more: as metadata in `setting`.
    """
    return setting(default, doc, range=(low, high), **more)


def path_to(default: str | None, doc: str, **metadata: Any) -> Any:
    """Declare a key that holds a file or directory or, where one is read, an id on the hub."""
    return setting(default, doc, path=True, **metadata)


def variable(default: str | None, doc: str, **metadata: Any) -> Any:
    """Declare a key that names the environment variable of a secret; it never holds the secret itself."""
    return setting(default, doc, variable=True, **metadata)


def run_name(default: str, doc: str) -> Any:
    """Declare the key that names a run, and with it the run's directory."""
    return setting(default, doc, free=True, check=_check_name)


def section(kind: type, doc: str = "", group: str = "", free: bool = False, follows: str = "", **defaults: Any) -> Any:
    """Declare a section: the keys of a dataclass.

    kind: the dataclass.
    doc: the section's comment in `conf/`; "" takes the dataclass's docstring.
    group: the option of `conf/<section>/` that is the default; "" writes the section out where it is used.
    free: of all its keys, as in `setting`.
    follows: of all its keys, as in `setting`.
    defaults: values that replace the dataclass's own defaults.
    """
    metadata = {"doc": doc, "group": group, "free": free, "follows": follows}
    return field(default_factory=lambda: kind(**defaults), metadata=metadata)


def sections(kind: type, doc: str, **metadata: Any) -> Any:
    """Declare a key that holds any number of sections, each the keys of a dataclass, by a name of the user's.

    kind: the dataclass.
    doc: the comment in `conf/`.
    metadata: as in `setting`.
    """
    return setting({}, doc, each=kind, **metadata)


def walk(config: Any, prefix: str = "", free: bool = False) -> Iterator[tuple[str, Field, Any, bool]]:
    """Yield every key of a configuration that is not a section: dotted name, field, value, whether it is free.

    Of `sections`, the key itself and then those of each section in it.
    """
    for item in fields(config):
        key, value, is_free = (
            f"{prefix}{item.name}",
            getattr(config, item.name),
            free or bool(item.metadata.get("free")),
        )
        if is_dataclass(value):
            yield from walk(value, f"{key}.", is_free)
            continue
        yield key, item, value, is_free
        for name, one in value.items() if "each" in item.metadata else ():
            yield from walk(one, f"{key}.{name}.", is_free)


def former_names(schema: type) -> dict[str, str]:
    """Return the renamed keys of a command's configuration: old key -> new key."""
    return {
        f"{key.rpartition('.')[0]}.{item.metadata['was']}".lstrip("."): key
        for key, item, _, _ in walk(schema())
        if "was" in item.metadata
    }


def changed(config: Any, written: dict[str, Any]) -> list[str]:
    """Return the keys that may not change within a run but differ from the configuration that the run has written.

    written: nested as the configuration. A key that it lacks is newer than the run, which used the key's default, or
        the value of the key that it follows.
    """
    defaults = {key: value for key, _, value, _ in walk(type(config)())}
    old = {new: name for name, new in former_names(type(config)).items()}
    different = []
    for key, item, value, is_free in walk(config):
        default = defaults[key] if key in defaults else _default(item)
        unwritten = _at(written, item.metadata.get("follows") or key, default)
        before = _at(written, key, _at(written, old.get(key, key), unwritten))
        if "each" in item.metadata:  # their keys come by themselves, but not of those that are gone
            before, value, default = sorted(before or {}), sorted(value), sorted(default)
        if before == item.metadata.get("once", before) and value == default and "once" in item.metadata:
            continue
        if not is_free and before != value:
            different.append(key)
    return different


def _default(item: Field) -> Any:
    return item.default_factory() if callable(item.default_factory) else item.default


def _at(values: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return default
        values = values[name]
    return values


def local_path(path: str | Path, key: str) -> Path:
    """Return the path with `~` expanded. Raises UserError for one that cannot exist: too long, a null byte.

    key: the configuration key, for the message.
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
            meant = did_you_mean(str(value), [str(c) for c in choices if c])
            raise UserError(f"{key}: '{value}' is not an option; {meant}use one of: {options}")
        if "range" in limits and value is not None:
            _check_range(key, value, *limits["range"])
        if "variable" in limits and value is not None and not VARIABLE.fullmatch(value):
            # the value is not shown: it may be the secret
            raise UserError(
                f"{key}: the value is not the name of an environment variable (capitals, digits, _); put the token "
                "into a variable and give its name"
            )
        if limits.get("path") and value and (reason := no_path(Path(value))):
            raise UserError(f"{key}: {value[:80]!r} cannot be a path ({reason}); check it, or give another")
        if "check" in limits:
            limits["check"](key, value)


def nearest(word: str, known: Iterable[str], likeness: float = 0.7) -> str | None:
    """Return the known word that is written most like `word`, None if none is.

    likeness: from 0 to 1 (difflib's ratio); at 0.7 one letter of four may differ, and `nonesuch` does not mean `none`.
    """
    words = {one.lower(): one for one in known}
    return next((words[one] for one in difflib.get_close_matches(word.lower(), words, 1, likeness)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean X? " for the known word that is near, to stand before what may be used; "" if none is."""
    near = nearest(word, known)
    return f"did you mean {near}? " if near else ""


def _check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    # `not (a <= b)` rather than `a > b`: NaN fails too
    if (low is not None and not low <= value) or (high is not None and not value <= high):
        bounds = (
            f"from {low:g} to {high:g}"
            if low is not None and high is not None
            else (f"{low:g} or more" if low is not None else f"{high:g} or less")
        )
        raise UserError(f"{key}: {_short(value)} is out of range; give a number {bounds}")
    if not abs(value) <= LARGEST:
        raise UserError(f"{key}: {_short(value)} is out of range; give a finite number, at most {LARGEST:g}")


def _short(value: float) -> str:
    """Return a number in a few characters; an integer of hundreds of digits does not fit into a float."""
    return f"{value:g}" if isinstance(value, float) or abs(value) <= LARGEST else f"{str(value)[:12]}..."


def require(key: str, value: object, what: str) -> None:
    """Raise NotSet for a key that is not set; `what` says what to give."""
    if not value:
        raise NotSet(key, what)


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
    """Return why a path cannot exist (too long, a null byte, links in a circle), or None; it need not exist."""
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


def without_secrets(line: str) -> str:
    """Return a line of a message without passwords in addresses and without tokens of the hub."""
    line = re.sub(r"(://)[^/\s'\"]*@", r"\1***@", line)  # user:password in an address
    return re.sub(r"\bhf_\w{8,}", "hf_***", line)


@contextmanager
def named_in_errors(where: str) -> Iterator[None]:
    """Put a key, a file or a line in front of the message of any UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_server_url(url: str, key: str, secret_key: str) -> None:
    """Raise UserError for a URL that is not a server's address or holds a secret, which would be in every log.

    key: the configuration key of the URL, for messages.
    secret_key: the key that names a secret's environment variable, for messages.
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
        raise UserError(f"{key}: '{url}' is not an address; give http://HOST:PORT")


def check_header(key: str, name: str) -> None:
    """Raise UserError, naming the key, for what cannot be the name of an HTTP header."""
    if not name.isascii() or not name.replace("-", "").isalnum():
        raise UserError(f"{key}: {name!r} is not the name of a header; give Authorization, or Azure's api-key")


def check_url(url: str, protocol: str) -> None:
    """Check a reward server's URL, as `check_server_url` does. Raises UserError."""
    check_server_url(url, "reward.url", "reward.token_env")
    parts = urlsplit(url)
    if protocol != "openrlhf" and (parts.query or parts.fragment):
        raise UserError(
            "reward.url: has something after ? or #; give http://HOST:PORT, and a token in reward.token_env"
        )
