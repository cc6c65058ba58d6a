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
from data_trees import cityscapes_tree, noise_image, write_image
from doctor_cases import (
    Corruption,
    build_recipe,
    change_setting,
    check_findings,
    constant_depth,
    copy_file,
    edit_annotations,
    edit_maps,
    finding_kinds,
    image_path,
    prefix_paths,
    replace_image,
    run_doctor,
    truncate_file,
    write_content,
)
from PIL import Image

from perception.doctor import summarize_findings


@pytest.fixture
def case(tmp_path) -> tuple[Path, dict[str, Any]]:
    """The folder of healthy data, and its recipe."""
    return tmp_path, build_recipe(tmp_path)


def test_healthy_data_has_no_findings(case):
    found = run_doctor(*case)
    assert [f for f in found.findings if f.severity != "note"] == []
    assert found.exit_code == 0
    assert summarize_findings(found.findings) == "No errors, no warnings."
    assert {summary.where for summary in found.summaries} == {
        f"{part}/{name}" for part in ("train", "validation") for name in ("boxes", "maps", "depth", "scenes")
    }
    boxes = next(s for s in found.summaries if s.where == "train/boxes")
    assert boxes.properties["images"] == "4 found; 0 missing, 0 unreadable, 0 duplicate"
    assert boxes.tasks[0].class_chart is not None
    assert boxes.tasks[0].class_chart.counts == [3, 3]
    assert boxes.tasks[0].properties["labeled"] == "4 images, 1 of them empty"
    depth = next(s for s in found.summaries if s.where == "train/depth").tasks[0]
    assert depth.properties["invalid"].startswith("2 %")
    assert "1 to 3 m" in depth.properties["depth"]


def unlabelled(root: Path, mapping: dict[str, Any]) -> None:
    edit_annotations(lambda data: data.update(annotations=data["annotations"][:2]))(root, mapping)


def brushed(data: dict[str, Any]) -> None:
    for annotation in data["annotations"]:
        annotation |= {"iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [500, 20, 28, 20, 2504]}}


def test_half_labeled_and_brushed_sets_are_asked_about_with_the_key_that_answers(case):
    root, mapping = case
    unlabelled(root, mapping)
    (finding,) = (f for f in run_doctor(root, mapping).findings if f.code == "unannotated_images")
    assert finding.message.startswith("3 of 4 images have no annotation (75 %). They are trained as background.")
    assert "unlabeled: skip" in finding.fix
    for answer in ("skip", "empty"):
        mapping["data"]["train"][0]["labels"][0]["unlabeled"] = answer
        assert "unannotated_images" not in finding_kinds(run_doctor(root, mapping), "warning")
    edit_annotations(brushed)(root, mapping)
    (finding,) = (f for f in run_doctor(root, mapping).findings if f.code == "brushed_objects")
    assert finding.count == 2
    assert "crowds: object" in finding.fix


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
    image_path(root).unlink()


def half_gray(root: Path, mapping: dict[str, Any]) -> None:
    spoiled = noise_image(5)
    spoiled[24:] = 128
    write_image(image_path(root).with_suffix(".png"), spoiled).rename(image_path(root))


def cityscapes(change: Callable[[Path], None] = lambda at: None) -> Corruption:
    def act(root: Path, mapping: dict[str, Any]) -> None:
        labels = {**prefix_paths("train", cityscapes_tree(root / "train")), "ignore": "rest"}
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
ERRORS: dict[str, tuple[Corruption, str]] = {
    "truncated image": (truncate_file(BOX), "damaged_image"),
    "empty image": (write_content(BOX, b""), "damaged_image"),
    "a page for an image": (write_content(BOX, b"<html>404"), "damaged_image"),
    "image is gone": (missing, "missing_image"),
    "image is a pipe": (lambda root, m: image_path(root).unlink() or os.mkfifo(image_path(root)), "missing_image"),
    "huge file": (lambda root, m: os.truncate(image_path(root), 3 << 30), "refused_image"),
    "image of another size": (replace_image(BOX, lambda: noise_image(3, (64, 48))), "size_mismatch"),
    "mask of another size": (replace_image(MASK, lambda: np.zeros((40, 64), np.uint8)), "size_mismatch"),
    "depth of another size": (replace_image(DEPTH, lambda: constant_depth(24, 32)), "size_mismatch"),
    "mask with unknown ids": (replace_image(MASK, lambda: np.full((48, 64), 7, np.uint8)), "invalid_labels"),
    "mask in colors": (replace_image(MASK, lambda: noise_image(3)), "invalid_labels"),
    "truncated mask": (truncate_file(MASK), "invalid_labels"),
    "masks of 0 and 255": (edit_maps("train/maps/masks", lambda m: (255 * (m != 1)).astype(np.uint8)), "cannot_open"),
    "a class that no mask shows": (
        lambda root, m: [edit_maps(f"{part}/maps/masks", no_car)(root, m) for part in ("train", "validation")],
        "absent_classes",
    ),
    "depth of 8 bits": (replace_image(DEPTH, lambda: np.full((48, 64), 9, np.uint8)), "invalid_labels"),
    "broken JSON": (write_content("train/coco/boxes.json", b'{"images": [{"id": 1'), "cannot_open"),
    "JSON not UTF-8": (write_content("train/coco/boxes.json", b'{"\xff": 1}'), "cannot_open"),
    "category that is not "
    "in the recipe": (edit_annotations(lambda c: c["categories"][0].update(name="truck")), "cannot_open"),
    "unknown image id": (edit_annotations(lambda c: c["annotations"][0].update(image_id=99)), "cannot_open"),
    "most images gone": (lambda root, m: [p.unlink() for p in image_path(root).parent.glob("00[1-3].jpg")],
    "cannot_open"),
    "no folder of masks": (lambda root, m: shutil.rmtree(root / "train/maps/masks"), "cannot_open"),
    "boxes as fractions": (edit_annotations(scale_boxes), "normalized_boxes"),
    "class that nobody labels": (change_setting(*CLASSES, value=["vehicle", "pedestrian", "bike"]),
    "unlabeled_classes"),
    "task that nobody labels": (change_setting("tasks", "pose", value={"classes": ["person"]}), "unlabeled_task"),
    "depth in millimetres": (change_setting("data", "train", 2, "labels", 0, "scale", value=1.0), "depth_unit"),
    "depth scale too small": (change_setting("data", "train", 2, "labels", 0, "scale", value=1e-6), "depth_unit"),
    "depth without a valid pixel": (edit_maps("train/depth/depths", lambda d: d * 0), "no_depth"),
    "depth beyond the limits": (change_setting("tasks", "depth", "limits", value=[20.0, 80.0]), "depth_limits"),
    "the same image in both parts": (copy_file(BOX, "validation/coco/images/001.jpg"), "leaked_images"),
    "no data folder": (change_setting("data", "root", value="/nowhere"), "missing_root"),
    "no training source": (change_setting("data", "train", value=[]), "no_sources"),
    "unknown format": (change_setting("data", "train", 1, "labels", 0, "format", value="pascal"), "recipe"),
    "unknown key": (change_setting("data", "train", 1, "labels", 0, "maks", value="x"), "recipe"),
    "sources are no list": (change_setting("data", "train", value={"name": "x"}), "recipe"),
    "classes that YAML took for something else": (change_setting(*CLASSES, value=[True, "b"]), "recipe"),
    "classes given twice": (change_setting(*CLASSES, value=["vehicle", "pedestrian", "vehicle"]), "recipe"),
    "a wrong data setting": (change_setting("data", "size", value=[100, 100]), "recipe"),
    "a size that no memory holds": (change_setting("data", "size", value=[32 * 10**400, 64]), "recipe"),
    "two sources of one name": (change_setting("data", "train", 1, "name", value="boxes"), "recipe"),
    "two readers of one task": (second_reader, "conflicting_labels"),
    "a camera that is none": (cityscapes(bad_camera), "invalid_labels"),
    "segmentation mask is a text file": (write_content(MASK, b"hello"), "invalid_labels"),
    "image is a folder": (lambda root, m: image_path(root).unlink() or image_path(root).mkdir(), "missing_image"),
}  # fmt: skip
WARNINGS: dict[str, tuple[Corruption, str]] = {
    "one color": (replace_image(BOX, lambda: np.full((48, 64, 3), 90, np.uint8)), "blank_image"),
    "half gray": (half_gray, "half_gray_image"),
    "void mask": (replace_image(MASK, lambda: np.full((48, 64), 255, np.uint8)), "empty_mask"),
    "masks of one class": (edit_maps("train/maps/masks", lambda m: np.where(m < 255, 1, m)), "one_class_masks"),
    "palettes of their own": (palettes, "inconsistent_palettes"),
    "constant depth": (replace_image(DEPTH, constant_depth), "constant_depth"),
    "depth without a value": (replace_image(DEPTH, lambda: constant_depth(value=0)), "empty_depth"),
    "depth with full scale": (edit_maps("train/depth/depths", lambda d: np.where(d > 2900, 65535, d)),
    "saturated_depth"),
    "boxes twice": (edit_annotations(twice), "duplicate_boxes"),
    "boxes over the whole": (edit_annotations(everywhere), "full_image_boxes"),
    "no boxes at all": (edit_annotations(lambda c: c.update(annotations=[])), "no_boxes"),
    "boxes outside": (edit_annotations(lambda c: c["annotations"][0].update(bbox=[500, 500, 4, 4])), "reader_problems"),
    "class that never occurs": (edit_annotations(lambda c: c.update(annotations=c["annotations"][::2])),
    "untrained_classes"),
    "mask without an image": (lambda root, m: (root / "train/maps/images/002.jpg").unlink(), "reader_problems"),
    "the same image twice": (copy_file(BOX, "train/coco/images/002.jpg"), "duplicate_images"),
    "the same image again": (replace_image("validation/coco/images/001.jpg", lambda: noise_image(777)),
    "leaked_near_duplicates"),
    "no camera": (change_setting(*CAMERA, value=None), "no_cameras"),
    "camera of a larger image": (change_setting(*CAMERA, value={"fx": 120, "fy": 120, "cx": 64, "cy": 48}),
    "implausible_camera"),
    "camera in millimetres": (change_setting(*CAMERA, value={"fx": 4, "fy": 4, "cx": 32, "cy": 24}),
    "implausible_camera"),
    "stretched camera": (change_setting(*CAMERA, value={"fx": 60, "fy": 30, "cx": 32, "cy": 24}), "implausible_camera"),
    "principal point outside": (change_setting(*CAMERA, value={"fx": 60, "fy": 60, "cx": 99, "cy": 20}),
    "implausible_camera"),
    "no validation": (change_setting("data", "validation", value=[]), "no_validation"),
    "task without validation": (lambda root, m: m["data"]["validation"].pop(2), "unmeasured_task"),
    "a source of another task": (change_setting("data", "train", 0, "labels", 0, "task", value="pose"),
    "unused_source"),
    "weights far from sizes": (change_setting("data", "train", 0, "weight", value=500.0), "uneven_sources"),
    "input of another shape": (change_setting("data", "size", value=[32, 256]), "wasted_input"),
    "input much larger": (change_setting("data", "size", value=[256, 320]), "upscaled_images"),
    "small boxes": (change_setting("data", "size", value=[32, 32]), "small_boxes"),
    "a space that is void": (change_setting("balance", value={"name": "pcgrad", "space": "features"}),
    "unused_conflict_space"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ERRORS)
def test_errors_are_named_and_the_rest_is_still_examined(case, fault):
    root, mapping = case
    change, kind = ERRORS[fault]
    change(root, mapping)
    found = run_doctor(root, mapping)
    assert kind in finding_kinds(found)
    assert found.exit_code == 1
    check_findings(found)
    if kind not in ("missing_root", "no_sources"):
        assert any(state.num_examined for state in found.states)


@pytest.mark.parametrize("fault", WARNINGS)
def test_suspicious_things_are_warnings(case, fault):
    root, mapping = case
    change, kind = WARNINGS[fault]
    if kind == "leaked_near_duplicates":
        write_image(image_path(root).with_suffix(".png"), noise_image(777)).rename(image_path(root))
    change(root, mapping)
    found = run_doctor(root, mapping)
    assert kind in finding_kinds(found, "warning")
    check_findings(found)
