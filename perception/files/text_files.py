"""Small text files of labels, calibrations and lists, read without trusting them."""

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
    """The content of a text file in UTF-8, or in UTF-16 with a byte order mark; the mark is dropped.

    Raises DataError where it is missing, no plain file, over ``limit`` bytes, in neither, or holds a NUL.
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
        raise DataError(f"{path} holds a NUL at byte {at}. Expected plain text: fetch the file again.")
    return text


def check_text_file(path: Path, limit: int = MAX_LABEL_BYTES) -> None:
    """Raise DataError where a file is missing, no plain file, or over ``limit`` bytes, without reading it."""
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or correct the folder in the recipe.") from error
    if not stat.S_ISREG(state.st_mode):
        raise DataError(f"{path} is no file. Expected a text file: restore it, or correct the folder in the recipe.")
    if state.st_size > limit:
        raise DataError(
            f"{path} has {state.st_size} bytes. Expected a text file of at most {limit}: it is something else."
        )


def iterate_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, words) of the lines that are not blank."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words:
            yield number, words


def parse_floats(words: Sequence[str], where: str, expected: str) -> list[float]:
    """Words as numbers; NaN and infinities are numbers. Raises DataError at ``where`` where one is no number."""
    try:
        if "_" in "".join(words):  # Python's own 1_000
            raise ValueError
        return [float(word) for word in words]
    except ValueError:
        raise DataError(f"{where}: {' '.join(words)[:80]!r} are not all numbers. Expected {expected}.") from None


def list_files(folder: Path, suffix: str, root: Path | None = None) -> dict[Path, str]:
    """The files under a folder (resolved) that end in ``suffix`` -> their paths under it: see `list_files_under`."""
    return list_files_under(folder, (suffix,), root)


def list_folder_files(folder: Path, boundary: Path, suffix: str) -> dict[str, Path]:
    """Name without ``suffix`` -> file, of the files directly in a folder under ``boundary`` (both resolved).

    Hidden files are left out. Empty where there is no such folder. Raises DataError where the folder, or a link in it,
    leads out of ``boundary``, and where a name that ends in ``suffix`` is a folder, a pipe or a device. Without a
    ``suffix`` all files are given, and folders left out.
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
                raise DataError(f"{path} is no plain file. Expected one of that name: remove it.")
            found[entry.name.removesuffix(suffix)] = path
    return found
