"""Made streets as samples that know the truth of every pixel: the oracle of what augmentation does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from perception.files.images import StoredImage
from perception.synthetic import render_image
from perception.types import Camera, DenseMap, Instances, Sample

SIZE = (128, 256)


@lru_cache(maxsize=16)
def _street(index: int):
    return render_image(5, index, SIZE)


def render_sample(index: int, camera: Camera | bool | None = True) -> tuple[StoredImage, Sample]:
    """An image and its sample. Beside boxes, segmentation mask and depth: which box owns each pixel ("owners": 1 + its
    row, a
    map of ids), and where its surface is in metres right, down and ahead of the camera ("points", [3, H, W])."""
    made = _street(index)
    depth, everywhere = made.depth, np.ones(SIZE, bool)
    rows, columns = np.indices(SIZE) + 0.5
    sight = made.camera
    points = np.stack([(columns - sight.cx) / sight.fx, (rows - sight.cy) / sight.fy, np.ones(SIZE)]) * depth
    annotations = {
        "detection": Instances(made.boxes, made.labels, ignore=made.ignore, track_ids=made.track_ids),
        "segmentation": DenseMap(made.label_ids, everywhere),
        "depth": DenseMap(depth, depth > 0),
        "owners": DenseMap(made.instance_map.astype(np.int32), everywhere),
        "points": DenseMap(points.astype(np.float32), depth > 0),
    }
    known = sight if camera is True else camera or None
    return StoredImage(Path(f"{index}.png"), SIZE, _decoded=made.image), Sample(
        None, annotations, known, None, f"street/{index}", "street"
    )


def boxes_from_pixels(owner_ids: DenseMap) -> dict[int, np.ndarray]:
    """Owner -> x1 y1 x2 y2 around its pixels."""
    values = np.where(owner_ids.valid, owner_ids.values, 0)
    boxes = {}
    for owner in np.unique(values[values > 0]).tolist():
        rows, columns = np.nonzero(values == owner)
        boxes[owner] = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    return boxes
