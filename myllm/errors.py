"""Room: the exceptions a user can meet → their exit codes. Knows nothing of the rest.

    MyLLMError            1   anything below; never raised itself
    ├── InputError        2   a file, a text, a flag or a combination of flags that cannot work
    │   └── ConfigError   2   … of the configuration
    ├── AccessError       2   a file is there, and this user may not read it, or not now
    ├── CheckpointError   3   a checkpoint is damaged and no good one is left
    ├── DiskFullError     4   a save did not fit; what was saved earlier is intact
    ├── NonFiniteError    5   the loss or a gradient became NaN or infinite
    ├── OutOfMemoryError  6   the device has too little memory for these settings
    └── Interrupted     130   Ctrl-C (143: SIGTERM); what could be saved has been

Every message is one line that holds the value, the limit and the remedy.
"""

from __future__ import annotations

import signal


class MyLLMError(Exception):
    """Base of all errors that a user can cause. The message is shown as it is."""

    exit_code = 1


class InputError(MyLLMError, ValueError):
    """Something the user gave cannot be used. Also a `ValueError`, for callers of the API."""

    exit_code = 2


class ConfigError(InputError):
    """A value of the configuration is out of its limits, or two values contradict."""


class AccessError(MyLLMError):
    """A file that is there may not be read, or not now: neither missing nor damaged.

    No `InputError`, so that nothing is made again or taken from elsewhere because of it.
    """

    exit_code = 2


class CheckpointError(MyLLMError):
    """A checkpoint is damaged or incomplete, and there is no good one to fall back to."""

    exit_code = 3


class DiskFullError(MyLLMError):
    """The disk has no room for a save. Earlier checkpoints are untouched."""

    exit_code = 4


class NonFiniteError(MyLLMError):
    """The loss or a gradient is NaN or infinite; the update was not made."""

    exit_code = 5


class OutOfMemoryError(MyLLMError):
    """The device ran out of memory."""

    exit_code = 6


class Interrupted(MyLLMError):
    """A signal asked the program to stop, and it did so in order.

    Args:
        message: what was saved and how to resume.
        signal_number: the signal, so that the exit code can be 128 + its number.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
