"""The prepare scripts: what they write is what the readers read."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from data_trees import open_tree, picture, write

from perception.config import build
from perception.data import DATASETS, ReaderConfig, SourceConfig

SCRIPTS = Path(__file__).parent.parent / "datasets"


def test_the_examples_of_the_readme_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", (SCRIPTS / "README.md").read_text(), re.DOTALL)
    entries = [entry for block in blocks for entry in yaml.safe_load(block)]
    for entry in entries:
        build(SourceConfig if "labels" in entry else ReaderConfig, entry)
    assert {labels["format"] for entry in entries for labels in entry.get("labels", [entry])} == set(DATASETS)


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def test_voc_to_coco(tmp_path):
    write(tmp_path / "images/a.jpg", picture(0))
    write(tmp_path / "images/b.jpg", picture(1))
    item = (
        "<object><name>bike</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>"
    )
    (tmp_path / "xml").mkdir()
    text = f"<annotation><size><width>64</width><height>48</height></size>{item}</annotation>"
    (tmp_path / "xml/a.xml").write_text(text)
    out = run(
        "prepare_voc.py", tmp_path / "images", tmp_path / "xml", tmp_path / "a/b.json", "--classes", "vehicle", "bike"
    )
    assert "b.jpg has no XML" in out
    source = open_tree(tmp_path, {"format": "coco", "images": "images", "annotations": "a/b.json"})
    target = source.sample(0).annotations["detection"]
    assert target.boxes.tolist() == [[0, 1, 10, 12]]
    assert target.labels.tolist() == [2]
    with pytest.raises(RuntimeError, match="class 'bike' is not among vehicle"):
        run("prepare_voc.py", tmp_path / "images", tmp_path / "xml", tmp_path / "c.json", "--classes", "vehicle")


def test_camvid(tmp_path):
    raw = tmp_path / "raw"
    colours = {"Sky": (128, 128, 128), "Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "Void": (0, 0, 0)}
    (raw / "701_StillsRaw_full").mkdir(parents=True)
    (raw / "label_colors.txt").write_text("".join(f"{r} {g} {b}\t\t{n}\n" for n, (r, g, b) in colours.items()))
    for i in range(5):
        write(raw / f"701_StillsRaw_full/0001TP_{i:06d}.png", picture(i, (96, 128)))
        label = np.zeros((96, 128, 3), np.uint8)
        label[:32], label[32:64, :64], label[32:64, 64:] = colours["Sky"], colours["Road"], colours["LaneMkgsDriv"]
        write(raw / f"LabeledApproved_full/0001TP_{i:06d}_L.png", label)
    assert "4 train, 1 val" in run("prepare_camvid.py", raw, tmp_path / "camvid", "--size", 64, 48)
    names = (tmp_path / "camvid/classes.txt").read_text().split()
    folders = {"images": "camvid/images/train", "masks": "camvid/masks/train", "classes": "camvid/classes.txt"}
    source = open_tree(tmp_path, {"format": "label_maps", **folders}, segmentation=names)
    assert len(source) == 4
    values = source.sample(0).annotations["segmentation"].values
    assert [names[values[4, 4]], names[values[20, 4]], names[values[20, 60]], values[40, 4]] == [
        "sky",
        "road",
        "road",
        255,
    ]


def test_seven_scenes(tmp_path):
    for sequence in ("seq-01", "seq-02"):
        for i in range(4):
            write(tmp_path / f"chess/{sequence}/frame-{i:06d}.color.png", picture(i))
            depth = np.full((48, 64), 1500, np.uint16)
            depth[0] = 65535
            write(tmp_path / f"chess/{sequence}/frame-{i:06d}.depth.png", depth)
    (tmp_path / "chess/TrainSplit.txt").write_text("sequence1\n")
    (tmp_path / "chess/TestSplit.txt").write_text("sequence2\n")
    out = run("prepare_seven_scenes.py", tmp_path / "chess", tmp_path / "rgbd", "--every", 2)
    assert out == "train: 2 frames\nval: 2 frames\n"
    folders = {"images": "rgbd/color/val", "depths": "rgbd/depth/val"}
    depth = open_tree(tmp_path, {"format": "depth_maps", **folders, "scale": 0.001}).sample(1).annotations["depth"]
    assert not depth.valid[0].any()
    assert np.allclose(depth.values[1:], 1.5)
    assert cv2.imread(str(tmp_path / "rgbd/color/train/seq-01_000002.jpg")) is not None
