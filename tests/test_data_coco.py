"""COCO boxes: faults D5 to D14, and pycocotools' reading."""

import copy
import json
import os
import shutil
from pathlib import Path

import data_trees
import numpy as np
import pytest
from data_trees import coco_content, coco_tree, open_tree

from perception.types import DataError

REAL = os.environ.get("PERCEPTION_TEST_DATA")


def reader(root: Path, content=None, count: int = 4, **options):
    return open_tree(root, {**coco_tree(root, count, content), **options}).readers[0]


def changed(part: str, position: int, **values):
    """coco_content(4) with values of one record replaced; None removes."""
    content = copy.deepcopy(coco_content(4))
    record = content[part][position]
    for key, value in values.items():
        record[key] = value
        if value is None:
            del record[key]
    return content


def test_boxes_labels_and_empty_pictures(tmp_path):
    found = reader(tmp_path)
    assert [path.name for path in found.images] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    first, last = (found.annotations(i, (48, 64))["detection"] for i in (1, 3))
    assert first.boxes.tolist() == [[5, 5, 17, 14], [5, 15, 17, 24]]
    assert first.labels.tolist() == [0, 1]
    assert first.ignore is None
    assert first.classes.tolist() == [True, True, False]  # no category "bike"
    assert last.boxes.shape == (0, 4)
    assert last.boxes.dtype == np.float32
    assert last.labels.dtype == np.int64


def test_rename_ignore_background_and_labels_only(tmp_path):
    only = {"detection": ("car", "person")}
    config = coco_tree(tmp_path)
    renamed = open_tree(tmp_path, {**config, "rename": {"vehicle": "car"}, "ignore": ["pedestrian"]}, **only).readers[0]
    instances = renamed.annotations(0)["detection"]
    assert instances.ignore.tolist() == [False, True]
    assert instances.classes.tolist() == [True, False]
    dropped = open_tree(tmp_path, {**config, "rename": {"vehicle": "car"}, "background": "rest"}, **only).readers[0]
    assert len(dropped.annotations(0)["detection"].boxes) == 1
    both = {"vehicle": "car", "pedestrian": "person"}
    partly = open_tree(tmp_path, {**config, "rename": both, "labels_only": ["car"]}, **only).readers[0]
    instances = partly.annotations(0)["detection"]
    assert instances.classes.tolist() == [True, False]
    assert instances.ignore.tolist() == [False, True]  # a person, but not every person has a box


def test_a_class_without_a_place_in_the_recipe_is_named_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"class 'pedestrian' is not in the recipe. Did you mean 'pedestrians'"):
        open_tree(tmp_path, coco_tree(tmp_path), detection=("vehicle", "pedestrians"))
    with pytest.raises(DataError, match="rename names 'lorry'"):
        reader(tmp_path, rename={"lorry": "vehicle"})
    with pytest.raises(DataError, match=r"rename names 'vehicel'.*Did you mean 'vehicle'"):
        reader(tmp_path, rename={"pedestrian": "vehicel"})
    with pytest.raises(DataError, match="none of its classes is in the recipe"):
        open_tree(tmp_path, {**coco_tree(tmp_path), "ignore": "rest"}, detection=("chair",))


def test_D5_missing_pictures_are_skipped_counted_and_bounded(tmp_path):
    config = coco_tree(tmp_path, 6)
    (tmp_path / "coco/images/002.jpg").unlink()
    source = open_tree(tmp_path, config)
    assert len(source) == 5
    assert source.problems["missing pictures"] == 1
    assert source.annotations(2)["detection"].boxes[0].tolist() == [7, 5, 19, 14]  # picture 003
    (tmp_path / "coco/images/003.jpg").unlink()
    with pytest.raises(DataError, match="2 of its 6 pictures are not under"):
        open_tree(tmp_path, config)
    assert len(open_tree(tmp_path, {**config, "allow_missing": 0.5})) == 4


def test_D5_all_missing_names_the_folder(tmp_path):
    config = coco_tree(tmp_path)
    shutil.rmtree(tmp_path / "coco/images")
    with pytest.raises(DataError, match=f"No folder of pictures at {tmp_path}"):
        open_tree(tmp_path, config)
    (tmp_path / "coco/images").mkdir()
    with pytest.raises(DataError, match=f"none of its 4 pictures is under {tmp_path}"):
        open_tree(tmp_path, {**config, "allow_missing": 1.0})


@pytest.mark.parametrize(("height", "width", "word"), [(48, 65, "64 x 48"), (64, 48, "EXIF")])
def test_D6_size_differs_from_the_file(tmp_path, height, width, word):
    source = open_tree(tmp_path, coco_tree(tmp_path, 4, changed("images", 1, height=height, width=width)))
    source.sample(0)
    with pytest.raises(DataError, match=rf"001\.jpg.*{word}"):
        source.sample(1)


def test_D6_a_size_that_is_no_size(tmp_path):
    with pytest.raises(DataError, match="image 11: height and width"):
        reader(tmp_path, changed("images", 1, height=None))


@pytest.mark.parametrize(
    "box",
    [
        "[1, 1, 0, 5]",
        "[1, 1, 5, -2]",
        "[1, 1, 1e999, 5]",
        "[-1e999, 1, 5, 5]",
        "[1, 1, 1e9, 1e9]",
        "[1e9, 1, 5, 5]",
        f"[{10**400}, 1, 5, 5]",
    ],
)
def test_D7_invalid_boxes_are_skipped_and_counted(tmp_path, box):
    content = json.dumps(coco_content(4)).replace("[4, 5, 12, 9]", box)
    found = reader(tmp_path, content)
    assert found.problems["invalid boxes skipped"] == 1
    assert found.annotations(0)["detection"].boxes.tolist() == [[4, 15, 16, 24]]


@pytest.mark.parametrize("box", [None, [1, 2, 3], "[1,2,3,4]", ["1", "2", "3", "4"], [1, 2, 3, None]])
def test_D7_what_is_no_box_is_refused(tmp_path, box):
    content = coco_content(4)
    content["annotations"][2]["bbox"] = box
    with pytest.raises(DataError, match="annotation 3: bbox is"):
        reader(tmp_path, content)


def test_D8_boxes_are_clipped_and_those_outside_skipped(tmp_path):
    content = coco_content(4)
    for annotation, box in zip(
        content["annotations"], ([-5, -6, 10, 10], [60, 40, 50, 50], [64, 0, 5, 5]), strict=False
    ):
        annotation["bbox"] = box
    found = reader(tmp_path, content)
    assert found.annotations(0)["detection"].boxes.tolist() == [[0, 0, 5, 4], [60, 40, 64, 48]]
    assert found.problems["boxes outside the picture skipped"] == 1
    assert found.problems["boxes clipped by more than a pixel"] == 2


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4]], [[1, 2, 3]], [[]], [], "garbage", None, [["a"]],
                     {"size": [9, 9], "counts": "x" * 999}, {"size": [10**9, 10**9], "counts": [10**18]}]
)  # fmt: skip
def test_D9_a_malformed_mask_leaves_the_box(tmp_path, segmentation):
    content = coco_content(4)
    content["annotations"][0]["segmentation"] = segmentation
    assert len(reader(tmp_path, content).annotations(0)["detection"].boxes) == 2


@pytest.mark.parametrize(("part", "id"), [("images", 10), ("annotations", 1), ("categories", 3)])
def test_D10_duplicate_ids(tmp_path, part, id):
    with pytest.raises(DataError, match=f"id {id} is given twice in {part}"):
        reader(tmp_path, changed(part, 1, id=id))


def test_D10_annotation_id_0_and_none_are_fine(tmp_path):
    content = changed("annotations", 0, id=0)
    del content["annotations"][1]["id"], content["annotations"][2]["id"]
    assert len(reader(tmp_path, content).annotations(0)["detection"].boxes) == 2


def test_D10_one_file_twice(tmp_path):
    with pytest.raises(DataError, match=r"images 10 and 11 are the same file 000\.jpg"):
        reader(tmp_path, changed("images", 1, file_name="000.jpg"))


def test_D11_gaps_are_mapped_and_the_map_is_kept(tmp_path):
    found = reader(tmp_path)
    assert found.categories == {3: "vehicle", 7: "pedestrian"}
    assert found.class_map.index == {"vehicle": 0, "pedestrian": 1}


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("annotations", {"category_id": 5}, "category_id 5 is not among"),
        ("annotations", {"category_id": "3"}, "category_id '3'"),
        ("annotations", {"category_id": None}, "category_id None"),
        ("annotations", {"image_id": 99}, "image_id 99 is not among"),
        ("annotations", {"image_id": "10"}, "image_id '10'"),
        ("annotations", {"image_id": [1]}, r"image_id \[1\]"),
        ("images", {"id": "10"}, "id '10'. Expected an integer"),
        ("categories", {"id": "3"}, "id '3'. Expected an integer"),
        ("categories", {"id": True}, "id True. Expected an integer"),
        ("categories", {"name": None}, "name None"),
        ("categories", {"name": "pedestrian"}, "given twice"),
    ],
)
def test_D11_unknown_and_string_ids(tmp_path, part, values, words):
    with pytest.raises(DataError, match=words):
        reader(tmp_path, changed(part, 0, **values))


def test_D12_crowds_are_ignore_regions_and_defaults(tmp_path):
    content = changed("annotations", 0, iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]})
    del content["annotations"][1]["iscrowd"], content["annotations"][1]["area"]
    assert reader(tmp_path, content).annotations(0)["detection"].ignore.tolist() == [True, False]


def test_D13_broken_json_says_where(tmp_path):
    text = json.dumps(coco_content(4))
    nan = text.replace('"area": 108', '"note": "a \\" NaN", "area": NaN', 1)
    with pytest.raises(DataError, match=rf"NaN is no JSON number at byte {nan.index('NaN,')}\b"):
        reader(tmp_path, nan)
    twice = text.replace('"height": 48', '"name": "ä\\"{[", "id": 3, "height": 48', 1)
    at = twice.encode().index(b'"id": 3,')
    with pytest.raises(DataError, match=rf"key 'id' is given twice in one object at byte {at}\b"):
        reader(tmp_path, twice)
    with pytest.raises(DataError, match=f"not valid JSON at byte .* of {len(text) // 2}"):
        reader(tmp_path, text[: len(text) // 2])
    latin = text.replace("vehicle", "véhicule").encode("latin-1")
    with pytest.raises(DataError, match=f"not UTF-8 at byte {latin.index(0xE9)}"):
        reader(tmp_path, latin)
    with pytest.raises(DataError, match="digits"):
        reader(tmp_path, text.replace("48", "1" * 9999, 1))
    with pytest.raises(DataError, match="nested too deeply"):
        reader(tmp_path, "[" * 100_000)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"images": {}, "annotations": [], "categories": []}', '{"images": [1]}', "3"]
)
def test_D13_json_that_is_not_coco(tmp_path, content):
    with pytest.raises(DataError, match=r"boxes\.json"):
        reader(tmp_path, content)


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a\0.jpg", "..\\secret.jpg", "C:\\a.jpg", "", 3, ".."],
)
def test_D14_names_that_lead_out(tmp_path, name):
    with pytest.raises(DataError, match="image 10"):
        reader(tmp_path, changed("images", 0, file_name=name))


def test_D14_a_link_that_leads_out(tmp_path):
    config = coco_tree(tmp_path)
    outside = data_trees.write(tmp_path / "secret.jpg", data_trees.picture(0))
    (tmp_path / "coco/images/000.jpg").unlink()
    (tmp_path / "coco/images/000.jpg").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of"):
        open_tree(tmp_path, config)


def test_D14_a_linked_folder_is_the_users_own(tmp_path):
    config = coco_tree(tmp_path)
    (tmp_path / "coco/images").rename(tmp_path / "elsewhere")
    (tmp_path / "coco/images").symlink_to(tmp_path / "elsewhere")
    assert len(open_tree(tmp_path, config)) == 4


def test_D17_no_boxes_at_all_is_labelled_and_empty_but_no_pictures_is_an_error(tmp_path):
    content = coco_content(4)
    found = reader(tmp_path, {**content, "annotations": []})
    assert all(len(found.annotations(i)["detection"].boxes) == 0 for i in range(4))
    with pytest.raises(DataError, match="lists 0 images"):
        reader(tmp_path, {**content, "images": [], "annotations": []})


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("carla/train", "carla/annotations/instances_train.json"),
        ("carla/val", "carla/annotations/instances_val.json"),
        ("coco128/train2017", "coco128/annotations/instances_train2017.json"),
        ("coco128/val2017", "coco128/annotations/instances_val2017.json"),
    ],
)
def test_real_sets_are_read_as_pycocotools_reads_them(images, annotations, capsys):
    from pycocotools.coco import COCO

    root = Path(REAL or "")
    coco = COCO(root / annotations)
    capsys.readouterr()
    names = [category["name"] for category in coco.loadCats(coco.getCatIds())]
    config = {"format": "coco", "images": images, "annotations": annotations}
    source = open_tree(root, config, detection=names)
    found = source.readers[0]
    assert len(source) == len(coco.imgs)
    by_name = {image["file_name"]: image for image in coco.imgs.values()}
    for index, path in enumerate(found.images):
        record = by_name[path.name]
        expected = coco.loadAnns(coco.getAnnIds(imgIds=record["id"]))
        expected = [a for a in expected if min(a["bbox"][2:]) > 0]
        instances = found.annotations(index)["detection"]
        assert [names[i] for i in instances.labels] == [coco.cats[a["category_id"]]["name"] for a in expected]
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, [record["width"], record["height"]] * 2)
        assert np.allclose(instances.boxes, boxes, atol=1e-3)
        crowd = np.zeros(len(expected), bool) if instances.ignore is None else instances.ignore
        assert crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
    for index in range(0, len(source), max(1, len(source) // 20)):
        sample = source.sample(index)
        assert sample.image.shape[:2] == found.sizes[index]
