"""Room: the safetensors library ↔ tensors and the system's errors. Knows nothing of models.

The library reports what the system refused as text, "… (os error 28)". That text is matched here
and nowhere else; tests/test_safetensors_adapter.py fails if a new version words it differently.
PyTorch is imported by the functions, so that rooms without it can import this one.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file with their names, in memory of their own.

    The file does not stay mapped: it can be removed, and a tensor that is let go frees memory.
    Where the file system cannot map it, it is read as a whole.

    Raises:
        SafetensorError: the file is not in that format.
        OSError: the system refused, with its error number.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        refused = error if isinstance(error, OSError) else _system_error(error, path)
        if refused.errno is None:
            raise
        if refused.errno != errno.ENODEV:
            raise refused from None
        from safetensors.torch import load

        yield from load(path.read_bytes()).items()
        return
    for name in names:
        with safe_open(path, "pt") as file:
            yield name, file.get_tensor(name).clone()


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
        tensors: by name.
        path: the file to make.
        metadata: what else the file's header shall say.

    Raises:
        OSError: the system refused, with its error number.
    """
    from safetensors.torch import save_file

    path.touch()  # with the mode that the umask asks for; the library lets only the owner read
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        raise _system_error(error, path) from None
    with contextlib.suppress(PermissionError):  # a file system without modes
        path.chmod(mode)


def _system_error(error: SafetensorError, path: Path) -> OSError:
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(str(error))
    number = int(found[1])
    # the last argument counts on Windows alone, where the number is the system's own
    return OSError(number, str(error), str(path), number)
