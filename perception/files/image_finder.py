"""Search for the images named in label files: by path, or by base name if a tool wrote its own paths."""

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

BASE_NAMES_HINT = " If only the folders in the names are wrong, give this reader match_by: base."

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
"""Prefix that Label Studio adds to the name of an uploaded image."""


class ImageFinder:
    r"""Finds the images of a label file under a resolved folder.

    With the naming "path", names are paths relative to the folder. With "base", only the last part of a path or URL
    counts, and the image with this name is found at any depth. Examples: ``..\upload\a.jpg``, ``C:\a.jpg``,
    ``https://host/a.jpg?key``, ``a%20b.jpg`` for ``a b.jpg``, ``upload/3/0123abcd-a.jpg`` for ``a.jpg``.

    Attributes:
        folder: folder of the images.
        hint: text for errors that suggests match_by: base; empty with "base".
    """

    def __init__(self, folder: Path, root: Path, naming: ImageNaming) -> None:
        self.folder, self._naming = folder, naming
        self._root, self._boundary = root, find_boundary(folder, root)
        self.hint = BASE_NAMES_HINT if naming == "path" else ""

    def find(self, name: str, where: str) -> Path:
        """Return the resolved path of an image, which may not exist. ``where`` is for messages.

        Raises:
            DataError: the name is not valid or outside of the data, or several images have it ("base").
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
                    "Expected images with different base names: rename one, or use match_by: path."
                )
            if found:
                return found[0]
        return resolve_inside(self.folder, candidates[0], where, self._boundary)

    def _strip_own_folder(self, name: str) -> str:
        """The path without the folder's own name at its start."""
        first, slash, rest = name.partition("/")
        own = slash and rest and first == self.folder.name
        return rest if own and not os.path.lexists(self.folder / first) else name

    @cached_property
    def _images_by_name(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """(base name without extension -> images, base name -> images)."""
        found: tuple[dict[str, list[Path]], dict[str, list[Path]]] = {}, {}
        for path, name in list_images(self.folder, root=self._root).items():
            base = unicodedata.normalize("NFC", name.rpartition("/")[2])
            for names, key in zip(found, (base.rpartition(".")[0], base), strict=True):
                names.setdefault(key, []).append(path)
        return found


def _list_base_names(name: str) -> Iterator[str]:
    """Possible base names of the image that a tool wrote as ``name``, the most likely first."""
    if "://" in name and "?d=" not in name:
        with contextlib.suppress(ValueError):  # a URL with an invalid host
            name = urlsplit(name).path or name
    base = unicodedata.normalize("NFC", name.partition("?d=")[2] or name).replace("\\", "/").rpartition("/")[2]
    for candidate in dict.fromkeys((base, unquote(base))):
        yield candidate
        yield candidate.rpartition("/")[2]
        yield _UPLOAD.sub("", candidate, count=1)
