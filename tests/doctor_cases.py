"""A small healthy recipe with its trees, ways to spoil it, and what every diagnosis must satisfy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from data_trees import coco_tree, depth_maps_tree, image_labels_tree, label_maps_tree, picture, write

from perception.doctor import Diagnosis, diagnose, report_lines

TASKS: dict[str, Any] = {
    "detection": {"classes": ["vehicle", "pedestrian"]},
    "segmentation": {"classes": ["road", "sky", "car"]},
    "depth": {"limits": [0.5, 10.0]},
    "classification": {"classes": ["day", "night"]},
}
Change = Callable[[Path, dict[str, Any]], None]
"""Spoils the tree at a root, or the recipe."""


def tree(root: Path, part: str) -> list[dict[str, Any]]:
    """A source for every task under ``root / part``, its pictures unlike those of the other part."""
    at = root / part
    builders = {"boxes": coco_tree, "maps": label_maps_tree, "depth": depth_maps_tree, "scenes": image_labels_tree}
    sources = [{"name": name, "labels": [under(part, build(at))]} for name, build in builders.items()]
    for number, path in enumerate(sorted(at.rglob("*.jpg"))):
        write(path, picture(1000 * len(part) + number))
    return sources


def under(part: str, config: dict[str, Any]) -> dict[str, Any]:
    """A reader's config whose paths start one folder higher."""
    paths = ("images", "annotations", "masks", "classes", "depths", "csv", "root")
    return {key: f"{part}/{value}" if key in paths else value for key, value in config.items()}


def recipe(root: Path) -> dict[str, Any]:
    """A healthy recipe with its trees."""
    data = {"root": str(root), "size": [64, 96], "train": tree(root, "train"), "validation": tree(root, "validation")}
    return {"name": "small", "data": data, "tasks": {name: dict(task) for name, task in TASKS.items()}}


def examined(root: Path, mapping: dict[str, Any], **options: Any) -> Diagnosis:
    path = root / "recipe.yaml"
    path.write_text(json.dumps(mapping))
    return diagnose(path, **{"workers": 0, "look_around": False, **options})


def kinds(diagnosis: Diagnosis, severity: str = "error") -> set[str]:
    return {finding.kind for finding in diagnosis.findings if finding.severity == severity}


def check(found: Diagnosis) -> None:
    """Every finding can be printed, says something and where; those that must be mended say how."""
    for finding in found.findings:
        assert finding.where
        assert len(finding.what) > 12
        assert finding.what.isprintable()
        assert finding.count >= 1
        assert all(example.isprintable() for example in finding.examples)
        if finding.severity == "error":
            assert finding.mend or finding.what.count(".") > 1
    text = "\n".join(report_lines(found, 100))
    text.encode()
    json.dumps(found.as_json(), allow_nan=False)
    order = ["error", "warning", "note"]
    assert [f.severity for f in found.findings] == sorted((f.severity for f in found.findings), key=order.index)


def jpg(root: Path, name: str = "train/coco/images/001.jpg") -> Path:
    return root / name


def boxes(change: Callable[[dict[str, Any]], None]) -> Change:
    """Change the content of the training boxes' JSON."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        path = root / "train/coco/boxes.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return act


def content(name: str, data: bytes) -> Change:
    return lambda root, mapping: (root / name).write_bytes(data) and None


def cut(name: str) -> Change:
    return lambda root, mapping: (root / name).write_bytes((root / name).read_bytes()[:-200]) and None


def image(name: str, make: Callable[[], np.ndarray]) -> Change:
    return lambda root, mapping: write(root / name, make()) and None


def every(folder: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change every PNG of a folder."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        for path in (root / folder).glob("*.png"):
            write(path, make(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))

    return act


def setting(*keys: Any, value: Any) -> Change:
    """Set a value of the recipe."""

    def act(root: Path, mapping: dict[str, Any]) -> None:
        node = mapping
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return act


def copied(source: str, target: str) -> Change:
    return lambda root, mapping: shutil.copy(root / source, root / target) and None


def png16(height: int = 48, width: int = 64, value: int = 1000) -> np.ndarray:
    return np.full((height, width), value, np.uint16)
