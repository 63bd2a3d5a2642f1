"""Room: checkpoints → saved by a thread, while training continues. Knows nothing of the loop."""

from __future__ import annotations

import logging
import threading

from myllm.errors import DiskFullError
from myllm.runs.checkpoint import Checkpoint
from myllm.runs.folder import RunFolder
from myllm.system.progress import stage

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0  # between two looks at a full disk


class BackgroundSaver:
    """Saves one checkpoint at a time; the next waits for it, and so does the end of a run."""

    def __init__(self, run: RunFolder, keep: int, wait_for_room: bool = False) -> None:
        """
        Args:
            run: where to save.
            keep: how many of the newest to keep.
            wait_for_room: on a full disk, try again until there is room.
        """
        self.run, self.keep, self.wait_for_room = run, keep, wait_for_room
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()

    def save(self, checkpoint: Checkpoint, is_best: bool) -> None:
        """Begins to save; `checkpoint` must not change any more.

        Raises:
            DiskFullError, InputError: what the save before this one met.
        """
        self.join()
        # a daemon: a second Ctrl-C ends the program without waiting; what is unfinished then
        # has no name yet
        self._thread = threading.Thread(
            target=self._work, args=(checkpoint, is_best), name="saver", daemon=True
        )
        self._thread.start()

    def join(self) -> None:
        """Waits until what was begun is saved.

        Raises:
            DiskFullError, InputError: it could not be.
        """
        if self._thread is not None:
            with stage("saving a checkpoint"):
                self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def give_up(self) -> None:
        """Stops waiting for room on a full disk."""
        self._given_up.set()

    def _work(self, checkpoint: Checkpoint, is_best: bool) -> None:
        told = False
        while True:
            try:
                self.run.checkpoints.save(checkpoint, is_best, self.keep)
            except DiskFullError as error:
                if self.wait_for_room and not told:
                    log.warning("%s; trying again until there is room", error)
                    told = True
                if not self.wait_for_room or self._given_up.wait(RETRY_SECONDS):
                    self._error = error
                    return
            except BaseException as error:  # raised again by whoever waits for it
                self._error = error
                return
            else:
                if told:
                    log.warning("there is room again: step %d is saved", checkpoint.step)
                return
