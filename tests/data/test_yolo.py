"""YOLO's layout: data.yaml as people have it, label files, and the same boxes as COCO's reader gives."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_trees import CLASSES, check_annotation, coco_content, coco_tree, noise_image, open_tree, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees_kitti import YAML, write_text, yolo_tree

from perception.config import validate_config
from perception.data import YoloConfig
from perception.data.formats.yolo import YoloReader, read_yolo_boxes
from perception.data.formats.yolo_data import read_yolo_data_file
from perception.files.strict_json import read_json
from perception.types import DataError

REAL = os.environ.get("PERCEPTION_TEST_DATA")
ANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABEL = "yolo/labels/train/000.txt"


def reader(root: Path, label: str | bytes | None = None, content: str | bytes = YAML, **options) -> YoloReader:
    config = yolo_tree(root, 3, content)
    if label is not None:
        write_text(root / LABEL, label)
    return open_tree(root, {**config, **options}).readers[0]


def names(*lines: str, **keys: str) -> str:
    """A data.yaml with other or more keys."""
    start = {"path": ".", "train": "images/train", "names": "[vehicle, pedestrian, traffic light]", **keys}
    return "\n".join([*(f"{key}: {value}" for key, value in start.items() if value), *lines])


def test_boxes_polygons_and_empty_images(tmp_path):
    source = open_tree(tmp_path, yolo_tree(tmp_path))
    found = source.readers[0]
    first, last = (source.load_sample(i).annotations["detection"] for i in (0, 2))
    assert first.boxes.tolist() == [[24, 12, 40, 36], [8, 12, 16, 24]]
    assert first.labels.tolist() == [0, 1]
    assert first.labeled_classes.tolist() == [True, True, False]
    assert first.ignore is None
    assert last.boxes.shape == (0, 4)
    assert found.names == ("vehicle", "pedestrian", "traffic light")
    assert np.array_equal(found.read_annotations(0)["detection"].boxes, first.boxes)  # without the size
    assert found.read_annotations(0, (480, 640))["detection"].boxes[0].tolist() == [240, 120, 400, 360]
    assert not source.problems
    assert not Path("/tmp/this-must-never-run").exists()
    pickle.loads(pickle.dumps(source))


def as_yolo(root: Path, content: dict, pictures: Path) -> dict:
    """A COCO JSON written out as YOLO."""
    ids = {category["id"]: i for i, category in enumerate(content["categories"])}
    for image in content["images"]:
        target = root / "y/images" / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / image["file_name"], target)
        lines = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                sides = image["width"], image["height"]
                box = (x + w / 2) / sides[0], (y + h / 2) / sides[1], w / sides[0], h / sides[1]
                lines.append(f"{ids[annotation['category_id']]} " + " ".join(f"{value:.8f}" for value in box))
        write_text(root / "y/labels" / Path(image["file_name"]).with_suffix(".txt").name, "\n".join(lines))
    listed = [category["name"] for category in content["categories"]]
    write_text(root / "y/data.yaml", f"train: images\nnames: {listed}\nnc: {len(listed)}\n")
    return {"format": "yolo", "data": "y/data.yaml"}


def same(ours, theirs) -> None:
    assert [path.name for path in ours.images] == [path.name for path in theirs.images]
    for index in range(len(ours.images)):
        a, b = ours.read_annotations(index)["detection"], theirs.read_annotations(index)["detection"]
        order = [np.lexsort(np.column_stack([x.boxes.round(1), x.labels]).T) for x in (a, b)]
        assert np.allclose(a.boxes[order[0]], b.boxes[order[1]], atol=0.01)
        assert np.array_equal(a.labels[order[0]], b.labels[order[1]])


def test_the_same_boxes_as_from_coco(tmp_path):
    theirs = open_tree(tmp_path, coco_tree(tmp_path)).readers[0]
    config = as_yolo(tmp_path, coco_content(4), tmp_path / "coco/images")
    same(open_tree(tmp_path, config).readers[0], theirs)


@pytest.mark.skipif(REAL is None, reason="PERCEPTION_TEST_DATA is not set")
def test_real_photographs_have_the_same_boxes_as_from_coco(tmp_path):
    root = Path(REAL or "")
    content = read_json(root / "coco128/annotations/instances_val2017.json")
    content["images"] = sorted(content["images"], key=lambda image: image["file_name"])[:40]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept and not a.get("iscrowd")]
    classes = [category["name"] for category in content["categories"]]
    config = as_yolo(tmp_path, content, root / "coco128/val2017")
    (tmp_path / "coco").mkdir()
    write_text(tmp_path / "coco.json", json.dumps(content))
    coco = {"format": "coco", "images": "y/images", "annotations": "coco.json"}
    ours, theirs = (open_tree(tmp_path, each, detection=classes).readers[0] for each in (config, coco))
    same(ours, theirs)
    assert sum(len(ours.read_annotations(i)["detection"].boxes) for i in range(40)) > 150


# What data.yaml says


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (names(), {}),
        (names(path=""), {}),
        (names(path="yolo"), {}),  # from the data root
        (names(path="../yolo"), {}),
        (names(path="", train="../images/train"), {}),  # as Roboflow writes it
        (names(train="[images/train]"), {}),
        (names(train="[images/train, ./images/train/]"), {}),
        (names(train="", val="images/train"), {"split": "val"}),
        (names(train="", validation="images/train"), {"split": "val"}),
        (names(test="images/train"), {"split": "test"}),
        (names(nc="3"), {}),
        (names("download: https://example.com/x.zip", "roboflow:", "  workspace: a", "  version: 1"), {}),
        (names(names="{0: vehicle, 1: pedestrian, 2: traffic light}"), {}),
        (names(names="{'2': traffic light, '0': vehicle, '1': pedestrian}"), {}),
        (names(path="/content/gone"), {"path": "yolo"}),
        (names(train="train", path=""), {"path": "yolo/images"}),
        ("# Ultralytics \U0001f680 License\n" + YAML, {}),
        ("\ufeff" + YAML, {}),
    ],
)
def test_data_files_as_people_have_them(content, options, tmp_path):
    if options.get("path") == "yolo/images":
        yolo_tree(tmp_path)
        shutil.copytree(tmp_path / "yolo/labels/train", tmp_path / "yolo/images/train", dirs_exist_ok=True)
    found = reader(tmp_path, content=content, **options)
    assert len(found.images) == 3
    assert found.read_annotations(0)["detection"].boxes.shape == (2, 4)


def test_an_absolute_path_in_the_recipe_is_the_users_own_and_one_in_the_file_is_not(tmp_path):
    config = yolo_tree(tmp_path, 3, names(path=str(tmp_path / "far")))
    (tmp_path / "far").mkdir()
    for folder in ("images", "labels"):
        (tmp_path / "yolo" / folder).rename(tmp_path / "far" / folder)
    (tmp_path / "data").mkdir()
    (tmp_path / "yolo").rename(tmp_path / "data/yolo")
    with pytest.raises(DataError, match=r"data\.yaml: 'path: .*It leads out of .*give this reader path: ..."):
        open_tree(tmp_path / "data", config)
    assert len(open_tree(tmp_path, {**config, "data": "data/yolo/data.yaml"})) == 3  # within the data root
    found = open_tree(tmp_path / "data", {**config, "path": str(tmp_path / "far")}).readers[0]
    assert found.read_annotations(0)["detection"].boxes.shape == (2, 4)


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (names(path="../.."), "leads out of"),
        (names(train="../../etc"), "is not a file or folder under"),
        (names(train="/etc"), "leads out of"),
        (names(train="../../.."), "leads out of"),
        (names(path="missing"), "'path: missing' is not a file or folder under"),
        (names(path='"a\\0b"'), "Expected a folder"),
        (names(train='"a\\0b"'), "'train' is .* Expected a folder, a list of folders"),
        (names(path="a" * 5000), "is not a file or folder under"),
        (names(path="3"), "'path' is 3. Expected a folder"),
        (names(train="missing"), "'train: missing' is not a file or folder under"),
        (names(train="labels"), "No image under"),
        (names(train=""), "has no 'train'. Found: none of train, val, test"),
        (names(train="", val="images/train"), "has no 'train'. Found: val"),
        (names(train="{a: 1}"), "'train' is .* Expected a folder"),
        (names(train="[1]"), "'train' is .* Expected a folder"),
        (names(train="data.yaml"), "is not an image. Expected the path of an image on every line"),
    ],
)
def test_paths_that_lead_out_or_nowhere(content, words, tmp_path):
    with pytest.raises(DataError, match=words):
        reader(tmp_path / "root", content=content)


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a YOLO data file: .*contains a NoneType"),
        ("- a\n- b\n", "not a YOLO data file"),
        ("a: [", "not a YOLO data file: .*not valid YAML"),
        ("a: &x 1\nb: *x\n", r"line 2: YAML aliases \(\*name\) are not allowed"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML: could not determine a constructor"),
        ("train: a\ntrain: b\n", "'train' is given twice"),
        ("a: \t- b: c\n\t- d", "not valid YAML"),
        ("? [a, b]\n: c\n", "not a YOLO data file"),
        ("a: 2001-99-99\n", "not a YOLO data file"),
        ("a: !!int x\n", "not a YOLO data file"),
        ("a: 0b_\n", "not a YOLO data file|is no|has no"),
        (f"a: {'1' * 5000}\n", "not a YOLO data file"),
        ("[" * 3000, "nested too deeply"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: \0", "not valid YAML"),
        ("#" * (1 << 21), "bytes. A recipe has at most"),
        (names(names="") + "\n", "'names' is None. Expected the list of class names"),
        (names(names="[]"), "'names' is .*Expected the list"),
        (names(names="{}"), "'names' is .*Expected the list"),
        (names(names="vehicle"), "'names' is vehicle. Expected the list"),
        (names(names="[a, a]"), "class name 'a' is given twice"),
        (names(names="[yes, b]"), "a class is called True in 'names'. Expected text: put it in quotes"),
        (names(names="[1.5, b]"), "a class is called 1.5"),
        (names(names="[~, b]"), "a class is called None"),
        (names(names="['', b]"), "a class is called ''"),
        (names(names="[[a], b]"), "a class is called"),
        (names(names="{1: a, 2: b}"), "the ids in 'names' are"),
        (names(names="{a: b}"), "the ids in 'names' are"),
        (names(names="{true: b}"), "the ids in 'names' are"),
        (names(names="{0: a, '0': b}"), "'0' is given twice"),
        (names(nc="4"), "'nc' is 4, but 'names' has 3"),
        (names(nc="x"), "'nc' is x"),
        (names(nc="true"), "'nc' is True"),
        (names(nc="0"), "'nc' is 0"),
        (names(nc=str(10**12), names=""), "'nc' is 1000000000000"),
        (names(kpt_shape="[17]"), "'kpt_shape' is"),
        (names(kpt_shape="[17, 4]"), "'kpt_shape' is"),
        (names(kpt_shape="[1000000000000, 3]"), "'kpt_shape' is"),
    ],
)
def test_data_files_that_are_none(content, words, tmp_path):
    with pytest.raises(DataError, match=rf"(?s)data\.yaml.*({words})"):
        reader(tmp_path, content=content)


def test_names_from_their_number_alone_and_numbers_as_names(tmp_path):
    found = reader(tmp_path, content=names(names="", nc="3"), rename={"class_0": "vehicle"}, background="rest")
    assert found.names == ("class_0", "class_1", "class_2")
    assert len(found.read_annotations(0)["detection"].boxes) == 1
    assert reader(tmp_path, content=names(names="[0, 1, 2]"), rename={"0": "bike"}, background="rest").names[0] == "0"


# Where the label files are


def test_a_missing_label_file_is_an_image_without_boxes_and_none_at_all_an_error(tmp_path):
    config = yolo_tree(tmp_path)
    (tmp_path / LABEL).unlink()
    write_text(tmp_path / "yolo/labels/train/classes.txt", "vehicle\n")
    found = open_tree(tmp_path, config).readers[0]
    assert found.read_annotations(0)["detection"].boxes.shape == (0, 4)
    assert found.read_annotations(1)["detection"].boxes.shape == (2, 4)
    assert found.problems == {"images without a label file, taken as empty": 1}
    write_text(tmp_path / "yolo/labels/train/lost.txt", "")
    assert open_tree(tmp_path, config).problems["label files without an image"] == 1
    shutil.rmtree(tmp_path / "yolo/labels")
    with pytest.raises(
        DataError, match=r"None of the 3 images has a label file: .*should have .*labels/train/000\.txt"
    ):
        open_tree(tmp_path, config)


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [("train/images", "train/labels"), ("images/images/a", "images/labels/a"), ("obj", "obj"), ("images", "labels"),
     ("a/images/b/c", "a/labels/b/c"), ("a/images.old", "a/images.old"), (".", ".")],
)  # fmt: skip
def test_places_of_label_files(pictures, labels, tmp_path):
    write_image(tmp_path / "data/images/set" / pictures / "a.b.jpg", noise_image(0))
    write_text(tmp_path / "data/images/set" / labels / "a.b.txt", "1 0.5 0.5 0.5 0.5\n")
    write_text(tmp_path / "data/images/set/data.yaml", names(path="", train=pictures))
    config = {"format": "yolo", "data": "set/data.yaml", "background": "rest"}
    assert len(open_tree(tmp_path / "data/images", config).read_annotations(0)["detection"].boxes) == 1


def test_lists_of_images(tmp_path):
    config = yolo_tree(tmp_path, 3, names(train="[train.txt, images/extra]"))
    write_image(tmp_path / "yolo/images/extra/x.png", noise_image(5))
    for lines in (
        "./images/train/002.jpg\n./images/train/000.jpg\n",
        "images/train/002.jpg\nimages/train/000.jpg",
        "yolo/images/train/002.jpg\r\n\r\nyolo/images/train/000.jpg\r\n",
        f"{tmp_path}/yolo/images/train/002.jpg\n{tmp_path}/yolo/images/train/000.jpg\nimages/train/../train/000.jpg\n",
    ):
        write_text(tmp_path / "yolo/train.txt", lines)
        found = open_tree(tmp_path, config).readers[0]
        assert [path.name for path in found.images] == ["002.jpg", "000.jpg", "x.png"]
        assert found.read_annotations(1)["detection"].boxes.shape == (2, 4)
        assert found.problems == {"images without a label file, taken as empty": 1}
    write_text(tmp_path / "yolo/train.txt", "./images/train/000.jpg\n./images/train/009.jpg\n")
    assert open_tree(tmp_path, config).problems["missing images"] == 1


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "none of its 0 images"),
        ("/etc/x.jpg", "leads out of"),
        ("../../../x.jpg", "leads out of"),
        ("images/train/000.txt", "is not an image"),
        ("images/train/9.jpg\nimages/train/000.jpg\nimages/train/8.jpg\n", "2 of its 3 images are not under"),
        ("a" * 300 + "/b.jpg", "none of its 1 images|cannot be read"),
        (b"\xff\xfd", "not UTF-8"),
        ("a\0.jpg", "has a NUL"),
        ("images\\val\\000.jpg", "none of its 1 images"),
        ("..\\..\\secret\\x.jpg", "none of its 1 images"),
    ],
)
def test_lists_that_lead_out_or_nowhere(lines, words, tmp_path):
    config = yolo_tree(tmp_path / "root", 3, names(train="train.txt"))
    write_text(tmp_path / "root/yolo/train.txt", lines)
    with pytest.raises(DataError, match=words):
        open_tree(tmp_path / "root", config)


@pytest.mark.fault("D14")
@pytest.mark.parametrize("what", [LABEL, "yolo/labels/train", "yolo/images/train", "yolo/images/train/000.jpg"])
def test_links_that_lead_out(what, tmp_path):
    root = tmp_path / "root"
    config = yolo_tree(root)
    (root / what).rename(tmp_path / "secret")
    (root / what).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="leads out of"):
        open_tree(root, config)


def test_a_linked_folder_within_the_data_root_keeps_its_labels(tmp_path):
    config = yolo_tree(tmp_path)
    (tmp_path / "yolo/images/train").rename(tmp_path / "images")
    (tmp_path / "yolo/images/train").symlink_to(tmp_path / "images")
    found = open_tree(tmp_path, config).readers[0]
    assert found.images[0] == tmp_path / "images/000.jpg"
    assert found.read_annotations(0)["detection"].boxes.shape == (2, 4)


# What the label files say


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("3 0.5 0.5 0.1 0.1", r"line 1: class '3'. Expected an integer from 0 to 2"),
        ("0 0.5 0.5 0.1 0.1\n\n-1 0.5 0.5 0.1 0.1", "line 3: class '-1'"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: class '0.5'"),
        ("nan 0.5 0.5 0.1 0.1", "line 1: class 'nan'"),
        ("1e300 0.5 0.5 0.1 0.1", "line 1: class '1e300'"),
        ("car 0.5 0.5 0.1 0.1", "line 1: .* are not all numbers"),
        ("0 0.5 0.5 0.1", "line 1: 4 columns. Expected 5"),
        ("0", "line 1: 1 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"line 1: 6 columns. Expected 5.*A sixth column is a score"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.9", "line 1: 8 columns. .*polygon"),
        ("0, 0.5, 0.5, 0.1, 0.1", "line 1: .* are not all numbers"),
        ("0 0.5 0.5 0.1 0_1", "line 1: .* are not all numbers"),
        (b"\x93NUMPY\0", "not UTF-8"),
        ("\n" * (17 << 20), "bytes. Expected a text file of at most"),
    ],
)
def test_label_files_that_are_none(label, words, tmp_path):
    with pytest.raises(DataError, match=rf"labels/train/000\.txt.*{words}"):
        reader(tmp_path, label)


@pytest.mark.fault("D7")
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0 0.1", "invalid boxes skipped"),
        ("0 0.5 0.5 -0.1 0.1", "boxes with numbers outside 0 to 1 skipped"),
        ("0 0.5 0.5 1e-9 0.1", "boxes outside the image skipped"),
        ("0 nan 0.5 0.1 0.1", "invalid boxes skipped"),
        ("0 inf 0.5 0.1 0.1", "invalid boxes skipped"),
        ("0 1e400 0.5 0.1 0.1", "invalid boxes skipped"),
        ("0 0.1 0.1 0.2 nan 0.3 0.3", "invalid boxes skipped"),
        ("0 0.1 0.1 0.1 0.1 0.1 0.1", "invalid boxes skipped"),
        ("0 1.02 0.5 0.1 0.1", "boxes with numbers outside 0 to 1 skipped"),
        ("0 0.5 0.5 1.5 0.1", "boxes with numbers outside 0 to 1 skipped"),
        ("0 -0.02 0.5 0.1 0.1", "boxes with numbers outside 0 to 1 skipped"),
        ("0 320 240 100 50", "boxes with numbers outside 0 to 1 skipped"),
        ("0 1e300 0.5 0.1 0.1", "boxes with numbers outside 0 to 1 skipped"),
        ("0 0.1 0.1 0.2 0.2 1.2 0.3", "boxes with numbers outside 0 to 1 skipped"),
        ("1 0.25 0.25 0.5 0.5", "duplicate boxes skipped"),
        ("1.0 .25 0.250 5e-1 0.5", "duplicate boxes skipped"),
    ],
)
def test_boxes_that_are_none_are_skipped_and_counted(line, problem, tmp_path):
    found = reader(tmp_path, f"1 0.25 0.25 0.5 0.5\n{line}\n")
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[0, 0, 32, 24]]
    assert found.problems == {problem: 1}


@pytest.mark.fault("D7")
def test_pixels_instead_of_fractions_are_an_error(tmp_path):
    config = yolo_tree(tmp_path)
    for i in range(3):
        write_text(tmp_path / f"yolo/labels/train/{i:03d}.txt", "0 32 24 10 10\n1 20 20 5 5\n")
    with pytest.raises(DataError, match=r"000\.txt and others: 6 of 6 boxes extend outside 0 to 1. .*not pixels"):
        open_tree(tmp_path, config)


@pytest.mark.fault("D8")
def test_boxes_are_clipped(tmp_path):
    found = reader(tmp_path, "0 1 1 0.5 0.5\n1 0.001 0.5 0.5 0.5\n0 0.9 0.9 -0.005 0.1\n1 0 0.5 1.005 1.01\n")
    assert found.read_annotations(0)["detection"].boxes.tolist() == [
        [48, 36, 64, 48], pytest.approx([0, 12, 16.064, 36]), pytest.approx([0, 0, 32.16, 48])
    ]  # fmt: skip
    assert found.problems == {"boxes clipped by more than a pixel": 3, "invalid boxes skipped": 1}


def test_poses_give_their_boxes(tmp_path):
    pose = "0 0.5 0.5 0.5 0.5 " + " ".join(["0.4 0.6 2"] * 3)
    yaml = names(kpt_shape="[3, 3]")
    config = yolo_tree(tmp_path, 1, yaml)
    write_text(tmp_path / LABEL, pose)
    assert open_tree(tmp_path, config).read_annotations(0)["detection"].boxes.tolist() == [[16, 12, 48, 36]]
    write_text(tmp_path / LABEL, "0 0.5 0.5 0.5 0.5")
    with pytest.raises(DataError, match=r"line 1: 5 columns. Expected 14: class cx cy width height, and the 9 numbers"):
        open_tree(tmp_path, config)


def test_rename_ignore_and_background(tmp_path):
    options = {"rename": {"traffic light": "bike"}, "ignore": ["vehicle"], "background": ["pedestrian"]}
    found = reader(tmp_path, "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.25 0.25\n", **options)
    instances = found.read_annotations(0)["detection"]
    assert instances.ignore.tolist() == [True, False]
    assert instances.labels[1] == 2
    assert instances.labeled_classes.tolist() == [False, False, True]


FRACTIONS = st.floats(0, 1).map(lambda value: round(value, 6))
CORNERS = st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS)


@ANY
@given(st.lists(st.tuples(st.integers(0, 2), CORNERS, st.booleans()), max_size=8))
def test_what_is_written_is_read(tmp_path, boxes):
    """Boxes as lines and as polygons, whatever their order."""
    lines, expected = [], set()
    for kind, (a, b, c, d), polygon in boxes:
        x1, x2, y1, y2 = *sorted((a, c)), *sorted((b, d))
        if polygon:
            lines.append(f"{kind} {x1} {y1} {x2} {y1} {x2} {y2} {x1} {(y1 + y2) / 2}")
        else:
            lines.append(f"{kind} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}")
        expected.add((kind, round(x1, 5), round(y1, 5), round(x2, 5), round(y2, 5)))
    found = read_yolo_boxes(write_text(tmp_path / "x.txt", "\n".join(lines)), 3)
    assert all(off < 1e-6 for *_, off in found)
    corners = {(k, x - w / 2, y - h / 2, x + w / 2, y + h / 2) for k, x, y, w, h, *_ in found}
    assert len(found) == len(boxes)
    for kind, *box in corners:
        assert any(kind == k and np.allclose(box, b, atol=2e-5) for k, *b in expected)


TOKENS = st.sampled_from(
    ["0", "1", "2", "3", "0.5", "0.25", "1.0", "nan", "-1", "1e400", "\n", "\n", "x", "0_1", "٢", "\x1c"]
)
LABELS = st.one_of(st.binary(max_size=120), st.lists(TOKENS, max_size=40).map(lambda words: " ".join(words).encode()))


@ANY
@given(LABELS, st.sampled_from([0, 6]))
def test_any_bytes_are_labels_or_an_error(tmp_path, content, keypoints):
    with contextlib.suppress(DataError):
        assert all(0 <= kind < 3 for kind, *_ in read_yolo_boxes(write_text(tmp_path / "x.txt", content), 3, keypoints))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, YoloConfig]:
    root = tmp_path_factory.mktemp("yolo")
    return root, validate_config(YoloConfig, yolo_tree(root, 2))


def check(root: Path, config: YoloConfig) -> None:
    with contextlib.suppress(DataError):
        found = YoloReader(config, root, CLASSES)
        for index in range(len(found.images)):
            check_annotation(found.read_annotations(index, (48, 64))["detection"], (48, 64), CLASSES["detection"])


LINES = st.lists(
    st.tuples(st.sampled_from("01"), *[st.one_of(st.floats(), FRACTIONS).map(repr)] * 4).map(" ".join), max_size=4
)  # fmt: skip


@ANY
@given(LINES)
def test_any_boxes_are_targets_or_an_error(tree, lines):
    root, config = tree
    write_text(root / LABEL, "\n".join(lines))
    check(root, config)


VALUES = st.sampled_from([
    "images/train", "images", ".", "..", "../..", "/", "~", "{}", "[]", "[images/train, labels]", "x.txt", "1", "''",
    "|\n  a\n  b", "{0: vehicle, 1: pedestrian}", "[vehicle, pedestrian]", "[[1]]", "&a b", "*a", "[17, 3]", "1e3",
    "!!python/name:os.system x", "2001-01-01", "0x_", "1:99", ".nan", "!!set {a}", "!!binary aaaa", "? x", "- x",
    "\u2028",
])  # fmt: skip
KEYS = st.sampled_from(
    ["path", "train", "val", "test", "names", "nc", "kpt_shape", "download", "<<", "?", "1", "[a]", "{a: b}"]
)
MAPPINGS = st.dictionaries(KEYS, VALUES).map(lambda d: "\n".join(f"{k}: {v}" for k, v in d.items()).encode())
FILES = st.one_of(st.binary(max_size=100), MAPPINGS)


@ANY
@given(FILES)
def test_any_bytes_are_a_data_file_or_an_error(tree, content):
    root, config = tree
    write_text(root / LABEL, "0 0.5 0.5 0.5 0.5")
    write_text(root / "yolo/data.yaml", content)
    with contextlib.suppress(DataError):
        assert read_yolo_data_file(root / "yolo/data.yaml").names
    check(root, config)


@ANY
@given(st.one_of(st.binary(max_size=80), st.text(st.sampled_from("./ab0\n\\é-jpg"), max_size=40).map(str.encode)))
def test_any_bytes_are_a_list_of_images_or_an_error(tree, content):
    root, config = tree
    write_text(root / LABEL, "0 0.5 0.5 0.5 0.5")
    write_text(root / "yolo/data.yaml", names(train="list.txt"))
    write_text(root / "yolo/list.txt", b"images/train/000.jpg\n" + content)
    check(root, config)
