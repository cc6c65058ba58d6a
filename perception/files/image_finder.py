"""Finding the image that a label file names: by its path, or by its base name where a tool wrote paths of its own."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from perception.files.folders import find_boundary, list_images, resolve_inside
from perception.files.images import IMAGE_SUFFIXES
from perception.files.strict_json import quote_value
from perception.types import DataError

ImageNaming: TypeAlias = Literal["path", "base"]

BASE_NAMES_HINT = " Where the names are right but for their folders, give this reader match_by: base."

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an image that was uploaded."""


class ImageFinder:
    """Where under a folder (resolved) the images are that a label file names.

    by: "path" takes names as paths from the folder on. "base" takes the last part of a path of any system or of an
        address, and finds the one image of that name at any depth: ``..\\upload\\a.jpg``, ``C:\\a.jpg``,
        ``https://host/a.jpg?key``, ``a%20b.jpg`` for ``a b.jpg``, ``upload/3/0123abcd-a.jpg`` for ``a.jpg``
    """

    def __init__(self, folder: Path, root: Path, naming: ImageNaming) -> None:
        self.folder, self._naming = folder, naming
        self._root, self._boundary = root, find_boundary(folder, root)
        self.hint = BASE_NAMES_HINT if naming == "path" else ""

    def find(self, name: str, where: str) -> Path:
        """The resolved path of an image, whether or not it exists.

        Raises DataError where a name is none or leads out, and where several images have it (``base``).
        """
        if self._naming == "path":
            try:
                return resolve_inside(self.folder, self._strip_own_folder(name), where, self._boundary)
            except DataError as error:
                raise DataError(f"{error}{self.hint}") from None
        candidates = list(_list_base_names(name))
        for candidate in candidates:
            found = self._images_by_name[os.path.splitext(candidate)[1].lower() in IMAGE_SUFFIXES].get(candidate, [])  # noqa: PTH122
            if len(found) > 1:
                raise DataError(
                    f"{where}: {quote_value(name)} may be {found[0]} or {found[1]}. "
                    "Expected images of different base "
                    "names: rename one, or take match_by: path."
                )
            if found:
                return found[0]
        return resolve_inside(self.folder, candidates[0], where, self._boundary)

    def _strip_own_folder(self, name: str) -> str:
        """A path that starts with the folder's own name, as seen from the folder."""
        first, slash, rest = name.partition("/")
        own = slash and rest and first == self.folder.name
        return rest if own and not os.path.lexists(self.folder / first) else name

    @cached_property
    def _images_by_name(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Base name without its extension -> images, base name -> images."""
        found: tuple[dict[str, list[Path]], dict[str, list[Path]]] = {}, {}
        for path, name in list_images(self.folder, root=self._root).items():
            base = unicodedata.normalize("NFC", name.rpartition("/")[2])
            for names, key in zip(found, (base.rpartition(".")[0], base), strict=True):
                names.setdefault(key, []).append(path)
        return found


def _list_base_names(name: str) -> Iterator[str]:
    """What an image may be called that a tool knows as ``name``, the likeliest first."""
    if "://" in name and "?d=" not in name:
        with contextlib.suppress(ValueError):  # an address of an impossible host
            name = urlsplit(name).path or name
    base = unicodedata.normalize("NFC", name.partition("?d=")[2] or name).replace("\\", "/").rpartition("/")[2]
    for candidate in dict.fromkeys((base, unquote(base))):
        yield candidate
        yield candidate.rpartition("/")[2]
        yield _UPLOAD.sub("", candidate, count=1)
