"""Room: a file → a lock that one process holds at a time. Knows nothing of what it protects."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from myllm.errors import InputError
from myllm.system.atomic import discard, discard_unfinished

log = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

# Where a file system has no locks, newer versions of the library mark the file instead; such a
# mark outlives a process that is killed, and shuts out the next one.
_OPTIONS: dict[str, Any] = {}
if "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters:
    _OPTIONS["fallback_to_soft"] = False


class Lock:
    """A lock on a file; the system frees it when the process that holds it ends."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the file, which is made where it is not there yet.
        """
        self.path = path
        path.touch()  # with the mode that the umask asks for; the library has one of its own
        mode = stat.S_IMODE(path.stat().st_mode)
        self._lock = FileLock(path, mode=mode, **_OPTIONS)

    def acquire(self, timeout_s: float) -> bool:
        """Takes the lock; where the file system has none, goes on without.

        Args:
            timeout_s: how long to wait for it; below zero: as long as it takes.

        Returns:
            Whether nobody else holds it.
        """
        try:
            self._lock.acquire(timeout=timeout_s)
        except Timeout:
            return False
        except NotImplementedError:  # ENOSYS, to older versions of the library
            _warn_once(self.path.parent)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _warn_once(self.path.parent)
        return True

    def release(self) -> None:
        """Lets others have it."""
        self._lock.release()


@functools.cache
def _warn_once(folder: Path) -> None:
    log.warning(
        "the file system of %s has no locks: start no second process that writes there", folder
    )


def lock(path: Path) -> Lock:
    """A lock on a file, held by this process.

    Raises:
        InputError: another process holds it.
    """
    held = Lock(path)
    if not held.acquire(0):
        raise InputError(
            f"{path.parent} is in use by another process: wait until it ends, or stop it"
        )
    return held


@contextmanager
def made_by_one_process(folder: Path) -> Iterator[None]:
    """Lets one process at a time make `folder`; removes what dead ones have left of it."""
    path = folder.with_name(f".lock-{folder.name}")
    held = Lock(path)
    if not held.acquire(1):
        log.info("waiting for another process that makes %s", folder)
        held.acquire(-1)
    try:
        discard_unfinished(folder.parent, folder.name)
        yield
    finally:
        held.release()
        discard(path)
