"""What a person watches: a progress bar with the numbers that matter, or one plain line per step without a terminal."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from starling_train.config.fields import UserError

# (label, key of the metrics, format) of the numbers on the line of a step, by command
PPO = (
    ("reward", "reward/score_mean", "{:.3f}"),
    ("KL", "kl/reference", "{:.3f}"),
    ("length", "response/length_mean", "{:.1f}"),
    ("held-out", "eval/score_mean", "{:.3f}"),
)
RM = (
    ("loss", "rm/loss", "{:.3f}"),
    ("accuracy", "rm/accuracy", "{:.1%}"),
    ("held-out loss", "eval/kwise_loss", "{:.3f}"),
    ("held-out accuracy", "eval/preference_accuracy", "{:.1%}"),
)
DPO = (
    ("loss", "dpo/loss", "{:.3f}"),
    ("accuracy", "dpo/accuracy", "{:.1%}"),
    ("margin", "dpo/margin", "{:.3f}"),
    ("held-out accuracy", "eval/preference_accuracy", "{:.1%}"),
    ("held-out margin", "eval/reward_margin", "{:.3f}"),
)
WIDE = 100  # columns of a terminal with room for a bar
Watched = Sequence[tuple[str, str, str]]
WATCHED = tuple(dict.fromkeys((*PPO, *RM[:2], *DPO[:3], *RM[2:], *DPO[3:])))  # of a command that names none


class _Screen(RichConsole):
    """Where a run writes. When whoever read it has gone (`| head`), the run ends with its state saved."""

    def on_broken_pipe(self) -> None:
        """Write what still comes to nowhere, and raise UserError."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise UserError("stdout: nobody reads it any more; run the same command to go on, with its output in a file")


class CutColumn(TextColumn):
    """Text that is cut where the line is too long for the terminal, so that step and times always show."""

    def __init__(self, text_format: str):
        super().__init__(text_format, table_column=Column())  # whose width may shrink

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class Console:
    """Used as a context: `phase` shows what is going on, `step` that a step is done with these metrics.

    is_quiet: print nothing (all processes of a run but the first). watched: the numbers on the line of a step.
    """

    def __init__(self, steps: int, done: int = 0, is_quiet: bool = False, watched: Watched = WATCHED):
        self._console = _Screen(quiet=is_quiet)
        self._steps, self._done, self._watched = steps, done, watched
        self._numbers = ""
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=12 if self._console.width >= WIDE else 4),
            CutColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            CutColumn("[dim]{task.fields[phase]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, numbers="", phase="")

    def __enter__(self) -> "Console":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line of text, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        self._progress.update(self._task, phase=name)

    def step(self, metrics: dict[str, Any], left_s: float | None = None) -> None:
        """Show that a step is done; left_s: estimated seconds to the end of the run, if known."""
        self._done = metrics["step"]
        self._numbers = numbers(metrics, self._watched)
        self._progress.update(self._task, completed=self._done, numbers=self._numbers, phase="")
        if not self._console.is_terminal:
            left = "" if left_s is None else f"  left {duration(left_s)}"
            self.say(f"step {self._done}/{self._steps}  {self._numbers}{left}")


def numbers(metrics: dict[str, Any], watched: Watched = WATCHED) -> str:
    """Render the watched numbers that exist, on one line."""
    return "  ".join(
        f"{label} {form.format(metrics[key])}" for label, key, form in watched if metrics.get(key) is not None
    )


def duration(seconds: float) -> str:
    """Render seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
