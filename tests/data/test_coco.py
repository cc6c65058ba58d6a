"""COCO boxes and masks: faults D5 to D14, and pycocotools' reading."""

import copy
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import data_trees
import numpy as np
import pytest
from data_trees import CLASSES, coco_content, coco_tree, open_tree
from trees_coco import coco_masks_tree, disc, encode_compressed_runs, encode_runs, masks_content, rectangle

from perception.config import validate_config
from perception.data import DATASETS, SourceConfig
from perception.data.formats import coco_index
from perception.types import ConfigError, DataError

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


def test_boxes_labels_and_empty_images(tmp_path):
    found = reader(tmp_path)
    assert [path.name for path in found.images] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    first, last = (found.read_annotations(i, (48, 64))["detection"] for i in (1, 3))
    assert first.boxes.tolist() == [[5, 5, 17, 14], [5, 15, 17, 24]]
    assert first.labels.tolist() == [0, 1]
    assert first.ignore is None
    assert first.labeled_classes.tolist() == [True, True, False]  # no category "bike"
    assert last.boxes.shape == (0, 4)
    assert last.boxes.dtype == np.float32
    assert last.labels.dtype == np.int64


def test_rename_ignore_background_and_labels_only(tmp_path):
    only = {"detection": ("car", "person")}
    config = coco_tree(tmp_path)
    renamed = open_tree(tmp_path, {**config, "rename": {"vehicle": "car"}, "ignore": ["pedestrian"]}, **only).readers[0]
    instances = renamed.read_annotations(0)["detection"]
    assert instances.ignore.tolist() == [False, True]
    assert instances.labels.tolist() == [0, -1]  # neither a car nor a person, nor anything else
    assert instances.labeled_classes.tolist() == [True, False]
    dropped = open_tree(tmp_path, {**config, "rename": {"vehicle": "car"}, "background": "rest"}, **only).readers[0]
    assert len(dropped.read_annotations(0)["detection"].boxes) == 1
    both = {"vehicle": "car", "pedestrian": "person"}
    partly = open_tree(tmp_path, {**config, "rename": both, "labels_only": ["car"]}, **only).readers[0]
    instances = partly.read_annotations(0)["detection"]
    assert instances.labeled_classes.tolist() == [True, False]
    assert instances.ignore.tolist() == [False, True]  # a person, but not every person has a box


def test_a_class_without_a_place_in_the_recipe_is_named_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match=r"class 'pedestrian' is not in the recipe. Did you mean 'pedestrians'"):
        open_tree(tmp_path, coco_tree(tmp_path), detection=("vehicle", "pedestrians"))
    with pytest.raises(DataError, match="rename names 'truck'"):
        reader(tmp_path, rename={"truck": "vehicle"})
    with pytest.raises(DataError, match=r"rename names 'vehicel'.*Did you mean 'vehicle'"):
        reader(tmp_path, rename={"pedestrian": "vehicel"})
    with pytest.raises(DataError, match="none of its classes is in the recipe"):
        open_tree(tmp_path, {**coco_tree(tmp_path), "ignore": "rest"}, detection=("chair",))


@pytest.mark.fault("D5")
def test_missing_images_are_skipped_counted_and_bounded(tmp_path):
    config = coco_tree(tmp_path, 6)
    (tmp_path / "coco/images/002.jpg").unlink()
    source = open_tree(tmp_path, config)
    assert len(source) == 5
    assert source.problems["missing images"] == 1
    assert source.read_annotations(2)["detection"].boxes[0].tolist() == [7, 5, 19, 14]  # image 003
    (tmp_path / "coco/images/003.jpg").unlink()
    with pytest.raises(DataError, match="2 of its 6 images are not under"):
        open_tree(tmp_path, config)
    assert len(open_tree(tmp_path, {**config, "max_missing": 0.5})) == 4


@pytest.mark.fault("D5")
def test_all_missing_names_the_folder(tmp_path):
    config = coco_tree(tmp_path)
    shutil.rmtree(tmp_path / "coco/images")
    with pytest.raises(DataError, match=f"No folder of images at {tmp_path}"):
        open_tree(tmp_path, config)
    (tmp_path / "coco/images").mkdir()
    with pytest.raises(DataError, match=f"none of its 4 images is under {tmp_path}"):
        open_tree(tmp_path, {**config, "max_missing": 1.0})


@pytest.mark.fault("D6")
@pytest.mark.parametrize(("height", "width", "word"), [(48, 65, "64 x 48"), (64, 48, "EXIF")])
def test_size_differs_from_the_file(tmp_path, height, width, word):
    source = open_tree(tmp_path, coco_tree(tmp_path, 4, changed("images", 1, height=height, width=width)))
    source.load_sample(0)
    with pytest.raises(DataError, match=rf"001\.jpg.*{word}"):
        source.load_sample(1)


@pytest.mark.fault("D6")
def test_a_size_that_is_no_size(tmp_path):
    with pytest.raises(DataError, match="image 11: height and width"):
        reader(tmp_path, changed("images", 1, height="tall"))


@pytest.mark.fault("D7")
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
def test_invalid_boxes_are_skipped_and_counted(tmp_path, box):
    content = json.dumps(coco_content(4)).replace("[4, 5, 12, 9]", box)
    found = reader(tmp_path, content)
    assert found.problems["invalid boxes skipped"] == 1
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[4, 15, 16, 24]]


@pytest.mark.fault("D7")
@pytest.mark.parametrize("box", [None, [1, 2, 3], "[1,2,3,4]", ["1", "2", "3", "x"], [1, 2, 3, None]])
def test_what_is_no_box_is_refused(tmp_path, box):
    content = coco_content(4)
    content["annotations"][2]["bbox"] = box
    with pytest.raises(DataError, match="annotation 3: bbox is"):
        reader(tmp_path, content)


@pytest.mark.fault("D8")
def test_boxes_are_clipped_and_those_outside_skipped(tmp_path):
    content = coco_content(4)
    for annotation, box in zip(
        content["annotations"], ([-5, -6, 10, 10], [60, 40, 50, 50], [64, 0, 5, 5]), strict=False
    ):
        annotation["bbox"] = box
    found = reader(tmp_path, content)
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[0, 0, 5, 4], [60, 40, 64, 48]]
    assert found.problems["boxes outside the image skipped"] == 1
    assert found.problems["boxes clipped by more than a pixel"] == 2


@pytest.mark.fault("D9")
@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4]], [[1, 2, 3]], [[]], [], "garbage", None, [["a"]],
                     {"size": [9, 9], "counts": "x" * 999}, {"size": [10**9, 10**9], "counts": [10**18]}]
)  # fmt: skip
def test_a_malformed_mask_leaves_the_box(tmp_path, segmentation):
    content = coco_content(4)
    content["annotations"][0]["segmentation"] = segmentation
    assert len(reader(tmp_path, content).read_annotations(0)["detection"].boxes) == 2


@pytest.mark.fault("D10")
@pytest.mark.parametrize(("part", "id"), [("images", 10), ("annotations", 1), ("categories", 3)])
def test_duplicate_ids(tmp_path, part, id):
    with pytest.raises(DataError, match=f"id {id} is given twice in {part}"):
        reader(tmp_path, changed(part, 1, id=id))


@pytest.mark.fault("D10")
def test_annotation_id_0_and_none_are_fine(tmp_path):
    content = changed("annotations", 0, id=0)
    del content["annotations"][1]["id"], content["annotations"][2]["id"]
    assert len(reader(tmp_path, content).read_annotations(0)["detection"].boxes) == 2


@pytest.mark.fault("D10")
def test_one_file_twice(tmp_path):
    with pytest.raises(DataError, match=r"images 10 and 11 are the same file 000\.jpg"):
        reader(tmp_path, changed("images", 1, file_name="000.jpg"))


@pytest.mark.fault("D11")
def test_gaps_are_mapped_and_the_map_is_kept(tmp_path):
    found = reader(tmp_path)
    assert found.categories == {3: "vehicle", 7: "pedestrian"}
    assert found.class_map.indices == {"vehicle": 0, "pedestrian": 1}


@pytest.mark.fault("D11")
@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("annotations", {"category_id": 5}, "category_id 5 is not among"),
        ("annotations", {"category_id": "three"}, "category_id 'three'"),
        ("annotations", {"category_id": None}, "category_id None"),
        ("annotations", {"image_id": 99}, "image_id 99 is not among"),
        ("annotations", {"image_id": "000.jpg"}, "image_id '000.jpg'"),
        ("annotations", {"image_id": 10.5}, "image_id 10.5"),
        ("annotations", {"image_id": [1]}, r"image_id \[1\]"),
        ("images", {"id": "ten"}, "id 'ten'. Expected an integer"),
        ("images", {"id": "11"}, "id 11 is given twice in images"),
        ("categories", {"id": "3.5"}, "id '3.5'. Expected an integer"),
        ("categories", {"id": True}, "id True. Expected an integer"),
        ("categories", {"name": None}, "name None"),
        ("categories", {"name": "pedestrian"}, "given twice"),
    ],
)
def test_unknown_and_string_ids(tmp_path, part, values, words):
    with pytest.raises(DataError, match=words):
        reader(tmp_path, changed(part, 0, **values))


@pytest.mark.fault("D12")
def test_crowds_are_ignore_regions_and_defaults(tmp_path):
    content = changed("annotations", 0, iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]})
    del content["annotations"][1]["iscrowd"], content["annotations"][1]["area"]
    assert reader(tmp_path, content).read_annotations(0)["detection"].ignore.tolist() == [True, False]


@pytest.mark.fault("D13")
def test_broken_json_says_where(tmp_path):
    text = json.dumps(coco_content(4))
    nan = text.replace('"area": 108', '"note": "a \\" NaN", "area": NaN', 1)
    with pytest.raises(DataError, match=rf"NaN is not a JSON number at byte {nan.index('NaN,')}\b"):
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


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"images": {}, "annotations": [], "categories": []}', '{"images": [1]}', "3"]
)
def test_json_that_is_not_coco(tmp_path, content):
    with pytest.raises(DataError, match=r"boxes\.json"):
        reader(tmp_path, content)


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a\0.jpg", "..\\secret.jpg", "C:\\a.jpg", "", 3, ".."],
)
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(DataError, match="image 10"):
        reader(tmp_path, changed("images", 0, file_name=name))


@pytest.mark.fault("D14")
def test_a_link_that_leads_out(tmp_path):
    config = coco_tree(tmp_path / "root")
    outside = data_trees.write_image(tmp_path / "secret.jpg", data_trees.noise_image(0))
    (tmp_path / "root/coco/images/000.jpg").unlink()
    (tmp_path / "root/coco/images/000.jpg").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of"):
        open_tree(tmp_path / "root", config)


@pytest.mark.fault("D14")
def test_a_linked_folder_is_the_users_own(tmp_path):
    config = coco_tree(tmp_path)
    (tmp_path / "coco/images").rename(tmp_path / "elsewhere")
    (tmp_path / "coco/images").symlink_to(tmp_path / "elsewhere")
    assert len(open_tree(tmp_path, config)) == 4


@pytest.mark.fault("D17")
def test_no_boxes_at_all_is_labeled_and_empty_but_no_images_is_an_error(tmp_path):
    content = coco_content(4)
    found = reader(tmp_path, {**content, "annotations": []})
    assert all(len(found.read_annotations(i)["detection"].boxes) == 0 for i in range(4))
    with pytest.raises(DataError, match="lists 0 images"):
        reader(tmp_path, {**content, "images": [], "annotations": []})


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("images", {"file_name": "\ud800.jpg"}, "Expected a name"),
        ("images", {"file_name": "x" * 5000}, "at most 1000 characters"),
        ("categories", {"name": "\udfff"}, "Expected a name"),
        ("images", {"id": 2**63}, "Expected an integer of 64 bits"),
        ("annotations", {"id": -(10**400)}, "Expected an integer of 64 bits"),
        ("annotations", {"bbox": ["9" * 10**6, 1, 1, 1]}, "annotation 1: bbox is"),
        ("images", {"height": 10**400}, "Expected the image's|Mpx"),
        ("images", {"height": True}, "Expected the image's"),
    ],
)
def test_what_no_tool_writes_is_an_error_of_few_words(tmp_path, part, values, words):
    with pytest.raises(DataError, match=words) as caught:
        reader(tmp_path, changed(part, 0, **values))
    assert len(str(caught.value).encode()) < 1000


def test_values_nested_deeply_are_an_error(tmp_path):
    for part, key in (("images", "id"), ("images", "height"), ("annotations", "bbox"), ("annotations", "category_id")):
        content = json.dumps(changed(part, 0, **{key: "HERE"})).replace('"HERE"', "[" * 800 + "]" * 800)
        with pytest.raises(DataError, match=r"nested|Expected|not among"):
            reader(tmp_path, content)


@pytest.mark.fault("D4")
def test_a_record_of_too_many_pixels(tmp_path):
    with pytest.raises(DataError, match=r"image 10: height and width give 200 Mpx\. At most 100"):
        reader(tmp_path, changed("images", 0, height=10_000, width=20_000))


def masks(root: Path, content=None, count: int = 3, only=None, **options):
    """A reader with masks; ``only`` these tasks are trained."""
    config = validate_config(
        SourceConfig, {"name": "s", "labels": [{**coco_masks_tree(root, count, content), **options}]}
    )
    (labels,) = config.labels
    return DATASETS[labels.format](labels, root, only or CLASSES)


def with_masks(*segmentations, **values):
    """Content of one image, a vehicle for every mask; ``values`` change the last."""
    content = masks_content(1)
    content["annotations"] = [
        {"id": i + 1, "image_id": 10, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations)
    ]
    content["annotations"][-1] |= values
    content["annotations"][-1] = {k: v for k, v in content["annotations"][-1].items() if v != "absent"}
    return content


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
        instances = found.read_annotations(index)["detection"]
        assert [names[i] for i in instances.labels] == [coco.cats[a["category_id"]]["name"] for a in expected]
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, [record["width"], record["height"]] * 2)
        assert np.allclose(instances.boxes, boxes, atol=1e-3)
        crowd = np.zeros(len(expected), bool) if instances.ignore is None else instances.ignore
        assert crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
    for index in range(0, len(source), max(1, len(source) // 20)):
        sample = source.load_sample(index)
        assert sample.image.shape[:2] == found.sizes[index]


ROAD, SKY, CAR, VOID = 0, 1, 2, 255


def test_masks_of_all_encodings_become_a_label_map(tmp_path):
    found = masks(tmp_path)
    assert found.tasks == ("detection", "segmentation")
    index = {"vehicle": CAR, "pedestrian": -1, "kite": -1, "(outside of all masks)": ROAD}
    assert found.segmentation_class_map.indices == index
    for i in range(2):
        annotations = found.read_annotations(i, (48, 64))
        expected = np.full((48, 64), ROAD)
        expected[10:30, 4:34] = expected[10:30, 40:50] = CAR
        expected[disc(20 + i, 20, 4) + disc(56, 8, 5) + disc(20, 40, 6) > 0] = VOID
        label_map = annotations["segmentation"]
        assert (label_map.values == expected).all()
        assert (label_map.valid == (expected != VOID)).all()
        assert label_map.values.dtype == np.uint8
        assert annotations["detection"].labels.tolist() == [1, 0, -1, 1]
        assert annotations["detection"].ignore.tolist() == [False, False, True, True]
    assert (found.read_annotations(2)["segmentation"].values == ROAD).all()


def test_masks_have_classes_of_their_own(tmp_path):
    options = {"segmentation_rename": {"vehicle": "car", "kite": "sky"}, "segmentation_ignore": ["pedestrian"]}
    found = masks(tmp_path, **options, unmasked_class=None).read_annotations(0)
    assert found["segmentation"].values[8, 56] == SKY
    assert found["segmentation"].values[12, 5] == CAR
    assert found["segmentation"].values[47, 0] == VOID
    assert found["detection"].ignore.tolist() == [False, False, True, True]
    only = masks(tmp_path, **options, segmentation_labels_only=["sky"]).read_annotations(0)["segmentation"]
    assert sets_at(only, (12, 5), (8, 56)) == [(ROAD, CAR), (SKY,)]
    cars = masks(tmp_path, segmentation_labels_only=["car"]).read_annotations(0)["segmentation"]
    assert {cars.label_space.class_sets[k] for k in np.unique(cars.values[cars.valid])} == {(CAR,), (ROAD, SKY)}
    rest = masks(tmp_path, **options, unmasked_class="rest").read_annotations(0)["segmentation"]
    assert sets_at(rest, (47, 0), (8, 56), (12, 5)) == [(ROAD,), (SKY,), (CAR,)], "outside of all masks: none of theirs"


def sets_at(label_map, *pixels):
    """What the pixels (row, column) may be."""
    return [label_map.label_space.class_sets[label_map.values[pixel]] for pixel in pixels]


def test_only_what_the_recipe_trains_is_read(tmp_path):
    boxes = masks(tmp_path, only={"detection": ("vehicle", "pedestrian")}, ignore="rest")
    assert boxes.tasks == ("detection",)
    assert set(boxes.read_annotations(0)) == {"detection"}
    pixels = masks(tmp_path, only={"segmentation": ("road", "car")})
    assert pixels.tasks == ("segmentation",)
    assert set(pixels.read_annotations(0)) == {"segmentation"}


def test_options_of_masks_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="without segmentation_task"):
        masks(tmp_path, segmentation_task=None)
    with pytest.raises(ConfigError, match="both 'segmentation'"):
        masks(tmp_path, task="segmentation")
    with pytest.raises(DataError, match=r"unmasked_class is 'rode'.*Did you mean 'road'"):
        masks(tmp_path, unmasked_class="rode")
    with pytest.raises(DataError, match=r"keys segmentation_\.\.\.: class 'pedestrian' is not in the recipe"):
        masks(tmp_path, segmentation_ignore=["kite"])


@pytest.mark.fault("D9")
def test_a_dropped_mask_is_void_in_its_box_and_counted(tmp_path, caplog):
    small, large = [rectangle(12, 12, 4, 4)], [rectangle(0, 0, 40, 40)]
    found = masks(tmp_path, with_masks(small, large, [[1, 2, 3, 4]]), 1)
    assert found.problems == {"masks dropped: a polygon of fewer than 6 numbers, or of an odd number of them": 1}
    assert "the first in 000.jpg" in caplog.text
    expected = np.full((48, 64), ROAD)
    expected[:40, :40] = CAR
    expected[10:30, 10:30] = VOID
    expected[12:16, 12:16] = CAR
    annotations = found.read_annotations(0)
    assert (annotations["segmentation"].values == expected).all()
    assert len(annotations["detection"].boxes) == 3


@pytest.mark.fault("D9")
@pytest.mark.parametrize("mask", [None, "absent", [], [[]], "x", {"size": [9, 9], "counts": "x"}, [[1, 1] * 3]])
@pytest.mark.parametrize(
    ("box", "void"),
    [
        ([10.5, 9.9, 2, 2.2], (slice(9, 13), slice(10, 13))),
        ([-5, -5, 10, 10], (slice(0, 5), slice(0, 5))),
        ([60, 40, 1e9, 1e9], (slice(40, 48), slice(60, 64))),
        ([60, 40, -5, 3], (slice(0, 0), slice(0, 0))),
        ([1e9, 1, 5, 5], (slice(0, 0), slice(0, 0))),
    ],
)
def test_void_are_the_pixels_that_the_box_touches(tmp_path, mask, box, void):
    found = masks(tmp_path, with_masks([rectangle(40, 20, 4, 4)], mask, bbox=box), 1)
    expected = np.full((48, 64), ROAD)
    expected[20:24, 40:44], expected[void] = CAR, VOID
    assert (found.read_annotations(0)["segmentation"].values == expected).all()
    assert sum(count for kind, count in found.problems.items() if kind.startswith("masks dropped")) == 1


@pytest.mark.fault("D9")
@pytest.mark.parametrize("box", ["[-1e999, 1, 1e999, 5]", "[1, 1, 1e999, 1e999]", f"[0, 0, {10**400}, 9]"])
def test_a_box_of_no_numbers_with_a_mask_of_none(tmp_path, box):
    text = json.dumps(with_masks([rectangle(40, 40, 4, 4)], "x", bbox="HERE")).replace('"HERE"', box)
    config = coco_masks_tree(tmp_path, 1)
    (tmp_path / "coco/masks.json").write_text(text)
    found = open_tree(tmp_path, config).readers[0]
    assert found.read_annotations(0)["segmentation"].values[2, 2] == VOID
    assert len(found.read_annotations(0)["detection"].boxes) == 1


@pytest.mark.parametrize(
    "segmentation", [[rectangle(3, 4, 20, 10)], encode_compressed_runs(disc(20, 20, 7)), encode_runs(disc(9, 9, 5))]
)
def test_a_box_that_is_absent_is_taken_from_the_mask(tmp_path, segmentation):
    from pycocotools import mask

    packed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
    x, y, w, h = np.ravel(mask.toBbox(segmentation if packed else mask.frPyObjects(segmentation, 48, 64)))
    content = with_masks(segmentation, bbox="absent")
    for only in (None, {"detection": ("vehicle", "pedestrian")}):
        found = masks(tmp_path, content, 1, only)
        assert found.read_annotations(0)["detection"].boxes.tolist() == [[x, y, x + w, y + h]]


@pytest.mark.fault("D9")
@pytest.mark.parametrize("segmentation", [None, [[1, 2, 3]], "x"])
def test_neither_box_nor_mask(tmp_path, segmentation):
    with pytest.raises(DataError, match=r"annotation 1: bbox is None.*or a mask to compute it from"):
        masks(tmp_path, with_masks(segmentation, bbox="absent"), 1)


def test_a_file_without_any_mask_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of its 2 annotations has a mask; of the first: no mask"):
        masks(tmp_path, with_masks(None, []), 1)
    nothing = {**with_masks([]), "annotations": []}
    assert (masks(tmp_path, nothing, 1).read_annotations(0)["segmentation"].values == ROAD).all()


@pytest.mark.fault("D12")
def test_a_crowd_is_an_ignore_region_and_has_its_class_in_the_label_map(tmp_path):
    content = with_masks([rectangle(1, 1, 9, 9)], encode_runs(disc(30, 30, 5)), iscrowd=1)
    annotations = masks(tmp_path, content, 1).read_annotations(0)
    assert annotations["segmentation"].values[30, 30] == CAR
    assert annotations["detection"].ignore.tolist() == [False, True]


@pytest.mark.fault("D6")
def test_masks_for_an_image_of_another_size(tmp_path):
    content = masks_content(3)
    content["images"][0]["width"] = 65
    for annotation in content["annotations"][:4]:
        annotation["segmentation"] = [rectangle(1, 1, 5, 5)]
    source = open_tree(tmp_path, coco_masks_tree(tmp_path, 3, content))
    with pytest.raises(DataError, match="65 x 48"):
        source.load_sample(0)
    source.load_sample(1)


def random_masks(count: int, seed: int = 0):
    """Content with overlapping masks of every encoding, on images and of categories in no order."""
    generator = np.random.default_rng(seed)
    content = masks_content(count)
    content["annotations"] = []
    for i in range(12 * count):
        x, y, radius = generator.uniform((2, 2, 2), (62, 46, 20)).tolist()
        angles = np.sort(generator.uniform(0, 6.28, 9))
        polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(2).ravel().tolist()
        mask = disc(x, y, radius)
        segmentation = [[polygon, rectangle(x, y, 9, 3)], encode_compressed_runs(mask), encode_runs(mask)][i % 3]
        crowd = int(i % 3 == 2 and i % 2)
        content["annotations"].append(
            {"id": i, "image_id": 10 + int(generator.integers(count)), "category_id": (3, 7, 9)[i % 5 % 3],
             "bbox": [x - radius, y - radius, 2 * radius, 2 * radius], "iscrowd": crowd, "segmentation": segmentation}
        )  # fmt: skip
    return content


CLASSES_OF_MASKS = {"segmentation": ("vehicle", "pedestrian", "kite", "ground")}


def test_label_maps_are_pycocotools_masks_the_small_ones_on_top(tmp_path, capsys):
    from pycocotools.coco import COCO

    options = {"segmentation_rename": None, "segmentation_ignore": (), "unmasked_class": "ground"}
    found = masks(tmp_path, random_masks(6), 6, CLASSES_OF_MASKS, **options)
    coco = COCO(tmp_path / "coco/masks.json")
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pycocotools' own
        for index in range(6):
            drawn = [(coco.annToMask(a), a["category_id"]) for a in coco.loadAnns(coco.getAnnIds(imgIds=10 + index))]
            expected = np.full((48, 64), 3)
            for mask, category in sorted((m for m in drawn if m[0].any()), key=lambda m: -int(m[0].sum())):
                expected[mask > 0] = {3: 0, 7: 1, 9: 2}[category]
            assert (found.read_annotations(index)["segmentation"].values == expected).all()


@pytest.fixture
def cached_content(tmp_path, monkeypatch):
    """Content large enough to be cached, and how often it was parsed."""
    monkeypatch.setenv("PERCEPTION_CACHE", str(tmp_path / "cache"))
    parsed = []
    read = coco_index.read_json
    monkeypatch.setattr(coco_index, "read_json", lambda path: parsed.append(path) or read(path))
    return {**random_masks(6), "info": "x" * 1_000_000}, parsed


def test_a_file_is_parsed_once(tmp_path, cached_content):
    content, parsed = cached_content
    options = {"segmentation_rename": None, "segmentation_ignore": (), "unmasked_class": "ground"}
    classes = {"detection": ("vehicle", "pedestrian"), **CLASSES_OF_MASKS}
    first, second = (masks(tmp_path, content, 6, classes, **options) for _ in range(2))
    assert len(parsed) == 1
    boxes = masks(tmp_path, content, 6, {"detection": ("vehicle", "pedestrian")}, **options)
    assert len(parsed) == 2  # of boxes without masks there is another, smaller index
    other = masks(tmp_path, content, 6, {"detection": ("vehicle",)}, background="rest", ignore=(), **options)
    assert len(parsed) == 2
    assert set(other.class_map.indices.values()) == {0, -2}
    sent = pickle.loads(pickle.dumps(second))
    assert first.problems == second.problems == sent.problems
    for index in range(6):
        expected = first.read_annotations(index)
        assert np.array_equal(boxes.read_annotations(index)["detection"].boxes, expected["detection"].boxes)
        for found in (second.read_annotations(index), sent.read_annotations(index)):
            assert np.array_equal(found["segmentation"].values, expected["segmentation"].values)
            assert np.array_equal(found["detection"].boxes, expected["detection"].boxes)
            assert np.array_equal(found["detection"].labels, expected["detection"].labels)


def test_faults_are_the_same_with_and_without_the_cache(tmp_path, cached_content, monkeypatch):
    content, parsed = cached_content
    content["annotations"][5]["image_id"] = 99
    messages = set()
    for folder in (str(tmp_path / "cache"), str(tmp_path / "cache"), ""):
        monkeypatch.setenv("PERCEPTION_CACHE", folder)
        with pytest.raises(DataError, match=r"annotation 5: image_id 99 is not among the 6 images") as caught:
            masks(tmp_path, content, 6)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert len(parsed) == 3
    assert not (tmp_path / "cache").exists()
