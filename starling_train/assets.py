"""Files that the package makes itself on first use (the toy's models and data), kept in the user's cache."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.files.lock import Lock


def directory(name: str) -> Path:
    """Return the directory of the assets that `python -m starling_train.<name>` makes.

    It lies in `$STARLING_CACHE` or `~/.cache/starling_train`, and its name has a hash of the sources of
    `starling_train.<name>`, so that changed sources make new assets. Raises UserError.
    """
    package = Path(__file__).parent / name
    if not package.is_dir():
        raise UserError(f"prepare: '{name}' makes no assets; use one of: toy")
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    cache = os.environ.get("STARLING_CACHE") or "~/.cache/starling_train"
    return Path(cache).expanduser() / f"{name}-{digest.hexdigest()[:12]}"


def ensure(name: str) -> Path:
    """Return the assets' directory; if it does not exist yet, make it in a separate process."""
    path = directory(name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # one of a run's processes makes them; where files cannot be locked, all do
        with Lock(path.parent / f".{path.name}.lock"):
            if not path.exists():
                # a separate process: its random state and threads stay apart from the run's
                _run([sys.executable, "-m", f"starling_train.{name}"])
    return path


def _run(command: list[str]) -> None:
    """Run a command that must succeed. Ctrl-C reaches it, and is raised when it has ended and nothing of it is left."""
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # a terminal has sent it already, whoever else sends one has not
        process.wait()
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)
