"""Label maps, depth maps and the Cityscapes tree: faults D15 to D17, and cityscapesscripts' table."""

import json
import os
from pathlib import Path

import data_trees
import numpy as np
import pytest
from data_trees import cityscapes_tree, depth_maps_tree, label_maps_tree, open_tree

from perception.config import build
from perception.data import DepthMapsConfig
from perception.data.cityscapes import CLASSES, LABEL_IDS
from perception.types import Camera, ConfigError, DataError

REAL = os.environ.get("PERCEPTION_TEST_DATA")


def test_label_map_ids_become_the_recipes_by_name(tmp_path):
    source = open_tree(tmp_path, label_maps_tree(tmp_path))
    label_map = source.sample(0).annotations["segmentation"]
    assert label_map.values.dtype == np.uint8
    assert label_map.values[10, 10] == 1  # sky
    assert label_map.values[10, 40] == 0  # road
    assert label_map.values[45, 60] == 2  # car
    assert not label_map.valid[0].any()
    assert label_map.valid[1:].all()


def test_ignored_and_unlisted_classes_are_void_not_background(tmp_path):
    config = label_maps_tree(tmp_path)
    for options in ({"ignore": ["car"]}, {"ignore": "rest"}):
        source = open_tree(tmp_path, {**config, **options}, segmentation=("road", "sky"))
        label_map = source.sample(0).annotations["segmentation"]
        assert not label_map.valid[45, 60]
        assert label_map.values.max() == 255
        assert label_map.valid[10, 10]
    with pytest.raises(DataError, match="class 'car' is not in the recipe"):
        open_tree(tmp_path, config, segmentation=("road", "sky"))
    only = open_tree(tmp_path, {**config, "labels_only": ["car"]}).sample(0).annotations["segmentation"]
    assert only.valid.sum() == 8 * 8
    merged = open_tree(tmp_path, {**config, "rename": {"car": "road"}}).sample(0).annotations["segmentation"]
    assert merged.values[45, 60] == 0


def test_suffix_and_pictures_without_a_mask(tmp_path):
    config = label_maps_tree(tmp_path)
    masks = tmp_path / "maps/masks"
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_L.png")
    with pytest.raises(DataError, match=r"None of the 3 pictures .* has a label map"):
        open_tree(tmp_path, config)
    (masks / "001_L.png").unlink()
    source = open_tree(tmp_path, {**config, "suffix": "_L"})
    assert [p.path.name for p in source.pictures] == ["000.jpg", "002.jpg"]
    assert source.problems == {"pictures without a label map": 1}


def test_D6_a_map_of_another_size(tmp_path):
    for tree, file in ((label_maps_tree, "maps/masks/000.png"), (depth_maps_tree, "depth/depths/000.png")):
        config = tree(tmp_path)
        data_trees.write(tmp_path / file, np.zeros((48, 60), np.uint8 if "masks" in file else np.uint16))
        with pytest.raises(DataError, match=r"000\.png is for 60 x 48 pixels, but .*000\.jpg has 64 x 48"):
            open_tree(tmp_path, config).sample(0)


def test_D14_a_mask_that_links_out(tmp_path):
    config = label_maps_tree(tmp_path)
    outside = (tmp_path / "maps/masks/000.png").rename(tmp_path / "secret.png")
    (tmp_path / "maps/masks/000.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"refused|leads out"):
        open_tree(tmp_path, config)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_D15_an_id_without_a_name_raises_with_the_histogram(tmp_path, dtype):
    config = label_maps_tree(tmp_path)
    label_map = np.zeros((48, 64), dtype)
    label_map[0, :5] = 3
    label_map[1, :6] = 255 if dtype == np.uint8 else 700
    data_trees.write(tmp_path / "maps/masks/000.png", label_map)
    source = open_tree(tmp_path, config)
    last = "255: 6" if dtype == np.uint8 else "700: 6"
    with pytest.raises(DataError, match=rf"000\.png .*Expected 0 to 2 or 255.*\{{0: 3061, 3: 5, {last}\}}"):
        source.sample(0)


def test_D15_label_ids_where_training_ids_are_expected(tmp_path):
    config = label_maps_tree(tmp_path, names=("road", "sky", "car"))
    data_trees.write(tmp_path / "maps/masks/000.png", np.full((48, 64), 26, np.uint8))
    with pytest.raises(DataError, match=r"\{26: 3072\}"):
        open_tree(tmp_path, config).sample(0)
    city = cityscapes_tree(tmp_path)
    path = next((tmp_path / "city/gtFine/train/ulm").glob("*labelIds.png"))
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    source = open_tree(tmp_path, {**city, "ignore": "rest"})
    with pytest.raises(DataError, match="these look like label ids"):
        source.sample(0)
    path = next((tmp_path / "city/gtFine/train/ulm").glob("*labelIds.png"))
    data_trees.write(path, np.full((48, 64), 255, np.uint8))
    with pytest.raises(DataError, match="these look like training ids"):
        source.sample(1)


def test_D15_an_rgb_mask(tmp_path):
    config = label_maps_tree(tmp_path)
    data_trees.write(tmp_path / "maps/masks/000.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="RGB PNG"):
        open_tree(tmp_path, config).sample(0)


@pytest.mark.parametrize("text", ["", "sky\nsky\n", "\n".join(f"c{i}" for i in range(300))])
def test_classes_file_that_is_no_list(tmp_path, text):
    config = label_maps_tree(tmp_path)
    (tmp_path / "maps/classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes\.txt: .* names"):
        open_tree(tmp_path, config)


def test_depth_in_metres_with_its_camera(tmp_path):
    sample = open_tree(tmp_path, depth_maps_tree(tmp_path)).sample(0)
    depth = sample.annotations["depth"]
    assert depth.values.dtype == np.float32
    assert depth.values[5, 0] == pytest.approx(1.0)
    assert depth.values[5, 63] == pytest.approx(3.0)
    assert not depth.valid[0].any()
    assert depth.valid[1:].all()
    assert sample.camera == Camera(60, 60, 32, 24)


def test_depth_beyond_max_is_invalid(tmp_path):
    depth = open_tree(tmp_path, {**depth_maps_tree(tmp_path), "max": 2.0}).sample(0).annotations["depth"]
    assert depth.valid[5, 0]
    assert not depth.valid[5, 63]
    assert depth.values.max() <= 2


def test_D16_eight_bits_are_no_depth(tmp_path):
    config = depth_maps_tree(tmp_path)
    data_trees.write(tmp_path / "depth/depths/000.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(DataError, match=r"000\.png has 8 bits"):
        open_tree(tmp_path, config).sample(0)
    city = cityscapes_tree(tmp_path)
    data_trees.write(next((tmp_path / "city/disparity/train/ulm").glob("*0000_*.png")), np.ones((48, 64), np.uint8))
    with pytest.raises(DataError, match="8 bits"):
        open_tree(tmp_path, {**city, "ignore": "rest"}).sample(0)


def test_D16_not_finite_and_negative_depth_is_invalid(tmp_path):
    config = depth_maps_tree(tmp_path, 1)
    (tmp_path / "depth/depths/000.png").unlink()
    values = np.full((48, 64), 2.0, np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, -1
    np.save(tmp_path / "depth/depths/000.npy", values)
    depth = open_tree(tmp_path, {**config, "scale": 1.0}).sample(0).annotations["depth"]
    assert depth.valid.sum() == 48 * 64 - 4
    assert np.isfinite(depth.values).all()
    assert (depth.values[~depth.valid] == 0).all()
    np.save(tmp_path / "depth/depths/000.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_tree(tmp_path, config).sample(0)


@pytest.mark.parametrize(
    "change", [{"scale": 0}, {"scale": -1}, {"scale": float("nan")}, {"camera": {"fx": 0, "fy": 1, "cx": 1, "cy": 1}}]
)
def test_depth_config_is_checked(change):
    with pytest.raises(ConfigError, match="depth_maps"):
        build(DepthMapsConfig, {"images": "a", "depths": "b", "scale": 0.001, **change})


def test_cityscapes_table_is_the_official_one():
    from cityscapesscripts.helpers.labels import labels

    official = {label.trainId: (label.id, label.name) for label in labels if label.trainId not in (255, -1)}
    assert [official[i] for i in range(19)] == list(LABEL_IDS.items())
    assert {label.id for label in labels if label.trainId == 255} <= set(range(34)) - set(LABEL_IDS)


def test_cityscapes_to_all_19_classes(tmp_path):
    source = open_tree(tmp_path, cityscapes_tree(tmp_path), segmentation=CLASSES)
    sample = source.sample(0)
    label_map = sample.annotations["segmentation"]
    assert label_map.values[10, 5] == CLASSES.index("sky") == 10
    assert label_map.values[35, 15] == CLASSES.index("car") == 13
    assert label_map.values[25, 5] == 0
    assert not label_map.valid[46:].any()  # ego vehicle
    assert sample.camera == Camera(70, 71, 31, 23)


def test_cityscapes_training_ids_serve_where_label_ids_are_absent(tmp_path):
    config = {**cityscapes_tree(tmp_path), "ignore": "rest"}
    before = [open_tree(tmp_path, config).sample(i).annotations["segmentation"].values for i in range(2)]
    for path in list((tmp_path / "city/gtFine/train/ulm").iterdir()):
        ids = np.full((48, 64), 0, np.uint8)
        ids[:20], ids[30:40, 10:30], ids[46:] = 10, 13, 255
        data_trees.write(path.with_name(path.name.replace("labelIds", "labelTrainIds")), ids)
        path.unlink()
    after = [open_tree(tmp_path, config).sample(i).annotations["segmentation"].values for i in range(2)]
    assert np.array_equal(before, after)


def test_cityscapes_subset_and_renaming(tmp_path):
    config = cityscapes_tree(tmp_path)
    with pytest.raises(DataError, match="class 'sidewalk' is not in the recipe"):
        open_tree(tmp_path, config)
    source = open_tree(tmp_path, {**config, "rename": {"vegetation": "sky"}, "ignore": "rest"})
    label_map = source.sample(0).annotations["segmentation"]
    assert sorted(np.unique(label_map.values)) == [0, 1, 2, 255]


def test_D16_cityscapes_disparity_to_metres(tmp_path):
    depth = open_tree(tmp_path, {**cityscapes_tree(tmp_path), "ignore": "rest"}).sample(0).annotations["depth"]
    assert not depth.valid[:2].any()  # stored 0: no measurement; 1: infinitely far
    assert depth.valid[2:].all()
    assert np.allclose(depth.values[2:], 0.2 * 70 / 2)
    near = open_tree(tmp_path, {**cityscapes_tree(tmp_path), "ignore": "rest", "max_depth": 6.9}).sample(0)
    assert not near.annotations["depth"].valid.any()


def test_cityscapes_without_disparity_or_without_labels(tmp_path):
    config = {**cityscapes_tree(tmp_path), "ignore": "rest"}
    for path in (tmp_path / "city/disparity").rglob("*0000_*.png"):
        path.unlink()
    source = open_tree(tmp_path, config)
    assert set(source.annotations(0)) == {"segmentation"}
    assert set(source.annotations(1)) == {"segmentation", "depth"}
    assert source.problems == {"pictures without a disparity": 1}
    for path in (tmp_path / "city/gtFine").rglob("*.png"):
        path.unlink()
    source = open_tree(tmp_path, config)
    assert source.tasks == ("depth",)
    assert len(source) == 1  # a picture without any label of a trained task is not drawn
    for path in (tmp_path / "city/disparity").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="labels nothing that the recipe trains"):
        open_tree(tmp_path, config)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"intrinsic": {"fx": "a"}}', '{"extrinsic": {"baseline": 0}}', "NaN", "{"]
)
def test_cityscapes_camera_that_is_none(tmp_path, content):
    config = {**cityscapes_tree(tmp_path), "ignore": "rest"}
    for path in (tmp_path / "city/camera").rglob("*.json"):
        whole = json.loads(path.read_text())
        path.write_text(
            json.dumps({**whole, **json.loads(content)}) if "baseline" in content or "fx" in content else content
        )
    with pytest.raises(DataError, match=r"camera\.json"):
        open_tree(tmp_path, config).sample(0)
    for path in (tmp_path / "city/camera").rglob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match="2 disparities have no camera"):
        open_tree(tmp_path, config)


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
def test_real_camvid_and_rgbd():
    from PIL import Image

    root = Path(REAL or "")
    names = (root / "camvid/classes.txt").read_text().split()
    config = {
        "format": "label_maps",
        "images": "camvid/images/val",
        "masks": "camvid/masks/val",
        "classes": "camvid/classes.txt",
    }
    source = open_tree(root, config, segmentation=names[::-1])
    assert len(source) == 101
    stored = np.asarray(Image.open(root / "camvid/masks/val" / f"{source.pictures[7].path.stem}.png"))
    label_map = source.sample(7).annotations["segmentation"]
    assert np.array_equal(label_map.values, np.where(stored == 255, 255, 10 - np.minimum(stored, 10)))
    config = {"format": "depth_maps", "images": "rgbd/color/val", "depths": "rgbd/depth/val", "scale": 0.001}
    source = open_tree(root, config)
    assert len(source) == 26
    depth = source.sample(3).annotations["depth"]
    stored = np.asarray(Image.open(root / "rgbd/depth/val" / f"{source.pictures[3].path.stem}.png"))
    assert np.allclose(depth.values, stored / 1000, atol=1e-6)
    assert np.array_equal(depth.valid, stored > 0)
