"""Locks on files that the kernel releases however the process ends. Standard library only: `assets` needs them."""

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from starling_train.config.fields import UserError

UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class Lock:
    """An exclusive flock on a file, which is created if missing, and stays. Works as a context.

    On a file system without locks nothing is locked, and `unsupported` says why.
    """

    def __init__(self, path: Path):
        self.path = path
        self.unsupported: str | None = None
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, wait: bool = True) -> None:
        """Take the lock. Raises BlockingIOError if another process has it and `wait` is False."""
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    os.close(descriptor)
                    raise
                self.unsupported = error.strerror
            # its last owner may have removed the file between our opening and our locking it
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Let go; nothing if the lock is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False


class RunLock(Lock):
    """One process for one run directory: the file names its owner and is removed with the lock, unless it crashes."""

    def acquire(self, wait: bool = False) -> None:
        """Raise UserError, naming the owner, if another process has it; warns on a file system without locks."""
        try:
            super().acquire(wait)
        except BlockingIOError:
            raise UserError(
                f"run_dir: {self.path.parent} is in use by {_name(self.path)}; wait for it, stop it, or give another "
                "run_dir"
            ) from None
        if self.unsupported:
            print(
                f"warning: {self.path} cannot be locked ({self.unsupported}): make sure that no other process uses "
                "this run_dir",
                file=sys.stderr,
            )
        assert self._descriptor is not None, "just acquired"
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner, 0)

    def release(self) -> None:
        """Remove the file and let go; nothing if the lock is not held."""
        if self.held:
            self.path.unlink(missing_ok=True)
            super().release()


def _name(path: Path) -> str:
    try:
        values = json.loads(path.read_bytes())
        return f"process {values['pid']} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, or gone meanwhile
        return "another process"
