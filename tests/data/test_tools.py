"""Labels as label tools write them: what they mean is read, whatever form it has; what is unsure is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import coco_content, coco_tree, label_maps_tree, noise_image, open_tree, write_image
from trees_coco import coco_masks_tree, disc, encode_compressed_runs, encode_runs, rectangle
from trees_kitti import kitti_tree, write_text, yolo_tree

from perception.files.folders import list_images
from perception.files.scalars import parse_flag
from perception.metrics.detection import DetectionMetric
from perception.types import DataError, Instances

VOC = {"format": "voc", "root": "voc", "split": None, "classes": ["vehicle", "pedestrian"], "one_based": False}


def coco(root: Path, content: dict[str, Any] | bytes | None = None, **options: Any):
    return open_tree(root, {**coco_tree(root, 4, content), **options}).readers[0]


def with_first(**values: Any) -> dict[str, Any]:
    """`coco_content(4)` with values of its first annotation changed."""
    content = coco_content(4)
    content["annotations"][0] |= values
    return content


def voc(root: Path, *objects: str, head: str = "", name: str = "000", **options: Any):
    """A reader of one XML with these objects."""
    write_image(root / "voc/JPEGImages/000.jpg", noise_image(0))
    body = "".join(f"<object><name>vehicle</name>{each}</object>" for each in objects)
    write_text(root / f"voc/Annotations/{name}.xml", f"<annotation>{head}{body}</annotation>")
    return open_tree(root, {**VOC, **options}).readers[0]


def box(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def rotation(angle: Any) -> str:
    return f"<attributes><attribute><name>rotation</name><value>{angle}</value></attribute></attributes>"


TURNED = "turned boxes: the box around them taken"
UPRIGHT, AROUND = (20, 20, 44, 28), (28, 12, 36, 36)
"""A box of 24 x 8 about (32, 24), and the box around it once it is turned by 90 degrees."""


def turned_yolo(root: Path, corners: list[tuple[float, float]]):
    config = yolo_tree(root)
    line = " ".join(f"{x / 64} {y / 48}" for x, y in corners)
    write_text(root / "yolo/labels/train/000.txt", f"0 {line}\n")
    return open_tree(root, config).readers[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda root: coco(root, with_first(bbox=[20, 20, 24, 8], attributes={"rotation": 90.0, "occluded": False})),
        lambda root: coco(root, with_first(bbox=[20, 20, 24, 8], attributes={"rotation": "-90"})),
        lambda root: coco(
            root, with_first(bbox=[20, 20, 24, 8], attributes={"rotation": 90}, segmentation=[rectangle(20, 20, 24, 8)])
        ),
        lambda root: voc(root, box(*UPRIGHT) + rotation(90.0)),
        lambda root: voc(
            root, "<robndbox><cx>32</cx><cy>24</cy><w>24</w><h>8</h><angle>1.5707963267948966</angle></robndbox>"
        ),
        lambda root: voc(
            root,
            "<rotated_bndbox><rotated_bbox_cx>32</rotated_bbox_cx><rotated_bbox_cy>24</rotated_bbox_cy>"
            "<rotated_bbox_w>24</rotated_bbox_w><rotated_bbox_h>8</rotated_bbox_h>"
            "<rotated_bbox_theta>90</rotated_bbox_theta></rotated_bndbox>",
        ),
    ],
)  # fmt: skip
def test_a_turned_box_is_the_box_around_it_and_is_counted(make, tmp_path):
    found = make(tmp_path)
    assert np.allclose(found.read_annotations(0, (48, 64))["detection"].boxes[0], AROUND, atol=1e-4)
    assert found.problems[TURNED] == 1


def test_turned_boxes_of_four_corners_and_others_that_are_not_turned(tmp_path):
    found = turned_yolo(tmp_path / "a", [(32, 8), (48, 24), (32, 40), (16, 24)])
    assert np.allclose(found.read_annotations(0, (48, 64))["detection"].boxes, [[16, 8, 48, 40]])
    assert found.problems[TURNED] == 1
    straight = turned_yolo(tmp_path / "b", [(16, 12), (48, 12), (48, 36), (16, 36)])
    assert not straight.problems
    points = "<x1>32</x1><y1>8</y1><x2>48</x2><y2>24</y2><x3>32</x3><y3>40</y3><x4>16</x4><y4>24</y4>"
    found = voc(tmp_path / "c", f"<robndbox>{points}</robndbox>")
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[16, 8, 48, 40]]
    for attributes in ({"rotation": 0.0}, {"rotation": "left"}, {"rotation": 180}, {"rotation": None}, None):
        found = coco(tmp_path / "d", with_first(attributes=attributes))
        assert found.read_annotations(0)["detection"].boxes[0].tolist() == [4, 5, 16, 14]
        assert TURNED not in found.problems


SET = [1, 1.0, "1", "1.0", True, "true", "True", "yes", " YES ", 2]
UNSET = [0, 0.0, "0", "0.0", False, "false", "no", "", None, "Unspecified"]


@pytest.mark.fault("D12")
@pytest.mark.parametrize(("value", "expected"), [*((v, True) for v in SET), *((v, False) for v in UNSET)])
def test_a_flag_means_the_same_in_any_type(value, expected, tmp_path):
    assert parse_flag(value, "here", "flag") is expected
    for key in ("iscrowd", "ignore", "difficult"):
        ignore = coco(tmp_path, with_first(**{key: value})).read_annotations(0)["detection"].ignore
        assert (ignore is not None and ignore.tolist() == [True, False]) == expected
    if value is not None:
        for key in ("difficult", "ignore"):
            ignore = voc(tmp_path, f"<{key}>{value}</{key}>{box(*UPRIGHT)}").read_annotations(0)["detection"].ignore
            assert (ignore is not None) == expected


@pytest.mark.fault("D12")
def test_flags_beside_the_labels_own_keys_and_what_is_no_flag(tmp_path):
    difficult = with_first(attributes={"difficult": "true"})
    assert coco(tmp_path, difficult).read_annotations(0)["detection"].ignore.tolist() == [True, False]
    assert coco(tmp_path, difficult, difficult="object").read_annotations(0)["detection"].ignore is None
    assert len(coco(tmp_path, difficult, difficult="background").read_annotations(0)["detection"].boxes) == 1
    hidden = with_first(occluded=1, truncated="1", attributes={"occluded": True})
    assert coco(tmp_path, hidden).read_annotations(0)["detection"].ignore is None
    for value in ("perhaps", -1, [1], {}):
        with pytest.raises(DataError, match="annotation 1: iscrowd is"):
            coco(tmp_path, with_first(iscrowd=value))


@pytest.mark.fault("D12")
def test_flags_of_an_xml_and_what_a_tool_has_deleted(tmp_path):
    """CVAT writes flags among the attributes; an element of that name is the nearer one."""
    attribute = "<attributes><attribute><name>{}</name><value>{}</value></attribute></attributes>"
    for flag in ("<iscrowd>1</iscrowd>", *(attribute.format(key, "True") for key in ("difficult", "ignore"))):
        assert voc(tmp_path, flag + box(*UPRIGHT)).read_annotations(0)["detection"].ignore.tolist() == [True], flag
    own = f"<difficult>0</difficult>{attribute.format('difficult', 1)}{box(*UPRIGHT)}"
    assert voc(tmp_path, own).read_annotations(0)["detection"].ignore is None
    with pytest.raises(DataError, match="line 1: difficult is 'perhaps'"):
        voc(tmp_path, attribute.format("difficult", "perhaps") + box(*UPRIGHT))
    deleted = voc(tmp_path, f"<deleted>1</deleted>{box(1, 1, 9, 9)}", f"<deleted>0</deleted>{box(*UPRIGHT)}")
    assert deleted.read_annotations(0)["detection"].boxes.tolist() == [list(UPRIGHT)]


@pytest.mark.parametrize(
    ("name", "line"), [("my image", '"my image"'), ("my image", "my image"), ("000", "000.jpg"), ("a.b", "a.b")]
)
def test_lists_of_a_split_name_images_as_tools_do(name, line, tmp_path):
    write_text(tmp_path / "voc/ImageSets/Main/default.txt", f"\ufeff{line}\r\n\n")
    write_image(tmp_path / f"voc/JPEGImages/{name}.jpg", noise_image(0))
    found = voc(tmp_path, box(*UPRIGHT), name=name, split="default")
    assert [path.name for path in found.images] == [f"{name}.jpg"]


def test_an_ignored_box_is_neither_found_nor_missed(tmp_path):
    target = coco(tmp_path, with_first(ignore=1)).read_annotations(0)["detection"]
    metric = DetectionMetric(("vehicle", "pedestrian", "bike"))
    metric.update("a", Instances(target.boxes, target.labels, np.array([0.9, 0.8], np.float32)), target)
    assert metric.compute_per_class()["vehicle"]["count"] == 0
    assert metric.compute()["ap"] == pytest.approx(1)


def brushed(count: int, crowd: int = 1) -> dict[str, Any]:
    content = coco_content(4)
    for number, annotation in enumerate(content["annotations"][:count]):
        annotation |= {"iscrowd": crowd, "segmentation": encode_runs(disc(12 + 6 * number, 20, 6))}
    return content


def test_masks_of_a_brush_are_told_and_taken_as_objects(tmp_path):
    kind = "ignore regions (iscrowd: 1) with a mask of one piece"
    found = coco(tmp_path, brushed(4))
    assert found.problems[kind] == 4
    assert found.read_annotations(0)["detection"].ignore.all()
    objects = coco(tmp_path, brushed(4), crowds="object")
    assert not objects.problems
    assert objects.read_annotations(0)["detection"].ignore is None
    crowds = brushed(3)
    for annotation in crowds["annotations"][:3]:
        annotation["segmentation"] = encode_compressed_runs(np.maximum(disc(10, 10, 4), disc(40, 30, 4)))
    assert not coco(tmp_path, crowds).problems  # crowds of many people


CATEGORIES = [{"id": 3, "name": "vehicle", "supercategory": "street"},
              {"id": 7, "name": "pedestrian", "supercategory": "street"}]  # fmt: skip


@pytest.mark.parametrize("phantom", ["street", "vehicle", "_background_", "background"])
def test_a_category_that_stands_for_nothing_is_skipped(phantom, tmp_path):
    above = [{**each, "supercategory": phantom} for each in CATEGORIES]
    content = {**coco_content(4), "categories": [{"id": 0, "name": phantom, "supercategory": "none"}, *above]}
    found = coco(tmp_path, content)
    assert found.categories == {3: "vehicle", 7: "pedestrian"}
    assert found.read_annotations(0)["detection"].labels.tolist() == [0, 1]
    content["annotations"][0]["category_id"] = 0  # now it stands for something
    with pytest.raises(DataError, match=f"{phantom}.*(is not in the recipe|given twice)"):
        coco(tmp_path, content)


@pytest.mark.fault("D11")
@pytest.mark.parametrize("kind", [str, float, lambda id: f"{id}.0"])
def test_ids_that_are_whole_numbers_in_another_type(kind, tmp_path):
    content = coco_content(4)
    for image in content["images"]:
        image["id"] = kind(image["id"])
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"id": f"annotation {number}", "category_id": kind(annotation["category_id"])}
    assert len(coco(tmp_path, content).read_annotations(2)["detection"].boxes) == 2
    content["annotations"][1]["id"] = content["annotations"][0]["id"]
    with pytest.raises(DataError, match="'annotation 0' is given twice in annotations"):
        coco(tmp_path, content)


@pytest.mark.fault("D6")
@pytest.mark.parametrize("size", [None, 0, -1, "", "absent"])
def test_a_size_that_a_tool_did_not_know_is_the_images(size, tmp_path):
    config = coco_masks_tree(tmp_path, 3)
    path = tmp_path / config["annotations"]
    known = open_tree(tmp_path, config).readers[0]
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"width": size, "height": size}
        if size == "absent":
            del image["width"], image["height"]
    path.write_text(json.dumps(content))
    found = open_tree(tmp_path, config).readers[0]
    assert found.sizes == known.sizes
    for index in range(3):
        ours, theirs = found.read_annotations(index), known.read_annotations(index)
        assert np.array_equal(ours["segmentation"].values, theirs["segmentation"].values)
        assert np.array_equal(ours["detection"].boxes, theirs["detection"].boxes)
    (tmp_path / "coco/images/000.jpg").write_bytes(b"no image")
    source = open_tree(tmp_path, config)
    source.load_sample(1)
    with pytest.raises(DataError, match=r"000\.jpg"):
        source.load_sample(0)


@pytest.mark.fault("D9")
@pytest.mark.parametrize(
    "segmentation",
    [rectangle(10, 8, 20, 16), [[x, y] for x, y in ((10, 8), (30, 8), (30, 24), (10, 24))],
     [[[10, 8], [30, 8], [30, 24], [10, 24]]], [[str(v) for v in rectangle(10, 8, 20, 16)]]],
)  # fmt: skip
@pytest.mark.parametrize("empty", [[], None])
def test_polygons_of_any_form_and_the_box_that_is_empty(segmentation, empty, tmp_path):
    found = coco(tmp_path, with_first(segmentation=segmentation, bbox=empty))
    assert found.read_annotations(0)["detection"].boxes[0].tolist() == [10, 8, 30, 24]


@pytest.mark.fault("D7")
def test_an_annotation_without_any_shape_is_skipped_and_numbers_as_text_are_numbers(tmp_path):
    found = coco(tmp_path, with_first(bbox=[], segmentation=[]))
    assert found.problems == {"annotations without box and mask skipped": 1}
    assert len(found.read_annotations(0)["detection"].boxes) == 1
    found = coco(tmp_path, with_first(bbox=["4", "5.5", "12", "9"]))
    assert found.read_annotations(0)["detection"].boxes[0].tolist() == [4, 5.5, 16, 14.5]


@pytest.mark.fault("D13")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding, tmp_path):
    assert len(coco(tmp_path, json.dumps(coco_content(4)).encode(encoding)).images) == 4
    config = yolo_tree(tmp_path, 3)
    label = tmp_path / "yolo/labels/train/000.txt"
    label.write_bytes(label.read_text().replace("\n", "  \r\n").encode(encoding))
    assert len(open_tree(tmp_path, config).read_annotations(0)["detection"].boxes) == 2
    write_image(tmp_path / "scenes/a.jpg", noise_image(0))
    (tmp_path / "labels.csv").write_bytes("file,label\r\na.jpg,day\r\n".encode(encoding))
    csv = {"format": "image_labels", "images": "scenes", "csv": "labels.csv"}
    assert open_tree(tmp_path, csv).read_annotations(0)["classification"].values.tolist() == [1, 0]
    maps = label_maps_tree(tmp_path)
    (tmp_path / "maps/classes.txt").write_bytes("sky\r\nroad\r\ncar\r\n".encode(encoding))
    assert len(open_tree(tmp_path, maps)) == 3


NAMES = ["images\\000.jpg", "..\\..\\upload\\000.jpg", "C:\\data\\000.jpg", "https://host/a/000.jpg?key=1#x",
         "/data/local-files/?d=set/000.jpg", "upload/3/0123abcd-000.jpg", "%3000.jpg", "/data/upload/000.jpg",
         "s3://bucket/000.jpg", "000"]  # fmt: skip


@pytest.mark.fault("D14")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_another_system_are_found_by_their_base(name, tmp_path):
    content = coco_content(4)
    for number, image in enumerate(content["images"]):
        image["file_name"] = name.replace("000", f"00{number}")
    with pytest.raises(DataError, match="give this reader match_by: base"):
        coco(tmp_path, content)
    found = coco(tmp_path, content, match_by="base")
    assert [path.name for path in found.images] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]


@pytest.mark.fault("D14")
def test_a_base_name_of_two_images_is_an_error(tmp_path):
    coco_tree(tmp_path)
    write_image(tmp_path / "coco/images/more/000.jpg", noise_image(9))
    with pytest.raises(DataError, match=r"image 10: '000\.jpg' may be .*000\.jpg or .*more/000\.jpg"):
        coco(tmp_path, match_by="base")
    content = coco_content(4)
    content["images"][0]["file_name"] = "../../etc/passwd"
    with pytest.raises(DataError, match="is refused"):
        coco(tmp_path, content)


def test_voc_without_size_with_a_name_of_its_own_and_with_float_corners(tmp_path):
    head = "<filename>C:\\images\\000.jpg</filename>"
    with pytest.raises(DataError, match="match_by: base"):
        voc(tmp_path / "a", box(1, 1, 9, 9), head=head, name="label_1")
    found = voc(tmp_path / "b", box(1.5, 1.25, 9.5, 9), head=head, name="label_1", match_by="base")
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[1.5, 1.25, 9.5, 9]]


def half_labeled(root: Path, format: str, **options: Any):
    if format == "coco":
        return coco(root, {**coco_content(4), "annotations": coco_content(4)["annotations"][:2]}, **options)
    if format == "yolo":
        config = yolo_tree(root, 4)
        write_text(root / "yolo/labels/train/001.txt", "")
        (root / "yolo/labels/train/002.txt").unlink()
        return open_tree(root, {**config, **options}).readers[0]
    for number in range(1, 4):
        write_image(root / f"voc/JPEGImages/{number:03d}.jpg", noise_image(number))
        write_text(root / f"voc/Annotations/{number:03d}.xml", "<annotation></annotation>")
    return voc(root, box(*UPRIGHT), **options)


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_images_without_annotations_are_empty_or_left_out(format, tmp_path):
    assert half_labeled(tmp_path, format).num_unannotated == 3
    empty = half_labeled(tmp_path, format, unlabeled="empty")
    assert (len(empty.images), empty.num_unannotated) == (4, 0)
    skipped = half_labeled(tmp_path, format, unlabeled="skip")
    assert [path.stem for path in skipped.images] == ["000"]
    assert len(skipped.read_annotations(0, (48, 64))["detection"].boxes) > 0
    assert skipped.problems["images without annotations left out (unlabeled: skip)"] == 3


def lvis(root: Path, **options: Any):
    """Image 0: vehicles are labeled, not all of them; no bike. 1: no pedestrian. 2 and 3: nothing is known."""
    content = coco_content(4)
    content["categories"].append({"id": 9, "name": "bike"})
    content["annotations"] = content["annotations"][:1]
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        image["coco_url"] = f"http://images.cocodataset.org/images/{image.pop('file_name')}"
    content["images"][0] |= {"neg_category_ids": [9], "not_exhaustive_category_ids": [3]}
    content["images"][1] |= {"neg_category_ids": [7]}
    return coco(root, content, **options)


def test_an_image_labels_only_the_classes_that_it_names(tmp_path):
    found = lvis(tmp_path)
    first, second = (found.read_annotations(i)["detection"] for i in (0, 1))
    assert first.labeled_classes.tolist() == [True, False, True]
    assert first.partial_classes.tolist() == [True, False, False]
    assert second.labeled_classes.tolist() == [False, True, False]
    assert second.partial_classes is None
    assert len(found.images) == 2
    metric = DetectionMetric(("vehicle", "pedestrian", "bike"))
    boxes = np.array([[4, 5, 16, 14], [40, 20, 50, 30], [40, 20, 50, 30], [40, 20, 50, 30]], np.float32)
    prediction = Instances(boxes, np.array([0, 0, 1, 2]), np.array([0.5, 0.9, 0.9, 0.9], np.float32))
    metric.update("a", prediction, first)
    assert metric.compute_per_class()["vehicle"]["ap"] == pytest.approx(1)  # another vehicle may be there
    joined = lvis(tmp_path, rename={"bike": "vehicle"}).read_annotations(0)["detection"]
    assert joined.partial_classes.tolist() == [True, False, False]
    assert lvis(tmp_path, rename={"bike": "vehicle"}).read_annotations(1)["detection"].labeled_classes.tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.fault("D14")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("tree", "folder"),
    [(coco_tree, "coco/images"), (yolo_tree, "yolo/images/train"), (kitti_tree, "kitti/training/image_2"),
     (kitti_tree, "kitti/training/label_2"), (label_maps_tree, "maps/masks"), (label_maps_tree, "maps/images")],
)  # fmt: skip
def test_what_a_link_leads_to_within_the_root_is_read(tree, folder, whole, tmp_path):
    config = tree(tmp_path)
    before = open_tree(tmp_path, config)
    expected = [before.load_sample(index) for index in range(len(before))]
    (tmp_path / folder).rename(tmp_path / "pool")
    if whole:
        (tmp_path / folder).symlink_to(tmp_path / "pool")
    else:
        (tmp_path / folder).mkdir()
        for path in (tmp_path / "pool").iterdir():
            (tmp_path / folder / path.name).symlink_to(path)
    after = open_tree(tmp_path, config)
    for index, sample in enumerate(expected):
        found = after.load_sample(index)
        assert np.array_equal(found.image, sample.image)
        for task, annotation in sample.annotations.items():
            for name in type(annotation).__dataclass_fields__:
                assert np.array_equal(getattr(found.annotations[task], name), getattr(annotation, name))


@pytest.mark.fault("D14")
def test_linked_folders_are_entered_once_and_never_out_of_the_root(tmp_path):
    root = tmp_path / "root"
    write_image(root / "pool/deep/a.jpg", noise_image(0))
    write_image(root / "images/b.jpg", noise_image(1))
    (root / "images/more").symlink_to(root / "pool")
    (root / "pool/deep/again").symlink_to(root / "pool")
    (root / "pool/up").symlink_to(root / "images")
    found = list_images((root / "images").resolve(), root=root)
    assert {path.name for path in found} == {"a.jpg", "b.jpg"}
    (root / "images/out").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads out of"):
        list_images((root / "images").resolve(), root=root)


def yolo_of(root: Path, file: str, content: str, **options: Any):
    """A reader of ``yolo_tree`` described by another file, and by lists of these contents."""
    yolo_tree(root)
    for name, lines in {file: content, **options.pop("lists", {})}.items():
        write_text(root / "yolo" / name, lines)
    return open_tree(root, {"format": "yolo", "data": f"yolo/{file}", "background": "rest", **options}).readers[0]


NAMES_OF_YOLO = "vehicle\npedestrian\ntraffic light\n"
GONE = "names: [vehicle, pedestrian, traffic light]\npath: /content/gone\ntrain: /content/gone/images/train\n"


@pytest.mark.parametrize(
    ("file", "content", "options"),
    [
        ("classes.txt", NAMES_OF_YOLO, {}),
        ("obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
         {"lists": {"obj.names": NAMES_OF_YOLO, "train.txt": "data/images/train/000.jpg\n" * 2}}),
        ("data.yaml", "names: [vehicle, pedestrian, traffic light]\ntrain: images\\train\n", {}),
        ("data.yaml", GONE, {"path": "yolo"}),
        ("data.yaml", "names: [vehicle, pedestrian, traffic light]\ntrain: train.txt\n",
         {"lists": {"train.txt": "C:\\data\\images\\train\\000.jpg\r\n"}}),
        ("data.yaml", "names: [vehicle, pedestrian, traffic light]\ntrain: train.txt\n",
         {"lists": {"train.txt": "/content/gone/images/train/000.jpg\n"}}),
    ],
)  # fmt: skip
def test_yolo_sets_as_other_tools_and_computers_describe_them(file, content, options, tmp_path):
    found = yolo_of(tmp_path, file, content, **options)
    assert found.images[0].name == "000.jpg"
    assert len(found.read_annotations(0, (48, 64))["detection"].boxes) == 2


def test_a_score_in_a_sixth_column_is_dropped_only_where_the_recipe_says_so(tmp_path):
    config = yolo_tree(tmp_path)
    write_text(tmp_path / "yolo/labels/train/000.txt", "0.0 0.5 0.5 0.25 0.5 0.9 \r\n")
    with pytest.raises(DataError, match="give this reader scores: drop"):
        open_tree(tmp_path, config)
    found = open_tree(tmp_path, {**config, "scores": "drop"}).readers[0]
    assert found.read_annotations(0, (48, 64))["detection"].boxes.tolist() == [[24, 12, 40, 36]]
    write_text(tmp_path / "yolo/labels/train/000.txt", "0 0.5 0.5 0.25 0.5 45\n")  # an angle
    with pytest.raises(DataError, match="6 columns"):
        open_tree(tmp_path, {**config, "scores": "drop"})


OTHERS = {
    "regions of VGG": {"a.jpg12": {"filename": "a.jpg", "size": 12, "regions": []}},
    "project of VGG": {"_via_settings": {}, "_via_img_metadata": {}},
    "LabelMe": {"version": "5", "shapes": [], "imagePath": "a.jpg"},
    "Label Studio": [{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}],
    "Datumaro": {"info": {}, "categories": {}, "items": []},
    "CreateML": [{"image": "a.jpg", "annotations": []}],
    "results": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}],
    "bdd100k": [{"name": "a.jpg", "labels": []}],
    "Supervisely": {"size": {"height": 1, "width": 1}, "objects": []},
    "coco_panoptic": {**coco_content(1), "annotations": [{"image_id": 10, "file_name": "a.png", "segments_info": []}]},
}


@pytest.mark.fault("D13")
@pytest.mark.parametrize("tool", OTHERS)
def test_json_of_another_tool_is_known_by_its_keys(tool, tmp_path):
    with pytest.raises(DataError, match=tool):
        coco(tmp_path, json.dumps(OTHERS[tool]).encode())


def test_numbers_as_category_names_are_names(tmp_path):
    content = coco_content(4)
    content["categories"] = [{"id": 3, "name": 30}, {"id": 7, "name": 50}]
    assert coco(tmp_path, content, rename={"30": "vehicle", "50": "bike"}).categories == {3: "30", 7: "50"}
