"""`conf/`, the commented YAML that Hydra composes: written from the dataclasses by `make conf`.

A command has a file: the dataclass's docstring is its header and, after an empty line, the end of its --help. Every
section with options has a folder. Its default option is written here; the other options, which set a few values on top
of the default (`conf/freeze/none.yaml`), are written by hand.
"""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from starling_train.config.compare import CompareConfig
from starling_train.config.dpo import DpoConfig
from starling_train.config.evaluate import EvaluateConfig
from starling_train.config.export import ExportConfig
from starling_train.config.laser import LaserConfig
from starling_train.config.plan import PlanConfig, PlanDpoConfig, PlanRmConfig
from starling_train.config.ppo import PpoConfig
from starling_train.config.rm import RmConfig
from starling_train.config.run import RunConfig
from starling_train.config.score import ScoreConfig
from starling_train.config.serve_reward import ServeConfig
from starling_train.config.snr import SnrConfig

FILES = {
    "config": PpoConfig, "rm": RmConfig, "dpo": DpoConfig, "snr": SnrConfig, "evaluate": EvaluateConfig,
    "plan": PlanConfig, "laser": LaserConfig, "compare": CompareConfig, "score": ScoreConfig,
    "serve_reward": ServeConfig, "export": ExportConfig, "plan_dpo": PlanDpoConfig, "plan_rm": PlanRmConfig,
}  # fmt: skip
WIDTH = 120
LONGEST_KEY = 48  # columns of `key: value`, beyond which a comment no longer moves to the right
QUIET = "  - override hydra/job_logging: none\n  - override hydra/hydra_logging: none\n"
HYDRA = """
hydra:  # Hydra composes; the run writes its own directory
  output_subdir: null  # no .hydra folder
  run:
    dir: .  # stay where the user is
  help:
    app_name: starling_train  # in --help
"""
PLAIN = re.compile(r"[A-Za-z$/][^\s,\[\]{}#'\"]*")  # text that needs no quotes


def render() -> dict[str, str]:
    """Return the files of `conf/`: text by file name."""
    files = {}
    for name, schema in FILES.items():
        for item in fields(schema):
            if schema is PpoConfig and item.metadata.get("group"):
                option = getattr(PpoConfig(), item.name)
                files[f"{item.name}/{item.metadata['group']}.yaml"] = _header(_doc(option)) + "".join(_lines(option))
        files[f"{name}.yaml"] = _command(schema)
    return files


def _command(schema: type) -> str:
    """Return the file of a command; a command that extends another starts from its file and has only its own keys."""
    extended = [name for name, other in FILES.items() if other is not schema and issubclass(schema, other)]
    extends = bool(extended)
    config = schema()
    header, _, footer = _doc(config).partition("\n\n")
    own = [item for item in fields(schema) if not extends or item.name in schema.__annotations__]
    shared = {item.name for item in fields(RunConfig)} - {"model", "freeze"}
    own.sort(key=lambda item: is_dataclass(getattr(config, item.name)) * (1 + (item.name in shared)))  # its own first
    groups = [f"  - {item.name}: {item.metadata['group']}\n" for item in own if item.metadata.get("group")]
    base = [f"  - {name}\n" for name in extended] or groups
    text = _header(header) + "defaults:\n" + "".join(base) + "  - _self_\n" + QUIET + "\n"
    keys = "".join(_lines(config, own)).lstrip("\n")
    hydra = "\nhydra:\n  help:\n" if extends else HYDRA
    if footer:
        hydra += (
            "    footer: >-  # under the keys\n"
            + textwrap.indent(textwrap.fill(_joined(footer), WIDTH - 6), " " * 6)
            + "\n"
        )
    return text + keys + (hydra if footer or not extends else "")


def _header(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(_joined(text), WIDTH - 2))


def _doc(section: Any) -> str:
    return type(section).__doc__ or ""


def _joined(text: str) -> str:
    return " ".join(text.split())


def described(config: Any) -> str:
    """Return a configuration as YAML with the comments of `conf/`: every key, with the value that it has here."""
    return "".join(_lines(config, is_whole=True)).strip("\n")


def _lines(
    config: Any,
    items: Iterable[Field] | None = None,
    indent: str = "",
    follows: str | None = None,
    is_whole: bool = False,
) -> Iterator[str]:
    """Yield every key on a line with its comment, sections below their names.

    config: a command's configuration, or a section of one.
    items: its keys; None: all.
    indent: in front of every line.
    follows: the section whose values are taken, as in `setting`.
    is_whole: also write what stands in other files, and values in place of what they follow.
    """
    items = list(fields(config) if items is None else items)
    values = {item.name: _value(item, getattr(config, item.name), follows, is_whole) for item in items}
    lengths = [len(f"{name}: {value}") for name, value in values.items()]
    column = len(indent) + 2 + max(length for length in [*lengths, 0] if length <= LONGEST_KEY)
    for item in items:
        value = getattr(config, item.name)
        if not is_dataclass(value):
            yield _commented(f"{indent}{item.name}: {values[item.name]}".rstrip(), item.metadata["doc"], column)
            yield from _entries(value, f"{indent}  ", is_whole) if isinstance(value, dict) else ()
            continue
        section = list(fields(value)) if is_whole else _section_items(item, value)
        if section:
            first, _, rest = _joined(item.metadata["doc"] or _doc(value)).rstrip(".").partition(" ")
            comment = f"{first.lower() if first.istitle() else first} {rest}"
            yield ("" if indent else "\n") + _commented(f"{indent}{item.name}:", comment, column)
            yield from _lines(value, section, f"{indent}  ", item.metadata.get("follows") or follows, is_whole)


def _entries(values: dict[str, Any], indent: str, is_whole: bool) -> Iterator[str]:
    """Yield the entries of a mapping, which may be sections."""
    for name, value in values.items():
        if is_dataclass(value):
            yield f"{indent}{name}:\n"
            yield from _lines(value, indent=f"{indent}  ", is_whole=is_whole)
        else:
            yield f"{indent}{name}: {scalar(value)}\n"


def _section_items(item: Field, value: Any) -> list[Field]:
    """Return the keys of a section that are written out: all, or those that differ from the group's default option."""
    if not (group := item.metadata.get("group")):
        return list(fields(value))
    theirs = {i.name: i.metadata["group"] for i in fields(PpoConfig) if i.metadata.get("group")}
    if theirs.get(item.name) != group:
        return []  # an option that is written by hand
    usual = type(value)()
    return [key for key in fields(value) if getattr(value, key.name) != getattr(usual, key.name)]


def _value(item: Field, value: Any, follows: str | None, is_whole: bool) -> str:
    if is_dataclass(value) or (isinstance(value, dict) and value):
        return ""
    if is_whole:
        return scalar(value)
    other = f"{follows}.{item.name}" if follows else item.metadata.get("follows")
    return f"${{{other}}}" if other else scalar(value)


def scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, float) and "e" in repr(value):
        digits, _, exponent = repr(value).partition("e")
        return f"{digits if '.' in digits else f'{digits}.0'}e{int(exponent)}"
    if isinstance(value, str) and PLAIN.fullmatch(value) and not value.endswith(":"):
        return value
    return json.dumps(value)  # null, true, numbers, {}, and text in quotes, which YAML reads alike


def _commented(line: str, comment: str, column: int) -> str:
    """Return a key with its comment beside it, continued below; above it where the key's line is long."""
    column = max(column, len(line) + 2)
    if column > WIDTH * 2 // 3:
        return f"{' ' * (len(line) - len(line.lstrip()))}# {comment}\n{line}\n"
    beside = textwrap.wrap(comment, WIDTH - column - 2)
    return "".join(
        f"{start:<{column}}# {text}\n" for start, text in zip([line, *[""] * len(beside)], beside, strict=False)
    )


def main() -> None:
    """Write the files of `conf/`, beside the package."""
    folder = Path(__file__).parents[2] / "conf"
    for name, text in render().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
