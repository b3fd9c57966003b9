"""axolotl's `unfrozen_parameters`: what trains as patterns of parameter names, written and read."""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from starling_train.config.fields import UserError
from starling_train.selection.records import Record, parameters_of
from starling_train.selection.select import EVERYTHING


def write_unfrozen_yaml(
    selected: Iterable[str], records: dict[str, Record], path: Path, parameters: Iterable[str] = ()
) -> None:
    """Writes axolotl's `unfrozen_parameters`: an anchored, escaped pattern per parameter, a comment line per
    type.

    The names are the model's: a tensor of several matrices is named once. `parameters` names parameters
    that train besides (a head, norms); those of `selected` in it are not repeated. Raises UserError where
    a tensor is not selected as a whole.
    """
    chosen = list(selected)
    # `^`: axolotl takes the dot of `^.*$` for a literal one
    names: dict[str, list[str]] = {"everything": ["^"]} if chosen == [EVERYTHING] else {}
    weights = set() if chosen == [EVERYTHING] else set(parameters_of(chosen, records))
    for record in (record for record in records.values() if record.parameter in weights):
        names.setdefault(f"{record.kind} layers", []).append(pattern_of(record.parameter))
    others = [] if chosen == [EVERYTHING] else [name for name in parameters if name not in weights]
    if others:
        names["others"] = [pattern_of(name) for name in others]
    lines = ["unfrozen_parameters:"]
    for comment, patterns in names.items():
        lines += [f"# {comment}", *(f"- '{pattern}'" for pattern in dict.fromkeys(patterns))]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)


def pattern_of(parameter: str) -> str:
    """The regular expression that matches the name `parameter` and nothing else, in Python and in axolotl.

    axolotl puts a backslash before every dot itself, and a second one before an escaped dot would make it a
    literal backslash: `[.]` is a dot either way.
    """
    return "^" + re.escape(parameter).replace(r"\.", "[.]") + "$"


def read_unfrozen_yaml(path: Path, names: Iterable[str]) -> list[str]:
    """Modules whose weights an `unfrozen_parameters` file selects among the parameter `names`, in their
    order.

    Patterns match from the start of a name, as in axolotl, but a plain dot is Python's: it also matches
    what is no dot. Raises UserError for a pattern that matches nothing or is none, and for a file of
    another kind.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); write it again") from None
    patterns = content.get("unfrozen_parameters") if isinstance(content, dict) else None
    if not isinstance(patterns, list):
        raise UserError(f"{path}: no list `unfrozen_parameters`; write it with starling_train.snr")
    names, matched = list(names), set()
    for pattern in patterns:
        try:
            hits = {name for name in names if re.match(str(pattern), name)}
        except re.error as error:
            raise UserError(f"{path}: {pattern} is no regular expression ({error}); correct it") from None
        if not hits:
            raise UserError(f"{path}: pattern {pattern} matches no parameter; give the file of this model")
        matched |= hits
    return [name.removesuffix(".weight") for name in names if name in matched]
