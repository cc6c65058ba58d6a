"""Builders of small genuine trees of masks and depth as people have them: colors, values, polygons, other files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from data_trees import CLASSES, depth_maps_tree, label_maps_tree, noise_image, write_image
from PIL import Image
from trees_kitti import write_text

COLORS = {"road": [128, 64, 128], "sky": "#4682b4", "car": [[0, 0, 142], [0, 0, 230]]}


def _change_files(root: Path, folder: str, suffix: str, change: Any) -> None:
    """Every PNG of a folder as another file: ``change`` makes its bytes of the array."""
    for path in sorted((root / folder).iterdir()):
        values = np.array(Image.open(path))
        path.unlink()
        path.with_suffix(suffix).write_bytes(change(values))


def _encode(image: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    if format == "NPZ":
        np.savez_compressed(buffer, depth=image, valid=image > 0)
    else:
        Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def colored_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Masks of colors, images and masks in one folder."""
    config = label_maps_tree(root, count)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = (70, 130, 180), (128, 64, 128), (0, 0, 142)
    _change_files(root, "maps/masks", ".png", lambda ids: _encode(palette[ids], "PNG"))
    for path in sorted((root / "maps/masks").iterdir()):
        path.rename(root / f"maps/images/{path.stem}_mask.png")
    keys = {"masks": "maps/images", "image": "*.jpg", "mask": "*_mask.png", "ignore_values": [[0, 0, 0]]}
    return {**config, **keys, "class_file": None, "colors": COLORS}


def listed_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Masks of colors, their list in a file."""
    config = colored_tree(root, count)
    write_text(root / "maps/label_colors.txt", "70 130 180\tsky\n128 64 128\troad\n0 0 142\tcar\n0 0 0\tVoid\n")
    return {**config, "colors": "maps/label_colors.txt", "ignore": ["Void"], "ignore_values": []}


def valued_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """TIFFs of 0 and 255."""
    config = label_maps_tree(root, count)
    _change_files(root, "maps/masks", ".tif", lambda ids: _encode(np.where(ids == 1, 255, 0).astype(np.uint8), "TIFF"))
    return {**config, "class_file": None, "values": {0: "sky", 255: "road"}}


def packed_depth_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Metres in .npz."""
    config = depth_maps_tree(root, count)
    _change_files(root, "depth/depths", ".npz", lambda depth: _encode(depth.astype(np.float32) / 1000, "NPZ"))
    return {**config, "scale": None, "array_name": "depth"}


def float_depth_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Metres in TIFFs of floats."""
    config = depth_maps_tree(root, count)
    _change_files(root, "depth/depths", ".tif", lambda depth: _encode(depth.astype(np.float32) / 1000, "TIFF"))
    return {**config, "scale": None}


def portable_depth_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """One file of metres as PFM, the others of millimetres as PGM."""
    config = depth_maps_tree(root, count)
    _change_files(root, "depth/depths", ".pgm", lambda depth: _encode(depth, "PPM"))
    (root / "depth/depths/000.pgm").unlink()
    (root / "depth/depths/000.pfm").write_bytes(_encode(np.full((48, 64), 2, np.float32), "PPM"))
    return {**config, "scale": {"pgm": 0.001}}


YAML = f"path: .\ntrain: images\nnames: [{', '.join(CLASSES['segmentation'])}]\n"


def yolo_masks_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Polygons: the left half is sky, a square in it a car; a box of road; the last image has an empty file."""
    sky, road, car = (CLASSES["segmentation"].index(name) for name in ("sky", "road", "car"))
    for i in range(count):
        write_image(root / f"seg/images/{i:03d}.jpg", noise_image(i))
        lines = f"{car} 0.125 0.25 0.25 0.25 0.25 0.5 0.125 0.5\n{sky} 0 0 0.5 0 0.5 1 0 1\n{road} 0.75 0.5 0.25 0.5\n"
        write_text(root / f"seg/labels/{i:03d}.txt", lines if i < count - 1 else "")
    write_text(root / "seg/data.yaml", YAML)
    return {"format": "yolo_masks", "data": "seg/data.yaml"}


TREES = {
    "segmentation_masks": colored_tree,
    "listed colors": listed_tree,
    "values": valued_tree,
    "depth_maps": packed_depth_tree,
    "float depth": float_depth_tree,
    "portable depth": portable_depth_tree,
    "yolo_masks": yolo_masks_tree,
}
