"""Made street data as a folder, in COCO's and Cityscapes' own layouts at once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import write_whole
from perception.synthetic.canvas import (  # fmt: skip
    BICYCLE,
    CAR,
    CLASSES,
    PERSON,
    RIDER,
    SCENES,
    TRUCK,
    VERSION,
    StreetPicture,
)
from perception.synthetic.render import render
from perception.types import DataError

BASELINE = 0.8
"""Metres between the cameras of the stereo pair that the disparity stands for (written into every camera file)."""

INSTANCE_LABELS = (PERSON, RIDER, CAR, TRUCK, BICYCLE)
"""Labels of which Cityscapes tells the instances apart (not traffic lights and signs)."""

SPLITS = ("train", "val")
_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()  # from 4.12
MAP_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, *_FILTER)
IMAGE_PNG = (*MAP_PNG, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
"""Each row as its difference to the one above: a third to a half of the default's time on these pictures, no larger."""


def write(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int] = (256, 512),
    validation: float = 0.2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``count`` pictures below the folder ``out``, which must be empty or absent; it appears whole or not at all.

    Cityscapes: leftImg8bit, gtFine (labelIds, instanceIds), disparity, camera / {train,val} / street.
    COCO: annotations/instances_{train,val}.json, boxes of `CLASSES`; file names below leftImg8bit/{train,val};
    iscrowd = 1 marks ignore regions. Scenes: annotations/scenes_{train,val}.csv with the header ``file,label``.
    The last ``validation`` share is the validation split. ``progress`` is called with the number written so far.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} is not empty. Street data is written to an empty or new folder: remove it or name another."
        )
    if count < 1 or not 0 <= validation < 1:
        raise DataError(f"Expected count >= 1 and 0 <= validation < 1, found {count} and {validation}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_all(folder, count, seed, size, validation, progress)
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_all(
    folder: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    validation: float,
    progress: Callable[[int], None] | None,
) -> None:
    held_out = round(count * validation)
    cocos = {split: _coco() for split in SPLITS}
    scenes: dict[str, list[str]] = {split: ["file,label"] for split in SPLITS}
    for kind in ("leftImg8bit", "gtFine", "disparity", "camera"):
        for split in SPLITS:
            (folder / kind / split / "street").mkdir(parents=True)
    for index in range(count):
        split = "train" if index < count - held_out else "val"
        picture = render(seed, index, size)
        name = f"street/street_{index:06d}_000019"
        _write_picture(folder, split, name, picture)
        _add(cocos[split], f"{name}_leftImg8bit.png", picture)
        scenes[split].append(f"{name}_leftImg8bit.png,{picture.scene}")
        if progress is not None:
            progress(index + 1)
    (folder / "annotations").mkdir()
    for split in SPLITS:
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(cocos[split]), "utf-8")
        (folder / f"annotations/scenes_{split}.csv").write_text("\n".join(scenes[split]) + "\n", "utf-8")
    about = {
        "generator": "perception data street", "version": VERSION, "count": count, "seed": seed, "size": list(size),
        "validation": held_out, "baseline": BASELINE, "classes": list(CLASSES), "scenes": list(SCENES),
    }  # fmt: skip
    (folder / "street.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def _write_picture(folder: Path, split: str, name: str, picture: StreetPicture) -> None:
    files = {
        f"leftImg8bit/{split}/{name}_leftImg8bit.png": cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR),
        f"gtFine/{split}/{name}_gtFine_labelIds.png": picture.label_ids,
        f"gtFine/{split}/{name}_gtFine_instanceIds.png": instance_ids(picture),
        f"disparity/{split}/{name}_disparity.png": disparity(picture),
    }
    for path, values in files.items():
        data = cv2.imencode(".png", values, IMAGE_PNG if values.ndim == 3 else MAP_PNG)[1]
        write_whole(folder / path, data.tobytes())
    camera = picture.camera
    text = {
        "extrinsic": {
            "baseline": BASELINE,
            "pitch": picture.pitch,
            "roll": picture.roll,
            "yaw": picture.yaw,
            "x": 0.0,
            "y": 0.0,
            "z": picture.height,
        },
        "intrinsic": {"fx": camera.fx, "fy": camera.fy, "u0": camera.cx, "v0": camera.cy},
    }
    (folder / f"camera/{split}/{name}_camera.json").write_text(json.dumps(text, indent=1), "utf-8")


def instance_ids(picture: StreetPicture) -> NDArray[np.uint16]:
    """Cityscapes' instanceIds [H, W]: label * 1000 + number of the thing within its label, else the label."""
    labels = picture.label_ids.astype(np.uint16)
    numbered = np.isin(labels, INSTANCE_LABELS) & (picture.instances > 0)
    rows = np.zeros(len(picture.boxes) + 1, np.uint16)
    for kind in np.unique(picture.labels):
        mine = np.flatnonzero(picture.labels == kind)
        rows[mine + 1] = np.arange(len(mine))
    return np.where(numbered, labels * np.uint16(1000) + rows[picture.instances], labels).astype(np.uint16)


def disparity(picture: StreetPicture) -> NDArray[np.uint16]:
    """Cityscapes' disparity [H, W]: 256 * pixels + 1, 0 = unknown."""
    known = picture.depth > 0
    pixels = BASELINE * picture.camera.fx / np.where(known, picture.depth, 1)
    return np.where(known, np.clip(np.rint(pixels * 256) + 1, 1, 65535), 0).astype(np.uint16)


def _coco() -> dict:
    return {
        "info": {"description": "made street data", "version": str(VERSION)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": "street"} for number, name in enumerate(CLASSES)
        ],
    }


def _add(coco: dict, file_name: str, picture: StreetPicture) -> None:
    number = len(coco["images"]) + 1
    height, width = picture.label_ids.shape
    coco["images"].append({"id": number, "file_name": file_name, "height": height, "width": width})
    for box, label, area, ignore in zip(
        picture.boxes.tolist(), picture.labels.tolist(), picture.areas.tolist(), picture.ignore.tolist(), strict=True
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
