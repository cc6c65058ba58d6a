"""BDD100K's segmentation masks: drivable area, lane markings (a byte of bits) and the 19 semantic classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.data.formats.cityscapes_ids import CLASSES as SEMANTIC
from perception.data.formats.legend import build_lookup_table
from perception.data.formats.segmentation_masks import read_segmentation_mask
from perception.files.folders import find_boundary, require_folder
from perception.files.text_files import list_folder_files
from perception.types import IGNORE_INDEX, DataError, DenseMap

DRIVABLE_CLASSES = ("direct", "alternative", "background")
LANE_CLASSES = {
    "category": ("crosswalk", "double other", "double white", "double yellow", "road curb", "single other",
                 "single white", "single yellow", "background"),
    "direction": ("parallel", "vertical", "background"),
    "style": ("solid", "dashed", "background"),
}  # fmt: skip
_LANE_BITS = {"category": (0, 7), "direction": (5, 1), "style": (4, 1)}
_BACKGROUND_BIT, _UNUSED_BITS = 1 << 3, 3 << 6


@dataclass(frozen=True, slots=True)
class MaskKind:
    """Format of one kind of segmentation mask.

    Attributes:
        classes: class names.
        layouts: (folder, end of the file names, stored id -> index in ``classes``); the first existing folder is used.
        hint: meaning of the ids, for error messages.
        check: returns what is wrong with the class indices of a mask, "" if they are plausible.
    """

    classes: tuple[str, ...]
    layouts: tuple[tuple[str, str, dict[int, int]], ...]
    hint: str
    check: Callable[[NDArray[np.uint8]], str] | None = None


@dataclass(frozen=True, slots=True)
class MaskFiles:
    """The mask files of one kind.

    Attributes:
        kind: format of the masks.
        folder: folder that contains the masks.
        ids: stored id -> index in the classes of ``kind``.
        files: image name without extension -> mask file.
    """

    kind: MaskKind
    folder: Path
    ids: dict[int, int]
    files: dict[str, Path]

    def read_mask(self, stem: str, class_map: ClassMap) -> tuple[Path, DenseMap]:
        """Return the file and its mask uint8 [H, W] in the recipe's classes. Raises DataError if the ids do not fit."""
        path = self.files[stem]
        stored = np.full(256, 254, np.uint8)
        stored[IGNORE_INDEX] = IGNORE_INDEX
        stored[list(self.ids)] = list(self.ids.values())
        values = read_segmentation_mask(path, stored, dict.fromkeys(self.ids, ""), self.kind.hint).values
        if self.kind.check is not None and (fault := self.kind.check(values)):
            raise DataError(f"{path}: {fault} {self.kind.hint}")
        values = cv2.LUT(values, build_lookup_table(dict(enumerate(self.kind.classes)), class_map))
        return path, DenseMap(values, values != IGNORE_INDEX, label_space=class_map.label_space)


def find_mask_files(kind: MaskKind, root: Path, split: str, data_root: Path) -> MaskFiles | None:
    """Return the masks of a split; None if there are none. Links must not lead out of ``data_root``."""
    for place, ending, ids in kind.layouts:
        if (root / place / split).is_dir():
            folder = require_folder(root, f"{place}/{split}", "segmentation masks")
            if files := list_folder_files(folder, find_boundary(folder, data_root), ending):
                return MaskFiles(kind, folder, ids, files)
    return None


def _find_drivable_fault(values: NDArray[np.uint8]) -> str:
    top = values[: max(1, len(values) // 8)]
    return "The top of the image is drivable. The mask probably uses other ids." if (top < 2).mean() > 0.5 else ""


def _find_lane_fault(values: NDArray[np.uint8], background: int) -> str:
    on = (values != background).mean()
    return f"{on:.0%} of the image are lane markings. The mask probably uses other ids." if on > 0.5 else ""


DRIVABLE_KIND = MaskKind(
    DRIVABLE_CLASSES,
    (
        ("labels/drivable/masks", ".png", {0: 0, 1: 1, 2: 2}),
        ("drivable_maps/labels", "_drivable_id.png", {0: 2, 1: 0, 2: 1}),
    ),
    "In labels/drivable/masks, 0 is direct, 1 alternative, 2 background. In the *_drivable_id.png of 2018, 0 is "
    "background, 1 direct, 2 alternative.",
    _find_drivable_fault,
)
SEMANTIC_KIND = MaskKind(
    SEMANTIC,
    (
        ("labels/sem_seg/masks", ".png", {i: i for i in range(19)}),
        ("seg/labels", "_train_id.png", {i: i for i in range(19)}),
    ),
    "Expected Cityscapes' training ids.",
)


def make_lane_kind(attribute: str) -> MaskKind:
    """Return the lane mask format for one of the keys of `LANE_CLASSES`."""
    shift, mask = _LANE_BITS[attribute]
    background = len(LANE_CLASSES[attribute]) - 1
    ids = {byte: byte >> shift & mask for byte in range(256) if not byte & (_BACKGROUND_BIT | _UNUSED_BITS)}
    ids |= {byte: background for byte in range(256) if byte & _BACKGROUND_BIT}
    return MaskKind(
        LANE_CLASSES[attribute],
        (("labels/lane/masks", ".png", ids),),
        "Bits 0 to 2 of a lane mask are the category, bit 3 the background (255), bit 4 the style, 5 the direction.",
        partial(_find_lane_fault, background=background),
    )
