"""Builders of small genuine trees of every format, for the tests of the data layer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from perception.config import validate_config
from perception.data import DataConfig, DataSource, SourceConfig, open_source
from perception.types import IGNORE_INDEX, Annotation, DenseMap, ImageLabel, Instances

CLASSES = {
    "detection": ("vehicle", "pedestrian", "bike"),
    "segmentation": ("road", "sky", "car"),
    "depth": (),
    "classification": ("day", "night"),
}


def noise_image(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Smooth noise, so that JPEG keeps it nearly."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_LINEAR)


def write_image(path: Path, image: np.ndarray) -> Path:
    """RGB or single-channel array to an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
    return path


def write_noise_images(folder: Path, count: int, size: tuple[int, int] = (48, 64), suffix: str = ".jpg") -> list[Path]:
    return [write_image(folder / f"{i:03d}{suffix}", noise_image(i, size)) for i in range(count)]


def coco_content(count: int, size: tuple[int, int] = (48, 64)) -> dict[str, Any]:
    """Two boxes in every image but the last; ids with gaps."""
    images = [{"id": 10 + i, "file_name": f"{i:03d}.jpg", "height": size[0], "width": size[1]} for i in range(count)]
    annotations = [
        {"id": 2 * i + k + 1, "image_id": 10 + i, "category_id": (3, 7)[k], "bbox": [4 + i, 5 + 10 * k, 12, 9],
         "area": 108, "iscrowd": 0}
        for i in range(count - 1) for k in range(2)
    ]  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "vehicle"}, {"id": 7, "name": "pedestrian"}],
    }


def coco_tree(root: Path, count: int = 4, content: dict | str | bytes | None = None) -> dict[str, Any]:
    """Writes images and a JSON (``content`` replaces it); the reader's config."""
    write_noise_images(root / "coco" / "images", count)
    content = coco_content(count) if content is None else content
    data = json.dumps(content) if isinstance(content, dict) else content
    (root / "coco" / "boxes.json").write_bytes(data if isinstance(data, bytes) else data.encode())
    return {"format": "coco", "images": "coco/images", "annotations": "coco/boxes.json"}


def label_maps_tree(root: Path, count: int = 3, names: tuple[str, ...] = ("sky", "road", "car")) -> dict[str, Any]:
    """Left half id 0, right half id 1, top row void, a corner of id 2."""
    write_noise_images(root / "maps" / "images", count)
    for i in range(count):
        label_map = np.zeros((48, 64), np.uint8)
        label_map[:, 32:] = 1
        label_map[40:, 56:] = 2
        label_map[0] = 255
        write_image(root / "maps" / "masks" / f"{i:03d}.png", label_map)
    (root / "maps" / "classes.txt").write_text("\n".join(names) + "\n")
    return {
        "format": "segmentation_masks",
        "images": "maps/images",
        "masks": "maps/masks",
        "class_file": "maps/classes.txt",
    }


def depth_maps_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Depth 1 m at the left to 3 m at the right in millimetres, top row invalid."""
    write_noise_images(root / "depth" / "images", count)
    for i in range(count):
        depth = np.tile(np.linspace(1000, 3000, 64).astype(np.uint16), (48, 1))
        depth[0] = 0
        write_image(root / "depth" / "depths" / f"{i:03d}.png", depth)
    camera = {"fx": 60.0, "fy": 60.0, "cx": 32.0, "cy": 24.0}
    return {
        "format": "depth_maps",
        "images": "depth/images",
        "depths": "depth/depths",
        "scale": 0.001,
        "camera": camera,
    }


def cityscapes_tree(root: Path, count: int = 2, split: str = "train") -> dict[str, Any]:
    """Label ids: road (7) below, sky (23) above, a car (26), ego vehicle (1); disparity 2 px of baseline 0.2 m."""
    for i in range(count):
        name, at = f"ulm_{i:06d}_000019", root / "city"
        write_image(at / f"leftImg8bit/{split}/ulm/{name}_leftImg8bit.png", noise_image(i))
        ids = np.full((48, 64), 7, np.uint8)
        ids[:20], ids[30:40, 10:30], ids[46:] = 23, 26, 1
        write_image(at / f"gtFine/{split}/ulm/{name}_gtFine_labelIds.png", ids)
        disparity = np.full((48, 64), 2 * 256 + 1, np.uint16)
        disparity[0], disparity[1] = 0, 1
        write_image(at / f"disparity/{split}/ulm/{name}_disparity.png", disparity)
        camera = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 70.0, "fy": 71.0, "u0": 31.0, "v0": 23.0}}
        path = at / f"camera/{split}/ulm/{name}_camera.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(camera))
    return {"format": "cityscapes", "root": "city", "split": split}


def image_labels_tree(root: Path, count: int = 4) -> dict[str, Any]:
    """Even images by day, odd ones by night; a folder per class."""
    for i in range(count):
        write_image(root / "scenes" / ("day", "night")[i % 2] / f"{i:03d}.jpg", noise_image(i))
    return {"format": "image_labels", "images": "scenes"}


_SOURCES = TypeAdapter(SourceConfig)


def source_config(*labels: dict[str, Any], name: str = "source", weight: float = 1.0) -> SourceConfig:
    """As `build` gives it; faster, for the many trees of the tests."""
    given = {"name": name, "labels": list(labels), "weight": weight}
    try:
        return _SOURCES.validate_python(given)
    except ValidationError:
        return validate_config(SourceConfig, given)


def open_tree(
    root: Path, *labels: dict[str, Any], name: str = "source", weight: float = 1.0, **classes: Any
) -> DataSource:
    """The source of some readers' configs; ``classes`` replaces parts of `CLASSES`."""
    source = open_source(source_config(*labels, name=name, weight=weight), root, {**CLASSES, **classes})
    assert source is not None
    return source


def data_config(**options: Any) -> DataConfig:
    return validate_config(DataConfig, options)


TREES: dict[str, Callable[..., dict[str, Any]]] = {
    "coco": coco_tree,
    "segmentation_masks": label_maps_tree,
    "cityscapes": lambda root, count=3: {**cityscapes_tree(root, count), "ignore": "rest"},
    "depth_maps": depth_maps_tree,
    "image_labels": image_labels_tree,
}
"""Format -> builder of a tree that opens with `CLASSES`. Formats with builders in modules of their own: `all_trees`."""


def all_trees() -> dict[str, Callable[..., dict[str, Any]]]:
    """`TREES` of this module and of every module ``trees_*.py`` beside it; a second tree of a format has its module's
    name."""
    trees = dict(TREES)
    for path in sorted(Path(__file__).parent.glob("trees_*.py")):
        for name, tree in importlib.import_module(path.stem).TREES.items():
            trees[f"{name} of {path.stem}" if name in trees else name] = tree
    return trees


def check_annotation(annotation: Annotation, size: tuple[int, int], classes: tuple[str, ...]) -> None:
    """Assert that an annotation is what its type promises: dtypes, shapes, bounds, contiguous memory.

    size: (height, width) of its image. classes: of its task.
    """
    height, width = size
    match annotation:
        case Instances(boxes, labels, scores, ignore, known, tracks, partial):
            count = len(boxes)
            assert boxes.dtype == np.float32
            assert boxes.shape == (count, 4)
            assert np.isfinite(boxes).all()
            assert (boxes >= 0).all()
            assert (boxes <= np.array([width, height] * 2)).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert labels.dtype == np.int64
            assert labels.shape == (count,)
            assert ((labels >= (0 if ignore is None else -ignore.astype(int))) & (labels < len(classes))).all()
            assert scores is None
            assert ignore is None or (ignore.dtype == np.bool_ and ignore.shape == (count,))
            assert partial is None or (partial.shape == (len(classes),) and known is not None and known[partial].all())
            assert tracks is None or (tracks.dtype == np.int64 and tracks.shape == (count,))
            sure = labels if ignore is None else labels[~ignore]
            assert known is None or known[sure].all()
        case DenseMap(values, valid):
            known = None
            assert values.shape == valid.shape == size
            assert valid.dtype == np.bool_
            if classes:
                assert values.dtype == np.uint8
                assert np.array_equal(valid, values != IGNORE_INDEX)
                assert (values[valid] < len(classes)).all()
            else:
                assert values.dtype == np.float32
                assert np.isfinite(values).all()
                assert (values[valid] > 0).all()
                assert not values[~valid].any()
        case ImageLabel(values, known):
            assert values.dtype == np.float32
            assert values.shape == (len(classes),)
            assert np.isin(values, (0, 1)).all()
        case _:
            raise AssertionError(f"{type(annotation)} is no annotation")
    assert known is None or (known.dtype == np.bool_ and known.shape == (len(classes),) and known.any())
    for name in type(annotation).__dataclass_fields__:
        array = getattr(annotation, name)
        assert array is None or array.flags.c_contiguous, name
