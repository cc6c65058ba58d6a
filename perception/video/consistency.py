"""Contradictions between tasks (monitor M2): boxes without support in the segmentation mask, depth jumps in a box.

Detection and segmentation may have different class lists; `CLASS_GROUPS` maps equivalent names. Classes outside these
groups, or in only one of the two tasks, are not checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import DenseMap, Instances, Prediction, TaskSpec

CLASS_GROUPS = {
    "vehicle": ("car", "truck", "bus", "train", "tram", "van", "vehicle", "caravan", "trailer"),
    "person": ("person", "pedestrian", "rider", "cyclist", "bicyclist", "motorcyclist"),
    "two-wheeler": ("bicycle", "bike", "motorcycle", "motorbike", "motobike", "cyclist", "bicyclist", "rider"),
    "light": ("traffic light",),
    "sign": ("traffic sign", "stop sign", "sign", "sign symbol"),
}

MIN_BOX_SIDE = 0.015
"""Minimum side of a checked box, relative to the image's longer side. Masks are too coarse for smaller objects."""
MIN_SUPPORT = 0.1
"""Minimum share of a box's central half that the mask assigns to the class group of the box."""
MAX_DEPTH_SPREAD = 0.6
"""Maximum spread of the depth in a box's central half for one object, relative to its median."""
SAMPLES_PER_SIDE = 16
"""Rows and columns sampled from a box's central half."""
COARSE_SIZE = 160
"""Longer side in pixels at which mask regions are compared with boxes."""


class Contradictions(NamedTuple):
    """Contradictions in one image.

    Attributes:
        num_boxes: boxes over the score threshold that could be checked.
        unsupported: those without support in the segmentation mask.
        depth_jumps: those with a depth jump inside.
        unboxed: share of the mask's vehicles, persons and two-wheelers that no box covers; 0 if the mask has none.
    """

    num_boxes: int
    unsupported: int
    depth_jumps: int
    unboxed: float


def find_contradictions(prediction: Prediction, specs: Mapping[str, TaskSpec]) -> Contradictions:
    """Find the contradictions between the tasks of one image."""
    found = {name: a for name, a in prediction.annotations.items() if name in specs}
    boxes_of = next((name for name, a in found.items() if isinstance(a, Instances)), None)
    labels_of = next((name for name, a in found.items() if isinstance(a, DenseMap) and specs[name].classes), None)
    depth_of = next((name for name, a in found.items() if isinstance(a, DenseMap) and specs[name].unit == "m"), None)
    instances = found[boxes_of] if boxes_of else None
    if boxes_of is None or not isinstance(instances, Instances):
        return Contradictions(0, 0, 0, 0.0)
    spec = specs[boxes_of]
    shown = (
        np.ones(len(instances.boxes), bool) if instances.scores is None else instances.scores >= spec.score_threshold
    )
    boxes, classes = np.asarray(instances.boxes)[shown], np.asarray(instances.labels)[shown]
    large = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= MIN_BOX_SIDE * max(prediction.size)
    judged = unsupported = jumps = 0
    labels, depth = found[labels_of] if labels_of else None, found[depth_of] if depth_of else None
    kinds = _match_classes(spec.classes, specs[labels_of].classes if labels_of else ())
    for box, k in zip(boxes[large], classes[large].tolist(), strict=True):
        middle = _central_slices(box, prediction.size)
        supported = isinstance(labels, DenseMap) and bool(kinds[k].any())
        judged += supported or depth is not None
        if isinstance(labels, DenseMap) and supported:
            unsupported += bool(np.take(kinds[k], labels.values[middle], mode="clip").mean() < MIN_SUPPORT)
        if isinstance(depth, DenseMap):
            jumps += _has_depth_jump(depth.values[middle][depth.valid[middle]])
    unboxed = 0.0
    if isinstance(labels, DenseMap):
        unboxed = _unboxed_share(labels, boxes, _boxed_classes(spec.classes, specs[labels_of or ""].classes))
    return Contradictions(judged, unsupported, jumps, unboxed)


@cache
def _match_classes(boxes: tuple[str, ...], labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """[boxes, labels + 1]: whether a mask class supports a box class; the last column is "unknown"."""
    table = np.zeros((len(boxes), len(labels) + 1), np.bool_)
    for i, box in enumerate(boxes):
        for j, label in enumerate(labels):
            table[i, j] = bool(class_groups(box) & class_groups(label))
    return table


@cache
def _boxed_classes(boxes: tuple[str, ...], labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """[labels + 1]: mask classes whose objects should have boxes."""
    moving = set(list(CLASS_GROUPS)[:3]) & set().union(*(class_groups(name) for name in boxes))
    return np.array([bool(class_groups(name) & moving) for name in labels] + [False])


def class_groups(name: str) -> frozenset[str]:
    """Return the groups of `CLASS_GROUPS` that contain a class name."""
    plain = name.lower().replace("_", " ").replace("-", " ").strip()
    return frozenset(kind for kind, names in CLASS_GROUPS.items() if plain in names)


def _central_slices(box: Sequence[float], size: tuple[int, int]) -> tuple[slice, slice]:
    """Slices of about `SAMPLES_PER_SIDE` rows and columns in the central half of a box."""
    spans = []
    for low, high, limit in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        quarter = (high - low) / 4
        first = min(max(int(low + quarter), 0), limit - 1)
        last = min(max(int(high - quarter), first + 1), limit)
        spans.append(slice(first, last, max(1, (last - first) // SAMPLES_PER_SIDE)))
    return spans[0], spans[1]


def _has_depth_jump(depth: NDArray[np.float32]) -> bool:
    if depth.size < 4:
        return False
    near, middle, far = np.quantile(depth, (0.1, 0.5, 0.9))
    return bool(far - near > MAX_DEPTH_SPREAD * middle)


def _unboxed_share(labels: DenseMap, boxes: NDArray[np.float32], boxed_classes: NDArray[np.bool_]) -> float:
    height, width = labels.values.shape
    step = max(1, max(height, width) // COARSE_SIZE)
    region = np.take(boxed_classes, np.asarray(labels.values)[::step, ::step], mode="clip")
    total = int(region.sum())
    if total < 0.002 * region.size:
        return 0.0
    mask = region.astype(np.uint8)
    for x1, y1, x2, y2 in np.rint(boxes / step).astype(int).tolist():
        cv2.rectangle(mask, (x1 - 1, y1 - 1), (x2 + 1, y2 + 1), 0, cv2.FILLED)
    return float(mask.sum()) / total
