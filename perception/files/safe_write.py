"""Atomic file writing, and clear errors if the system cannot write."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from perception.types import PerceptionError

DISK_FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)))
"""Error numbers for a full disk, an exhausted quota or the limit of the file size."""
REFUSED_ERRNOS = frozenset(
    (
        errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
        errno.ENAMETOOLONG, errno.ELOOP,
    )
)  # fmt: skip
"""Error numbers for wrong paths, permissions or types of files and folders."""
MIN_FREE_BYTES = 1 << 20
"""Bytes that must be free on the disk of a run: enough to close the open files."""
PARTIAL_PREFIX = ".partial-"
"""Start of the names of files that are being written."""


class DiskFullError(PerceptionError):
    """The disk is full. All files that were written before are complete."""


def make_write_error(path: str | Path, error: OSError) -> PerceptionError:
    """Make the error for a failed write, with its cause and what to do."""
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL_ERRNOS:
        return DiskFullError(f"{path} cannot be written: {reason}. Free some space, or write to another disk.")
    return PerceptionError(f"{path} cannot be written: {reason}. Check its name and permissions, or choose another.")


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes is a full disk, quota or size limit."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def convert_write_errors(path: str | Path) -> Iterator[None]:
    """Convert OSError to PerceptionError or DiskFullError. ``path`` is used if the error has no file name."""
    try:
        yield
    except OSError as error:
        raise make_write_error(os.fsdecode(error.filename) if error.filename else path, error) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Turn OSError into PerceptionError or DiskFullError. ``path`` is used if the error names no file."""
    aside = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{threading.get_ident()}")
    with convert_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            aside.replace(path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise make_write_error(path, error) from error


def check_free_space(folder: Path) -> None:
    """Raise DiskFullError if the disk of ``folder`` has less than `MIN_FREE_BYTES` free."""
    with convert_write_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise DiskFullError(
            f"{folder}: its disk is full ({free:,} bytes are left). Free some space, or use another disk."
        )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises PerceptionError if this fails or the folder is not writable."""
    with convert_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the folder is not writable", str(folder))


def append_line(file: FileIO, path: Path, line: str) -> None:
    """Append a line of text to an unbuffered file, completely or not at all. Raises PerceptionError."""
    whole, rest = file.tell(), memoryview(f"{line}\n".encode())
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        file.truncate(whole)
        raise make_write_error(path, error) from error


def remove_partial_files(folder: Path) -> None:
    """Remove the unfinished files that killed processes left under ``folder``."""
    with convert_write_errors(folder):
        for path in folder.rglob(f"{PARTIAL_PREFIX}*"):
            path.unlink(missing_ok=True)


def hash_file(path: Path) -> bytes:
    """Return the SHA-256 of the content of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.digest()
