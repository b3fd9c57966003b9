"""What was dropped from a data set: how often, why, and where first."""

from collections.abc import Iterable


class Dropped:
    """Counts by reason, and the first row of each. counts: reason -> how many; first: reason -> file and row.

    notes: what is odd in the rows that were not dropped.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    def add_all(self, reason: str, wheres: Iterable[str]) -> None:
        for where in wheres:
            self.add(reason, where)

    def update(self, other: "Dropped") -> None:
        """Add what another has counted."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, other.first[reason])
        self.notes += other.notes

    def told(self) -> str:
        """Render what was dropped and the notes, each after `; `: the end of a line on the data."""
        return "".join(f"; {part}" for part in ([f"dropped: {self}"] if self.counts else []) + self.notes)

    def __str__(self) -> str:
        """Render as `3 empty turn (first FILE:4), 1 too long (first FILE:9)`; `none` where nothing was dropped."""
        return (
            ", ".join(f"{count} {reason} (first {self.first[reason]})" for reason, count in self.counts.items())
            or "none"
        )
