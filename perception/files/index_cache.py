"""Cache of parsed label files as arrays. The key is the content of the label files.

The folder is ``$PERCEPTION_CACHE`` (empty: no cache), else ``$XDG_CACHE_HOME/perception``, else
``~/.cache/perception``. An entry is an uncompressed .npz without pickles. Its check sums are verified when it is read,
and a damaged entry is replaced. It is always safe to delete the folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import hash_file
from perception.files.strict_json import MAX_JSON_BYTES as MAX_FILE_BYTES
from perception.types import DataError

logger = logging.getLogger(__name__)

MIN_CACHED_BYTES = 1_000_000
"""Files with a smaller total size are not cached: parsing them is as fast."""

MAX_CACHE_BYTES = 2_000_000_000
"""Maximum size of the cache. Above it, the least recently used entries are removed."""

_FORMAT = "perception index 1"
_NAMES_KEY = "names of the arrays"
_CHUNK_BYTES = 1 << 20
_STALE_SECONDS = 86_400
"""Seconds after which an unfinished file counts as left over from a killed process."""


def load_or_build(kind: str, files: Sequence[Path], build: Callable[[], dict[str, NDArray]]) -> dict[str, NDArray]:
    """Return the result of ``build()``, from the cache if the same content was parsed before.

    If the cache cannot be read or written, ``build`` is called. The cache itself raises no errors.

    Args:
        kind: name of the format with a version ("coco 1"). Entries are never shared between kinds.
        files: the label files that ``build`` reads. Their content in this order is the key, their names are not.
        build: parses AND validates the files, raises for errors, and returns arrays of numbers. The arrays must not
            depend on the recipe or on the paths of the files.

    Returns:
        Arrays, possibly read-only. Large uint8 arrays stay in their file (`numpy.memmap`, see `MappedBytes`).
    """
    folder, before = _find_cache_folder(), _stat_files(files)
    if folder is None or before is None or not MIN_CACHED_BYTES <= sum(size for size, _, _ in before) <= MAX_FILE_BYTES:
        return build()
    try:
        path = folder / f"{_hash_files(kind, files)}.npz"
    except OSError:
        return build()
    found = _load_entry(path)
    if found is not None:
        return found
    arrays = build()
    if _stat_files(files) != before:  # changed meanwhile: it is unknown which content was parsed
        return arrays
    _store_entry(path, arrays)
    return _load_entry(path) or arrays


def pack_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pack texts into arrays: (UTF-8 of all texts concatenated, offsets [N + 1])."""
    return pack_bytes([text.encode("utf-8", "surrogatepass") for text in texts])


def unpack_texts(blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> list[str]:
    """Return the texts that were packed by `pack_texts`."""
    data, edges = bytes(blob), offsets.tolist()
    return [data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(edges)]


def pack_bytes(parts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Concatenate byte strings: (all parts, offsets [N + 1])."""
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), np.uint8), offsets


class MappedBytes:
    """A uint8 array that is read in slices. An array from the cache stays in its file and is pickled as a path."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        if isinstance(array, np.memmap) and array.filename is not None:
            self.__setstate__((str(array.filename), int(array.offset), len(array)))
        else:
            self.__setstate__((array.tobytes(), 0, len(array)))

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> bytes:
        """Read the bytes ``start`` to ``stop``. Raises DataError if the file of the cache is missing."""
        if isinstance(self._data_or_path, bytes):
            return self._data_or_path[start:stop]
        try:
            if self._file < 0:
                self._file = os.open(self._data_or_path, os.O_RDONLY)
            data = os.pread(self._file, stop - start, self._offset + start)
        except OSError as error:
            raise self._make_error(str(error)) from error
        if len(data) < stop - start:
            raise self._make_error("it is truncated")
        return data

    def _make_error(self, reason: str) -> DataError:
        return DataError(
            f"{self._data_or_path}, an index in the cache, can no longer be read: {reason}. "
            "Start again: the index is rebuilt."
        )

    def __getstate__(self) -> tuple[str | bytes, int, int]:
        return self._data_or_path, self._offset, self._length

    def __setstate__(self, state: tuple[str | bytes, int, int]) -> None:
        self._data_or_path, self._offset, self._length = state
        self._file = -1
        if isinstance(self._data_or_path, str):
            try:
                self._file = os.open(
                    self._data_or_path, os.O_RDONLY
                )  # an open file stays readable if the cache deletes it
            except OSError:
                self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)


def _find_cache_folder() -> Path | None:
    """The folder of the cache; None = no cache."""
    given, home = os.environ.get("PERCEPTION_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given is not None:
        return Path(given).absolute() if given and "\0" not in given else None
    try:
        return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "perception"
    except RuntimeError:  # no home
        return None


def _stat_files(files: Sequence[Path]) -> list[tuple[int, int, int]] | None:
    """(size, time, inode) of every file; None if one cannot be read."""
    try:
        states = [path.stat() for path in files]
    except (OSError, ValueError):
        return None
    return [(state.st_size, state.st_mtime_ns, state.st_ino) for state in states]


def _hash_files(kind: str, files: Sequence[Path]) -> str:
    key = hashlib.sha256(f"{_FORMAT}\n{kind}".encode())
    for path in files:
        key.update(hash_file(path))
    return key.hexdigest()[:40]


def _load_entry(path: Path) -> dict[str, NDArray] | None:
    """The arrays of an entry; None if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            arrays = {}
            for member in archive.infolist():
                with archive.open(member) as content:
                    while content.read(_CHUNK_BYTES):  # zipfile compares the check sum at the end
                        pass
                arrays[member.filename.removesuffix(".npy")] = _read_array(file, member)
        names = bytes(arrays.pop(_NAMES_KEY)).decode()
        if _join_names(arrays) != names:
            raise ValueError(f"it contains {_join_names(arrays)!r}, not {names!r}")
    except OSError:  # missing or unreadable; writing the entry reports the error
        return None
    except Exception as error:  # any content may be damaged in any way
        _warn_once(f"{path}, an index in the cache, is damaged and is rebuilt: {error!r}.")
        return None
    with suppress(OSError):
        os.utime(path)
    return arrays


def _read_array(file: BinaryIO, member: zipfile.ZipInfo) -> NDArray:
    """The array of a member; a large uint8 array is memory-mapped."""
    file.seek(member.header_offset + 26)
    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    start = member.header_offset + 30 + name + extra
    file.seek(start)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{member.filename} has an unsupported version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype == np.uint8 and len(shape) == 1 and shape[0] >= MIN_CACHED_BYTES:
        return np.memmap(file.name, np.uint8, "r", file.tell(), shape)
    file.seek(start)
    return np.lib.format.read_array(file, allow_pickle=False)


def _store_entry(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write an entry atomically and remove old ones."""
    assert all(array.dtype.kind in "biuf" for array in arrays.values()), "arrays of numbers only"
    if sum(array.nbytes for array in arrays.values()) > MAX_CACHE_BYTES:
        return
    names = {_NAMES_KEY: np.frombuffer(_join_names(arrays).encode(), np.uint8)}
    temporary = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            _write_arrays(file, {**arrays, **names})
        temporary.replace(path)
        _evict_entries(path)
    except OSError as error:
        _warn_once(
            f"The index cache in {path.parent} cannot be written. Label files are parsed at every start: {error}."
        )
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _write_arrays(file: BinaryIO, arrays: dict[str, NDArray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():  # numpy.savez would pickle and store the time
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), (1, 0), allow_pickle=False)


def _evict_entries(newest: Path) -> None:
    """Remove the least recently used entries and unfinished files."""
    entries = []
    for path in newest.parent.iterdir():
        with suppress(OSError):  # another process may remove it at the same time
            state = path.stat()
            if path.suffix == ".npz" and path != newest:
                entries.append((state.st_mtime, state.st_size, path))
            elif path.suffix == ".part" and state.st_mtime < time.time() - _STALE_SECONDS:
                path.unlink()
    total = newest.stat().st_size + sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= MAX_CACHE_BYTES:
            break
        with suppress(OSError):
            path.unlink()
        total -= size


def _join_names(arrays: dict[str, NDArray]) -> str:
    return "\n".join(sorted(arrays))


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Log a message once per process."""
    logger.warning("%s", message)
