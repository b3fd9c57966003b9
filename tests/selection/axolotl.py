"""How axolotl reads `unfrozen.yaml`."""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml


def unfrozen(path: Path, names: Iterable[str]) -> list[str]:
    """Modules whose weights the file's patterns select among the parameter `names`, in their order.

    Patterns match from the start of a name; each must match one at least.
    """
    names, matched = list(names), set()
    for pattern in yaml.safe_load(path.read_text())["unfrozen_parameters"]:
        hits = {name for name in names if re.match(pattern, name)}
        assert hits, f"{pattern} matches no parameter"
        matched |= hits
    return [name.removesuffix(".weight") for name in names if name in matched]
