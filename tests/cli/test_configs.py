"""Every recipe in configs/: complete, buildable without weights, and its readers label its classes on genuine trees."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_trees import noise_image, write_image
from recipe_files import RECIPES
from trees_coco import ids_to_colors
from trees_kitti import kitti_depth_tree, kitti_selection_tree, kitti_tree, write_text
from trees_street import bdd100k_tree, cityscapes_instances_tree

import perception
from perception import recipe as recipes
from perception import synthetic
from perception.config import load_yaml
from perception.data.formats.nyuv2 import CLASSES_40

DEMO = Path(perception.__file__).with_name("demo.yaml")
PUBLISHED = Path(os.environ.get("PERCEPTION_TEST_DATA", "/nowhere")) / "coco128/annotations"


def coco(root: Path, folder: str = "coco", splits: tuple[str, ...] = ("train", "val")) -> None:
    """Two images a split with COCO's own categories."""
    if not PUBLISHED.is_dir():
        pytest.skip("COCO's categories are in the data of PERCEPTION_TEST_DATA")
    for split in splits:
        images = [{"id": i, "file_name": f"{i:03d}.jpg", "height": 48, "width": 64} for i in range(2)]
        for image in images:
            write_image(root / folder / f"{split}2017" / image["file_name"], noise_image(image["id"]))
        boxes = [
            {"id": i + 1, "image_id": i, "category_id": 3, "bbox": [4, 5, 20, 20], "area": 400, "iscrowd": 0}
            for i in range(2)
        ]
        ids = np.full((48, 64), 7)
        ids[20:] = 8
        segments = [
            {"id": 7, "category_id": 187, "iscrowd": 0, "bbox": [0, 0, 64, 20], "area": 1280},
            {"id": 8, "category_id": 149, "iscrowd": 0, "bbox": [0, 20, 64, 28], "area": 1792},
        ]
        maps = [{"image_id": i, "file_name": f"{i:03d}.png", "segments_info": segments} for i in range(2)]
        for kind, labels in (("instances", boxes), ("panoptic", maps)):
            categories = json.loads((PUBLISHED / f"{kind}_train2017.json").read_text())["categories"]
            content = {"images": images, "annotations": labels, "categories": categories}
            write_text(root / folder / f"annotations/{kind}_{split}2017.json", json.dumps(content))
        for one in maps:
            write_image(root / folder / f"annotations/panoptic_{split}2017" / one["file_name"], ids_to_colors(ids))


def cityscapes(root: Path) -> None:
    for split in ("train", "val"):
        cityscapes_instances_tree(root, 2, split)
    (root / "city").rename(root / "cityscapes")


def bdd100k(root: Path) -> None:
    """Each part has the maps that the download has."""
    bdd100k_tree(root)
    at = root / "bdd100k"
    shutil.rmtree(at / "labels/lane")
    for path in [*at.rglob("*.jpg"), *at.rglob("*.png")]:  # boxes are for the published size
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.resize(image, (1280, 720), interpolation=cv2.INTER_NEAREST))
    shutil.copytree(at / "images/100k/train", at / "images/100k/val")
    for kind in ("drivable", "sem_seg"):
        shutil.copytree(at / f"labels/{kind}/masks/train", at / f"labels/{kind}/masks/val")
    shutil.copy(at / "labels/det_20/det_train.json", at / "labels/det_20/det_val.json")
    shutil.copytree(at / "images/100k", at / "images/10k")


def nyuv2(root: Path) -> None:
    for split in ("train", "val"):
        for i in range(2):
            write_image(root / f"nyuv2/{split}/images/{i}.png", noise_image(i))
            write_image(root / f"nyuv2/{split}/masks/{i}.png", np.full((48, 64), 3 + i, np.uint8))
            (root / f"nyuv2/{split}/depths").mkdir(exist_ok=True)
            np.save(root / f"nyuv2/{split}/depths/{i}.npy", np.full((48, 64), 2.5, np.float32))
    write_text(root / "nyuv2/classes.txt", "\n".join(CLASSES_40) + "\n")
    write_image(root / "nyu/kitchen_0028b/rgb_00045.jpg", noise_image(0))
    write_image(root / "nyu/kitchen_0028b/sync_depth_00045.png", np.full((48, 64), 2500, np.uint16))
    line = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579\n"
    write_text(root / "nyudepthv2_train_files_with_gt.txt", line)


def kitti(root: Path) -> None:
    kitti_tree(root / "object")
    kitti_depth_tree(root)
    kitti_selection_tree(root)
    (root / "kitti").mkdir()
    (root / "object/kitti").rename(root / "kitti/object")
    for name, place in (("kitti_depth", "depth"), ("kitti_raw", "raw"), ("depth_selection", "depth_selection")):
        (root / name).rename(root / "kitti" / place)
    for split, name in (("train", "000000"), ("val", "000001")):
        write_text(root / f"kitti/object/ImageSets/{split}.txt", f"{name}\n")


def camvid_idd(root: Path) -> None:
    """Names as in the two sets; each image is one band of every id."""
    for name, ids in (("camvid", CAMVID), ("idd", IDD)):
        write_text(root / f"{name}/classes.txt", "\n".join(ids) + "\n")
        for split in ("train", "val"):
            for i in range(2):
                write_image(root / f"{name}/images/{split}/{i}.png", noise_image(i))
                bands = np.linspace(0, len(ids) - 1, 64).round().astype(np.uint8)
                write_image(root / f"{name}/masks/{split}/{i}.png", np.tile(bands, (48, 1)))


CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
IDD = ("drivable", "non_drivable", "living_thing", "vehicle", "roadside_object", "far_object", "sky")


def both(root: Path) -> None:
    coco(root)
    cityscapes(root)


TREES = {
    "coco": coco,
    "coco128": lambda root: coco(root, "coco128", ("train",)),
    "cityscapes": cityscapes,
    "coco_cityscapes": both,
    "bdd100k": bdd100k,
    "nyuv2": nyuv2,
    "kitti": kitti,
    "camvid_idd": camvid_idd,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_says_how_to_run_it_and_on_what(path):
    head = path.read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"configs/{path.name}" in head
    assert "ot run" in head or "202" in head, "what it reached and when, or that it was not run"
    assert load_yaml(path)["name"] == path.stem
    assert not [line for line in path.read_text().splitlines() if len(line) > 120]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_builds_its_network_without_weights(path):
    recipe = recipes.load(path)
    model = recipes.build_model(recipe, pretrained=False)
    assert {name: spec.classes for name, spec in model.specs.items()} == recipe.classes
    for names in recipe.classes.values():
        assert len(set(names)) == len(names)
    with torch.inference_mode():
        outputs = model.eval().predict(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert {key.partition(".")[0] for key in outputs} == set(recipe.tasks)


@pytest.mark.parametrize("name", TREES)
def test_its_readers_label_its_classes(name, tmp_path):
    """Opening for training also tells a class that no source labels, a name without a place, a task without labels."""
    TREES[name](tmp_path)
    path = next(path for path in RECIPES if path.stem == name)
    recipe = recipes.load(path, [f"data.root={tmp_path}", "data.size=[64, 96]"])
    mixture = recipes.build_mixture(recipe)
    held_out = recipes.open_validation_sources(recipe)
    for sources, wanted in ((mixture.sources, recipe.data.train), (held_out, recipe.data.validation)):
        assert [source.name for source in sources] == [source.name for source in wanted]
        seen = {task for source in sources for i in range(len(source)) for task in source.load_sample(i).annotations}
        assert seen == set(recipe.tasks)
    assert mixture.load_sample(0).image.shape == (64, 96, 3)


@pytest.mark.parametrize("path", [DEMO, *(path for path in RECIPES if path.stem == "street")], ids=lambda p: p.stem)
def test_the_sky_of_made_streets_is_far_in_training_and_unknown_in_validation(path, tmp_path):
    synthetic.write_dataset(tmp_path / "street", 6, 0, (64, 128), 0.5)
    plain = [f"data.augment.{key}=0" for key in ("flip", "color", "degrade")] + ["data.augment.scale=[1, 1]"]
    recipe = recipes.load(
        path, [f"data.root={tmp_path / 'street'}", "data.size=[64, 128]", *plain], ("segmentation", "depth")
    )
    mixture = recipes.build_mixture(recipe)
    sky, far = recipe.classes["segmentation"].index("sky"), 0
    for turn in range(4):
        labels = mixture.load_sample(turn).annotations
        depth, where = labels["depth"], labels["segmentation"].values == sky
        assert (depth.valid & (depth.values == 80))[where].all()
        assert depth.values.max() <= recipe.tasks["depth"].limits[1]
        far += where.sum()
    assert far > 100
    for source in recipes.open_validation_sources(recipe):
        for i in range(len(source)):
            labels = source.load_sample(i).annotations
            assert not labels["depth"].valid[labels["segmentation"].values == sky].any()


def test_every_large_recipe_has_a_tree():
    assert {path.stem for path in RECIPES} - {"road", "drive", "street"} == set(TREES)
