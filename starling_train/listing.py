"""The commands, and what each one does: the first lines of their files. Standard library alone, for lists and help."""

import re
from pathlib import Path
from typing import NamedTuple

# in the order of a first use; a command that is not named here comes last
ORDER = (
    "ppo", "dpo", "rm", "plan", "compare", "snr", "laser", "evaluate", "report", "export", "score", "serve_reward",
    "toy",
)  # fmt: skip
FIRST_LINE = re.compile(r'"""python -m starling_train\.(?P<name>\w+) ?(?P<takes>.*?): (?P<does>[^\n]*?)\.?(?:"""|\n)')


class Command(NamedTuple):
    """takes: what is usually given to it. does: what it does, in a few words."""

    name: str
    takes: str
    does: str


def commands() -> dict[str, Command]:
    """Return every command by name."""
    package = Path(__file__).parent
    found = {}
    for path in [*package.glob("*.py"), *package.glob("*/__main__.py")]:
        with path.open(encoding="utf-8") as file:
            first = FIRST_LINE.match(file.readline())
        if first:
            found[first["name"]] = Command(**first.groupdict())
    order = {name: number for number, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda one: (order.get(one[0], len(ORDER)), one[0])))
