"""Room: folders and small files that outlive a crash. Knows nothing of what is in them.

A *sealed* folder is filled beside its place, synced to disk, described by a manifest (size and
SHA-256 of each file, and of the manifest itself) and renamed: it is whole or not there, and any
damage to it shows. Every change on disk is one call of `disk`: a test or benchmark that wants to
count, fail or cut these off replaces that object, so nothing else here has to know of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from myllm.errors import AccessError, DiskFullError, InputError

TEMPORARY = ".tmp-"  # how the names of unfinished files and folders begin
SMALL_FILE_BYTES = 1 << 26  # no JSON or TOML of ours comes near it
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
NOT_ALLOWED = {errno.EACCES, errno.EPERM}
NOT_NOW = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}
# what network file systems answer that cannot wait for the disk
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
# what file systems, file managers and network shares put into any folder; in lower case
CLUTTER = {
    *(".ds_store", "desktop.ini", "thumbs.db", "ehthumbs.db", ".directory", ".localized"),
    *("lost+found", "@eadir", ".lock", ".fseventsd", ".spotlight-v100", ".trashes"),
}
CLUTTER_PREFIXES = ("._", ".nfs", ".fuse_hidden", ".smbdelete", ".trash-")


class Damaged(Exception):
    """A file is missing, altered or unreadable; the message names it."""


class Disk:
    """The operations that change what is on disk."""

    def write(self, path: Path, writer: Callable[[Path], object]) -> None:
        """Makes a file by calling `writer` with its path."""
        writer(path)

    def make_folder(self, path: Path) -> None:
        path.mkdir()

    def sync(self, path: Path) -> None:
        """Waits until the content of a file, or the names in a folder, are on disk."""
        if os.name == "nt" and path.is_dir():
            return  # Windows has no handle to sync a folder by
        refused = NO_SYNC | NOT_ALLOWED if path.is_dir() else NO_SYNC
        try:
            descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in refused:  # else it is as safe as that file system can make it
                raise

    def rename(self, path: Path, target: Path) -> None:
        """Gives a file or folder another name, at once; a file of that name is replaced."""
        os.replace(path, target)

    def remove(self, path: Path) -> None:
        """Removes a file, or a folder with all that is in it."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


disk = Disk()


@contextmanager
def _named_when_done(final: Path) -> Iterator[Path]:
    """A path beside `final` to make something at; it gets that name if the block ends well."""
    unfinished = final.with_name(f"{TEMPORARY}{final.name}-{os.getpid()}")
    try:
        yield unfinished
        disk.rename(unfinished, final)
    except BaseException:
        discard(unfinished)
        raise
    disk.sync(final.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces a small file as a whole."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with _named_when_done(path) as unfinished:
        disk.write(unfinished, lambda p: p.write_bytes(data))
        disk.sync(unfinished)


def read_file(path: Path, most_bytes: int = SMALL_FILE_BYTES) -> str:
    """The text of a file that is read as a whole.

    Args:
        path: the file.
        most_bytes: what no such file is larger than.

    Raises:
        Damaged: it is missing, unreadable, too large or not UTF-8.
        AccessError: it may not be read.
    """
    with read_errors(path):
        if (n_bytes := path.stat().st_size) > most_bytes:
            raise Damaged(
                f"{path} is damaged: it has {n_bytes:,} bytes, such files at most {most_bytes:,}"
            )
        try:
            return path.read_text(encoding="utf-8-sig")  # Windows puts marks there
        except UnicodeDecodeError as error:
            raise Damaged(f"{path} cannot be read: {error}") from None


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Says what it means that something at `path` could not be read.

    Raises:
        Damaged: it is missing, or the disk does not give it back.
        AccessError: this user may not read it, or the system cannot just now.
    """
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in NOT_ALLOWED:
            closed = (p for p in reversed(path.parents) if not os.access(p, os.X_OK))
            place = shlex.quote(str(next(closed, path)))
            raise AccessError(
                f"may not read {path} ({reason}); its owner can allow it: chmod -R a+rX {place}"
            ) from None
        if error.errno in NOT_NOW:
            raise AccessError(f"cannot read {path} now ({reason}); try again") from None
        raise Damaged(f"{path} cannot be read: {reason}") from None


def require_readable(path: Path) -> None:
    """Raises `AccessError` if a file is there and may not be read."""
    try:
        with read_errors(path), path.open("rb"):
            pass
    except Damaged:
        pass  # for whoever reads it to say


def listing(folder: Path) -> list[Path]:
    """What is in a folder, without what others put into every folder.

    Raises:
        AccessError: it may not be read.
        Damaged: it is missing, or no folder.
    """
    with read_errors(folder):
        return sorted(path for path in folder.iterdir() if not is_clutter(path.name))


def is_clutter(name: str) -> bool:
    """Whether a name is that of what file systems and file managers put into any folder.

    >>> [is_clutter(name) for name in (".DS_Store", "._config.toml", "config.toml")]
    [True, True, False]
    """
    return name.lower() in CLUTTER or name.lower().startswith(CLUTTER_PREFIXES)


@contextmanager
def finished_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name once it is whole. It holds nothing else of ours."""
    with _named_when_done(final) as unfinished:
        discard(unfinished)
        disk.make_folder(unfinished)
        yield unfinished
        for path in (*sorted(unfinished.iterdir()), unfinished):
            disk.sync(path)


@contextmanager
def sealed_folder(final: Path, manifest: str, metadata: dict[str, Any]) -> Iterator[Path]:
    """A folder to fill, which gets its name and its manifest once it is whole.

    If the block, or anything after it, fails, nothing of it is left.

    Args:
        final: the folder to make; there must be none, or an empty one.
        manifest: the name of the file that describes the others.
        metadata: what else the manifest shall say. May be filled within the block.
    """
    with finished_folder(final) as unfinished:
        yield unfinished
        files = {}
        for path in sorted(unfinished.iterdir()):
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        text = _sealed_text({**metadata, "files": files})
        disk.write(unfinished / manifest, lambda p: p.write_bytes(text.encode("utf-8")))
        if final.is_dir():
            for path in filter(lambda p: is_clutter(p.name) and not p.is_dir(), final.iterdir()):
                discard(path)
            final.rmdir()  # an empty one; any other fails here


def read_manifest(folder: Path, manifest: str) -> dict[str, Any]:
    """What the manifest of a sealed folder says, once it is known to be unaltered.

    Raises:
        Damaged: it is missing, cut short or altered.
    """
    text = read_file(folder / manifest)
    content: dict[str, Any] = {}
    try:
        content = json.loads(text)
        del content["sha256"]
        whole = _sealed_text(content) == text
        sound = all(
            type(entry["bytes"]) is int and type(entry["sha256"]) is str
            for entry in content["files"].values()
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = sound = False
    if not whole or not sound:
        raise Damaged(f"{folder / manifest} is damaged: its SHA-256 is not the one that it states")
    return content


def check_files(folder: Path, manifest: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Holds files of a sealed folder against its manifest.

    Args:
        folder: a sealed folder.
        manifest: the name of its manifest.
        names: the files to check, which the manifest must list; by default all that it lists.

    Returns:
        The manifest.

    Raises:
        Damaged: the first file that is missing or altered.
        AccessError: one may not be read.
    """
    content = read_manifest(folder, manifest)
    files = content["files"]
    for name in files if names is None else names:
        path = folder / name
        if name not in files or name != path.name:
            raise Damaged(f"{folder / manifest} does not list {name}")
        expected = files[name]
        with read_errors(path):
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise Damaged(f"{path} is missing")
            size = found.st_size
            if size != expected["bytes"]:
                raise Damaged(f"{path} is damaged: {size} bytes, not {expected['bytes']}")
            if _sha256(path) != expected["sha256"]:
                raise Damaged(f"{path} is damaged: its SHA-256 is not the saved one")
    return content


def foreign_files(folder: Path, manifest: str) -> list[str]:
    """What lies in a sealed folder besides what its manifest lists."""
    known = {manifest, *read_manifest(folder, manifest)["files"]}
    return [path.name for path in listing(folder) if path.name not in known]


def unseal_file(folder: Path, manifest: str, name: str) -> None:
    """Removes a file of a sealed folder, which is whole all the time: the manifest goes first.

    Raises:
        Damaged: the folder is not whole.
    """
    content = check_files(folder, manifest)
    files = {path: entry for path, entry in content["files"].items() if path != name}
    path = folder / manifest
    before = path.stat()
    write_file(path, _sealed_text({**content, "files": files}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing newer is in there
    disk.remove(folder / name)


def discard(path: Path) -> None:
    """Removes what is unfinished, if it is there; failing to is not an error."""
    try:
        disk.remove(path)
    except OSError:
        pass


def discard_unfinished(folder: Path, name: str = "") -> None:
    """Removes what processes that died have left unfinished (of `name`, or all).

    The caller must hold the lock that those who write there hold.
    """
    ours = re.compile(re.escape(TEMPORARY + name) + (r"-\d+" if name else ".*"))
    for path in sorted(folder.iterdir()):
        if ours.fullmatch(path.name):
            discard(path)


def require_room(folder: Path, n_bytes: int) -> None:
    """Raises `OSError`, as writing would, if the disk has too little space for that many bytes."""
    if shutil.disk_usage(folder).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_folders(folder: Path) -> None:
    """Makes a folder, and those above it, where it is not there yet.

    Raises:
        DiskFullError, InputError: it cannot be made.
    """
    with write_errors("make the folder", folder, 1 << 12):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def write_errors(
    what: str, folder: Path, needed: int, remedy: str = "what was saved before is intact"
) -> Iterator[None]:
    """Says in the user's terms that something could not be written.

    Args:
        what: what the program was about to do, as an infinitive without "to".
        folder: where to.
        needed: bytes that it takes.
        remedy: what is left, and how to continue.

    Raises:
        DiskFullError: the disk is full, or fails.
        InputError: the folder cannot be written, for another reason.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in NO_ROOM:
            fault = "the disk fails to" if error.errno == errno.EIO else "not enough disk space to"
            raise DiskFullError(
                f"{fault} {what} in {folder} ({reason}): {needed:,} bytes are needed; {remedy}"
            ) from None
        allowed = error.errno not in NOT_ALLOWED | {errno.EROFS}
        hint = "" if allowed else "; let this user write there, or name another folder"
        raise InputError(f"cannot {what} in {folder}: {reason}{hint}") from None


def _sealed_text(content: dict[str, Any]) -> str:
    """JSON that ends with the SHA-256 of all the rest of it."""
    digest = hashlib.sha256(json.dumps(content, indent=1).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
