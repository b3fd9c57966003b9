"""Read a YAML text once a process: parsing the same dozen files of `conf/` is a fifth of every composition."""

import copy
from typing import Any

import yaml

_parse = yaml.load
_parsed: dict[tuple[str, str, str], Any] = {}


def load(stream: Any, Loader: type) -> Any:
    """Do what yaml.load does. A text that is wrong is read again each time, so that errors are yaml's own."""
    if not hasattr(stream, "read"):
        return _parse(stream, Loader)
    start = stream.tell()
    text = stream.read()
    key = (Loader.__module__, Loader.__qualname__, text)
    if key not in _parsed:
        stream.seek(start)
        _parsed[key] = _parse(stream, Loader)
    return copy.deepcopy(_parsed[key])


def install() -> None:
    """Have everyone in this process, and in those forked from it, read YAML in this way."""
    yaml.load = load
