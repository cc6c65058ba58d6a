"""Builders of small genuine trees: KITTI's objects and depth, NYU Depth V2, YOLO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_trees import noise_image, write_image

DRIVE = "2011_09_26_drive_0001_sync"
P2 = "7.2e+01 0.0e+00 3.1e+01 4.485728e+01 0.0e+00 7.3e+01 2.3e+01 2.163791e-01 0.0e+00 0.0e+00 1.0e+00 2.745884e-03"


def write_text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def kitti_line(name: str, box: Sequence[float], truncated: float = 0.0, occluded: int = 0) -> str:
    corners = " ".join(f"{value:.2f}" for value in box)
    rest = "-1 -1 -1 -1000 -1000 -1000 -10" if name == "DontCare" else "1.57 1.73 4.15 1.00 1.75 13.22 -1.62"
    return f"{name} {truncated:.2f} {occluded} -1.67 {corners} {rest}\n"


def kitti_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """A car, a half-hidden pedestrian, a van and a region of no class in every image but the last, which is empty."""
    at = root / "kitti/training"
    for i in range(count):
        write_image(at / f"image_2/{i:06d}.png", noise_image(i))
        lines = [
            kitti_line("Car", (4 + i, 5, 24 + i, 20)),
            kitti_line("Pedestrian", (30, 10, 36, 40), 0.2, 2),
            kitti_line("Van", (40, 10, 60, 30)),
            kitti_line("DontCare", (50, 30, 63, 47), -1, -1),
        ]
        write_text(at / f"label_2/{i:06d}.txt", "".join(lines) if i < count - 1 else "")
        matrices = [f"P{k}: {P2}\n" for k in range(4)]
        rest = "R0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n\n"
        write_text(at / f"calib/{i:06d}.txt", "".join(matrices) + rest)
    rename = {"Car": "vehicle", "Pedestrian": "pedestrian", "Cyclist": "bike"}
    return {"format": "kitti", "root": "kitti", "rename": rename, "ignore": ["Van"], "background": "rest"}


def sparse_depth_map(seed: int, scale: float = 256, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint16 [H, W]: 4 m to 36 m times ``scale`` on a fifth of the lower pixels, 0 elsewhere."""
    random = np.random.default_rng(seed)
    depth = random.uniform(4, 36, size) * scale
    depth[random.random(size) > 0.2] = 0
    depth[: size[0] // 3] = 0
    return depth.astype(np.uint16)


def kitti_depth_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """``count`` images of the left camera, one of the right, images without a map at the drive's ends."""
    at, raw = root / "kitti_depth/train", root / "kitti_raw"
    for camera, number in (("image_02", count), ("image_03", 1)):
        for i in range(number):
            write_image(at / DRIVE / f"proj_depth/groundtruth/{camera}/{i + 5:010d}.png", sparse_depth_map(i))
        for i in range(number + 2):
            write_image(raw / DRIVE[:10] / DRIVE / camera / f"data/{i + 4:010d}.png", noise_image(i))
    rows = [f"S_rect_{c}: 6.4e+01 4.8e+01\nP_rect_{c}: {P2}\n" for c in ("00", "01", "02", "03")]
    write_text(raw / DRIVE[:10] / "calib_cam_to_cam.txt", "calib_time: 09-Jan-2012 13:57:47\n" + "".join(rows))
    return {"format": "kitti_depth", "root": "kitti_depth", "raw_images": "kitti_raw"}


def kitti_selection_tree(root: Path, count: int = 3) -> dict[str, Any]:
    at = root / "depth_selection/val_selection_cropped"
    for i in range(count):
        number = f"{5 + 3 * i:010d}_image_0{2 + i % 2}"
        write_image(at / f"image/{DRIVE}_image_{number}.png", noise_image(i))
        write_image(at / f"groundtruth_depth/{DRIVE}_groundtruth_depth_{number}.png", sparse_depth_map(i))
        write_text(at / f"intrinsics/{DRIVE}_image_{number}.txt", f"72 0.0 3{i} 0.0 73 23 0.0 0.0 1.0\n")
    return {"format": "kitti_depth", "root": "depth_selection", "split": "selection"}


def nyuv2_tree(root: Path, count: int = 3) -> dict[str, Any]:
    """Depth 1 m to 3 m with the left column invalid, and segmentation masks of 40 classes but for the last image."""
    for i in range(count):
        scene = ("kitchen_0028b", "bedroom_0004")[i % 2]
        write_image(root / "nyu" / scene / f"rgb_{45 + i:05d}.jpg", noise_image(i))
        depth = np.tile(np.linspace(1000, 3000, 64).astype(np.uint16), (48, 1))
        depth[:, 0] = 0
        write_image(root / "nyu" / scene / f"sync_depth_{45 + i:05d}.png", depth)
        labels = np.full((48, 64), 2, np.uint8)
        labels[:20], labels[30:40, 10:30], labels[46:] = 22, 5, 0
        labels[40:44] = 40
        if i < count - 1 or count == 1:
            write_image(root / "nyu_labels" / scene / f"label_{45 + i:05d}.png", labels)
    rename = {"floor": "road", "ceiling": "sky", "chair": "car"}
    return {"format": "nyuv2", "root": "nyu", "labels": "nyu_labels", "rename": rename, "ignore": "rest"}


YAML = """# The layout that Ultralytics' own files have
path: ../yolo  # root of the data set
train: images/train
val: images/val # 128 images
test: # optional

names:
  0: vehicle
  1: pedestrian
  2: traffic light

# Download script or URL (optional)
download: |
  import os
  os.system("touch /tmp/this-must-never-run")
"""


def yolo_tree(root: Path, count: int = 3, content: str | bytes = YAML) -> dict[str, Any]:
    """A box and a polygon in every image, the last has an empty file; the one before it has a class to drop."""
    for i in range(count):
        write_image(root / f"yolo/images/train/{i:03d}.jpg", noise_image(i))
        lines = ["0 0.5 0.5 0.25 0.5\n", "1 0.125 0.25 0.25 0.25 0.1875 0.5\n"]
        lines += ["2 0.5 0.5 0.1 0.1\n"] if i == count - 2 else []
        write_text(root / f"yolo/labels/train/{i:03d}.txt", "".join(lines) if i < count - 1 or count == 1 else "")
    write_text(root / "yolo/data.yaml", content)
    return {"format": "yolo", "data": "yolo/data.yaml", "background": ["traffic light"]}


TREES = {
    "kitti": kitti_tree,
    "kitti_depth": kitti_depth_tree,
    "kitti_selection": kitti_selection_tree,
    "nyuv2": nyuv2_tree,
    "yolo": yolo_tree,
}
