"""axolotl's `unfrozen_parameters`: what trains as patterns of parameter names, written and read."""

import re
from collections.abc import Iterable
from pathlib import Path

from starling_train.files import whole
from starling_train.selection.records import Record, parameters_of
from starling_train.selection.select import EVERYTHING


def write_unfrozen_yaml(
    selected: Iterable[str], records: dict[str, Record], path: Path, parameters: Iterable[str] = ()
) -> None:
    """Write axolotl's `unfrozen_parameters`: an anchored, escaped pattern per parameter, a comment line per type.

    The names are the model's: a tensor of several matrices is named once. `parameters` names what trains besides (a
    head, norms); those of `selected` in it are not repeated. Raises UserError where a tensor is not selected as a
    whole.
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
    whole.write_text(path, "\n".join(lines) + "\n")


def pattern_of(parameter: str) -> str:
    """Return the regular expression that matches the name `parameter` and nothing else, in Python and in axolotl.

    axolotl puts a backslash before every dot itself, and a second one before an escaped dot would make it a
    literal backslash: `[.]` is a dot either way.
    """
    return "^" + re.escape(parameter).replace(r"\.", "[.]") + "$"
