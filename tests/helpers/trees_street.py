"""Builders of small genuine trees of street scenes and photographs: Pascal VOC, BDD100K, Cityscapes with instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from data_trees import cityscapes_tree, noise_image, write_image
from PIL import Image

CAR, PERSON = (6, 11, 25, 30), (30, 5, 41, 29)
"""xmin ymin xmax ymax of the objects of `voc_tree`: indices from 1, both inclusive."""


def voc_object(name: str, box: tuple[float, ...], difficult: int | str = 0, extra: str = "") -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>1</truncated>\n"
        f"<difficult>{difficult}</difficult>\n<bndbox>{corners}</bndbox>{extra}</object>\n"
    )


def voc_xml(name: str, *objects: str, width: int | str = 64, height: int | str = 48) -> str:
    return (
        f"<annotation><folder>VOC2012</folder><filename>{name}.jpg</filename>\n"
        f"<source><database>The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation></source>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>1</segmented>\n"
        f"{''.join(objects)}</annotation>\n"
    )


def write_voc_mask(ids: np.ndarray, path: Path) -> None:
    """A PNG with a palette whose index is the id, as VOC's segmentation masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    image.putpalette([(i * 37 + channel * 101) % 256 for i in range(256) for channel in range(3)])
    image.save(path)


def voc_mask() -> np.ndarray:
    """background, a car (7) and a person (15) with a rim of void."""
    ids = np.zeros((48, 64), np.uint8)
    ids[10:30, 5:25], ids[12:28, 7:23] = 255, 7
    ids[4:29, 29:41] = 15
    return ids


def voc_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """A car and a difficult person in every image but the last, segmentation masks for all but the first."""
    at = root / "VOCdevkit/VOC2012"
    names = [f"2007_{i:06d}" for i in range(count)]
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    for i, name in enumerate(names):
        write_image(at / f"JPEGImages/{name}.jpg", noise_image(i))
        objects = voc_object("car", CAR), voc_object("person", PERSON, 1, head)
        path = at / f"Annotations/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(name, *objects if i < count - 1 else ()))
        if i:
            write_voc_mask(voc_mask(), at / f"SegmentationClass/{name}.png")
    for kind, listed in (("Main", names), ("Segmentation", names[1:])):
        (at / f"ImageSets/{kind}").mkdir(parents=True, exist_ok=True)
        (at / f"ImageSets/{kind}/train.txt").write_text("".join(f"{name}\n" for name in listed))
    return {
        "format": "voc", "root": "VOCdevkit/VOC2012",
        "detection_rename": {"car": "vehicle", "person": "pedestrian", "bicycle": "bike"},
        "detection_background": "rest", "segmentation_ignore": "rest",
    }  # fmt: skip


def bdd100k_frame(name: str, *labels: dict[str, Any], **attributes: str) -> dict[str, Any]:
    known = {"weather": "clear", "scene": "city street", "timeofday": "daytime", **attributes}
    return {"name": f"{name}.jpg", "attributes": known, "timestamp": 10000, "labels": list(labels)}


def bdd100k_box(category: str, box: tuple[float, ...], **attributes: Any) -> dict[str, Any]:
    corners = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    known = {"occluded": False, "truncated": False, "trafficLightColor": "NA", **attributes}
    return {"id": "0", "attributes": known, "category": category, "box2d": corners}


def bdd100k_frames(names: list[str]) -> list[dict[str, Any]]:
    """A car, a crowd of pedestrians, a bicycle in every image but the last, which has none; every other by night."""
    frames = []
    for i, name in enumerate(names):
        boxes = (
            bdd100k_box("car", (5.5, 10.0, 24.5, 29.0)),
            bdd100k_box("pedestrian", (30.0, 5.0, 40.0, 28.0), crowd=True),
            bdd100k_box("bicycle", (44.0, 20.0, 59.0, 39.0), occluded=True),
        )
        frames.append(bdd100k_frame(name, *boxes, timeofday=("daytime", "night")[i % 2]))
    del frames[-1]["labels"]
    return frames


def bdd100k_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Boxes and attributes for all images, drivable area, lanes and semantic maps too."""
    at = root / "bdd100k"
    names = [f"{i:08x}-62c2a288" for i in range(count)]
    drivable = np.full((48, 64), 2, np.uint8)
    drivable[24:, :32], drivable[30:, 32:] = 0, 1
    lane = np.full((48, 64), 255, np.uint8)
    lane[24:, 30], lane[24:, 50], lane[40, :] = 6, 0b010111, 0b100000
    semantic = np.zeros((48, 64), np.uint8)
    semantic[:20], semantic[30:40, 10:30], semantic[0] = 10, 13, 255
    for i, name in enumerate(names):
        write_image(at / f"images/100k/train/{name}.jpg", noise_image(i))
        for kind, ids in (("drivable", drivable), ("lane", lane), ("sem_seg", semantic)):
            write_image(at / f"labels/{kind}/masks/train/{name}.png", ids)
    path = at / "labels/det_20/det_train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bdd100k_frames(names)))
    return {
        "format": "bdd100k", "root": "bdd100k", "size": [48, 64], "attribute": "timeofday",
        "detection_rename": {"car": "vehicle", "bicycle": "bike"}, "detection_background": "rest",
        "segmentation_ignore": "rest", "classification_rename": {"daytime": "day"}, "classification_ignore": "rest",
    }  # fmt: skip


def bdd100k_maps_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """`bdd100k_tree` with its lanes as the segmentation, and boxes in a file per image."""
    bdd100k_tree(root, count)
    labels = root / "bdd100k/labels"
    (labels / "100k/train").mkdir(parents=True)
    for frame in json.loads((labels / "det_20/det_train.json").read_text()):
        stem = Path(frame["name"]).stem
        content = {"name": stem, "attributes": frame["attributes"], "frames": [{"objects": frame.get("labels", [])}]}
        (labels / f"100k/train/{stem}.json").write_text(json.dumps(content))
    (labels / "det_20/det_train.json").unlink()
    return {
        "format": "bdd100k", "root": "bdd100k", "size": None, "lane_task": "segmentation",
        "segmentation_task": "not in the recipe",
        "lane_rename": {"single white": "road", "background": "sky"}, "lane_ignore": "rest",
        "detection_rename": {"car": "vehicle", "bicycle": "bike"}, "detection_ignore": "rest",
    }  # fmt: skip


def cityscapes_instances_tree(root: Path, count: int = 3, split: str = "train") -> dict[str, Any]:
    """`cityscapes_tree` with a car that a pole cuts in two, a person, and two groups of bicycles."""
    config = cityscapes_tree(root, count, split)
    for i in range(count):
        name = f"ulm_{i:06d}_000019"
        ids = np.full((48, 64), 7, np.uint16)
        ids[:20], ids[46:] = 23, 1
        ids[30:40, 10:30], ids[28:42, 18:20] = 26_000, 17
        ids[22:40, 34:40] = 24_000
        ids[25:30, 2:8], ids[35:44, 50:62] = 33, 33
        ids[21:24, 50:56] = 29_000
        write_image(root / f"city/gtFine/{split}/ulm/{name}_gtFine_instanceIds.png", ids)
        labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        write_image(root / f"city/gtFine/{split}/ulm/{name}_gtFine_labelIds.png", labels)
    return {
        **config, "ignore": "rest", "detection_task": "detection", "detection_background": "rest",
        "detection_rename": {"car": "vehicle", "person": "pedestrian", "bicycle": "bike"},
    }  # fmt: skip


TREES = {
    "voc": voc_tree,
    "bdd100k": bdd100k_tree,
    "bdd100k with lanes": bdd100k_maps_tree,
    "cityscapes": cityscapes_instances_tree,
}
