"""Values of the configuration: the one error class for a user's mistakes, and what a single key may hold.

Only the standard library is used, so that a wrong key is told before anything heavy is imported.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# No count, size or factor of ours is larger; beyond it, floats of whole numbers and seeds of generators overflow.
LARGEST = 1e15
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class UserError(ValueError):
    """The user's input is wrong: one line that names the key or file, what is wrong, and what to do."""


def choice(default: str | None, *choices: str | None) -> Any:
    return field(default=default, metadata={"choices": choices})


def number(default: float, low: float | None = None, high: float | None = None) -> Any:
    """A number within [low, high]; None leaves a side open."""
    return field(default=default, metadata={"range": (low, high)})


def optional_number(low: float | None = None, high: float | None = None) -> Any:
    return field(default=None, metadata={"range": (low, high)})


def variable(default: str | None) -> Any:
    """The name of an environment variable that holds a secret; never the secret itself."""
    return field(default=default, metadata={"variable": True})


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


def local_path(path: str | Path, key: str) -> Path:
    """The path as the file system knows it, `~` expanded. Raises UserError for one that cannot be: too long, a null
    byte. key: the configuration key, for the message.
    """
    local = Path(path).expanduser()
    if reason := no_path(local):
        raise UserError(f"{key}: {str(local)[:80]!r} cannot be a path ({reason}); check it")
    return local


def check_values(config: Any, prefix: str = "") -> None:
    """Check every key against its own choices and range. Raises UserError for the first that is wrong."""
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        choices = item.metadata.get("choices")
        if choices and value not in choices:
            options = ", ".join("null" if c is None else c for c in choices)
            raise UserError(f"{key}: '{value}' is not an option; use one of: {options}")
        if "range" in item.metadata and value is not None:
            _check_range(key, value, *item.metadata["range"])
        if "variable" in item.metadata and value is not None and not VARIABLE.fullmatch(value):
            # the value is not shown: it may be the secret
            raise UserError(
                f"{key}: what is given is no name of an environment variable (capitals, digits, _); put the token into "
                "a variable and give its name"
            )


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


def check_name(name: str) -> None:
    """The name of a run is the name of its directory. Raises UserError."""
    if not name.strip() or "\0" in name:
        raise UserError("name: empty, or no file name; give the run a name, e.g. name=first")


def check_betas(betas: list[float]) -> None:
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"optim.betas: {betas} is wrong; give two numbers in [0, 1), e.g. [0.9,0.95]")


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


def check_one_process(command: str) -> None:
    """Raise UserError if a launcher (torchrun, accelerate) has started several processes of a command that is one."""
    if (processes := os.environ.get("WORLD_SIZE", "1")) not in ("", "1"):
        raise UserError(f"WORLD_SIZE: {processes} processes, but {command} runs in one; start it without a launcher")
