"""Output of `perception label` for each kind of task: maps per image, the other files at the end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perception.files.safe_write import write_atomic
from perception.types import Annotation, Camera, DenseMap, ImageLabel, Instances, TaskSpec
from perception.video.writers.images import write_image
from perception.video.writers.maps import encode_map, map_scale


class LabeledImage(NamedTuple):
    """A labeled image.

    Attributes:
        name: path relative to the folder of the images.
        size: (height, width), pixels.
        value: result of `write_label` for the task.
    """

    name: str
    size: tuple[int, int]
    value: Any


def write_label(spec: TaskSpec, found: Annotation | None, name: str, out: Path) -> object:
    """Write the map of an image, if the task has maps.

    Args:
        spec: spec of the task.
        found: label of the image; None = no consensus.
        name: path of the image relative to the folder of the images.
        out: folder of the labels.

    Returns:
        The JSON value to record. Map: number of valid pixels. Boxes: [x1, y1, x2, y2, class, unsure] for each. Image
        label: a row with a class name, or with 0, 1 and "".
    """
    if spec.annotation_type == "dense":
        if not isinstance(found, DenseMap):
            return 0
        write_image((out / spec.name / name).with_suffix(".png"), encode_map(found, spec))
        return int(found.valid.sum())
    if spec.annotation_type == "instances":
        if not isinstance(found, Instances) or found.ignore is None:
            return []
        corners = np.asarray(found.boxes, np.float64).round(2).tolist()
        return [
            [*box, kind, int(unsure)]
            for box, kind, unsure in zip(corners, found.labels.tolist(), found.ignore.tolist(), strict=True)
        ]
    if not isinstance(found, ImageLabel):
        return None
    if found.labeled_classes is None:
        return [spec.classes[int(found.values.argmax())]]
    told = zip(found.values.tolist(), found.labeled_classes.tolist(), strict=True)
    return [str(int(value)) if known else "" for value, known in told]


def write_task_files(
    spec: TaskSpec, out: Path, images: Sequence[LabeledImage], camera: Camera | None
) -> tuple[dict[str, Any], str]:
    """Write the files of a task.

    Args:
        spec: spec of the task.
        out: folder of the labels.
        images: the labeled images.
        camera: intrinsics in pixels of every image.

    Returns:
        (entry for the recipe, coverage in words). The entry is empty if no label is reliable.
    """
    return {"dense": _write_maps, "instances": _write_coco, "label": _write_csv}[spec.annotation_type](
        spec, out, images, camera
    )


def _write_maps(
    spec: TaskSpec, out: Path, images: Sequence[LabeledImage], camera: Camera | None
) -> tuple[dict[str, Any], str]:
    """One PNG per image: class ids, or a quantized quantity."""
    known, pixels = sum(p.value for p in images), sum(p.size[0] * p.size[1] for p in images)
    kept = f"{known / max(1, pixels):.1%} of the pixels"
    if not known:
        return {}, kept
    if spec.classes:
        names = out / f"{spec.name}.txt"
        write_atomic(names, "".join(f"{name}\n" for name in spec.classes).encode())
        return {"format": "segmentation_masks", "masks": out / spec.name, "class_file": names}, kept
    entry = {"format": "depth_maps", "depths": out / spec.name, "scale": map_scale(spec)}
    if camera is not None:
        entry["camera"] = {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy")}
    return entry, kept


def _write_coco(
    spec: TaskSpec, out: Path, images: Sequence[LabeledImage], camera: Camera | None
) -> tuple[dict[str, Any], str]:
    """One COCO JSON file."""
    image_records, boxes = [], []
    for image, picture in enumerate(images, 1):
        height, width = picture.size
        image_records.append({"id": image, "file_name": picture.name, "height": height, "width": width})
        for x1, y1, x2, y2, kind, unsure in picture.value:
            boxes.append(
                {
                    "id": len(boxes) + 1, "image_id": image, "category_id": kind + 1, "iscrowd": unsure,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "area": round((x2 - x1) * (y2 - y1), 2),
                }
            )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(spec.classes, 1)]
    path, content = out / f"{spec.name}.json", {"images": image_records, "annotations": boxes, "categories": categories}
    write_atomic(path, json.dumps(content).encode())
    unsure = sum(box["iscrowd"] for box in boxes)
    kept = f"{len(boxes) - unsure} boxes, {unsure} ignore regions"
    return {"format": "coco", "annotations": path} if image_records else {}, kept


def _write_csv(
    spec: TaskSpec, out: Path, images: Sequence[LabeledImage], camera: Camera | None
) -> tuple[dict[str, Any], str]:
    """One CSV file: the class of each image, or 0 / 1 for each class (empty = unsure)."""
    rows = [[picture.name, *picture.value] for picture in images if picture.value is not None]
    columns, path, text = spec.classes if spec.multi_label else ("label",), out / f"{spec.name}.csv", io.StringIO()
    csv.writer(text).writerows([["file", *columns], *rows])
    write_atomic(path, text.getvalue().encode())
    kept = f"{len(rows)} of {len(images)} images"
    if not rows:
        return {}, kept
    entry = {"format": "image_labels", "csv": path}
    return entry | {"multi_label": True} if spec.multi_label else entry, kept
