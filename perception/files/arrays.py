"""Safe reading of arrays from .npy and .npz files. Their headers are checked."""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from perception.files.image_headers import MAX_BYTES, MAX_PIXELS
from perception.files.strict_json import quote_value
from perception.types import DataError

ARRAY_SUFFIXES = (".npy", ".npz")

_READ_ERRORS = (
    ValueError, KeyError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError,
    tokenize.TokenError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors of numpy and zipfile for invalid files."""

_EXPECTED = "Expected a plain array of numbers; save it again with numpy.save."
_MAX_ARRAYS = 10_000


def read_array(path: Path, name: str | None = None, channels: int = 4) -> NDArray:
    """Read a plain array of numbers with 1 to 3 axes. Pickles are refused.

    The header is checked before memory is allocated.

    Args:
        path: a .npy or .npz.
        name: array of a .npz; None = the only one.
        channels: largest number of values per pixel, with at most `MAX_PIXELS` pixels and `MAX_BYTES` bytes.

    Raises:
        DataError: the file is missing, damaged, too large, or not such an array.
    """
    if not path.is_file():
        raise DataError(f"No array at {path}. Restore the file.")
    try:
        size = path.stat().st_size
        if path.suffix.lower() != ".npz":
            with path.open("rb") as file:
                return _read_npy(file, size, str(path), channels)
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size / 1e9:.1f} GB. Expected at most {MAX_BYTES / 1e9} GB.")
        with zipfile.ZipFile(path) as archive:
            member = _find_member(archive, path, name)
            with archive.open(member) as file:
                return _read_npy(file, member.file_size, f"{path}, array {quote_value(member.filename[:-4])}", channels)
    except _READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {error}. {_EXPECTED}") from error


def read_map_array(path: Path, name: str | None = None) -> NDArray:
    """Read an array [H, W] of one number per pixel; other axes of length 1 are dropped. Raises DataError."""
    stored = read_array(path, name, channels=1)
    for axis in (2, 0):
        if stored.ndim == 3 and stored.shape[axis] == 1:
            stored = stored.squeeze(axis)
    if stored.ndim != 2:
        raise DataError(f"{path} is {stored.dtype} {stored.shape}. Expected one number per pixel, [H, W].")
    return stored


def _find_member(archive: zipfile.ZipFile, path: Path, name: str | None) -> zipfile.ZipInfo:
    arrays = {member.filename[:-4]: member for member in archive.infolist() if member.filename.endswith(".npy")}
    names = ", ".join(quote_value(key) for key in list(arrays)[:20]) or "none"
    if name is None and len(arrays) != 1:
        raise DataError(f"{path} holds {len(arrays)} arrays: {names}. Choose one: array_name: ...")
    found = next(iter(arrays)) if name is None else name
    if found not in arrays:
        raise DataError(f"{path} has no array '{found}'. Found: {names}. Correct array_name: ...")
    return arrays[found]


def _read_npy(file: IO[bytes], size: int, where: str, channels: int) -> NDArray:
    version = np.lib.format.read_magic(file)
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with warnings.catch_warnings():  # for headers from Python 2
        warnings.simplefilter("ignore")
        shape, by_column, kind = readers[version](file)
    held = size - file.tell()
    if kind.hasobject:
        raise DataError(f"{where} cannot be read: it holds pickled objects. {_EXPECTED}")
    count = math.prod(shape)
    if kind.kind not in "fiub" or len(shape) > 3 or min(shape, default=0) < 1:
        raise DataError(f"{where} is {kind} {shape}. {_EXPECTED}")
    if held != count * kind.itemsize:
        raise DataError(f"{where} is {kind} {shape} by its header, but has {held} bytes. It is damaged. {_EXPECTED}")
    if count > channels * MAX_PIXELS or held > MAX_BYTES:
        raise DataError(
            f"{where} is {kind} {shape} by its header, {held / 1e9:.1f} GB. At most {MAX_PIXELS // 10**6} Mpx are "
            "read. Scale or tile it first."
        )
    data = np.frombuffer(file.read(held), kind)
    if data.size != count:
        raise DataError(f"{where} changed while it was read. Read it again.")
    return data.reshape(shape, order="F" if by_column else "C")
