"""Files that the package makes itself on first use (the toy's models and data), kept in the user's cache."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.files.lock import Lock


def directory(name: str) -> Path:
    """Where the assets made by `python -m starling_train.<name>` live: `$STARLING_CACHE` or `~/.cache/starling_train`.

    The folder's name carries a hash of the sources of `starling_train.<name>`, so that other sources make new assets.
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
    """The assets' directory; made now, in a process of its own, if it is not there yet."""
    made = directory(name)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        # of the processes of a run one makes them; where files cannot be locked, all do
        with Lock(made.parent / f".{made.name}.lock"):
            if not made.exists():
                # a process of its own: its random state and threads stay apart from the run's
                subprocess.run([sys.executable, "-m", f"starling_train.{name}"], check=True)
    return made
