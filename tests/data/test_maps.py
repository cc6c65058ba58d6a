"""Segmentation masks, depth maps and the Cityscapes tree: faults D15 to D17, and cityscapesscripts' reading."""

import json
import os
from pathlib import Path

import data_trees
import numpy as np
import pytest
from data_trees import cityscapes_tree, depth_maps_tree, label_maps_tree, open_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from trees_street import cityscapes_instances_tree

from perception.config import validate_config
from perception.data import DepthMapsConfig
from perception.data.formats.cityscapes import CLASSES, LABEL_IDS, THING_CLASSES, CityscapesConfig
from perception.data.formats.instance_ids import find_id_boxes
from perception.types import Camera, ConfigError, DataError

REAL = os.environ.get("PERCEPTION_TEST_DATA")


def test_label_map_ids_become_the_recipes_by_name(tmp_path):
    source = open_tree(tmp_path, label_maps_tree(tmp_path))
    label_map = source.load_sample(0).annotations["segmentation"]
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
        label_map = source.load_sample(0).annotations["segmentation"]
        assert not label_map.valid[45, 60]
        assert label_map.values.max() == 255
        assert label_map.valid[10, 10]
    with pytest.raises(DataError, match="class 'car' is not in the recipe"):
        open_tree(tmp_path, config, segmentation=("road", "sky"))
    merged = open_tree(tmp_path, {**config, "rename": {"car": "road"}}).load_sample(0).annotations["segmentation"]
    assert merged.values[45, 60] == 0


def test_suffix_and_images_without_a_mask(tmp_path):
    config = label_maps_tree(tmp_path)
    masks = tmp_path / "maps/masks"
    for path in list(masks.iterdir()):
        path.rename(masks / f"{path.stem}_L.png")
    with pytest.raises(DataError, match=r"None of the 3 images .* has a segmentation mask"):
        open_tree(tmp_path, config)
    (masks / "001_L.png").unlink()
    source = open_tree(tmp_path, {**config, "suffix": "_L"})
    assert [p.path.name for p in source.records] == ["000.jpg", "002.jpg"]
    assert source.problems == {"images without a segmentation mask": 1}


@pytest.mark.fault("D6")
def test_a_map_of_another_size(tmp_path):
    for tree, file in ((label_maps_tree, "maps/masks/000.png"), (depth_maps_tree, "depth/depths/000.png")):
        config = tree(tmp_path)
        data_trees.write_image(tmp_path / file, np.zeros((48, 60), np.uint8 if "masks" in file else np.uint16))
        with pytest.raises(DataError, match=r"000\.png is for 60 x 48 pixels, but .*000\.jpg has 64 x 48"):
            open_tree(tmp_path, config).load_sample(0)


@pytest.mark.fault("D14")
def test_a_mask_that_links_out(tmp_path):
    config = label_maps_tree(tmp_path / "root")
    outside = (tmp_path / "root/maps/masks/000.png").rename(tmp_path / "secret.png")
    (tmp_path / "root/maps/masks/000.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"refused|leads out"):
        open_tree(tmp_path / "root", config)


@pytest.mark.fault("D15")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_id_without_a_name_raises_with_the_histogram(tmp_path, dtype):
    config = label_maps_tree(tmp_path)
    label_map = np.zeros((48, 64), dtype)
    label_map[0, :5] = 3
    label_map[1, :6] = 255 if dtype == np.uint8 else 700
    data_trees.write_image(tmp_path / "maps/masks/000.png", label_map)
    source = open_tree(tmp_path, config)
    last = "255: 6" if dtype == np.uint8 else "700: 6"
    with pytest.raises(DataError, match=rf"000\.png .*Expected 0 to 2 or 255.*\{{0: 3061, 3: 5, {last}\}}"):
        source.load_sample(0)


@pytest.mark.fault("D15")
def test_label_ids_where_training_ids_are_expected(tmp_path):
    config = label_maps_tree(tmp_path, names=("road", "sky", "car"))
    data_trees.write_image(tmp_path / "maps/masks/000.png", np.full((48, 64), 26, np.uint8))
    with pytest.raises(DataError, match=r"\{26: 3072\}"):
        open_tree(tmp_path, config).load_sample(0)
    city = cityscapes_tree(tmp_path)
    path = next((tmp_path / "city/gtFine/train/ulm").glob("*labelIds.png"))
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    source = open_tree(tmp_path, {**city, "ignore": "rest"})
    with pytest.raises(DataError, match="These are probably label ids"):
        source.load_sample(0)
    path = next((tmp_path / "city/gtFine/train/ulm").glob("*labelIds.png"))
    data_trees.write_image(path, np.full((48, 64), 255, np.uint8))
    with pytest.raises(DataError, match="These are probably training ids"):
        source.load_sample(1)


@pytest.mark.fault("D15")
def test_an_rgb_mask(tmp_path):
    config = label_maps_tree(tmp_path)
    data_trees.write_image(tmp_path / "maps/masks/000.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="RGB PNG"):
        open_tree(tmp_path, config).load_sample(0)


@pytest.mark.parametrize("text", ["", "sky\nsky\n", "\n".join(f"c{i}" for i in range(300))])
def test_classes_file_that_is_no_list(tmp_path, text):
    config = label_maps_tree(tmp_path)
    (tmp_path / "maps/classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes\.txt: .* names"):
        open_tree(tmp_path, config)


def test_depth_in_metres_with_its_camera(tmp_path):
    sample = open_tree(tmp_path, depth_maps_tree(tmp_path)).load_sample(0)
    depth = sample.annotations["depth"]
    assert depth.values.dtype == np.float32
    assert depth.values[5, 0] == pytest.approx(1.0)
    assert depth.values[5, 63] == pytest.approx(3.0)
    assert not depth.valid[0].any()
    assert depth.valid[1:].all()
    assert sample.camera == Camera(60, 60, 32, 24)


def test_depth_beyond_max_is_invalid(tmp_path):
    depth = open_tree(tmp_path, {**depth_maps_tree(tmp_path), "max_depth": 2.0}).load_sample(0).annotations["depth"]
    assert depth.valid[5, 0]
    assert not depth.valid[5, 63]
    assert depth.values.max() <= 2


@pytest.mark.fault("D16")
def test_eight_bits_are_no_depth(tmp_path):
    config = depth_maps_tree(tmp_path)
    data_trees.write_image(tmp_path / "depth/depths/000.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(DataError, match=r"000\.png has 8 bits"):
        open_tree(tmp_path, config).load_sample(0)
    city = cityscapes_tree(tmp_path)
    data_trees.write_image(
        next((tmp_path / "city/disparity/train/ulm").glob("*0000_*.png")), np.ones((48, 64), np.uint8)
    )
    with pytest.raises(DataError, match="8 bits"):
        open_tree(tmp_path, {**city, "ignore": "rest"}).load_sample(0)


@pytest.mark.fault("D16")
def test_not_finite_and_negative_depth_is_invalid(tmp_path):
    config = depth_maps_tree(tmp_path, 1)
    (tmp_path / "depth/depths/000.png").unlink()
    values = np.full((48, 64), 2.0, np.float32)
    values[0, :4] = np.nan, np.inf, -np.inf, -1
    np.save(tmp_path / "depth/depths/000.npy", values)
    depth = open_tree(tmp_path, {**config, "scale": 1.0}).load_sample(0).annotations["depth"]
    assert depth.valid.sum() == 48 * 64 - 4
    assert np.isfinite(depth.values).all()
    assert (depth.values[~depth.valid] == 0).all()
    np.save(tmp_path / "depth/depths/000.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_tree(tmp_path, config).load_sample(0)


@pytest.mark.parametrize(
    "change", [{"scale": 0}, {"scale": -1}, {"scale": float("nan")}, {"camera": {"fx": 0, "fy": 1, "cx": 1, "cy": 1}}]
)
def test_depth_config_is_checked(change):
    with pytest.raises(ConfigError, match="depth_maps"):
        validate_config(DepthMapsConfig, {"images": "a", "depths": "b", "scale": 0.001, **change})


def test_cityscapes_table_is_the_official_one():
    from cityscapesscripts.helpers.labels import labels

    official = {label.trainId: (label.id, label.name) for label in labels if label.trainId not in (255, -1)}
    assert [official[i] for i in range(19)] == list(LABEL_IDS.items())
    assert {label.id for label in labels if label.trainId == 255} <= set(range(34)) - set(LABEL_IDS)


def test_cityscapes_to_all_19_classes(tmp_path):
    source = open_tree(tmp_path, cityscapes_tree(tmp_path), segmentation=CLASSES)
    sample = source.load_sample(0)
    label_map = sample.annotations["segmentation"]
    assert label_map.values[10, 5] == CLASSES.index("sky") == 10
    assert label_map.values[35, 15] == CLASSES.index("car") == 13
    assert label_map.values[25, 5] == 0
    assert not label_map.valid[46:].any()  # ego vehicle
    assert sample.camera == Camera(70, 71, 31, 23)


def test_cityscapes_training_ids_serve_where_label_ids_are_absent(tmp_path):
    config = {**cityscapes_tree(tmp_path), "ignore": "rest"}
    before = [open_tree(tmp_path, config).load_sample(i).annotations["segmentation"].values for i in range(2)]
    for path in list((tmp_path / "city/gtFine/train/ulm").iterdir()):
        ids = np.full((48, 64), 0, np.uint8)
        ids[:20], ids[30:40, 10:30], ids[46:] = 10, 13, 255
        data_trees.write_image(path.with_name(path.name.replace("labelIds", "labelTrainIds")), ids)
        path.unlink()
    after = [open_tree(tmp_path, config).load_sample(i).annotations["segmentation"].values for i in range(2)]
    assert np.array_equal(before, after)


def test_cityscapes_subset_and_renaming(tmp_path):
    config = cityscapes_tree(tmp_path)
    with pytest.raises(DataError, match="class 'sidewalk' is not in the recipe"):
        open_tree(tmp_path, config)
    source = open_tree(tmp_path, {**config, "rename": {"vegetation": "sky"}, "ignore": "rest"})
    label_map = source.load_sample(0).annotations["segmentation"]
    assert sorted(np.unique(label_map.values)) == [0, 1, 2, 255]


@pytest.mark.fault("D16")
def test_cityscapes_disparity_to_metres(tmp_path):
    depth = open_tree(tmp_path, {**cityscapes_tree(tmp_path), "ignore": "rest"}).load_sample(0).annotations["depth"]
    assert not depth.valid[:2].any()  # stored 0: no measurement; 1: infinitely far
    assert depth.valid[2:].all()
    assert np.allclose(depth.values[2:], 0.2 * 70 / 2)
    near = open_tree(tmp_path, {**cityscapes_tree(tmp_path), "ignore": "rest", "max_depth": 6.9}).load_sample(0)
    assert not near.annotations["depth"].valid.any()


@pytest.mark.parametrize("training", [False, True], ids=["label ids", "training ids"])
def test_cityscapes_sky_is_as_far_as_can_be_where_that_is_asked_for(tmp_path, training):
    config = {**cityscapes_tree(tmp_path), "segmentation_task": None, "max_depth": 90, "far_classes": ["sky"]}
    if training:
        for path in list((tmp_path / "city/gtFine/train/ulm").iterdir()):
            ids = np.full((48, 64), 0, np.uint8)
            ids[:20] = 10
            data_trees.write_image(path.with_name(path.name.replace("labelIds", "labelTrainIds")), ids)
            path.unlink()
    depth = open_tree(tmp_path, config).load_sample(0).annotations["depth"]
    assert depth.valid.all()  # the rows that no disparity was measured for are sky
    assert (depth.values[:20] == 90).all()
    assert np.allclose(depth.values[20:], 0.2 * 70 / 2)
    for path in (tmp_path / "city/gtFine").rglob("*.png"):
        path.unlink()
    assert not open_tree(tmp_path, config).load_sample(0).annotations["depth"].valid[:2].any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"far_classes": ["sky"]}, "without max_depth"),
        ({"far_classes": ["moon"], "max_depth": 80}, "far_classes contains moon.*sky"),
    ],
    ids=["no distance", "no class"],
)
def test_cityscapes_far_that_means_nothing(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        open_tree(tmp_path, {**cityscapes_tree(tmp_path), **keys})


def test_cityscapes_without_disparity_or_without_labels(tmp_path):
    config = {**cityscapes_tree(tmp_path), "ignore": "rest"}
    for path in (tmp_path / "city/disparity").rglob("*0000_*.png"):
        path.unlink()
    source = open_tree(tmp_path, config)
    assert set(source.read_annotations(0)) == {"segmentation"}
    assert set(source.read_annotations(1)) == {"segmentation", "depth"}
    assert source.problems == {"images without a disparity": 1}
    for path in (tmp_path / "city/gtFine").rglob("*.png"):
        path.unlink()
    source = open_tree(tmp_path, config)
    assert source.tasks == ("depth",)
    assert len(source) == 1  # an image without any label of a trained task is not drawn
    for path in (tmp_path / "city/disparity").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="has no labels for the tasks of the recipe"):
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
        open_tree(tmp_path, config).load_sample(0)
    for path in (tmp_path / "city/camera").rglob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match="2 disparities have no camera"):
        open_tree(tmp_path, config)


CITY = {"format": "cityscapes", "root": "city", "detection_task": "detection"}
NINETEEN = {"segmentation": CLASSES, "detection": tuple(THING_CLASSES.values())}
"""A recipe with all of Cityscapes' names."""


def instance_path(root: Path, index: int = 0, kind: str = "instance") -> Path:
    return root / f"city/gtFine/train/ulm/ulm_{index:06d}_000019_gtFine_{kind}Ids.png"


def write_ids(root: Path, ids: np.ndarray, index: int = 0) -> None:
    """A map of instances, and the map of label ids that goes with it."""
    data_trees.write_image(instance_path(root, index), ids.astype(np.uint16))
    data_trees.write_image(
        instance_path(root, index, "label"), np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    )


def test_cityscapes_boxes_of_things_groups_and_what_is_not_evaluated(tmp_path):
    config = cityscapes_instances_tree(tmp_path)
    instances = open_tree(tmp_path, CITY, **NINETEEN).load_sample(0).annotations["detection"]
    names = [(*THING_CLASSES.values(), "any")[label] for label in instances.labels]
    expected = [
        ("person", [34, 22, 40, 40], False), ("car", [10, 30, 30, 40], False),  # a pole cuts the car in two
        ("any", [50, 21, 56, 24], True),  # a caravan is of no class
        ("bicycle", [2, 25, 8, 30], True), ("bicycle", [50, 35, 62, 44], True),  # a group, in two places
    ]  # fmt: skip
    assert list(zip(names, instances.boxes.tolist(), instances.ignore.tolist(), strict=True)) == expected
    assert instances.labeled_classes is None
    mapped = open_tree(tmp_path, config).load_sample(0).annotations["detection"]
    assert mapped.labels.tolist() == [1, 0, -1, 2, 2]
    options = {"detection_ignore": ["car"], "detection_background": "rest", "detection_rename": {"person": "bike"}}
    mapped = open_tree(tmp_path, {**CITY, "ignore": "rest", **options}).load_sample(0).annotations["detection"]
    assert mapped.labels.tolist() == [2, -1, -1]
    assert mapped.ignore.tolist() == [False, True, True]
    assert mapped.labeled_classes.tolist() == [False, False, True]
    with pytest.raises(DataError, match=r"keys detection_.*class 'rider' is not in the recipe"):
        open_tree(tmp_path, {**CITY, "ignore": "rest"}, detection=("person",))


def test_cityscapes_gives_boxes_only_where_asked(tmp_path):
    cityscapes_instances_tree(tmp_path)
    boxes = {"format": "coco", "images": "city/leftImg8bit/train", "annotations": "boxes.json"}
    names = [f"ulm/ulm_{i:06d}_000019_leftImg8bit.png" for i in range(3)]
    images = [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "vehicle"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    source = open_tree(tmp_path, boxes, {"format": "cityscapes", "root": "city", "ignore": "rest"})
    assert len(source.load_sample(0).annotations["detection"].boxes) == 0  # those of the JSON
    only = open_tree(tmp_path, {**CITY, "segmentation_task": None, "depth_task": None}, **NINETEEN)
    assert only.tasks == ("detection",)
    with pytest.raises(ConfigError, match="Expected a different task for each kind of label"):
        validate_config(CityscapesConfig, {**CITY, "detection_task": "depth"})


def test_cityscapes_boxes_are_those_of_cityscapesscripts(tmp_path, capsys):
    """Random maps: boxes of things, and groups as regions whose union is the official box of the crowd."""
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    from scipy import ndimage

    cityscapes_instances_tree(tmp_path, 4)
    chance, names = np.random.default_rng(0), tuple(THING_CLASSES.values())
    maps = []
    for i in range(4):
        maps.append(np.full((48, 64), 7))
        for _ in range(30):
            y, x, high, wide = chance.integers(0, 48), chance.integers(0, 64), *chance.integers(1, 12, 2)
            thing = chance.choice(list(THING_CLASSES))
            maps[i][y : y + high, x : x + wide] = chance.choice([thing, thing * 1000 + chance.integers(0, 999), 17])
        write_ids(tmp_path, maps[i], i)
    (tmp_path / "out").mkdir()
    convert2panoptic(str(tmp_path / "city/gtFine"), str(tmp_path / "out"), False, ["train"])
    capsys.readouterr()
    official = json.loads((tmp_path / "out/cityscapes_panoptic_train.json").read_text())["annotations"]
    reader = open_tree(tmp_path, CITY, **NINETEEN).readers[0]
    for index, annotation in enumerate(official):
        instances = reader.read_annotations(index)["detection"]
        crowd = np.zeros(len(instances.boxes), bool) if instances.ignore is None else instances.ignore
        ours = [(names[i], *box) for i, box in zip(instances.labels, instances.boxes.tolist(), strict=True)]
        things, groups = [], {}
        for segment in annotation["segments_info"]:
            name, (x, y, w, h) = THING_CLASSES.get(segment["category_id"]), segment["bbox"]
            if name and segment["iscrowd"]:
                groups[name] = [x, y, x + w, y + h]
            elif name:
                things.append((name, x, y, x + w, y + h))
        assert sorted(box for box, is_crowd in zip(ours, crowd, strict=True) if not is_crowd) == sorted(things)
        assert {names[i] for i in instances.labels[crowd]} == set(groups)
        for id, name in THING_CLASSES.items():
            boxes = instances.boxes[crowd & (instances.labels == names.index(name))]
            assert len(boxes) == ndimage.label(maps[index] == id, np.ones((3, 3)))[1]
            assert not len(boxes) or [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)] == groups[name]


def test_cityscapes_polygons_drawn_by_cityscapesscripts(tmp_path):
    """Instances and labels drawn from polygons agree; what is called a group becomes an ignore region."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    cityscapes_instances_tree(tmp_path, 1)
    squares = {
        "road": (0, 0, 63, 47), "car": (2, 10, 20, 30), "license plate": (8, 25, 12, 28),
        "persongroup": (30, 5, 45, 25), "bicycle": (40, 30, 60, 44), "polegroup": (50, 2, 54, 20),
    }  # fmt: skip
    corners = {label: [[a, b], [c, b], [c, d], [a, d]] for label, (a, b, c, d) in squares.items()}
    objects = [{"label": label, "polygon": polygon} for label, polygon in corners.items()]
    polygons = tmp_path / "polygons.json"
    polygons.write_text(json.dumps({"imgHeight": 48, "imgWidth": 64, "objects": objects}))
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    data_trees.write_image(
        instance_path(tmp_path), np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
    )
    data_trees.write_image(instance_path(tmp_path, 0, "label"), np.asarray(createLabelImage(annotation, "ids")))
    found = open_tree(tmp_path, CITY, **NINETEEN).load_sample(0).annotations
    instances = found["detection"]
    assert instances.boxes.tolist() == [[2, 10, 21, 31], [40, 30, 61, 45], [30, 5, 46, 26]]
    assert [tuple(THING_CLASSES.values())[label] for label in instances.labels] == ["car", "bicycle", "person"]
    assert instances.ignore.tolist() == [False, False, True]
    assert found["segmentation"].values[15, 10] == CLASSES.index("car")


@given(
    arrays(np.uint16, st.tuples(st.integers(0, 9), st.integers(1, 9)), elements=st.sampled_from([0, 7, 26000, 26001]))
)
@settings(max_examples=60, deadline=None)
def test_a_box_around_every_id(ids):
    values, boxes = find_id_boxes(ids)
    assert values.tolist() == np.unique(ids).tolist()
    for value, (x1, y1, x2, y2) in zip(values, boxes, strict=True):
        rows, columns = np.nonzero(ids == value)
        assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_cityscapes_coarse_and_extra(tmp_path):
    cityscapes_instances_tree(tmp_path, 2, "train_extra")
    for path in list((tmp_path / "city/gtFine").rglob("*.png")):
        other = Path(str(path).replace("gtFine", "gtCoarse"))
        other.parent.mkdir(parents=True, exist_ok=True)
        path.rename(other)
    source = open_tree(tmp_path, {**CITY, "split": "train_extra", "annotations": "gtCoarse"}, **NINETEEN)
    assert set(source.load_sample(1).annotations) == {"segmentation", "detection", "depth"}
    assert len(source.load_sample(1).annotations["detection"].boxes) == 5
    with pytest.raises(DataError, match=r"without labels of segmentation, detection. Expected gtFine/"):
        open_tree(tmp_path, {**CITY, "split": "train_extra", "depth_task": None}, **NINETEEN)


def test_cityscapes_test_split_has_no_labels_though_it_has_files(tmp_path):
    cityscapes_instances_tree(tmp_path, 1)
    ids = np.zeros((48, 64), int)
    ids[40:], ids[0] = 1, 3
    write_ids(tmp_path, ids)
    found = open_tree(tmp_path, CITY, **NINETEEN).load_sample(0).annotations
    assert "detection" not in found  # which is not: labeled, and nothing there
    assert not found["segmentation"].valid.any()
    ids[20:30] = 7
    write_ids(tmp_path, ids)
    assert len(open_tree(tmp_path, CITY, **NINETEEN).load_sample(0).annotations["detection"].boxes) == 0


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    ("id", "words"),
    [(34, r"\{7: 3052, 34: 20\}"), (999, "999: 20"), (23_000, "23000: 20"), (34_000, "34000: 20"), (255, "255: 20"),
     (13_001, "TrainIds"), (65_535, "65535: 20")],
)  # fmt: skip
def test_instances_with_other_ids(tmp_path, id, words):
    cityscapes_instances_tree(tmp_path)
    ids = np.full((48, 64), 7, np.uint16)
    ids[5, :20] = id
    data_trees.write_image(instance_path(tmp_path), ids)
    with pytest.raises(DataError, match=rf"instanceIds\.png contains .*{words}"):
        open_tree(tmp_path, {**CITY, "segmentation_task": None}, **NINETEEN).load_sample(0)


@pytest.mark.fault("D15")
def test_instances_that_are_labels_or_another_images(tmp_path):
    cityscapes_instances_tree(tmp_path)
    source = open_tree(tmp_path, CITY, **NINETEEN)
    for ids, words in (
        (np.full((48, 64), 7, np.uint8), r"8 bits per pixel. Expected Cityscapes' instances"),
        (np.full((48, 64), 26_000, np.uint16), r"\d+% of the pixels have another class in the segmentation mask"),
        (np.full((40, 64), 26_000, np.uint16), "is for 64 x 40"),
    ):
        data_trees.write_image(instance_path(tmp_path), ids)
        with pytest.raises(DataError, match=rf"instanceIds\.png.*{words}"):
            source.load_sample(0)


def street(training: bool, sky: bool, void: bool) -> np.ndarray:
    """A street as label ids or training ids: buildings, or vegetation under sky, and sidewalk and road."""
    road, sidewalk, building = (0, 1, 2) if training else (7, 8, 11)
    ids = np.full((48, 64), road, np.uint8)
    ids[:20], ids[20:26] = building, sidewalk
    if sky:
        ids[:8], ids[8:20] = (10, 8) if training else (23, 21)
    if void:
        ids[46:] = 255 if training else 1
    return ids


@pytest.mark.fault("D15")
@pytest.mark.parametrize("void", [True, False])
@pytest.mark.parametrize("sky", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_label_ids_and_training_ids_are_told_apart_though_all_are_small(tmp_path, training, sky, void):
    config = {**cityscapes_tree(tmp_path, 1), "depth_task": None}
    right, wrong = (instance_path(tmp_path, 0, kind) for kind in ("label", "labelTrain"))
    right, wrong = (wrong, right) if training else (right, wrong)
    instance_path(tmp_path, 0, "label").unlink()
    ids = street(training, sky, void)
    data_trees.write_image(right, ids)
    values = open_tree(tmp_path, config, segmentation=CLASSES).load_sample(0).annotations["segmentation"].values
    assert values[40, 5] == CLASSES.index("road")
    right.rename(wrong)
    source = open_tree(tmp_path, config, segmentation=CLASSES)
    if training and not sky and not void:  # as label ids: not labeled, the own car and the border. Nothing tells
        assert not source.load_sample(0).annotations["segmentation"].valid.any()
        return
    with pytest.raises(DataError, match=rf"These are probably {'training' if training else 'label'} ids") as error:
        source.load_sample(0)
    assert f"{ids[40, 5]}: " in str(error.value)  # the histogram


@pytest.mark.fault("D15")
def test_a_coarse_map_with_little_in_it_is_no_fault(tmp_path):
    config = {**cityscapes_tree(tmp_path, 1), "depth_task": None}
    ids = np.zeros((48, 64), np.uint8)
    ids[30:40, 10:50], ids[0], ids[47], ids[5:20, :20] = 7, 3, 1, 11
    data_trees.write_image(instance_path(tmp_path, 0, "label"), ids)
    found = open_tree(tmp_path, config, segmentation=CLASSES).load_sample(0).annotations["segmentation"]
    assert found.valid.sum() == 400 + 300


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
def test_real_camvid_and_rgbd():
    from PIL import Image

    root = Path(REAL or "")
    names = (root / "camvid/classes.txt").read_text().split()
    config = {
        "format": "segmentation_masks",
        "images": "camvid/images/val",
        "masks": "camvid/masks/val",
        "class_file": "camvid/classes.txt",
    }
    source = open_tree(root, config, segmentation=names[::-1])
    assert len(source) == 101
    stored = np.asarray(Image.open(root / "camvid/masks/val" / f"{source.records[7].path.stem}.png"))
    label_map = source.load_sample(7).annotations["segmentation"]
    assert np.array_equal(label_map.values, np.where(stored == 255, 255, 10 - np.minimum(stored, 10)))
    config = {"format": "depth_maps", "images": "rgbd/color/val", "depths": "rgbd/depth/val", "scale": 0.001}
    source = open_tree(root, config)
    assert len(source) == 26
    depth = source.load_sample(3).annotations["depth"]
    stored = np.asarray(Image.open(root / "rgbd/depth/val" / f"{source.records[3].path.stem}.png"))
    assert np.allclose(depth.values, stored / 1000, atol=1e-6)
    assert np.array_equal(depth.valid, stored > 0)
