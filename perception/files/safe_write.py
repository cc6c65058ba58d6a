"""Files that are whole or not there, and what to say where the system refuses them."""

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
"""What the system says where a disk, a quota or the limit of a file's size is full."""
REFUSED_ERRNOS = frozenset(
    (
        errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
        errno.ENAMETOOLONG, errno.ELOOP,
    )
)  # fmt: skip
"""What it says where a file or folder is not as it should be."""
MIN_FREE_BYTES = 1 << 20
"""Bytes that must be free on a disk for a run to go on: enough to close what is open."""
PARTIAL_PREFIX = ".partial-"
"""What the names of files begin with that are being written."""


class DiskFullError(PerceptionError):
    """Nothing more can be written. What has been written is whole."""


def make_write_error(path: str | Path, error: OSError) -> PerceptionError:
    """``error`` in a sentence."""
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL_ERRNOS:
        return DiskFullError(f"{path} cannot be written: {reason}. Free some space, or write to another disk.")
    return PerceptionError(f"{path} cannot be written: {reason}. Check its name and permissions, or choose another.")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether what failed did so because of a full disk, quota or limit."""
    while error is not None:
        if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def convert_write_errors(path: str | Path) -> Iterator[None]:
    """What the system refuses within it is a PerceptionError, or a FullError. path: told where the error names none."""
    try:
        yield
    except OSError as error:
        raise make_write_error(os.fsdecode(error.filename) if error.filename else path, error) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write aside, then rename: nobody ever sees a part of it. Makes the folder. Raises PerceptionError."""
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
    """Raise FullError where the disk of ``folder`` is all but full, while there is room to close what is open."""
    with convert_write_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise DiskFullError(
            f"{folder}: its disk is full ({free:,} bytes are left). Free some space, or use another disk."
        )


def make_folder(folder: Path) -> None:
    """Make it, with those above it. Raises PerceptionError also where it is there and nothing can be written to it."""
    with convert_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "nothing can be written to it", str(folder))


def append_line(file: FileIO, path: Path, line: str) -> None:
    """Add a line of text to an unbuffered file, whole or not at all. Raises PerceptionError."""
    whole, rest = file.tell(), memoryview(f"{line}\n".encode())
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        file.truncate(whole)
        raise make_write_error(path, error) from error


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes have left under ``folder`` of files that they were writing."""
    with convert_write_errors(folder):
        for path in folder.rglob(f"{PARTIAL_PREFIX}*"):
            path.unlink(missing_ok=True)


def hash_file(path: Path) -> bytes:
    """The SHA-256 of a file's content."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.digest()
