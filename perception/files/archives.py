"""Safe unpacking of untrusted archives: zip, tar, tar.gz, tar.bz2, tar.xz.

Refused are unsafe names, links, devices, sparse files, duplicate names, archive bombs, and more data than fits on the
disk. Permissions and owners in the archive are not used. Nothing is overwritten: the files are written to a temporary
folder beside the target, and moved when all of them are complete. After an error nothing is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from perception.files.archive_members import ARCHIVE_ERRORS, ArchiveLimits, ArchiveMember, read_members, split_safe_path
from perception.types import DataError

MAX_ARCHIVE_BYTES = 1 << 40
MAX_FILES = 2_000_000
MAX_RATIO = 200.0

ProgressCallback = Callable[[int, int], None]


def extract_archive(
    archive: Path,
    folder: Path,
    *,
    max_bytes: int = MAX_ARCHIVE_BYTES,
    max_files: int = MAX_FILES,
    max_ratio: float = MAX_RATIO,
    progress: ProgressCallback | None = None,
) -> int:
    """Unpack ``archive`` into ``folder``.

    Args:
        archive: zip, tar, tar.gz, tar.bz2 or tar.xz.
        folder: target, created if it is missing; an existing folder is extended.
        max_bytes: largest total size of the unpacked files.
        max_files: largest number of files and folders.
        max_ratio: largest number of unpacked bytes per byte of the archive.
        progress: called from time to time with (processed bytes of the archive, all bytes of the archive).

    Returns:
        The number of files.

    Raises:
        DataError: the archive is damaged or refused, a file exists already, or the disk is full. No file has changed.
    """
    archive, folder = Path(archive), Path(os.path.realpath(folder))
    if not archive.is_file():
        raise DataError(f"No archive at {archive}. Expected a zip, tar, tar.gz, tar.bz2 or tar.xz file.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Expected the folder to unpack into.")
    missing = [path for path in folder.parents if not path.exists()]
    temporary, moved = None, False
    try:
        limits = ArchiveLimits(archive, archive.stat().st_size, max_bytes, max_files, max_ratio)
        temporary = _make_temporary_folder(folder)
        with archive.open("rb") as file:
            count = _write_members(read_members(file, limits, temporary), temporary, folder, limits, file, progress)
        _move_into_place(temporary, folder, archive)
        moved = True
    except (*ARCHIVE_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{archive} cannot be unpacked into {folder}: {error}. Check the disk.") from error
        raise DataError(f"{archive} is damaged or not an archive: {error}. Fetch it again.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for path in () if moved else missing:
                path.rmdir()
    return count


def _write_members(
    members: Iterator[ArchiveMember],
    temporary: Path,
    folder: Path,
    limits: ArchiveLimits,
    file: IO[bytes],
    progress: ProgressCallback | None,
) -> int:
    """Write all members to ``temporary`` and return the number of files. ``folder`` is the final place."""
    count = total = entries = 0
    for member in members:
        entries += 1
        parts = split_safe_path(member.name, limits.archive)
        target = temporary.joinpath(*parts)
        try:
            if member.chunks is None:
                target.mkdir(parents=True, exist_ok=True)
                limits.check(total, entries)
                continue
            if not parts or os.path.lexists(folder.joinpath(*parts)):
                raise DataError(
                    f"{limits.archive}: {member.name!r} exists already in {folder}. Files are not overwritten: "
                    "unpack into another folder, or remove it first."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            out = target.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise DataError(f"{limits.archive}: the name {member.name!r} is given twice. Create it again.") from None
        with out:
            for chunk in member.chunks:
                total += len(chunk)
                limits.check(total, entries)
                out.write(chunk)
                if progress is not None:
                    progress(min(file.tell(), limits.packed_bytes), limits.packed_bytes)
        limits.check(total, entries)
        count += 1
    if not count:
        raise DataError(f"{limits.archive} contains no file. Fetch it again.")
    return count


def _make_temporary_folder(folder: Path) -> Path:
    """A new folder on the disk of ``folder``: beside it, or in it if it is a mount point."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = not folder.exists() or folder.stat().st_dev == folder.parent.stat().st_dev
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.parent if beside else folder))
    mask = os.umask(0)
    os.umask(mask)
    made.chmod(0o777 & ~mask)
    return made


def _move_into_place(temporary: Path, folder: Path, archive: Path) -> None:
    """Move the content of ``temporary`` into ``folder``; undo it if a file with the same name exists."""
    if not folder.exists():
        temporary.rename(folder)
        return
    moved: list[tuple[Path, Path]] = []
    try:
        _merge_folders(temporary, folder, moved, archive)
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def _merge_folders(source: Path, target: Path, moved: list[tuple[Path, Path]], archive: Path) -> None:
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _merge_folders(path, place, moved, archive)
        elif os.path.lexists(place):
            raise DataError(f"{archive}: {place} exists already. Files are not overwritten: remove it first.")
        else:
            path.rename(place)
            moved.append((path, place))
