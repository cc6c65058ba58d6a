"""Hashes of a source's images, labels and classes, to check on resume that the training data is unchanged.

Parsed labels (boxes, classes, cameras, masks of a JSON) are hashed completely, after parsing, so a file that is only
moved, reformatted or has a new date is unchanged. Of files that are read later (segmentation masks, depth maps), the
names and sizes are hashed, and the bytes of an evenly spaced selection.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perception.files.index_cache import MappedBytes

READ = 64
"""Files of one source with hashed bytes: the first and the last 64 kB of each."""
_CHUNK_BYTES = 1 << 16
_PART_BYTES = 1 << 24


class Fingerprint:
    """Hash over values of readers. Paths are relative to ``root``, so a data set may be moved.

    Of the files in ``image_paths`` only the names are hashed.
    """

    def __init__(self, root: Path, image_paths: Collection[Path] = ()) -> None:
        self._hash, self._root, self._image_paths = hashlib.sha256(), str(root) + os.sep, image_paths
        self._files: set[str] = set()

    def add(self, value: Any, seen: tuple[int, ...] = ()) -> None:
        """Add a value of any type; containers and objects of this package are added by content.

        ``seen`` has the ids of the enclosing objects, to stop at cycles.
        """
        if isinstance(value, Path):
            self._add_path(value)
        elif isinstance(value, str):
            self._update_hash("str", f"{value}{os.sep}".replace(self._root, "").encode("utf-8", "surrogatepass"))
        elif isinstance(value, np.ndarray):
            self._update_hash(f"{value.dtype.str}{value.shape}", np.ascontiguousarray(value).data)
        elif isinstance(value, MappedBytes):
            for start in range(0, len(value), _PART_BYTES):
                self._update_hash("bytes", value.read(start, min(len(value), start + _PART_BYTES)))
        elif isinstance(value, (int, float, complex, bytes, bool, type(None), np.generic)):
            self._update_hash(type(value).__name__, repr(value).encode("utf-8", "surrogatepass"))
        elif id(value) in seen:
            self._update_hash("again")
        elif isinstance(value, Mapping):
            self._update_hash(f"mapping {len(value)}")
            for key in sorted(value, key=self._sort_key):
                self.add(key, (*seen, id(value)))
                self.add(value[key], (*seen, id(value)))
        elif isinstance(value, (list, tuple)):
            self._update_hash(f"list {len(value)}")
            if value and all(type(item) in (str, int, float, bool, tuple) for item in value) and _is_plain(value):
                self._update_hash("plain", repr(value).encode("utf-8", "surrogatepass"))
            else:
                for item in value:
                    self.add(item, (*seen, id(value)))
        elif isinstance(value, (set, frozenset)):
            self.add(sorted(value, key=self._sort_key), seen)
        elif type(value).__module__.startswith("perception."):
            self._update_hash(type(value).__name__)
            self.add(_collect_attributes(value), (*seen, id(value)))
        else:
            self._update_hash(type(value).__name__)

    def hexdigest(self) -> str:
        """Return the hash, including the sizes of all added files and the bytes of some."""
        files = sorted(self._files)
        self.add([_file_size(path) for path in files])
        for path in files[:: max(1, -(-len(files) // READ))]:
            self._update_hash("content", _read_ends(path))
        return self._hash.hexdigest()

    def _sort_key(self, key: object) -> str:
        return self._relative_path(key) if isinstance(key, Path) else repr(key)

    def _relative_path(self, path: Path) -> str:
        text = f"{path}{os.sep}"
        return text.removeprefix(self._root) if text.startswith(self._root) else path.name

    def _add_path(self, path: Path) -> None:
        self._update_hash("path", self._relative_path(path).encode("utf-8", "surrogatepass"))
        if f"{path}{os.sep}" == self._root:  # the data root itself: it does not describe labels
            return
        if path.is_dir():  # files in it are found by name
            self._files |= {entry.path for entry in os.scandir(path) if Path(entry.path) not in self._image_paths}
        elif path not in self._image_paths:
            self._files.add(str(path))

    def _update_hash(self, kind: str, content: bytes | memoryview = b"") -> None:
        self._hash.update(f"{kind} {len(content)}\n".encode())
        self._hash.update(content)


def collect_labels(reader: object) -> dict[str, Any]:
    """Return the label data of a reader, without its config, images and counted problems."""
    return {
        key: value for key, value in _collect_attributes(reader).items() if key not in ("config", "images", "problems")
    }


def _collect_attributes(value: object) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def _is_plain(values: Iterable[Any]) -> bool:
    """Whether the values, or the items of their tuples, are only numbers and texts."""
    return all(not isinstance(v, tuple) or all(type(x) in (str, int, float, bool) for x in v) for v in values)


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size if not os.path.isdir(path) else -1  # noqa: PTH112, PTH116 - faster for many files
    except OSError:
        return -2


def _read_ends(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            start = file.read(_CHUNK_BYTES)
            file.seek(max(len(start), os.fstat(file.fileno()).st_size - _CHUNK_BYTES))
            return start + file.read(_CHUNK_BYTES)
    except OSError:
        return b""
