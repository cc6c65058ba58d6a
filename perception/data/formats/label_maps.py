"""A folder of label maps: one gray or palette PNG per picture, a class id per pixel, names in ``classes.txt``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.dataset import check_size
from perception.data.files.folders import existing_file, existing_folder, list_pictures, pair
from perception.data.files.images import read_map
from perception.data.files.text_files import read_text
from perception.data.formats.class_names import ClassMap, Coarse, Names, map_pixels
from perception.types import IGNORE_INDEX, Camera, DataError, DenseMap, LabelSpace

_UNKNOWN = 254


@configuration
class LabelMapsConfig:
    """images, masks: folders, relative to the data root; a mask has its picture's name (plus ``suffix``) and is a PNG.

    classes:     text file, one name per line; the line's number from 0 is the id. 255 = void
    rename:      name -> class of the recipe; several may become one
    ignore:      names whose pixels become void; ``rest`` = all that are not in the recipe
    labels_only: classes of the recipe that this source labels; a pixel of another name is any class but these
    coarse:      name -> the classes of the recipe that its pixels may be: a super-class (``vehicle: [car, truck]``),
                 or ``rest``: any that no other name of the source stands for
    """

    images: str
    masks: str
    classes: str
    format: Literal["label_maps"] = "label_maps"
    task: str = "segmentation"
    suffix: str = ""
    rename: dict[str, str] | None = None
    ignore: Names = ()
    labels_only: tuple[str, ...] | None = None
    coarse: Coarse | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)


class LabelMapsReader:
    """Pictures that have a mask. Attribute ``class_map``: name -> the recipe's class."""

    Config = LabelMapsConfig

    def __init__(self, config: LabelMapsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        images = existing_folder(root, config.images, "pictures")
        masks = existing_folder(root, config.masks, "label maps")
        path = existing_file(root, config.classes, "class names")
        names = [line.strip() for line in read_text(path).rstrip().splitlines()]
        if "" in names:
            raise DataError(f"{path}, line {names.index('') + 1} is empty. A name's line is its id: none can be empty.")
        if len(set(names)) < len(names) or not 0 < len(names) < _UNKNOWN:
            raise DataError(
                f"{path}: {len(names)} names, {len(set(names))} different. Expected 1 to {_UNKNOWN - 1}, each once."
            )
        self.class_map = map_pixels(
            names, classes[config.task], str(path), config.rename, config.ignore, config.labels_only, config.coarse
        )
        self.class_maps = {config.task: self.class_map}
        self.names = dict(enumerate(names))
        self._table = lookup_table(self.names, self.class_map)
        self._pairs = pair(
            list_pictures(images, root=root), images, masks, config.suffix, "label map", self.problems, root
        )
        self.images = list(self._pairs)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values uint8 [H, W], the recipe's classes or sets of them.

        Raises DataError where an id is no line of ``classes.txt``.
        """
        picture = self.images[index]
        path = self._pairs[picture]
        label_map = read_label_map(path, self._table, self.names, space=self.class_map.space)
        check_size(str(path), label_map.values.shape, picture, size)
        return {self.config.task: label_map}

    def camera(self, index: int) -> Camera | None:
        return None


def lookup_table(
    names: Mapping[int, str], class_map: ClassMap, void: tuple[int, ...] = (IGNORE_INDEX,)
) -> NDArray[np.uint8]:
    """uint8 [256]: stored id -> the recipe's class (or the id in its ``space``), 255 = void, 254 = no id at all.

    Raises DataError where a class of the recipe is beyond what a label map of bytes can hold.
    """
    last = max(class_map.index.values(), default=0)
    if last >= _UNKNOWN:
        raise DataError(f"The recipe has a class of number {last}. Label maps hold at most {_UNKNOWN} classes.")
    table = np.full(256, _UNKNOWN, np.uint8)
    table[list(void)] = IGNORE_INDEX
    for id, name in names.items():
        table[id] = class_map.index[name] if class_map.labels(name) else IGNORE_INDEX
    return table


def read_label_map(
    path: Path, table: NDArray[np.uint8], names: Mapping[int, str], hint: str = "", space: LabelSpace | None = None
) -> DenseMap:
    """A stored label map through a `lookup_table`. Raises DataError with the histogram where an id has no meaning."""
    stored = read_map(path)
    narrow = stored.astype(np.uint8) if stored.dtype != np.uint8 else stored
    values = cv2.LUT(narrow, table)
    if (stored.dtype != np.uint8 and stored.max(initial=0) > 255) or (values == _UNKNOWN).any():
        ids, counts = np.unique(stored, return_counts=True)
        histogram = ", ".join(f"{i}: {n}" for i, n in list(zip(ids.tolist(), counts.tolist(), strict=True))[:40])
        raise DataError(
            f"{path} holds ids without a name. Expected {_ranges(sorted(names))} or {IGNORE_INDEX} (void), found "
            f"{{id: pixels}} {{{histogram}}}. {hint or 'Convert the map, or correct the list of classes.'}"
        )
    return DenseMap(values, values != IGNORE_INDEX, classes=space)


def _ranges(ids: list[int]) -> str:
    contiguous = ids == list(range(ids[0], ids[-1] + 1))
    return f"{ids[0]} to {ids[-1]}" if contiguous else ", ".join(map(str, ids))
