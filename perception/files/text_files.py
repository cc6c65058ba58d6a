"""Safe reading of small text files: labels, calibrations and lists."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from perception.files.folders import list_files_under, resolve_inside
from perception.files.strict_json import detect_encoding
from perception.types import DataError

MAX_LABEL_BYTES = 16 << 20
MAX_LIST_BYTES = 256 << 20


def read_text(path: Path, limit: int = MAX_LABEL_BYTES) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark. The mark is dropped.

    Raises:
        DataError: it is missing, not a regular file, larger than ``limit`` bytes, in another encoding, or has a NUL.
    """
    check_text_file(path, limit)
    try:
        with path.open("rb") as file:
            data = file.read(limit)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    encoding = detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        raise DataError(f"{path} is not {name} at byte {error.start}: {error.reason}. Save it as UTF-8.") from error
    if "\0" in text:
        at = len(text[: text.index("\0")].encode())
        raise DataError(f"{path} has a NUL at byte {at}. Expected plain text: fetch the file again.")
    return text


def check_text_file(path: Path, limit: int = MAX_LABEL_BYTES) -> None:
    """Raise DataError if a file is missing, not a regular file, or larger than ``limit`` bytes, without reading it."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or correct the folder in the recipe.") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{path} is not a file. Expected a text file: restore it, or correct the folder in the recipe.")
    if state.st_size > limit:
        raise DataError(
            f"{path} has {state.st_size} bytes. Expected a text file of at most {limit}: this is another file."
        )


def iterate_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, words) for the lines that are not blank."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words:
            yield number, words


def parse_floats(words: Sequence[str], where: str, expected: str) -> list[float]:
    """Convert words to numbers, including NaN and infinities. Raises DataError for other words."""
    try:
        if "_" in "".join(words):  # Python would accept 1_000
            raise ValueError
        return [float(word) for word in words]
    except ValueError:
        raise DataError(f"{where}: {' '.join(words)[:80]!r} are not all numbers. Expected {expected}.") from None


def list_files(folder: Path, suffix: str, root: Path | None = None) -> dict[Path, str]:
    """List the files under a resolved folder that end in ``suffix``; see `list_files_under`."""
    return list_files_under(folder, (suffix,), root)


def list_folder_files(folder: Path, boundary: Path, suffix: str) -> dict[str, Path]:
    """List the files directly in a folder. Hidden files are skipped.

    Args:
        folder: resolved path.
        boundary: resolved folder that ``folder`` and links in it must stay in.
        suffix: end of the names. If it is empty, all files are listed and folders are skipped.

    Returns:
        Name without ``suffix`` -> file. Empty if the folder does not exist.

    Raises:
        DataError: a path is outside of ``boundary``, or a name with ``suffix`` is a folder, a pipe or a device.
    """
    if folder != boundary:
        folder = resolve_inside(boundary, os.path.relpath(folder, boundary).replace(os.sep, "/"), str(boundary))
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}. Check the disk and the permissions.") from error
    found = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        if entry.name.endswith(suffix) and not entry.name.startswith("."):
            linked = entry.is_symlink()
            path = (
                resolve_inside(boundary, os.path.relpath(entry.path, boundary), entry.path)
                if linked
                else Path(entry.path)
            )
            if not (path.is_file() if linked else entry.is_file()) and path.exists():
                if not suffix and path.is_dir():
                    continue
                raise DataError(f"{path} is not a regular file. Expected a regular file of that name: remove it.")
            found[entry.name.removesuffix(suffix)] = path
    return found
