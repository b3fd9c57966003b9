"""The directory of a run: new, to be continued, or finished; never another run's."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from starling_train.config.fields import UserError, changed
from starling_train.config.run import RunConfig
from starling_train.files import whole
from starling_train.files.disk import disk_errors
from starling_train.files.json_lines import JsonLines, NoLines
from starling_train.files.lock import RunLock
from starling_train.run.runtime import Runtime


class RunDirectory:
    """Paths of a run's files (see the README), `runs/<name>` or `run_dir`.

    Raises UserError if the directory holds a run with other settings.
    """

    def __init__(self, config: RunConfig):
        self.path = config.directory()
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.cases = self.path / "cases.jsonl"
        self.skipped = self.path / "skipped.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.policy = self.path / "policy"
        self.reward = self.path / "reward"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.settings = asdict(config)
        self._lock = RunLock(self.path / ".lock")
        self._refuse_other_settings(config)

    def is_finished(self, by_steps: bool = True) -> bool:
        """Return whether all requested steps are done; by_steps=False: whether the run says that it is finished."""
        if not (self.summary.is_file() and self.report.is_file()):
            return False
        summary = self._read(self.summary, json.loads)
        # where the number of steps follows from fixed settings, no more of them can be requested
        requested = self.settings.get("algorithm", {}).get("steps", 0)
        steps = summary.get("steps")
        guard = summary.get("guard")
        if isinstance(guard, dict) and guard.get("stopped"):  # for good, however many steps are requested
            return bool(summary.get("finished"))
        return bool(summary.get("finished")) and (not by_steps or (type(steps) is int and steps >= requested))

    @contextmanager
    def owned(self, runtime: Runtime | None = None) -> Iterator[None]:
        """Hold the directory, so that no other process can use it. Raises UserError if one does.

        A directory that does not exist yet is locked in `create`: before that, nothing is written. Errors of the disk
        are raised as `disk.disk_errors` does.
        """
        try:
            with disk_errors(self.path):
                self._is_ours = runtime is None or runtime.is_main
                if self._is_ours and self.path.is_dir():
                    self._lock.acquire()
                yield
        finally:
            self._lock.release()

    def log(self, path: Path, logged: int | None = None) -> JsonLines | NoLines:
        """Open one of the run's files of JSON lines; on processes other than the first, one that writes nothing."""
        return JsonLines(path, logged) if self._is_ours else NoLines()

    def create(self) -> None:
        """Make the directory and write the resolved configuration. Raises UserError if it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {self.path} cannot be made ({error.strerror}); give another one") from error
        if not self._lock.held:
            self._lock.acquire()
            if (self.path / "config.yaml").exists():  # what was read before the lock is outdated
                raise UserError(f"run_dir: another process has begun a run in {self.path} meanwhile; start again")
        self.write("config.yaml", yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True))

    def written(self, name: str) -> Any:
        """Return what the configuration of an earlier start has under a name; None where there is none."""
        path = self.path / "config.yaml"
        return self._read(path, yaml.safe_load).get(name) if path.is_file() else None

    def write(self, name: str, text: str) -> None:
        """Write a small file so that a reader sees the old or the new one, never half of it."""
        whole.write_text(self.path / name, text)

    def note_start(self, step: int) -> None:
        """Add a line to starts.jsonl: when, and by which arguments, the run was started or resumed after a step.

        Without passwords in addresses; keys name variables for all other secrets.
        """
        arguments = [re.sub(r"(://)[^/\s'\"]*@", r"\1***@", argument) for argument in sys.argv[1:]]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.log(self.path / "starts.jsonl").write([{"step": step, "at": now, "arguments": arguments}])

    def _refuse_other_settings(self, config: RunConfig) -> None:
        path = self.path / "config.yaml"
        if not path.is_file():
            return
        if different := changed(config, self._read(path, yaml.safe_load)):
            raise UserError(
                f"run_dir: {self.path} holds a run with other settings ({', '.join(different[:5])}); "
                "give another name= or run_dir=, or the settings in its config.yaml"
            )

    def _read(self, path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
        """Read what a run wrote into one of its files. Raises UserError for anything else."""
        try:
            values = parse(path.read_text())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"run_dir: {path} cannot be read; give another run_dir=") from error
        if not isinstance(values, dict):
            raise UserError(f"run_dir: {path} is not a run's; give another run_dir=")
        return values
