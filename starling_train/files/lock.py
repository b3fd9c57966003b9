"""One process for one run directory: a lock that the kernel takes back however the process ends."""

import errno
import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from starling_train.config.fields import UserError

UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class RunLock:
    """An flock on a file that names its owner. After a crash the file stays, but not the lock."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor: int | None = None
        self.held = False

    def acquire(self) -> None:
        """Raises UserError, naming the owner, if another process has it; warns on a file system without locks."""
        while not self.held:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self._descriptor, 1000, 0)
                self._close()
                raise UserError(
                    f"run_dir: {self._path.parent} is in use by {_name(owner)}; wait for it, stop it, or give another "
                    "run_dir"
                ) from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                print(
                    f"warning: {self._path} cannot be locked ({error.strerror}): see to it yourself that no other "
                    "process uses this run_dir",
                    file=sys.stderr,
                )
            # its last owner may have removed the file between our opening and our locking it
            if self._is_current():
                self.held = True
            else:
                self._close()
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, owner, 0)

    def release(self) -> None:
        """Remove the file and let go; nothing if the lock is not held."""
        if self.held:
            self._path.unlink(missing_ok=True)
            self._close()
            self.held = False

    def _is_current(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = None


def _name(owner: bytes) -> str:
    try:
        values = json.loads(owner)
        return f"process {values['pid']} on {values['host']}"
    except (ValueError, KeyError, TypeError):  # not written yet
        return "another process"
