"""The files of a data set in YOLO's layout: what its ``data.yaml`` says, its pictures, their label files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.config import load_yaml
from perception.data.files.folders import existing_folder, list_pictures, present
from perception.data.files.images import PICTURE_SUFFIXES
from perception.data.files.text_files import MAX_LIST_BYTES, files_in, read_text
from perception.types import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Named:
    """A picture: its path without links, and the path that its name in the data set gives, links and all."""

    path: Path
    named: Path


@dataclass(frozen=True, slots=True)
class DataFile:
    """What a ``data.yaml`` says.

    names:     class names in the order of their ids
    splits:    "train", "val", "test" -> folders and lists of pictures; absent where empty
    path:      the folder they start from, as it is written; "" where none is given
    keypoints: numbers of a pose after the box on every line
    """

    names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    path: str
    keypoints: int


def read_data_file(path: Path) -> DataFile:
    """A ``data.yaml``. Other keys (``download`` among them) are not looked at. Raises DataError."""
    try:
        content = load_yaml(path)
    except (ConfigError, OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is no YOLO data file: {error}") from error
    splits = {}
    for split, key in (("train", "train"), ("val", "validation"), ("val", "val"), ("test", "test")):
        value = content.get(key)
        if value not in (None, "", []):
            splits[split] = _texts(value, f"{path}: '{key}'")
    start = content.get("path")
    if not isinstance(start, (str, type(None))) or "\0" in (start or ""):
        raise DataError(f"{path}: 'path' is {start!r:.80}. Expected a folder.")
    return DataFile(_names(content, path), splits, start or "", _keypoints(content.get("kpt_shape"), path))


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item and "\0" not in item for item in values):
        raise DataError(f"{where} is {str(value)[:80]}. Expected a folder, a list of folders, or a .txt list.")
    return tuple(values)


def _names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Class names in the order of their ids."""
    names, count = content.get("names"), content.get("nc")
    if count is not None and (type(count) is not int or not 0 < count < 1 << 16):
        raise DataError(f"{path}: 'nc' is {str(count)[:40]}. Expected the number of classes.")
    if names is None and count is not None:
        names = [f"class_{i}" for i in range(count)]
    if isinstance(names, dict):
        ids = {int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in names}
        if not all(type(id) is int for id in ids) or ids != set(range(len(names))):
            raise DataError(
                f"{path}: the ids in 'names' are {str(list(names))[:80]}. Expected 0, 1, 2, ... without gap."
            )
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' is {str(names)[:80]}. Expected the list of class names.")
    names = [str(name) if type(name) is int else name for name in names]
    wrong = next((name for name in names if not isinstance(name, str) or not name), None)
    if wrong is not None or not all(names):
        raise DataError(f"{path}: a class is called {wrong!r:.60} in 'names'. Expected text: put it in quotes.")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{path}: the class name {twice!r:.60} is given twice in 'names'. Rename one.")
    if count is not None and count != len(names):
        raise DataError(f"{path}: 'nc' is {count}, but 'names' has {len(names)}. Correct one of them.")
    return tuple(names)


def _keypoints(shape: Any, path: Path) -> int:
    if shape is None:
        return 0
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)
        and 1 <= shape[0] <= 10_000 and shape[1] in (2, 3)
    ):  # fmt: skip
        raise DataError(f"{path}: 'kpt_shape' is {str(shape)[:40]}. Expected [number of keypoints, 2 or 3].")
    return shape[0] * shape[1]


class YoloTree:
    """Where the paths of a data.yaml lead.

    start:    folder that they start from: ``path`` seen from the YAML's folder or from the data root, or ``override``
    boundary: folder (resolved) that nothing leads out of: the data root, or ``override``

    Raises DataError where a path leads out or to nothing.
    """

    def __init__(self, path: Path, content: DataFile, root: Path, override: str | None = None) -> None:
        self.path, self._content = path, content
        self.boundary = Path(os.path.realpath(root))
        if override is not None:
            self.start = self.boundary = existing_folder(root, override, "the data set")
            return
        beside = Path(os.path.realpath(path.parent))
        self.start = self._existing([beside / content.path, self.boundary / content.path], f"path: {content.path}")

    def names_folders(self, split: str) -> bool:
        """Whether the pictures of a split are all that is in some folders."""
        return not any(name.endswith(".txt") for name in self._content.splits.get(split, ()))

    def pictures(self, split: str, allow_missing: float, problems: Counter[str]) -> list[Named]:
        """The pictures of a split, each once, in the order of the YAML and then by name."""
        if split not in self._content.splits:
            known = ", ".join(self._content.splits) or "none of train, val, test"
            raise DataError(f"{self.path} has no '{split}'. Found: {known}. Correct split in the recipe.")
        found: dict[Path, Named] = {}
        for name in self._content.splits[split]:
            beside = name.removeprefix("../")  # Roboflow writes ../train/images for train/images beside the YAML
            place = self._existing([self.start / name, self.start / beside], f"{split}: {name}")
            pictures = self._listed(place, allow_missing, problems) if os.path.isfile(place) else _folder(place)  # noqa: PTH113
            for picture in pictures:
                found.setdefault(picture.path, picture)
        return list(found.values())

    def _existing(self, places: Sequence[Path], what: str) -> Path:
        """The first of some paths that exists under the boundary, without links where it leads through one."""
        leads = ""
        for place in dict.fromkeys(Path(os.path.normpath(place)) for place in places):
            real = Path(os.path.realpath(place))
            if os.path.exists(real):  # noqa: PTH110 - false, not an error, for names that no file can have
                if real.is_relative_to(self.boundary):
                    return place if place.is_relative_to(self.boundary) else real
                leads = f" It leads out of {self.boundary}, to {real}."
        raise DataError(
            f"{self.path}: '{what:.200}' is no file or folder under {self.boundary}.{leads} Correct it there, or give "
            "this reader path: ... in the recipe, the folder that the paths start from."
        )

    def _listed(self, path: Path, allow_missing: float, problems: Counter[str]) -> list[Named]:
        """The pictures of a text file that exist. Relative lines start at its folder, the data set's, or the root."""
        lines = [line.strip() for line in read_text(path, MAX_LIST_BYTES).splitlines() if line.strip()]
        for line in lines:
            if Path(line).suffix.lower() not in PICTURE_SUFFIXES:
                raise DataError(f"{path}: {line[:100]!r} is no picture. Expected the path of a picture on every line.")
        bases = (path.parent, self.start, self.boundary)
        base = next((b for b in bases if any(os.path.exists(b / line) for line in lines[:20])), path.parent)  # noqa: PTH110
        named = [Path(os.path.normpath(base / line)) for line in lines]
        folders = {at: self._files(at, path) for at in {picture.parent for picture in named}}
        paths = [folders[picture.parent].get(picture.name, picture) for picture in named]
        there = present(paths, base, str(path), allow_missing, problems)
        return [Named(real, name) for real, name, exists in zip(paths, named, there, strict=True) if exists]

    def _files(self, folder: Path, path: Path) -> dict[str, Path]:
        """The files of a folder that the list ``path`` names."""
        real = Path(os.path.realpath(folder))
        if not real.is_relative_to(self.boundary):
            raise DataError(
                f"{path} names pictures in {folder}, which leads out of {self.boundary}. Put them under it, or give "
                "this reader path: ... in the recipe."
            )
        return files_in(real, self.boundary, "")


def _folder(place: Path) -> list[Named]:
    real = Path(os.path.realpath(place))
    return [Named(path, place / path.relative_to(real)) for path in list_pictures(real)]


def label_files(
    pictures: Sequence[Named], boundary: Path, problems: Counter[str], whole: bool = False
) -> list[Path | None]:
    """The label file of every picture, None where there is none.

    whole: the pictures are all that their folders hold, so that other label files have lost theirs (``classes.txt``
    is a tool's list of names)
    Raises DataError where no picture has one, and where one is outside ``boundary``.
    """
    wanted = [_label(picture.named, boundary) for picture in pictures]
    folders = {at: files_in(at, boundary, ".txt") for at in {path.parent for path in wanted}}
    found = [folders[path.parent].get(path.stem) for path in wanted]
    missing = sum(path is None for path in found)
    if missing == len(found):
        raise DataError(
            f"None of the {len(found)} pictures has a label file: {pictures[0].path} should have {wanted[0]}. Put the "
            "label files there; an empty one says that its picture shows nothing."
        )
    if missing:
        problems["pictures without a label file, taken as empty"] += missing
    if whole:
        used = {(path.parent, path.stem) for path in wanted}
        odd = sum((at, stem) not in used for at, files in folders.items() for stem in files if stem != "classes")
        if odd:
            problems["label files without a picture"] += odd
    return found


def _label(named: Path, boundary: Path) -> Path:
    """Where YOLO keeps the labels of a picture: in ``labels`` instead of the last folder ``images``, or beside it."""
    parts = list(named.relative_to(boundary).parts)
    at = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] == "images"), None)
    if at is not None:
        parts[at] = "labels"
    return boundary.joinpath(*parts).with_suffix(".txt")
