"""Files of a data set in YOLO's layout: images and their label files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perception.data.formats.yolo_data import YoloDataFile
from perception.files.folders import find_boundary, find_present_files, list_images, require_folder
from perception.files.images import IMAGE_SUFFIXES
from perception.files.text_files import MAX_LIST_BYTES, list_folder_files, read_text
from perception.types import DataError


@dataclass(frozen=True, slots=True)
class YoloImage:
    """An image of the data set.

    Attributes:
        path: path with links resolved.
        given_path: path from its name in the data set, links not resolved.
    """

    path: Path
    given_path: Path


class YoloTree:
    """Resolver of the paths in a data.yaml.

    A path that does not exist is tried as a Windows path, then as a path from another computer: without its first
    folders, as long as two parts or the split's name remain.

    Attributes:
        path: the data.yaml.
        base_folder: folder that the paths start from: the YAML's ``path``, relative to its folder or to the data root;
            or ``override``.
        boundary: resolved folder that contains all files: the data root, or ``override`` if that is outside of it.

    Raises:
        DataError: a path does not exist or leads out of ``boundary``.
    """

    def __init__(self, path: Path, content: YoloDataFile, root: Path, override: str | None = None) -> None:
        self.path, self._content = path, content
        self.boundary = Path(os.path.realpath(root))
        if override is not None:
            self.base_folder = require_folder(root, override, "the data set")
            self.boundary = find_boundary(self.base_folder, root)
            return
        beside, given = Path(os.path.realpath(path.parent)), content.path
        places = [folder / name for name in (given, _to_posix(given)) for folder in (beside, self.boundary)]
        self.base_folder = self._find_existing(places, f"path: {given}")

    def is_folder_split(self, split: str) -> bool:
        """Return whether a split consists of all images in its folders."""
        return not any(name.endswith(".txt") for name in self._content.splits.get(split, ()))

    def find_images(self, split: str, max_missing: float, problems: Counter[str]) -> list[YoloImage]:
        """Find the images of a split, each once, in the order of the YAML, then by name. Raises DataError."""
        if split not in self._content.splits:
            known = ", ".join(self._content.splits) or "none of train, val, test"
            raise DataError(f"{self.path} has no '{split}'. Found: {known}. Correct split in the recipe.")
        found: dict[Path, YoloImage] = {}
        for name in self._content.splits[split]:
            beside = name.removeprefix("../")  # Roboflow writes ../train/images for train/images next to the YAML
            moved = (_strip_folders(name, cut) for cut in range(_to_posix(name).count("/") + 1))
            names = (name, beside, *(each for each in moved if "/" in each or split in each))
            place = self._find_existing([self.base_folder / each for each in names], f"{split}: {name}")
            pictures = (
                self._read_image_list(place, max_missing, problems)
                if os.path.isfile(place)  # noqa: PTH113
                else self._list_folder(place)
            )
            for picture in pictures:
                found.setdefault(picture.path, picture)
        return list(found.values())

    def _find_existing(self, places: Sequence[Path], what: str) -> Path:
        """The first path that exists under the boundary; with links resolved if it reaches the boundary through one."""
        leads = ""
        for place in dict.fromkeys(Path(os.path.normpath(place)) for place in places):
            real = Path(os.path.realpath(place))
            if os.path.exists(real):  # noqa: PTH110 - returns false, not an error, for names that no file can have
                if real.is_relative_to(self.boundary):
                    return place if place.is_relative_to(self.boundary) else real
                leads = f" It leads out of {self.boundary}, to {real}."
        raise DataError(
            f"{self.path}: '{what:.200}' is not a file or folder under {self.boundary}.{leads} Correct it in the file, "
            "or give this reader path: ... in the recipe, the folder that the paths start from."
        )

    def _read_image_list(self, path: Path, max_missing: float, problems: Counter[str]) -> list[YoloImage]:
        """Existing images of a list. Relative lines start at its folder, the data set's folder or the data root."""
        lines = [line.strip() for line in read_text(path, MAX_LIST_BYTES).splitlines() if line.strip()]
        for line in lines:
            if Path(line).suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(f"{path}: {line[:100]!r} is not an image. Expected the path of an image on every line.")
        base, lines = self._find_base(lines, path.parent)
        named = [Path(os.path.normpath(base / line)) for line in lines]
        folders = {at: self._list_files(at, path) for at in {picture.parent for picture in named}}
        paths = [folders[picture.parent].get(picture.name, picture) for picture in named]
        there = find_present_files(paths, base, str(path), max_missing, problems)
        return [YoloImage(real, name) for real, name, exists in zip(paths, named, there, strict=True) if exists]

    def _find_base(self, lines: list[str], folder: Path) -> tuple[Path, list[str]]:
        """The folder that the lines of a list start from, and the corrected lines."""
        bases = dict.fromkeys((folder, self.base_folder, self.boundary))
        for cut in (None, *range(max((line.count("/") + line.count("\\") for line in lines[:20]), default=0))):
            read = (lambda line: line) if cut is None else partial(_strip_folders, cut=cut)
            base = next((b for b in bases if any(os.path.exists(b / read(line)) for line in lines[:20])), None)  # noqa: PTH110
            if base is not None:
                return base, [read(line) for line in lines]
        return folder, lines

    def _list_folder(self, place: Path) -> list[YoloImage]:
        pictures = list_images(Path(os.path.realpath(place)), root=self.boundary)
        return [YoloImage(path, place / name) for path, name in pictures.items()]

    def _list_files(self, folder: Path, path: Path) -> dict[str, Path]:
        """The files of a folder that the list ``path`` contains."""
        real = Path(os.path.realpath(folder))
        if not real.is_relative_to(self.boundary):
            raise DataError(
                f"{path} lists images in {folder}, which leads out of {self.boundary}. Move them into it, or give "
                "this reader path: ... in the recipe."
            )
        return list_folder_files(real, self.boundary, "")


def _to_posix(name: str) -> str:
    """A Windows path as a POSIX path, without the drive letter."""
    path = name.replace("\\", "/")
    return path[2:] if path[1:3] == ":/" else path


def _strip_folders(name: str, cut: int) -> str:
    """A path of another system or computer, without its first ``cut`` folders."""
    parts = [part for part in _to_posix(name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts[min(cut, len(parts) - 1) :])


def find_label_files(
    images: Sequence[YoloImage], boundary: Path, problems: Counter[str], complete: bool = False
) -> list[Path | None]:
    """Find the label file of every image; None if it has none.

    Args:
        images: images of the data set.
        boundary: resolved folder that must contain the label files.
        problems: counter of label files without an image; changed in place.
        complete: ``images`` has all images of their folders. Then a label file without an image is a problem, except
            ``classes.txt`` (a tool's list of names).

    Raises:
        DataError: no image has a label file, or a label file is outside ``boundary``.
    """
    wanted = [_label_path(picture.given_path, boundary) for picture in images]
    folders = {at: list_folder_files(at, boundary, ".txt") for at in {path.parent for path in wanted}}
    found = [folders[path.parent].get(path.stem) for path in wanted]
    missing = sum(path is None for path in found)
    if missing == len(found):
        raise DataError(
            f"None of the {len(found)} images has a label file: {images[0].path} should have {wanted[0]}. Put the "
            "label files there. An empty label file means that the image has no objects."
        )
    if complete:
        used = {(path.parent, path.stem) for path in wanted}
        odd = sum((at, stem) not in used for at, files in folders.items() for stem in files if stem != "classes")
        if odd:
            problems["label files without an image"] += odd
    return found


def _label_path(image_path: Path, boundary: Path) -> Path:
    """YOLO's label file of an image: with ``labels`` for the last folder ``images``, or in the image's folder."""
    parts = list(image_path.relative_to(boundary).parts)
    at = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] == "images"), None)
    if at is not None:
        parts[at] = "labels"
    return boundary.joinpath(*parts).with_suffix(".txt")
