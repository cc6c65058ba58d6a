"""COCO's panoptic format: COCO's own areas and boxes as the oracle, and what files may hold that is none of it."""

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_trees import CLASSES, open_tree, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees_coco import coco_panoptic_tree, encode_compressed_runs, ids_to_colors, panoptic_content, panoptic_ids

from perception.config import validate_config
from perception.data import DATASETS, SourceConfig
from perception.data.formats import coco_index
from perception.data.formats.coco_panoptic import read_panoptic_ids
from perception.files.images import ImageError
from perception.types import ConfigError, DataError

REAL = os.environ.get("PERCEPTION_TEST_DATA")
ROAD, SKY, CAR, VOID = 0, 1, 2, 255


def reader(root: Path, content=None, count: int = 3, only=None, **options):
    """``only`` these tasks are trained."""
    labels = {**coco_panoptic_tree(root, count, content), **options}
    (config,) = validate_config(SourceConfig, {"name": "s", "labels": [labels]}).labels
    return DATASETS[config.format](config, root, only or CLASSES)


def changed(**values):
    """Content with values of the last segment of the first image replaced; "absent" removes."""
    content = panoptic_content(3)
    segment = content["annotations"][0]["segments_info"][-1]
    segment |= values
    content["annotations"][0]["segments_info"][-1] = {k: v for k, v in segment.items() if v != "absent"}
    return content


def test_things_are_boxes_and_everything_is_the_label_map(tmp_path):
    found = reader(tmp_path)
    assert found.tasks == ("detection", "segmentation")
    assert [path.name for path in found.images] == ["000.jpg", "001.jpg", "002.jpg"]
    for i in range(3):
        annotations = found.read_annotations(i, (48, 64))
        boxes, label_map = annotations["detection"], annotations["segmentation"]
        assert boxes.boxes.tolist() == [[5, 25, 20, 35], [40, 30, 60, 44], [24, 15, 34, 25]]
        assert boxes.labels.tolist() == [0, 0, 1]
        assert boxes.ignore.tolist() == [False, False, True]  # a crowd
        assert boxes.labeled_classes.tolist() == [True, True, False]
        expected = np.full((48, 64), SKY)
        expected[20:] = ROAD
        expected[25:35, 5:20] = expected[30:44, 40:60] = CAR
        expected[0] = expected[15:25, 24:34] = VOID
        assert (label_map.values == expected).all()
        assert (label_map.valid == (expected != VOID)).all()
        assert label_map.values.dtype == np.uint8
        assert label_map.values.flags.c_contiguous


def test_each_task_has_its_own_names(tmp_path):
    options = {"segmentation_rename": {"vehicle": "car", "pedestrian": "road"}, "segmentation_ignore": ["sky"]}
    found = reader(tmp_path, **options, detection_ignore=["vehicle"]).read_annotations(0)
    assert found["segmentation"].values[16, 25] == ROAD  # a crowd has its class
    assert found["segmentation"].values[5, 5] == VOID
    assert found["detection"].ignore.tolist() == [True, True, True]
    found = reader(tmp_path, **options, detection_background="rest", only={**CLASSES, "detection": ("pedestrian",)})
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[24, 15, 34, 25]]
    assert found.class_map.indices == {"vehicle": -2, "pedestrian": 0}
    only = reader(tmp_path, segmentation_labels_only=["road"]).read_annotations(0)["segmentation"]
    assert (ROAD,) in {only.label_space.class_sets[k] for k in np.unique(only.values[only.valid])}


def test_only_what_the_recipe_trains_is_read(tmp_path):
    pixels = reader(tmp_path, only={"segmentation": CLASSES["segmentation"]})
    assert pixels.tasks == tuple(pixels.read_annotations(0)) == ("segmentation",)
    assert reader(tmp_path, detection_task=None).tasks == ("segmentation",)
    config = coco_panoptic_tree(tmp_path)
    shutil.rmtree(tmp_path / "coco/panoptic")
    boxes = open_tree(tmp_path, {**config, "segmentation_task": None}).readers[0]
    assert boxes.tasks == tuple(boxes.read_annotations(0)) == ("detection",)
    with pytest.raises(DataError, match=f"No folder of panoptic PNGs at {tmp_path}"):
        open_tree(tmp_path, config)
    with pytest.raises(ConfigError, match="both tasks are called 'a'"):
        reader(tmp_path, detection_task="a", segmentation_task="a")


def test_names_without_a_place_are_told_with_their_task(tmp_path):
    with pytest.raises(DataError, match=r"keys detection_\.\.\.: class 'pedestrian' is not in the recipe"):
        reader(tmp_path, only={"detection": ("vehicle",)})
    with pytest.raises(DataError, match=r"keys segmentation_\.\.\.: class 'vehicle' is not in the recipe"):
        reader(tmp_path, segmentation_rename=None)
    with pytest.raises(DataError, match="names 'sky', which is not a class of this source"):
        reader(tmp_path, detection_ignore=["sky"])  # stuff has no boxes


def test_masks_may_be_elsewhere(tmp_path):
    config = coco_panoptic_tree(tmp_path)
    (tmp_path / "coco/panoptic").rename(tmp_path / "pngs")
    assert open_tree(tmp_path, {**config, "masks": "pngs"}).load_sample(0).annotations["segmentation"] is not None


def test_images_without_an_annotation_are_not_labeled(tmp_path):
    content = panoptic_content(3)
    del content["annotations"][1]
    found = reader(tmp_path, content)
    assert [path.name for path in found.images] == ["000.jpg", "002.jpg"]
    assert found.problems == {"images without an annotation": 1}
    assert found.read_annotations(1)["detection"].labels.tolist() == [0, 0, 1]


@pytest.mark.fault("D5")
def test_missing_images_keep_the_others_in_step(tmp_path):
    content = panoptic_content(4)
    content["images"].reverse()
    content["annotations"][0]["segments_info"] = content["annotations"][0]["segments_info"][:3]
    config = coco_panoptic_tree(tmp_path, 4, content)
    (tmp_path / "coco/images/001.jpg").unlink()
    found = open_tree(tmp_path, config).readers[0]
    assert found.problems["missing images"] == 1
    with pytest.raises(DataError, match="contains 2 segments"):
        found.read_annotations(0)
    assert [path.name for path in found.images[1:]] == ["002.jpg", "003.jpg"]
    assert found.read_annotations(1)["detection"].labels.tolist() == [0, 0, 1]


def test_a_source_of_it_is_read_and_sent_to_workers(tmp_path):
    source = pickle.loads(pickle.dumps(open_tree(tmp_path, coco_panoptic_tree(tmp_path))))
    sample = source.load_sample(2)
    assert sample.image.shape[:2] == sample.annotations["segmentation"].values.shape


def with_png(root: Path, image: np.ndarray | bytes, mode: str | None = None):
    """A reader whose first PNG is replaced."""
    found = reader(root)
    path = root / "coco/panoptic/000.png"
    if isinstance(image, bytes):
        path.write_bytes(image)
    elif mode is None:
        write_image(path, image)
    else:
        Image.fromarray(image).convert(mode).save(path)
    return found


@pytest.mark.fault("D15")
def test_pixels_and_segments_that_do_not_fit_are_named(tmp_path):
    ids = panoptic_ids()
    ids[5, 5:9], ids[6, 6] = 1_000_000, 77
    with pytest.raises(DataError, match=r"000\.png contains 2 segments.*\{77: 1, 1000000: 4\}.*Expected 5, 260"):
        with_png(tmp_path, ids_to_colors(ids)).read_annotations(0)
    ids = np.where(panoptic_ids() == 9, 260, panoptic_ids())
    with pytest.raises(DataError, match=r"000\.png has no pixel of the segments \[9\]"):
        with_png(tmp_path, ids_to_colors(ids)).read_annotations(0)
    with pytest.raises(DataError, match=r"000\.png is for 64 x 47 pixels"):
        with_png(tmp_path, ids_to_colors(panoptic_ids()[:47])).read_annotations(0)


@pytest.mark.fault("D6")
def test_a_record_of_another_size(tmp_path):
    content = panoptic_content(3)
    content["images"][0]["width"] = 65
    found = reader(tmp_path, content)
    with pytest.raises(DataError, match="65 x 48 pixels"):
        found.read_annotations(0, (48, 64))
    with pytest.raises(DataError, match=r"000\.png is for 64 x 48"):
        found.read_annotations(0)


@pytest.mark.fault("D15")
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "I;16"])
def test_a_png_that_is_not_rgb(tmp_path, mode):
    image = np.zeros((48, 64), np.uint16) if mode == "I;16" else ids_to_colors(panoptic_ids())
    with pytest.raises(DataError, match=r"000\.png is not an 8-bit RGB PNG"):
        with_png(tmp_path, image, None if mode == "I;16" else mode).read_annotations(0)


@pytest.mark.fault("D1")
def test_a_damaged_png_is_an_error_and_not_passed_over(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(ids_to_colors(panoptic_ids())).save(buffer, "png")
    whole = buffer.getvalue()
    for data in (b"", b"GIF89a", whole[:30], whole[:-20], whole[:60] + b"\0" + whole[61:], b"\xff\xd8\xff" + whole):
        with pytest.raises(DataError, match=r"000\.png") as caught:
            with_png(tmp_path, data).read_annotations(0)
        assert not isinstance(caught.value, ImageError)


def test_a_png_that_is_missing(tmp_path):
    found = reader(tmp_path)
    (tmp_path / "coco/panoptic/001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png cannot be read"):
        found.read_annotations(1)
    config = coco_panoptic_tree(tmp_path)
    (tmp_path / "coco/panoptic/002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 PNGs are not under .*002\.png"):
        open_tree(tmp_path, config)


@pytest.mark.fault("D14")
@pytest.mark.parametrize("name", ["../panoptic.json", "/etc/passwd", "a\\b.png", "a\0.png", "", None, 3, "x" * 2000])
def test_png_names_that_lead_out(tmp_path, name):
    content = panoptic_content(3)
    content["annotations"][0]["file_name"] = name
    with pytest.raises(DataError, match=r"refused|Expected a name"):
        reader(tmp_path, content)


@pytest.mark.fault("D14")
def test_a_png_that_is_a_link_out(tmp_path):
    config = coco_panoptic_tree(tmp_path / "root")
    path = tmp_path / "root/coco/panoptic/000.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="leads out of"):
        open_tree(tmp_path / "root", config)


@pytest.mark.fault("D11")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"category_id": 5}, "segment 9 of image 10: category_id 5 is not among"),
        ({"category_id": "seven"}, "category_id 'seven'"),
        ({"category_id": "absent"}, "category_id None"),
        ({"id": 0}, "a segment has id 0"),
        ({"id": 1 << 24}, "a segment has id 16777216"),
        ({"id": -(10**400)}, "a segment has id"),
        ({"id": "nine"}, "a segment has id 'nine'"),
        ({"id": "absent"}, "a segment has id None"),
        ({"id": 5}, "segment 5 is given twice"),
        ({"bbox": "absent"}, "segment 9 of image 10: bbox is None"),
        ({"bbox": [1, 2, 3]}, "segment 9 of image 10: bbox is"),
        ({"bbox": "abcd"}, "segment 9 of image 10: bbox is"),
    ],
)
def test_segments_that_are_none(tmp_path, values, words):
    with pytest.raises(DataError, match=words):
        reader(tmp_path, changed(**values))


@pytest.mark.fault("D11")
@pytest.mark.fault("D10")
@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("categories", 0, "isthing"), None, "category 3 has isthing None"),
        (("categories", 0, "isthing"), "perhaps", "category 3: isthing is 'perhaps'"),
        (("categories", 0, "isthing"), [1], r"category 3: isthing is \[1\]"),
        (("categories", 1, "name"), "vehicle", "given twice"),
        (("annotations", 0, "segments_info"), None, "segments_info is missing"),
        (("annotations", 0, "segments_info"), [1], "segments_info is missing or not a list of objects"),
        (("annotations", 0, "image_id"), 99, "image_id 99 is not among the 3 images"),
        (("annotations", 0, "image_id"), [[1]], "is not among the 3 images"),
        (("annotations", 0, "image_id"), 11, "image 11 has two annotations"),
        (("annotations", 0), 3, "'annotations' is missing or not a list of objects"),
        (("images", 0, "id"), 11, "id 11 is given twice in images"),
        (("images",), [], "lists 0 images"),
        (("annotations",), [], "none of its 0 images"),
    ],
)
def test_content_that_is_not_panoptic(tmp_path, path, value, words):
    content = panoptic_content(3)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=words):
        reader(tmp_path, content)


def test_an_instances_json_is_refused(tmp_path):
    content = panoptic_content(3)
    content["annotations"] = [{"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 1, 5, 5]}]
    with pytest.raises(DataError, match=r"file_name None|segments_info"):
        reader(tmp_path, content)


@pytest.mark.fault("D12")
def test_defaults(tmp_path):
    found = reader(tmp_path, changed(iscrowd="absent", area="absent"))
    assert found.read_annotations(0)["detection"].ignore is None
    content = panoptic_content(3)
    del content["annotations"][0]["segments_info"][0]["bbox"]  # of stuff
    assert len(reader(tmp_path, content).read_annotations(0)["detection"].boxes) == 3


@pytest.mark.fault("D8")
@pytest.mark.fault("D7")
def test_boxes_are_checked_like_any_others(tmp_path):
    found = reader(tmp_path, changed(bbox=[1, 1, 0, 5]))
    assert found.problems["invalid boxes skipped"] == 1
    assert len(found.read_annotations(0)["detection"].boxes) == 2
    assert (found.read_annotations(0)["segmentation"].values[15:25, 24:34] == VOID).all()


def test_an_image_without_segments_is_void_and_empty(tmp_path):
    content = panoptic_content(3)
    content["annotations"][0]["segments_info"] = []
    found = reader(tmp_path, content)
    write_image(tmp_path / "coco/panoptic/000.png", np.zeros((48, 64, 3), np.uint8))
    annotations = found.read_annotations(0)
    assert len(annotations["detection"].boxes) == 0
    assert not annotations["segmentation"].valid.any()


def test_a_file_is_parsed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PERCEPTION_CACHE", str(tmp_path / "cache"))
    parsed = []
    read = coco_index.read_json
    monkeypatch.setattr(coco_index, "read_json", lambda path: parsed.append(path) or read(path))
    content = {**panoptic_content(3), "info": "x" * 1_000_000}
    first, second = reader(tmp_path, content), reader(tmp_path, content)
    assert len(parsed) == 1
    for i in range(3):
        one, other = first.read_annotations(i), second.read_annotations(i)
        assert np.array_equal(one["detection"].boxes, other["detection"].boxes)
        assert np.array_equal(one["segmentation"].values, other["segmentation"].values)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, (1 << 24) - 1), min_size=6, max_size=6))
def test_ids_are_what_the_colors_say(tmp_path_factory, ids):
    path = tmp_path_factory.getbasetemp() / "ids.png"
    expected = np.array(ids).reshape(2, 3)
    Image.fromarray(ids_to_colors(expected)).save(path)
    assert (read_panoptic_ids(path) == expected).all()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (b"gAMA", struct.pack(">I", 10_000)),
        (b"sRGB", b"\0"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 70000, 20000, 30000, 60000, 15000, 5000)),
        (b"tRNS", b"\0\5\0\0\0\0"),
        (b"sBIT", bytes([3, 3, 3])),
        (b"bKGD", b"\0\1\0\2\0\3"),
        (b"cICP", bytes([9, 16, 0, 1])),
    ],
)
def test_no_color_management_changes_an_id(tmp_path, name, data):
    buffer = io.BytesIO()
    Image.fromarray(ids_to_colors(panoptic_ids())).save(buffer, "png")
    whole = buffer.getvalue()
    extra = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "a.png").write_bytes(whole[:33] + extra + whole[33:])
    assert (read_panoptic_ids(tmp_path / "a.png") == panoptic_ids()).all()


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
@pytest.mark.parametrize("part", ["train", "val"])
def test_real_panoptic_maps_have_cocos_own_areas_and_boxes(part):
    """The JSON's areas and boxes were computed by COCO; the ids here by its formula, from another decoder."""
    root = Path(REAL or "")
    content = json.loads((root / f"coco128/annotations/panoptic_{part}2017.json").read_text())
    names = [category["name"] for category in content["categories"]]
    things = [category["name"] for category in content["categories"] if category["isthing"]]
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    config = {
        "format": "coco_panoptic", "images": f"coco128/{part}2017",
        "annotations": f"coco128/annotations/panoptic_{part}2017.json",
    }  # fmt: skip
    source = open_tree(root, config, detection=things, segmentation=names)
    found = source.readers[0]
    assert len(source) == len(content["annotations"]) == 100
    assert not found.problems
    by_name = {Path(a["file_name"]).stem: a for a in content["annotations"]}
    for index, path in enumerate(found.images):
        annotation = by_name[path.stem]
        annotations = found.read_annotations(index)
        label_map, instances = annotations["segmentation"].values, annotations["detection"]
        png = root / f"coco128/annotations/panoptic_{part}2017" / annotation["file_name"]
        colors = np.asarray(Image.open(png), np.uint32)
        ids = colors[:, :, 0] + 256 * colors[:, :, 1] + 256 * 256 * colors[:, :, 2]
        areas = [0] * len(names)
        for segment in annotation["segments_info"]:
            label = names.index(name_of[segment["category_id"]])
            areas[label] += segment["area"]
            assert (label_map[ids == segment["id"]] == label).all()
        assert np.bincount(label_map.ravel(), minlength=256)[: len(names)].tolist() == areas
        assert ((label_map == VOID) == (ids == 0)).all()
        expected = [s for s in annotation["segments_info"] if name_of[s["category_id"]] in things]
        assert [things[i] for i in instances.labels] == [name_of[s["category_id"]] for s in expected]
        boxes = np.array([s["bbox"] for s in expected], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal(instances.boxes, boxes)
        crowd = np.zeros(len(expected), bool) if instances.ignore is None else instances.ignore
        assert crowd.tolist() == [bool(s["iscrowd"]) for s in expected]
    for index in range(0, 100, 25):
        assert source.load_sample(index).image.shape[:2] == found.sizes[index]


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
def test_real_segments_as_masks_make_the_same_label_map(tmp_path):
    """Two formats of one content, by two decoders."""
    root = Path(REAL or "")
    config = {"images": "coco128/val2017", "annotations": "coco128/annotations/panoptic_val2017.json"}
    content = json.loads((root / config["annotations"]).read_text())
    names = [category["name"] for category in content["categories"]]
    panoptic = open_tree(root, {"format": "coco_panoptic", **config, "detection_task": None}, segmentation=names)
    chosen, annotations = content["annotations"][:20], []
    for annotation in chosen:
        ids = read_panoptic_ids(root / "coco128/annotations/panoptic_val2017" / annotation["file_name"])
        for segment in annotation["segments_info"]:
            mask = encode_compressed_runs(ids == segment["id"])
            annotations.append(
                {**segment, "id": len(annotations), "image_id": annotation["image_id"], "segmentation": mask}
            )
    images = [image for image in content["images"] if image["id"] in {a["image_id"] for a in chosen}]
    masks = {"images": images, "annotations": annotations, "categories": content["categories"]}
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    (tmp_path / "images").symlink_to(root / "coco128/val2017")
    options = {"format": "coco", "images": "images", "annotations": "masks.json", "segmentation_task": "segmentation"}
    found = open_tree(tmp_path, options, segmentation=names, detection=names)
    assert len(found) == 20
    assert not found.problems
    where = {picture.path.name: i for i, picture in enumerate(panoptic.records)}
    for index, picture in enumerate(found.records):
        expected = panoptic.read_annotations(where[picture.path.name])["segmentation"].values
        assert np.array_equal(found.read_annotations(index)["segmentation"].values, expected)
