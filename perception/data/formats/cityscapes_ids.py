"""Ids in Cityscapes' masks: label ids, training ids and instance ids, with checks that detect a wrong kind of id."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import IGNORED, ClassMap
from perception.data.formats.boxes import BoxTable
from perception.data.formats.instance_ids import find_id_boxes, find_region_boxes
from perception.data.formats.segmentation_masks import read_segmentation_mask
from perception.files.maps import read_map
from perception.types import IGNORE_INDEX, DataError, Instances

LABEL_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Label id -> name of the 19 training classes, ordered by training id. The other ids up to 33 are ignored."""

CLASSES = tuple(LABEL_IDS.values())

THING_CLASSES = {id: LABEL_IDS[id] for id in (24, 25, 26, 27, 28, 31, 32, 33)}
"""Label id -> name of the classes with instance ids. Caravans (29) and trailers (30) also have instance ids, but
Cityscapes does not evaluate them."""

_NUM_LABEL_IDS, _INSTANCES_PER_CLASS, _NO_ID = 34, 1000, 254
_FIRST_LABELED_ID = 7
"""Lower label ids are ignored: unlabeled, ego vehicle, image border and the like."""

_LABEL_ID_OF_INSTANCE = np.full(65536, _NO_ID, np.uint8)
_LABEL_ID_OF_INSTANCE[:_NUM_LABEL_IDS] = np.arange(_NUM_LABEL_IDS)
for _id in range(24, _NUM_LABEL_IDS):
    _LABEL_ID_OF_INSTANCE[_id * _INSTANCES_PER_CLASS : (_id + 1) * _INSTANCES_PER_CLASS] = _id


def read_label_ids(path: Path, train_ids: bool) -> NDArray[np.uint8]:
    """Read a mask of label ids or training ids, uint8 [H, W].

    Args:
        path: mask file.
        train_ids: whether the ids are training ids.

    Raises:
        DataError: the mask contains other ids, or the class layout suggests the other kind of id. The message
            contains the histogram.
    """
    known = range(len(CLASSES) if train_ids else _NUM_LABEL_IDS)
    if train_ids:
        hint = "Training ids are 0 to 18 and 255. These are probably label ids: name such files *_labelIds.png."
    else:
        hint = "Label ids are 0 to 33. These are probably training ids: name such files *_labelTrainIds.png."
    table = np.full(256, _NO_ID, np.uint8)
    table[list(known)] = known
    if train_ids:
        table[IGNORE_INDEX] = IGNORE_INDEX
    ids = read_segmentation_mask(path, table, dict.fromkeys(known, ""), hint).values
    if ids.size and ids.max() < len(CLASSES):
        top = np.bincount(ids[: max(1, len(ids) // 4)].ravel(), minlength=len(CLASSES))
        bottom = np.bincount(ids[len(ids) // 2 :].ravel(), minlength=len(CLASSES))
        # 7 is road as a label id and traffic sign as a training id; 11 is building and person. Training ids 8 and 10
        # are vegetation and sky; the same label ids are sidewalk and rail track.
        swapped = bottom.argmax() == 7 or top.argmax() == 11 if train_ids else top[1:].argmax() + 1 in (8, 10)
        if swapped:
            raise DataError(f"{path} contains {{id: pixels}} {_format_histogram(ids)}. {hint}")
    return ids


@dataclass(frozen=True, slots=True)
class InstanceIds:
    """Instance ids of an image.

    Attributes:
        map: uint16 [H, W], instance id of each pixel.
        values: int64 [N], ids in ``map``, ascending.
        boxes: int64 [N, 4], bounding boxes of the ids.
    """

    map: NDArray[np.uint16]
    values: NDArray[np.int64]
    boxes: NDArray[np.int64]


def read_instance_ids(path: Path) -> InstanceIds:
    """Read the instance ids of an image. Raises DataError with the histogram if the mask contains invalid ids."""
    ids = read_map(path)
    if ids.dtype != np.uint16:
        raise DataError(f"{path} has 8 bits per pixel. Expected Cityscapes' instances (*_instanceIds.png), 16 bit.")
    values, boxes = find_id_boxes(ids)
    if (_LABEL_ID_OF_INSTANCE[values] == _NO_ID).any():
        raise DataError(
            f"{path} contains {{id: pixels}} {_format_histogram(ids)}. Expected label ids 0 to 33, or 1000 times a "
            "label id from 24 to 33 plus a number. Instances with training ids (*_instanceTrainIds.png) are not "
            "supported."
        )
    return InstanceIds(ids, values, boxes)


def to_label_ids(instances: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the label id of each pixel of an instance map."""
    return _LABEL_ID_OF_INSTANCE[instances]


def to_instances(ids: InstanceIds, class_map: ClassMap) -> Instances | None:
    """Return the bounding boxes of the instances; None if the map has no labels (the test split).

    Groups without separate instances become ignore regions, one box around each connected part. Caravans and trailers
    are also ignore regions.

    Args:
        ids: instance ids of the image.
        class_map: mapping from the names of `THING_CLASSES` to the recipe's classes.
    """
    values = ids.values
    if values.max(initial=0) < _FIRST_LABELED_ID:
        return None
    things = values >= _INSTANCES_PER_CLASS
    grouped = values[~things & (values >= min(THING_CLASSES))]
    groups = [find_region_boxes(ids.map, id) for id in grouped.tolist()]
    crowds = np.repeat(grouped, [len(group) for group in groups])
    classes = np.concatenate([values[things] // _INSTANCES_PER_CLASS, crowds]).tolist()
    names = [THING_CLASSES.get(id) for id in classes]
    labels = [IGNORED if name is None else class_map.indices[name] for name in names]
    ignore = [name is None or not class_map.is_labeled(name) for name in names]
    ignore[int(things.sum()) :] = [True] * len(crowds)
    boxes = np.concatenate([ids.boxes[things], *groups])
    table = BoxTable(np.zeros(len(labels)), boxes, labels, ignore, [ids.map.shape], class_map, Counter())
    return table.instances(0)


def _format_histogram(ids: NDArray) -> str:
    values, counts = np.unique(ids, return_counts=True)
    pairs = list(zip(values.tolist(), counts.tolist(), strict=True))
    return "{" + ", ".join(f"{id}: {count}" for id, count in pairs[:40]) + (", ...}" if len(pairs) > 40 else "}")
