"""Small genuine trees of COCO's formats: instances with masks of every encoding, and panoptic PNGs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from data_trees import write_image, write_noise_images

CATEGORIES = [{"id": 3, "name": "vehicle"}, {"id": 7, "name": "pedestrian"}, {"id": 9, "name": "kite"}]
SEGMENTED = {
    "segmentation_task": "segmentation", "segmentation_rename": {"vehicle": "car"}, "segmentation_ignore": "rest",
    "unmasked_class": "road", "ignore": ["kite"],
}  # fmt: skip


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def encode_runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE of a mask [H, W]."""
    flat = mask.ravel(order="F").astype(bool)
    edges = np.flatnonzero(np.diff(flat, prepend=not flat[0], append=not flat[-1]))
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def encode_compressed_runs(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of a mask [H, W], made by pycocotools."""
    from pycocotools import mask as library

    found = library.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def disc(x: float, y: float, radius: float, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [H, W]"""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)


def masks_content(count: int) -> dict[str, Any]:
    """In every image but the last: a large vehicle of two polygons, on it a pedestrian (compressed RLE), a kite
    (uncompressed RLE), and a crowd of pedestrians (RLE)."""
    annotations = []
    for i in range(count - 1):
        masks = [
            (7, 0, encode_compressed_runs(disc(20 + i, 20, 4)), [16 + i, 16, 9, 9]),
            (3, 0, [rectangle(4, 10, 30, 20), rectangle(40, 10, 10, 20)], [4, 10, 46, 20]),
            (9, 0, encode_runs(disc(56, 8, 5)), [51, 3, 11, 11]),
            (7, 1, encode_runs(disc(20, 40, 6)), [14, 34, 13, 13]),
        ]
        for category, crowd, segmentation, box in masks:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + i, "category_id": category, "bbox": box,
                 "area": 50.5, "iscrowd": crowd, "segmentation": segmentation}
            )  # fmt: skip
    images = [{"id": 10 + i, "file_name": f"{i:03d}.jpg", "height": 48, "width": 64} for i in range(count)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def coco_masks_tree(root: Path, count: int = 3, content: dict | None = None) -> dict[str, Any]:
    """Writes images and a JSON (``content`` replaces it); the reader's config with masks."""
    write_noise_images(root / "coco" / "images", count)
    content = masks_content(count) if content is None else content
    (root / "coco" / "masks.json").write_text(json.dumps(content))
    return {"format": "coco", "images": "coco/images", "annotations": "coco/masks.json", **SEGMENTED}


def ids_to_colors(ids: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a panoptic PNG."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)


def panoptic_content(count: int) -> dict[str, Any]:
    """Sky above, road below, two vehicles, a crowd of pedestrians; the top row is void."""
    categories = [
        {"id": 3, "name": "vehicle", "isthing": 1}, {"id": 7, "name": "pedestrian", "isthing": 1},
        {"id": 90, "name": "road", "isthing": 0}, {"id": 187, "name": "sky", "isthing": 0},
    ]  # fmt: skip
    images = [{"id": 10 + i, "file_name": f"{i:03d}.jpg", "height": 48, "width": 64} for i in range(count)]
    annotations = []
    for image in images:
        ids = panoptic_ids()
        segments = []
        for id, category, crowd in ((5, 187, 0), (260, 90, 0), (70_000, 3, 0), (16_777_215, 3, 0), (9, 7, 1)):
            ys, xs = np.nonzero(ids == id)
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
            segments.append({"id": id, "category_id": category, "iscrowd": crowd, "bbox": box, "area": len(xs)})
        name = image["file_name"].replace(".jpg", ".png")
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    return {"images": images, "annotations": annotations, "categories": categories}


def panoptic_ids() -> np.ndarray:
    """int [H, W]"""
    ids = np.full((48, 64), 5)
    ids[20:], ids[0] = 260, 0
    ids[25:35, 5:20], ids[30:44, 40:60], ids[15:25, 24:34] = 70_000, 16_777_215, 9
    return ids


def coco_panoptic_tree(root: Path, count: int = 3, content: dict | None = None) -> dict[str, Any]:
    """Writes images, PNGs and a JSON (``content`` replaces it); the reader's config."""
    write_noise_images(root / "coco" / "images", count)
    for i in range(count):
        write_image(root / "coco" / "panoptic" / f"{i:03d}.png", ids_to_colors(panoptic_ids()))
    content = panoptic_content(count) if content is None else content
    (root / "coco" / "panoptic.json").write_text(json.dumps(content))
    return {
        "format": "coco_panoptic", "images": "coco/images", "annotations": "coco/panoptic.json",
        "segmentation_rename": {"vehicle": "car"}, "segmentation_ignore": ["pedestrian"],
    }  # fmt: skip


def coco_tools_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Masks as tools write them: ids as text, names of another system, flags, turned boxes, sizes that are absent,
    images that name what they label."""
    content = masks_content(count)
    content["categories"] = [{"id": 0, "name": "things"}, *({**c, "supercategory": "things"} for c in CATEGORIES)]
    for image in content["images"]:
        image |= {"id": str(image["id"]), "file_name": f"..\\upload\\{image['file_name']}", "width": -1, "height": -1}
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [7]}
    for annotation in content["annotations"]:
        annotation |= {
            "image_id": f"{annotation['image_id']}.0",
            "iscrowd": str(annotation["iscrowd"]),
            "ignore": False,
        }
        annotation["attributes"] = {"rotation": 30.0, "occluded": False}
        if isinstance(annotation["segmentation"], list):
            annotation |= {"segmentation": annotation["segmentation"][0], "bbox": []}
    options = {"match_by": "base", "crowds": "object", "difficult": "background", "unlabeled": "empty"}
    return {**coco_masks_tree(root, count, content), **options}


TREES = {"coco": coco_masks_tree, "coco_panoptic": coco_panoptic_tree, "coco as tools write it": coco_tools_tree}
