"""Write synthetic street data to a folder, in COCO and Cityscapes layout at the same time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import write_atomic
from perception.synthetic.render import render_image
from perception.synthetic.street_image import (
    BICYCLE,
    CAR,
    GENERATOR_VERSION,
    OBJECT_CLASSES,
    PERSON,
    RIDER,
    SCENE_CLASSES,
    TRUCK,
    StreetImage,
)
from perception.types import DataError

STEREO_BASELINE = 0.8
"""Metres between the stereo cameras assumed for the disparity (written to every camera file)."""

INSTANCE_LABELS = (PERSON, RIDER, CAR, TRUCK, BICYCLE)
"""Labels with separate instances in Cityscapes (not traffic lights and signs)."""

SPLITS = ("train", "val")
_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()  # from 4.12
MAP_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, *_FILTER)
IMAGE_PNG = (*MAP_PNG, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
"""Store each row as the difference to the row above: 1/3 to 1/2 of the default time on these images, not larger."""


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int] = (256, 512),
    validation_fraction: float = 0.2,
    report_progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``count`` images to the folder ``out``. The folder appears only when it is complete.

    Cityscapes: leftImg8bit, gtFine (labelIds, instanceIds), disparity, camera / {train,val} / street.
    COCO: annotations/instances_{train,val}.json, boxes of `OBJECT_CLASSES`, file names below leftImg8bit/{train,val}.
    iscrowd = 1 marks ignore regions. Scenes: annotations/scenes_{train,val}.csv with the header ``file,label``.

    Args:
        out: the folder; empty or absent.
        count: number of images.
        seed: seed of the images.
        size: (height, width) in pixels.
        validation_fraction: the last images, as a fraction of all, are the validation split.
        report_progress: called with the number of images written.

    Raises:
        DataError: ``out`` is not empty, or an argument is not valid.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} is not empty. Street data is written to an empty or new folder: remove it or name another."
        )
    if count < 1 or not 0 <= validation_fraction < 1:
        raise DataError(f"Expected count >= 1 and 0 <= validation < 1, found {count} and {validation_fraction}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_splits(folder, count, seed, size, validation_fraction, report_progress)
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_splits(
    folder: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    validation_fraction: float,
    report_progress: Callable[[int], None] | None,
) -> None:
    held_out = round(count * validation_fraction)
    cocos = {split: _create_coco() for split in SPLITS}
    scenes: dict[str, list[str]] = {split: ["file,label"] for split in SPLITS}
    for kind in ("leftImg8bit", "gtFine", "disparity", "camera"):
        for split in SPLITS:
            (folder / kind / split / "street").mkdir(parents=True)
    for index in range(count):
        split = "train" if index < count - held_out else "val"
        picture = render_image(seed, index, size)
        name = f"street/street_{index:06d}_000019"
        _write_image(folder, split, name, picture)
        _add_to_coco(cocos[split], f"{name}_leftImg8bit.png", picture)
        scenes[split].append(f"{name}_leftImg8bit.png,{picture.scene_class}")
        if report_progress is not None:
            report_progress(index + 1)
    (folder / "annotations").mkdir()
    for split in SPLITS:
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(cocos[split]), "utf-8")
        (folder / f"annotations/scenes_{split}.csv").write_text("\n".join(scenes[split]) + "\n", "utf-8")
    about = {
        "generator": "perception data street", "version": GENERATOR_VERSION, "count": count, "seed": seed,
        "size": list(size),
        "validation": held_out, "baseline": STEREO_BASELINE, "classes": list(OBJECT_CLASSES),
        "scenes": list(SCENE_CLASSES),
    }  # fmt: skip
    (folder / "street.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def _write_image(folder: Path, split: str, name: str, street_image: StreetImage) -> None:
    files = {
        f"leftImg8bit/{split}/{name}_leftImg8bit.png": cv2.cvtColor(street_image.image, cv2.COLOR_RGB2BGR),
        f"gtFine/{split}/{name}_gtFine_labelIds.png": street_image.label_ids,
        f"gtFine/{split}/{name}_gtFine_instanceIds.png": encode_instance_ids(street_image),
        f"disparity/{split}/{name}_disparity.png": encode_disparity(street_image),
    }
    for path, values in files.items():
        data = cv2.imencode(".png", values, IMAGE_PNG if values.ndim == 3 else MAP_PNG)[1]
        write_atomic(folder / path, data.tobytes())
    camera = street_image.camera
    text = {
        "extrinsic": {
            "baseline": STEREO_BASELINE,
            "pitch": street_image.pitch,
            "roll": street_image.roll,
            "yaw": street_image.yaw,
            "x": 0.0,
            "y": 0.0,
            "z": street_image.camera_height,
        },
        "intrinsic": {"fx": camera.fx, "fy": camera.fy, "u0": camera.cx, "v0": camera.cy},
    }
    (folder / f"camera/{split}/{name}_camera.json").write_text(json.dumps(text, indent=1), "utf-8")


def encode_instance_ids(street_image: StreetImage) -> NDArray[np.uint16]:
    """Encode as Cityscapes instanceIds [H, W]: label * 1000 + instance number within the label, otherwise the label."""
    labels = street_image.label_ids.astype(np.uint16)
    numbered = np.isin(labels, INSTANCE_LABELS) & (street_image.instance_map > 0)
    rows = np.zeros(len(street_image.boxes) + 1, np.uint16)
    for kind in np.unique(street_image.labels):
        mine = np.flatnonzero(street_image.labels == kind)
        rows[mine + 1] = np.arange(len(mine))
    return np.where(numbered, labels * np.uint16(1000) + rows[street_image.instance_map], labels).astype(np.uint16)


def encode_disparity(street_image: StreetImage) -> NDArray[np.uint16]:
    """Encode as Cityscapes disparity [H, W]: 256 * pixels + 1, 0 = unknown."""
    known = street_image.depth > 0
    pixels = STEREO_BASELINE * street_image.camera.fx / np.where(known, street_image.depth, 1)
    return np.where(known, np.clip(np.rint(pixels * 256) + 1, 1, 65535), 0).astype(np.uint16)


def _create_coco() -> dict:
    return {
        "info": {"description": "made street data", "version": str(GENERATOR_VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": "street"} for number, name in enumerate(OBJECT_CLASSES)
        ],
    }


def _add_to_coco(coco: dict, file_name: str, street_image: StreetImage) -> None:
    number = len(coco["images"]) + 1
    height, width = street_image.label_ids.shape
    coco["images"].append({"id": number, "file_name": file_name, "height": height, "width": width})
    for box, label, area, ignore in zip(
        street_image.boxes.tolist(),
        street_image.labels.tolist(),
        street_image.areas.tolist(),
        street_image.ignore.tolist(),
        strict=True,
    ):
        x1, y1, x2, y2 = box
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": number,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(ignore),
            }
        )
