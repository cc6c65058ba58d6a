"""A small healthy recipe with its trees, ways to spoil it, and what every diagnosis must satisfy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from data_trees import coco_tree, depth_maps_tree, image_labels_tree, label_maps_tree, noise_image, write_image

from perception.doctor import Diagnosis, diagnose, format_report

TASKS: dict[str, Any] = {
    "detection": {"classes": ["vehicle", "pedestrian"]},
    "segmentation": {"classes": ["road", "sky", "car"]},
    "depth": {"limits": [0.5, 10.0]},
    "classification": {"classes": ["day", "night"]},
}
Corruption = Callable[[Path, dict[str, Any]], None]
"""Spoils the tree at a root, or the recipe."""


def build_sources(root: Path, part: str) -> list[dict[str, Any]]:
    """A source for every task under ``root / part``, its images unlike those of the other part."""
    at = root / part
    builders = {"boxes": coco_tree, "maps": label_maps_tree, "depth": depth_maps_tree, "scenes": image_labels_tree}
    sources = [{"name": name, "labels": [prefix_paths(part, build(at))]} for name, build in builders.items()]
    for number, path in enumerate(sorted(at.rglob("*.jpg"))):
        write_image(path, noise_image(1000 * len(part) + number))
    return sources


def prefix_paths(part: str, config: dict[str, Any]) -> dict[str, Any]:
    """A reader's config whose paths start one folder higher."""
    paths = ("images", "annotations", "masks", "class_file", "depths", "csv", "root")
    return {key: f"{part}/{value}" if key in paths else value for key, value in config.items()}


def build_recipe(root: Path) -> dict[str, Any]:
    """A healthy recipe with its trees."""
    data = {
        "root": str(root),
        "size": [64, 96],
        "train": build_sources(root, "train"),
        "validation": build_sources(root, "validation"),
    }
    return {"name": "small", "data": data, "tasks": {name: dict(task) for name, task in TASKS.items()}}


def run_doctor(root: Path, mapping: dict[str, Any], **options: Any) -> Diagnosis:
    path = root / "recipe.yaml"
    path.write_text(json.dumps(mapping))
    return diagnose(path, **{"workers": 0, "include_environment": False, **options})


def finding_kinds(diagnosis: Diagnosis, severity: str = "error") -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity == severity}


def check_findings(found: Diagnosis) -> None:
    """Every finding can be printed, says something and where; those that must be mended say how."""
    for finding in found.findings:
        assert finding.where
        assert len(finding.message) > 12
        assert finding.message.isprintable()
        assert finding.count >= 1
        assert all(example.isprintable() for example in finding.examples)
        if finding.severity == "error":
            assert finding.fix or finding.message.count(".") > 1
    text = "\n".join(format_report(found, 100))
    text.encode()
    json.dumps(found.to_json(), allow_nan=False)
    order = ["error", "warning", "note"]
    assert [f.severity for f in found.findings] == sorted((f.severity for f in found.findings), key=order.index)


def image_path(root: Path, name: str = "train/coco/images/001.jpg") -> Path:
    return root / name


def edit_annotations(change: Callable[[dict[str, Any]], None]) -> Corruption:
    """Change the content of the training boxes' JSON."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        path = root / "train/coco/boxes.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return act


def write_content(name: str, data: bytes) -> Corruption:
    return lambda root, mapping: (root / name).write_bytes(data) and None


def truncate_file(name: str) -> Corruption:
    return lambda root, mapping: (root / name).write_bytes((root / name).read_bytes()[:-200]) and None


def replace_image(name: str, make: Callable[[], np.ndarray]) -> Corruption:
    return lambda root, mapping: write_image(root / name, make()) and None


def edit_maps(folder: str, make: Callable[[np.ndarray], np.ndarray]) -> Corruption:
    """Change every PNG of a folder."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        for path in (root / folder).glob("*.png"):
            write_image(path, make(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))

    return act


def change_setting(*keys: Any, value: Any) -> Corruption:
    """Set a value of the recipe."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        node = mapping
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return act


def copy_file(source: str, target: str) -> Corruption:
    return lambda root, mapping: shutil.copy(root / source, root / target) and None


def constant_depth(height: int = 48, width: int = 64, value: int = 1000) -> np.ndarray:
    return np.full((height, width), value, np.uint16)
