"""Extensions that DeepSpeed has torch compile on first use."""

import os
import time
from contextlib import suppress
from pathlib import Path

LONGEST_COMPILATION_S = 1800.0


def remove_old_locks() -> None:
    """What a process that was killed while torch compiled an extension leaves: every later one would wait for ever."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default).expanduser()
    for lock in folder.glob("**/lock"):
        with suppress(OSError):  # another process of the run may be faster
            if time.time() - lock.stat().st_mtime > LONGEST_COMPILATION_S:
                lock.unlink()
