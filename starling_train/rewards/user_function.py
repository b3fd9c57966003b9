"""The user's function behind `reward.function`: found, imported, and what it takes.

FILE.py is read anew at every start, without bytecode, and may import what lies beside it; a package.module is
imported as Python does, from the working directory too.
"""

import functools
import importlib.abc
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError, given
from starling_train.config.sections import ScorerConfig
from starling_train.files.identity import sha256
from starling_train.models.source import first_line

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class UserFunction:
    """A function of conversations.

    target: as `reward.function` names it.
    call: the function.
    file: where its text is; None for one without.
    arguments: given by `reward.arguments`.
    needed: parameters that only a column of the data can give.
    optional: parameters with a default that a column of the data gives where there is one.
    """

    target: str
    call: Callable[..., Any]
    file: Path | None
    arguments: dict[str, Any]
    needed: tuple[str, ...]
    optional: tuple[str, ...]

    @classmethod
    def find(cls, config: ScorerConfig) -> "UserFunction":
        """Import the function and compare its parameters with `reward.arguments`. Raises UserError."""
        target, arguments = given(config.function), dict(config.arguments)
        place, _, name = target.rpartition(":")
        module = _file(place) if place.endswith(".py") else _module(place)
        call = getattr(module, name, None)
        if call is None:
            public = ", ".join(key for key, value in vars(module).items() if _is_own(value, module)) or "no function"
            raise UserError(f"reward.function: {place} has no `{name}`; it has {public}")
        if not callable(call):
            raise UserError(f"reward.function: {target} is a {type(call).__name__}, not a function; name a function")
        if inspect.iscoroutinefunction(call):
            raise UserError(f"reward.function: {target} is async; give a plain function")
        file = inspect.getsourcefile(module) if hasattr(module, "__file__") else None  # none: built into Python
        needed, optional = _columns(target, call, arguments)
        return cls(target, call, Path(file) if file else None, arguments, needed, optional)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data that it takes, where they exist."""
        return (*self.needed, *self.optional)

    def identity(self) -> dict[str, Any]:
        """Return what the function is, as JSON: its name, the arguments, and the bytes of the file that it is in."""
        digest = sha256(self.file) if self.file and self.file.is_file() else None
        return {"function": self.target, "arguments": self.arguments, "sha256": digest}

    def place_of(self, error: BaseException) -> str:
        """Return file and line of the function's own text that raised an error; '' if none of it did."""
        lines, trace = [], error.__traceback__
        while trace is not None:
            if self.file and Path(trace.tb_frame.f_code.co_filename) == self.file:
                lines.append(f"{self.file.name}:{trace.tb_lineno}")
            trace = trace.tb_next
        return lines[-1] if lines else ""


def _columns(target: str, call: Callable[..., Any], arguments: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return (the parameters that nothing but the data can give, those that it may give). Raises UserError."""
    try:
        first, *others = inspect.signature(call).parameters.values()
    except ValueError as error:  # also none at all to unpack
        raise UserError(
            f"reward.function: {target} has no parameters that can be read; its first must be the list of conversations"
        ) from error
    if first.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise UserError(f"reward.function: {target} takes no list of conversations as its first argument; add one")
    for one in others:
        if one.kind is inspect.Parameter.POSITIONAL_ONLY and one.default is inspect.Parameter.empty:
            raise UserError(
                f"reward.function: {target} takes `{one.name}` by place; it must take it by name: move the /"
            )
    named = {one.name: one for one in others if one.kind in BY_NAME}
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in others)
    unknown = [key for key in arguments if key not in named and (key == first.name or not takes_all)]
    if unknown:
        takes = ", ".join(named) or "nothing but the conversations"
        raise UserError(f"reward.arguments.{unknown[0]}: {target} does not take it; it takes {takes}")
    free = [one for name, one in named.items() if name not in arguments]
    needed = tuple(one.name for one in free if one.default is inspect.Parameter.empty)
    return needed, tuple(one.name for one in free if one.name not in needed)


def _file(place: str) -> types.ModuleType:
    path = Path(place).expanduser().absolute()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"reward.function: {path} cannot be read ({error.strerror}); check the path") from error
    _search(path.parent)
    return _of_text(path, text)


class _Text(importlib.abc.SourceLoader):
    """Imports a text that was read from a file; no bytecode is kept beside it, which may be older than the text."""

    def __init__(self, path: Path, text: bytes):
        self._path, self._text = path, text

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: Any) -> bytes:
        return self._text


@functools.lru_cache(maxsize=8)
def _of_text(path: Path, text: bytes) -> types.ModuleType:
    """Run a file's text as a module, once a process: what it sets up is expensive, or counts calls."""
    loader = _Text(path, text)
    spec = importlib.util.spec_from_loader(f"reward_function_{path.stem}", loader, origin=str(path))
    module = importlib.util.module_from_spec(given(spec))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickling look for it there
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"reward.function: {error.filename}:{error.lineno}: {error.msg}; repair it") from error
    except (Exception, SystemExit) as error:
        raise _not_imported(str(path), error) from error
    return module


def _module(place: str) -> types.ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise UserError(
                f"reward.function: there is no module {error.name}; install it, start where it lies, or give "
                "FILE.py:name"
            ) from error
        raise _not_imported(place, error) from error
    except SyntaxError as error:
        raise UserError(f"reward.function: {error.filename}:{error.lineno}: {error.msg}; repair it") from error
    except (Exception, SystemExit) as error:
        raise _not_imported(place, error) from error


def _not_imported(what: str, error: BaseException) -> UserError:
    return UserError(
        f"reward.function: {what} cannot be imported ({type(error).__name__}: {said(error)}); debug=true shows where"
    )


def _search(folder: Path) -> None:
    """Have Python look for modules in a folder too, behind all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_own(value: Any, module: types.ModuleType) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def said(error: BaseException) -> str:
    """Return the first line of what an error says, shortened."""
    return first_line(Exception(str(error)))[:300]
