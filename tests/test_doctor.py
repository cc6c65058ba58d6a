"""The doctor: every fault is named, with its place and its mend, and the rest is examined all the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_trees import cityscapes_tree, picture, write
from doctor_cases import (
    Change,
    boxes,
    check,
    content,
    copied,
    cut,
    every,
    examined,
    image,
    jpg,
    kinds,
    png16,
    recipe,
    setting,
    under,
)
from PIL import Image

from perception.doctor import verdict


@pytest.fixture
def case(tmp_path) -> tuple[Path, dict[str, Any]]:
    """The folder of healthy data, and its recipe."""
    return tmp_path, recipe(tmp_path)


def test_healthy_data_has_no_findings(case):
    found = examined(*case)
    assert [f for f in found.findings if f.severity != "note"] == []
    assert found.exit_code == 0
    assert verdict(found.findings).startswith("Healthy")
    assert {summary.where for summary in found.summaries} == {
        f"{part}/{name}" for part in ("train", "validation") for name in ("boxes", "maps", "depth", "scenes")
    }
    boxes = next(s for s in found.summaries if s.where == "train/boxes")
    assert boxes.facts["pictures"] == "4 found; 0 missing, 0 unreadable, 0 duplicate"
    assert boxes.tasks[0].bars is not None
    assert boxes.tasks[0].bars.counts == [3, 3]
    assert boxes.tasks[0].facts["labelled"] == "4 pictures, 1 of them empty"
    depth = next(s for s in found.summaries if s.where == "train/depth").tasks[0]
    assert depth.facts["holes"].startswith("2 %")
    assert "1 to 3 m" in depth.facts["distance"]


def unlabelled(root: Path, mapping: dict[str, Any]) -> None:
    boxes(lambda data: data.update(annotations=data["annotations"][:2]))(root, mapping)


def brushed(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        annotation |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [500, 20, 28, 20, 2504]}}


def test_half_labelled_and_brushed_sets_are_asked_about_with_the_key_that_answers(case):
    root, mapping = case
    unlabelled(root, mapping)
    (finding,) = (f for f in examined(root, mapping).findings if f.kind == "half_labelled")
    assert finding.what.startswith("3 of 4 pictures have no annotation (75 %): background, or not labelled yet?")
    assert "unlabelled: skip" in finding.mend
    for answer in ("skip", "empty"):
        mapping["data"]["train"][0]["labels"][0]["unlabelled"] = answer
        assert "half_labelled" not in kinds(examined(root, mapping), "warning")
    boxes(brushed)(root, mapping)
    (finding,) = (f for f in examined(root, mapping).findings if f.kind == "brushed_objects")
    assert finding.count == 2
    assert "crowds: objects" in finding.mend


def scale_boxes(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x / 64, y / 48, width / 64, height / 48]


def everywhere(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        annotation["bbox"] = [0, 0, 64, 48]


def twice(data: dict[str, Any]) -> None:
    data["annotations"] += [{**a, "id": a["id"] + 100} for a in data["annotations"]]


def missing(root: Path, mapping: dict[str, Any]) -> None:
    jpg(root).unlink()


def half_grey(root: Path, mapping: dict[str, Any]) -> None:
    spoiled = picture(5)
    spoiled[24:] = 128
    write(jpg(root).with_suffix(".png"), spoiled).rename(jpg(root))


def cityscapes(change: Callable[[Path], None] = lambda at: None) -> Change:
    def act(root: Path, mapping: dict[str, Any]) -> None:
        labels = {**under("train", cityscapes_tree(root / "train")), "ignore": "rest"}
        mapping["data"]["train"].append({"name": "city", "labels": [labels]})
        change(root / "train/city")

    return act


def second_reader(root: Path, mapping: dict[str, Any]) -> None:
    labels = mapping["data"]["train"][0]["labels"]
    labels.append(dict(labels[0]))


def bad_camera(at: Path) -> None:
    next(at.rglob("*camera.json")).write_text('{"intrinsic": 3}')


def palettes(root: Path, mapping: dict[str, Any]) -> None:
    for number, path in enumerate(sorted((root / "train/maps/masks").iterdir())):
        mask = Image.fromarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        mask.putpalette([number + level // 3 for level in range(600)])
        mask.save(path)


def no_car(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 2, 1, ids).astype(np.uint8)


BOX, MASK, DEPTH = "train/coco/images/001.jpg", "train/maps/masks/001.png", "train/depth/depths/001.png"
CLASSES, CAMERA = ("tasks", "detection", "classes"), ("data", "train", 2, "labels", 0, "camera")
ERRORS: dict[str, tuple[Change, str]] = {
    "truncated picture": (cut(BOX), "damaged_picture"),
    "empty picture": (content(BOX, b""), "damaged_picture"),
    "a page for a picture": (content(BOX, b"<html>404"), "damaged_picture"),
    "picture is gone": (missing, "missing_picture"),
    "picture is a pipe": (lambda root, m: jpg(root).unlink() or os.mkfifo(jpg(root)), "missing_picture"),
    "huge file": (lambda root, m: os.truncate(jpg(root), 3 << 30), "refused_picture"),
    "picture of another size": (image(BOX, lambda: picture(3, (64, 48))), "size_mismatch"),
    "mask of another size": (image(MASK, lambda: np.zeros((40, 64), np.uint8)), "size_mismatch"),
    "depth of another size": (image(DEPTH, lambda: png16(24, 32)), "size_mismatch"),
    "mask with unknown ids": (image(MASK, lambda: np.full((48, 64), 7, np.uint8)), "wrong_labels"),
    "mask in colours": (image(MASK, lambda: picture(3)), "wrong_labels"),
    "truncated mask": (cut(MASK), "wrong_labels"),
    "masks of 0 and 255": (every("train/maps/masks", lambda m: (255 * (m != 1)).astype(np.uint8)), "cannot_open"),
    "a class that no mask shows": (
        lambda root, m: [every(f"{part}/maps/masks", no_car)(root, m) for part in ("train", "validation")],
        "absent_classes",
    ),
    "depth of 8 bits": (image(DEPTH, lambda: np.full((48, 64), 9, np.uint8)), "wrong_labels"),
    "broken JSON": (content("train/coco/boxes.json", b'{"images": [{"id": 1'), "cannot_open"),
    "JSON not UTF-8": (content("train/coco/boxes.json", b'{"\xff": 1}'), "cannot_open"),
    "category that is not in the recipe": (boxes(lambda c: c["categories"][0].update(name="lorry")), "cannot_open"),
    "unknown image id": (boxes(lambda c: c["annotations"][0].update(image_id=99)), "cannot_open"),
    "most pictures gone": (lambda root, m: [p.unlink() for p in jpg(root).parent.glob("00[1-3].jpg")], "cannot_open"),
    "no folder of masks": (lambda root, m: shutil.rmtree(root / "train/maps/masks"), "cannot_open"),
    "boxes as fractions": (boxes(scale_boxes), "normalised_boxes"),
    "class that nobody labels": (setting(*CLASSES, value=["vehicle", "pedestrian", "bike"]), "unlabelled_classes"),
    "task that nobody labels": (setting("tasks", "pose", value={"classes": ["person"]}), "unlabelled_task"),
    "depth in millimetres": (setting("data", "train", 2, "labels", 0, "scale", value=1.0), "depth_unit"),
    "depth scale too small": (setting("data", "train", 2, "labels", 0, "scale", value=1e-6), "depth_unit"),
    "depth without a valid pixel": (every("train/depth/depths", lambda d: d * 0), "no_depth"),
    "depth beyond the limits": (setting("tasks", "depth", "limits", value=[20.0, 80.0]), "depth_limits"),
    "the same picture in both parts": (copied(BOX, "validation/coco/images/001.jpg"), "leaked_pictures"),
    "no data folder": (setting("data", "root", value="/nowhere"), "no_root"),
    "no training source": (setting("data", "train", value=[]), "no_sources"),
    "unknown format": (setting("data", "train", 1, "labels", 0, "format", value="pascal"), "recipe"),
    "unknown key": (setting("data", "train", 1, "labels", 0, "maks", value="x"), "recipe"),
    "sources are no list": (setting("data", "train", value={"name": "x"}), "recipe"),
    "classes that YAML took for something else": (setting(*CLASSES, value=[True, "b"]), "recipe"),
    "classes given twice": (setting(*CLASSES, value=["vehicle", "pedestrian", "vehicle"]), "recipe"),
    "a wrong data setting": (setting("data", "size", value=[100, 100]), "recipe"),
    "a size that no memory holds": (setting("data", "size", value=[32 * 10**400, 64]), "recipe"),
    "two sources of one name": (setting("data", "train", 1, "name", value="boxes"), "recipe"),
    "two readers of one task": (second_reader, "two_labels"),
    "a camera that is none": (cityscapes(bad_camera), "wrong_labels"),
    "label map is a text file": (content(MASK, b"hello"), "wrong_labels"),
    "picture is a folder": (lambda root, m: jpg(root).unlink() or jpg(root).mkdir(), "missing_picture"),
}  # fmt: skip
WARNINGS: dict[str, tuple[Change, str]] = {
    "one colour": (image(BOX, lambda: np.full((48, 64, 3), 90, np.uint8)), "blank_picture"),
    "half grey": (half_grey, "half_grey_picture"),
    "void mask": (image(MASK, lambda: np.full((48, 64), 255, np.uint8)), "void_map"),
    "masks of one class": (every("train/maps/masks", lambda m: np.where(m < 255, 1, m)), "one_class_maps"),
    "palettes of their own": (palettes, "unlike_palettes"),
    "constant depth": (image(DEPTH, png16), "constant_depth"),
    "depth without a value": (image(DEPTH, lambda: png16(value=0)), "empty_depth"),
    "depth with full scale": (every("train/depth/depths", lambda d: np.where(d > 2900, 65535, d)), "saturated_depth"),
    "boxes twice": (boxes(twice), "repeated_boxes"),
    "boxes over the whole": (boxes(everywhere), "whole_picture_boxes"),
    "no boxes at all": (boxes(lambda c: c.update(annotations=[])), "no_boxes"),
    "boxes outside": (boxes(lambda c: c["annotations"][0].update(bbox=[500, 500, 4, 4])), "reader_problems"),
    "class that never occurs": (boxes(lambda c: c.update(annotations=c["annotations"][::2])), "untrained_classes"),
    "mask without a picture": (lambda root, m: (root / "train/maps/images/002.jpg").unlink(), "reader_problems"),
    "the same picture twice": (copied(BOX, "train/coco/images/002.jpg"), "duplicate_pictures"),
    "the same picture again": (image("validation/coco/images/001.jpg", lambda: picture(777)), "leaked_looks"),
    "no camera": (setting(*CAMERA, value=None), "no_cameras"),
    "camera of a larger picture": (setting(*CAMERA, value={"fx": 120, "fy": 120, "cx": 64, "cy": 48}), "odd_camera"),
    "camera in millimetres": (setting(*CAMERA, value={"fx": 4, "fy": 4, "cx": 32, "cy": 24}), "odd_camera"),
    "stretched camera": (setting(*CAMERA, value={"fx": 60, "fy": 30, "cx": 32, "cy": 24}), "odd_camera"),
    "principal point outside": (setting(*CAMERA, value={"fx": 60, "fy": 60, "cx": 99, "cy": 20}), "odd_camera"),
    "no validation": (setting("data", "validation", value=[]), "no_validation"),
    "task without validation": (lambda root, m: m["data"]["validation"].pop(2), "unmeasured_task"),
    "a source of another task": (setting("data", "train", 0, "labels", 0, "task", value="pose"), "unused_source"),
    "weights far from sizes": (setting("data", "train", 0, "weight", value=500.0), "uneven_sources"),
    "input of another shape": (setting("data", "size", value=[32, 256]), "wasted_input"),
    "input much larger": (setting("data", "size", value=[256, 320]), "enlarged_pictures"),
    "small boxes": (setting("data", "size", value=[32, 32]), "small_boxes"),
    "a space that is void": (setting("balance", value={"name": "pcgrad", "space": "features"}), "void_space"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ERRORS)
def test_errors_are_named_and_the_rest_is_still_examined(case, fault):
    root, mapping = case
    change, kind = ERRORS[fault]
    change(root, mapping)
    found = examined(root, mapping)
    assert kind in kinds(found)
    assert found.exit_code == 1
    check(found)
    if kind not in ("no_root", "no_sources"):
        assert any(state.looked for state in found.states)


@pytest.mark.parametrize("fault", WARNINGS)
def test_suspicious_things_are_warnings(case, fault):
    root, mapping = case
    change, kind = WARNINGS[fault]
    if kind == "leaked_looks":
        write(jpg(root).with_suffix(".png"), picture(777)).rename(jpg(root))
    change(root, mapping)
    found = examined(root, mapping)
    assert kind in kinds(found, "warning")
    check(found)
