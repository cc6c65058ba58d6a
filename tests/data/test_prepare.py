"""The prepare scripts: what they write is what the readers read."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from data_trees import noise_image, open_tree, write_image
from trees_street import voc_tree

from perception.config import validate_config
from perception.data import DATASETS, ReaderConfig, SourceConfig

SCRIPTS = Path(__file__).parents[2] / "datasets"


def test_the_examples_of_the_readme_are_valid():
    blocks = re.findall(r"```yaml\n(.*?)```", (SCRIPTS / "README.md").read_text(), re.DOTALL)
    entries = [entry for block in blocks for entry in yaml.safe_load(block)]
    for entry in entries:
        validate_config(SourceConfig if "labels" in entry else ReaderConfig, entry)
    assert {labels["format"] for entry in entries for labels in entry.get("labels", [entry])} == set(DATASETS)


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def test_voc_to_coco(tmp_path):
    write_image(tmp_path / "images/a.jpg", noise_image(0))
    write_image(tmp_path / "images/b.jpg", noise_image(1))
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
    target = source.load_sample(0).annotations["detection"]
    assert target.boxes.tolist() == [[0, 1, 10, 12]]
    assert target.labels.tolist() == [2]
    with pytest.raises(RuntimeError, match="class 'bike' is not among vehicle"):
        run("prepare_voc.py", tmp_path / "images", tmp_path / "xml", tmp_path / "c.json", "--classes", "vehicle")


def test_camvid(tmp_path):
    raw = tmp_path / "raw"
    colors = {"Sky": (128, 128, 128), "Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "Void": (0, 0, 0)}
    (raw / "701_StillsRaw_full").mkdir(parents=True)
    (raw / "label_colors.txt").write_text("".join(f"{r} {g} {b}\t\t{n}\n" for n, (r, g, b) in colors.items()))
    for i in range(5):
        write_image(raw / f"701_StillsRaw_full/0001TP_{i:06d}.png", noise_image(i, (96, 128)))
        label = np.zeros((96, 128, 3), np.uint8)
        label[:32], label[32:64, :64], label[32:64, 64:] = colors["Sky"], colors["Road"], colors["LaneMkgsDriv"]
        write_image(raw / f"LabeledApproved_full/0001TP_{i:06d}_L.png", label)
    assert "4 train, 1 val" in run("prepare_camvid.py", raw, tmp_path / "camvid", "--size", 64, 48)
    names = (tmp_path / "camvid/classes.txt").read_text().split()
    folders = {"images": "camvid/images/train", "masks": "camvid/masks/train", "class_file": "camvid/classes.txt"}
    source = open_tree(tmp_path, {"format": "segmentation_masks", **folders}, segmentation=names)
    assert len(source) == 4
    values = source.load_sample(0).annotations["segmentation"].values
    assert [names[values[4, 4]], names[values[20, 4]], names[values[20, 60]], values[40, 4]] == [
        "sky",
        "road",
        "road",
        255,
    ]


def test_seven_scenes(tmp_path):
    for sequence in ("seq-01", "seq-02"):
        for i in range(4):
            write_image(tmp_path / f"chess/{sequence}/frame-{i:06d}.color.png", noise_image(i))
            depth = np.full((48, 64), 1500, np.uint16)
            depth[0] = 65535
            write_image(tmp_path / f"chess/{sequence}/frame-{i:06d}.depth.png", depth)
    (tmp_path / "chess/TrainSplit.txt").write_text("sequence1\n")
    (tmp_path / "chess/TestSplit.txt").write_text("sequence2\n")
    out = run("prepare_seven_scenes.py", tmp_path / "chess", tmp_path / "rgbd", "--every", 2)
    assert out == "train: 2 frames\nval: 2 frames\n"
    folders = {"images": "rgbd/color/val", "depths": "rgbd/depth/val"}
    depth = open_tree(tmp_path, {"format": "depth_maps", **folders, "scale": 0.001}).load_sample(1).annotations["depth"]
    assert not depth.valid[0].any()
    assert np.allclose(depth.values[1:], 1.5)
    assert cv2.imread(str(tmp_path / "rgbd/color/train/seq-01_000002.jpg")) is not None


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs a script that checks a tree, with other counts than the official ones. Returns exit code and output."""

    def run_main(script: str, counts: dict[str, dict[str, int]], *arguments: object) -> tuple[int, str]:
        spec = importlib.util.spec_from_file_location("script", SCRIPTS / script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, values in counts.items():
            getattr(module, name).update(values)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            module.main()
        return int(str(end.value.code)), capsys.readouterr().out

    return run_main


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_voc_difficult_objects_become_crowds_and_faults_say_where(tmp_path):
    voc_tree(tmp_path)
    at = tmp_path / "VOCdevkit/VOC2012"
    arguments = at / "JPEGImages", at / "Annotations", tmp_path / "boxes.json", "--classes", "car", "person"
    run("prepare_voc.py", *arguments)
    classes = {"detection": ("car", "person")}
    config = {"format": "coco", "images": "VOCdevkit/VOC2012/JPEGImages", "annotations": "boxes.json"}
    theirs = open_tree(tmp_path, config, **classes)
    options = {"segmentation_task": None, "detection_background": "rest"}
    own = open_tree(tmp_path, {"format": "voc", "root": "VOCdevkit/VOC2012", **options}, **classes)
    for i in range(3):
        read, converted = (source.read_annotations(i)["detection"] for source in (own, theirs))
        assert np.array_equal(read.boxes, converted.boxes)
        assert np.array_equal(read.labels, converted.labels)
        assert (read.ignore is None) == (converted.ignore is None)
    (at / "Annotations/2007_000001.xml").write_text("<annotation>\n<object>")
    with pytest.raises(RuntimeError, match=r"000001\.xml is not valid XML at .*line 2"):
        run("prepare_voc.py", *arguments)


def test_cityscapes_trees_are_checked(tmp_path, check):
    script, counts = "prepare_cityscapes.py", {"train": 9, "val": 5, "test": 3}
    code, out = check(script, {}, tmp_path)
    assert code == 1
    assert "leftImg8bit_trainvaltest.zip (images) from https://www.cityscapes-dataset.com/downloads/" in out
    assert "gtFine_trainvaltest.zip" in out
    assert "gtCoarse.zip" not in out
    code, out = check(script, {}, tmp_path, "--need")
    assert code == 0
    assert out.startswith("Not there, and not needed: images, fine, disparity, camera, images_extra, coarse,")
    for split, count in counts.items():
        stems = [f"ulm_{i:06d}_000019" for i in range(count)]
        touch(tmp_path, *(f"leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png" for stem in stems))
        endings = ("labelIds", "instanceIds")
        touch(tmp_path, *(f"gtFine/{split}/ulm/{stem}_gtFine_{end}.png" for stem in stems for end in endings))
    code, out = check(script, {"FINE": counts}, tmp_path)
    assert code == 0
    assert "fine: val: 5 of 5 *_gtFine_instanceIds.png" in out
    code, out = check(script, {}, tmp_path)
    assert code == 1
    assert "images: train: 9 of 2975 *_leftImg8bit.png" in out
    label = tmp_path / "gtFine/train/ulm/ulm_000007_000019_gtFine_labelIds.png"
    label.rename(label.with_name("ulm_999999_000019_gtFine_labelIds.png"))
    code, out = check(script, {"FINE": counts}, tmp_path)
    assert code == 1
    assert "1 without an image, the first is ulm/ulm_999999_000019_gtFine_labelIds.png" in out
    assert "1 that images lack, the first is ulm/ulm_000007_000019_gtFine_labelIds.png" in out
    touch(tmp_path / "b", "leftImg8bit_trainvaltest/leftImg8bit/train/ulm/a_leftImg8bit.png")
    assert "one folder too deep" in check(script, {}, tmp_path / "b")[1]


def test_bdd100k_trees_are_checked(tmp_path, check):
    script, counts = "prepare_bdd100k.py", {"IMAGE_COUNTS": {"10k": {"train": 7, "val": 4, "test": 2}}}
    code, out = check(script, {}, tmp_path)
    assert code == 1
    assert "'100K Images' (images) from https://bdd-data.berkeley.edu/" in out
    assert "'Detection 2020 Labels' (boxes)" in out
    assert "(drivable)" not in out
    assert check(script, {}, tmp_path, "--need")[0] == 0
    for split, count in counts["IMAGE_COUNTS"]["10k"].items():
        names = [f"{i:08x}-62c2a288" for i in range(count)]
        touch(tmp_path, *(f"images/10k/{split}/{name}.jpg" for name in names))
        if split != "test":
            touch(tmp_path, *(f"labels/sem_seg/masks/{split}/{name}.png" for name in names))
    code, out = check(script, counts, tmp_path, "--need", "sem_seg", "images_10k")
    assert code == 0
    assert "labels/sem_seg/masks/val: 4; 0 images of images/10k without" in out
    assert check(script, {}, tmp_path, "--need")[0] == 1  # of what is there, all must be
    touch(tmp_path, "labels/sem_seg/masks/val/x.png", "images/100k/train/a.jpg", "labels/det_20/det_train.json")
    code, out = check(script, counts, tmp_path, "--need", "sem_seg")
    assert code == 1
    assert "1 without an image, the first is x.png" in out
    assert "images/100k/train: 1 of 70000" in out
    assert "boxes of train: labels/det_20/det_train.json" in out
    touch(tmp_path / "b", "bdd100k/images/100k/train/a.jpg")
    assert "one folder deeper" in check(script, {}, tmp_path / "b")[1]
