"""BDD100K: both releases' boxes, attributes, drivable area, the bits of lane maps; faults D5 to D17."""

import copy
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import noise_image, open_tree, write_image
from trees_street import bdd100k_box, bdd100k_frame, bdd100k_frames, bdd100k_tree

from perception.config import validate_config
from perception.data.formats.bdd100k import CLASSES, CLASSES_2018, EVALUATION_IGNORED, Bdd100kConfig
from perception.data.formats.bdd100k_masks import DRIVABLE_CLASSES, LANE_CLASSES
from perception.data.formats.cityscapes import CLASSES as SEMANTIC
from perception.types import ConfigError, DataError

PLAIN = {"format": "bdd100k", "root": "bdd100k", "size": [48, 64]}
ALL = {
    "detection": CLASSES, "segmentation": SEMANTIC, "drivable": DRIVABLE_CLASSES, "lane": LANE_CLASSES["category"],
    "classification": ("daytime", "dawn/dusk", "night"),
}  # fmt: skip
NAMES = [f"{i:08x}-62c2a288" for i in range(3)]
JSON = Path("bdd100k/labels/det_20/det_train.json")


def opened(root: Path, classes=ALL, **options):
    return open_tree(root, {**PLAIN, **options}, **{"segmentation": (), "classification": (), **classes})


def detections(root: Path, content=None, classes=CLASSES, **options):
    """A source of boxes only, of `bdd100k_tree` with another JSON."""
    bdd100k_tree(root)
    if content is not None:
        data = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
        (root / JSON).write_bytes(data if isinstance(data, bytes) else data.encode())
    others = dict.fromkeys(("segmentation_task", "drivable_task", "lane_task"))
    return open_tree(root, {**PLAIN, **others, **options}, detection=classes)


def with_frame(**changes):
    """The frames of `bdd100k_tree` with the first one changed; None removes a key."""
    frames = bdd100k_frames(NAMES)
    for key, value in changes.items():
        frames[0][key] = value
    return frames


def with_label(**changes):
    frames = copy.deepcopy(bdd100k_frames(NAMES))
    frames[0]["labels"][0].update(changes)
    return frames


def test_all_that_a_tree_of_2020_labels(tmp_path):
    bdd100k_tree(tmp_path)
    source = opened(tmp_path, attribute="timeofday")
    assert source.tasks == ("detection", "drivable", "lane", "segmentation", "classification")
    assert not source.problems
    found = source.load_sample(0).annotations
    boxes = found["detection"]
    assert boxes.boxes.tolist() == [[5.5, 10, 25.5, 30], [30, 5, 41, 29], [44, 20, 60, 40]]  # x2 and y2 are inclusive
    assert [CLASSES[label] for label in boxes.labels] == ["car", "pedestrian", "bicycle"]
    assert boxes.ignore.tolist() == [False, True, False]  # a crowd; hidden parts say nothing
    assert boxes.labeled_classes is None
    areas = [DRIVABLE_CLASSES[i] for i in found["drivable"].values[[2, 40, 40], [2, 2, 60]]]
    assert areas == ["background", "direct", "alternative"]
    assert found["drivable"].valid.all()
    lanes = [LANE_CLASSES["category"][i] for i in found["lane"].values[[30, 30, 40, 2], [30, 50, 2, 2]]]
    assert lanes == ["single white", "single yellow", "crosswalk", "background"]
    assert [SEMANTIC[i] for i in found["segmentation"].values[[5, 35, 45], [5, 15, 5]]] == ["sky", "car", "road"]
    assert not found["segmentation"].valid[0].any()
    assert found["classification"].values.tolist() == [1, 0, 0]
    assert source.load_sample(1).annotations["classification"].values.tolist() == [0, 0, 1]
    assert len(source.load_sample(2).annotations["detection"].boxes) == 0  # no labels: labeled, and empty
    again = pickle.loads(pickle.dumps(source.readers[0])).read_annotations(0)
    assert np.array_equal(again["lane"].values, found["lane"].values)


def test_tasks_have_any_names_and_only_the_recipes_are_read(tmp_path):
    bdd100k_tree(tmp_path)
    (tmp_path / JSON).write_text("broken")
    options = {"drivable_task": "way", "drivable_ignore": ["alternative"], "drivable_rename": {"direct": "own lane"}}
    source = open_tree(tmp_path, {**PLAIN, **options, "detection_task": None, "segmentation_task": None},
                       way=("own lane", "background"))  # fmt: skip
    assert source.tasks == ("way",)
    values = source.load_sample(0).annotations["way"].values
    assert values[[2, 40, 40], [2, 2, 60]].tolist() == [1, 0, 255]
    with pytest.raises(ConfigError, match="Expected a different task for each kind of label"):
        validate_config(Bdd100kConfig, {**PLAIN, "drivable_task": "lane"})
    with pytest.raises(DataError, match=r"keys lane_.*class 'crosswalk' is not in the recipe"):
        opened(tmp_path, {**ALL, "lane": ("lane",)}, detection_task=None)


def polygon(category: str) -> dict:
    """A drivable area or lane, as the JSON of 2018 holds them among the boxes."""
    shape = [{"vertices": [[1, 2], [3, 4]], "types": "LL", "closed": False}]
    return {"category": category, "attributes": {"laneStyle": "solid"}, "poly2d": shape, "id": 7}


def test_the_releases_of_2018_and_a_file_per_image(tmp_path):
    frames = bdd100k_frames(NAMES)
    expected = detections(tmp_path, frames)
    old_names = {"pedestrian": "person", "bicycle": "bike"}
    for frame in frames:
        for label in frame.get("labels", ()):
            label["category"] = old_names.get(label["category"], label["category"])
            label["attributes"].pop("trafficLightColor")
        shapes = polygon("lane"), polygon("drivable area"), {**polygon("lane"), "box2d": None}
        frame["labels"] = [*shapes[:1], *frame.get("labels", ()), *shapes[1:]]
    (tmp_path / JSON).unlink()
    labels = tmp_path / "bdd100k/labels"
    (labels / "bdd100k_labels_images_train.json").write_text(json.dumps(frames))
    options = {"detection_rename": {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}}
    whole = opened(tmp_path, **options)
    (labels / "bdd100k_labels_images_train.json").unlink()
    (labels / "100k/train").mkdir(parents=True)
    for frame in frames:
        stem = frame["name"].removesuffix(".jpg")
        objects = {"timestamp": 10000, "objects": frame["labels"]}
        content = {"name": stem, "attributes": frame["attributes"], "frames": [objects]}
        (labels / f"100k/train/{stem}.json").write_text(json.dumps(content))
    single = opened(tmp_path, **options)
    for source in (whole, single):
        assert not source.problems  # lanes and areas among the boxes are no faults
        for i in range(3):
            theirs, ours = expected.read_annotations(i)["detection"], source.read_annotations(i)["detection"]
            assert np.array_equal(theirs.boxes, ours.boxes)
            assert np.array_equal(theirs.labels, ours.labels)
            assert ours.labeled_classes is None
    (labels / "100k/train/x.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.json.*name"):
        opened(tmp_path, **options)


def test_an_object_with_frames_is_a_list_of_frames(tmp_path):
    frames = bdd100k_frames(NAMES)
    source = detections(tmp_path, {"frames": frames, "groups": None, "config": {"imageSize": None}})
    assert len(source.read_annotations(0)["detection"].boxes) == 3


@pytest.mark.fault("D17")
def test_null_and_empty_labels_are_labeled_and_no_frame_is_not(tmp_path):
    frames = [bdd100k_frame(name, bdd100k_box("car", (1, 1, 9, 9))) for name in NAMES]
    frames[0]["labels"], frames[1]["labels"] = None, []
    source = detections(tmp_path, frames[:2])
    assert len(source) == 2
    assert source.problems == {"images without a frame of labels": 1}
    assert all(len(source.read_annotations(i)["detection"].boxes) == 0 for i in range(2))
    assert source.read_annotations(0)["detection"].labeled_classes is None


def test_the_classes_of_a_release_count_as_labeled_though_no_box_is_of_them(tmp_path):
    boxes = [bdd100k_box(name, (1, 1, 9, 9)) for name in ("car", *EVALUATION_IGNORED[:2])]
    frames = [bdd100k_frame(name, *boxes) for name in NAMES]
    with pytest.raises(DataError, match=r"class 'other person' is not in the recipe"):
        detections(tmp_path, frames)
    found = detections(tmp_path, frames, detection_ignore=EVALUATION_IGNORED).read_annotations(0)[
        "detection"
    ]  # one of them is absent
    assert found.ignore.tolist() == [False, True, True]
    assert found.labeled_classes is None  # buses too
    rest = {"detection_ignore": "rest"}
    found = detections(tmp_path, frames, ("car", "bus", "lorry"), **rest).read_annotations(0)["detection"]
    assert found.labeled_classes.tolist() == [True, True, False]
    with pytest.raises(DataError, match="ignore names 'motor'"):
        detections(tmp_path, frames, detection_ignore=["motor"])
    frames[0]["labels"][0]["category"] = "motor"
    del frames[0]["labels"][1:], frames[1:]
    assert detections(tmp_path, frames, CLASSES_2018).read_annotations(0)["detection"].labels.tolist() == [6]
    own = [bdd100k_frame(name, bdd100k_box("forklift", (1, 1, 9, 9))) for name in NAMES]
    found = detections(tmp_path, own, ("forklift", "car")).read_annotations(0)["detection"]
    assert found.labeled_classes.tolist() == [True, False]  # another set in this format labels what it names


@pytest.mark.fault("D12")
@pytest.mark.parametrize(
    ("attributes", "ignore"), [({"crowd": True}, [True]), ({"ignored": True}, [True]), ({"crowd": False}, None)]
)
def test_crowds_are_ignore_regions(tmp_path, attributes, ignore):
    frames = [bdd100k_frame(NAMES[0], bdd100k_box("car", (1, 1, 9, 9), **attributes))]
    found = detections(tmp_path, frames).read_annotations(0)["detection"]
    assert (None if found.ignore is None else found.ignore.tolist()) == ignore
    frames[0]["labels"][0]["attributes"] = None
    assert detections(tmp_path, frames).read_annotations(0)["detection"].ignore is None


def test_attributes_are_image_labels(tmp_path):
    frames = bdd100k_frames(NAMES)
    for frame, weather in zip(frames, ("foggy", "undefined", "clear"), strict=True):
        frame["attributes"]["weather"] = weather
    bdd100k_tree(tmp_path)
    (tmp_path / JSON).write_text(json.dumps(frames))
    only = {"detection_task": None, "attribute": "weather", "classification_ignore": "rest"}
    source = opened(tmp_path, {"classification": ("clear", "fog")}, **only, classification_rename={"foggy": "fog"},
                    segmentation_task=None)  # fmt: skip
    assert [p.path.stem for p in source.records] == [NAMES[0], NAMES[2]]  # undefined is not labeled
    assert [source.load_sample(i).annotations["classification"].values.tolist() for i in range(2)] == [[0, 1], [1, 0]]
    assert source.load_sample(0).annotations["classification"].labeled_classes is None
    with pytest.raises(DataError, match=r"keys classification_.*class 'partly cloudy' is not in the recipe"):
        opened(tmp_path, {"classification": ("clear",)}, attribute="weather", segmentation_task=None)
    frames[1]["attributes"] = None
    (tmp_path / JSON).write_text(json.dumps(frames))
    source = opened(
        tmp_path, {"classification": ("city street",), "detection": CLASSES}, attribute="scene",
        classification_ignore="rest", segmentation_task=None,
    )  # fmt: skip
    assert set(source.read_annotations(1)) == {"detection"}
    frames[1]["attributes"] = {"weather": ["rainy"]}
    (tmp_path / JSON).write_text(json.dumps(frames))
    with pytest.raises(DataError, match=r"frame 1 .*weather is \['rainy'\]"):
        opened(tmp_path)


@pytest.mark.parametrize("of", LANE_CLASSES)
def test_lane_maps_are_bytes_of_bits(tmp_path, of):
    """Bits, from the lowest: three of the category, background, style, direction (BDD100K's documentation)."""
    every = np.array([b for b in range(256) if b & 8 or not b & 0b11000000], np.uint8)
    stored = np.full((48, 64), 255, np.uint8)
    stored.flat[: len(every)] = every
    bdd100k_tree(tmp_path)
    write_image(tmp_path / f"bdd100k/labels/lane/masks/train/{NAMES[0]}.png", stored)
    source = opened(tmp_path, {"lane": LANE_CLASSES[of]}, detection_task=None, segmentation_task=None, lane=of)
    values = source.load_sample(0).annotations["lane"].values
    start, length = {"category": (0, 3), "direction": (5, 1), "style": (4, 1)}[of]
    for byte, value in zip(every.tolist(), values.flat[: len(every)], strict=True):
        bits = f"{byte:08b}"[::-1]
        expected = "background" if bits[3] == "1" else LANE_CLASSES[of][int(bits[start : start + length][::-1], 2)]
        assert LANE_CLASSES[of][value] == expected
    assert (values.flat[len(every) :] == len(LANE_CLASSES[of]) - 1).all()


@pytest.mark.fault("D15")
@pytest.mark.parametrize("ids", [np.zeros((48, 64)), np.full((48, 64), 64), np.eye(48, 64) * 128])
def test_lane_maps_that_are_none(tmp_path, ids):
    bdd100k_tree(tmp_path)
    write_image(tmp_path / f"bdd100k/labels/lane/masks/train/{NAMES[0]}.png", ids.astype(np.uint8))
    with pytest.raises(DataError, match=r"lane/masks.*Bits 0 to 2 of a lane mask are the category"):
        opened(tmp_path).load_sample(0)


def test_drivable_maps_of_2018_count_the_background_as_0(tmp_path):
    bdd100k_tree(tmp_path)
    new = tmp_path / "bdd100k/labels/drivable/masks/train"
    expected = [opened(tmp_path).load_sample(i).annotations["drivable"].values for i in range(3)]
    old = tmp_path / "bdd100k/drivable_maps/labels/train"
    for name in NAMES:
        stored = cv2.imread(str(new / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        write_image(old / f"{name}_drivable_id.png", (stored + 1).astype(np.uint8) % 3)
        (new / f"{name}.png").unlink()
    found = [opened(tmp_path).load_sample(i).annotations["drivable"].values for i in range(3)]
    assert np.array_equal(found, expected)
    for name in NAMES:  # renamed, but not converted
        (old / f"{name}_drivable_id.png").rename(new / f"{name}.png")
    with pytest.raises(DataError, match=r"The top of the image is drivable.*2018, 0 is background"):
        opened(tmp_path).load_sample(0)


@pytest.mark.fault("D15")
@pytest.mark.parametrize(("kind", "id"), [("drivable", 3), ("sem_seg", 19), ("sem_seg", 40)])
def test_ids_without_a_meaning(tmp_path, kind, id):
    bdd100k_tree(tmp_path)
    ids = np.full((48, 64), 2, np.uint8)
    ids[5, :7] = id
    write_image(tmp_path / f"bdd100k/labels/{kind}/masks/train/{NAMES[1]}.png", ids)
    with pytest.raises(DataError, match=rf"{kind}.*{NAMES[1]}\.png .*\{{2: 3065, {id}: 7\}}"):
        opened(tmp_path).load_sample(1)


def test_ten_thousand_other_images(tmp_path):
    bdd100k_tree(tmp_path)
    for i, name in enumerate((NAMES[0], "7d06fefd-f7be05a6")):
        write_image(tmp_path / f"bdd100k/images/10k/train/{name}.jpg", noise_image(i))
    write_image(tmp_path / "bdd100k/labels/sem_seg/masks/train/7d06fefd-f7be05a6.png", np.zeros((48, 64), np.uint8))
    source = opened(tmp_path, images="images/10k", drivable_task=None, lane_task=None)
    assert source.tasks == ("segmentation",)  # the boxes are those of images/100k
    assert len(source) == 2
    source = opened(tmp_path, images="images/10k", labels="labels/det_20/det_train.json", max_missing=1)
    assert set(source.read_annotations(0)) == {"detection", "drivable", "lane", "segmentation"}
    assert set(source.read_annotations(1)) == {"segmentation"}
    assert source.problems["missing images"] == 2
    with pytest.raises(DataError, match=r"No labels at .*nothing\.json"):
        opened(tmp_path, labels="nothing.json")
    with pytest.raises(DataError, match="has no labels for the tasks of the recipe"):
        opened(tmp_path, {"classification": ("a",)}, images="images/10k", segmentation_task=None)


@pytest.mark.fault("D5")
def test_missing_images_and_maps(tmp_path):
    bdd100k_tree(tmp_path, 4)
    (tmp_path / f"bdd100k/images/100k/train/{NAMES[0]}.jpg").unlink()
    (tmp_path / f"bdd100k/labels/lane/masks/train/{NAMES[1]}.png").unlink()
    source = opened(tmp_path)
    assert len(source) == 3
    assert source.problems == {
        "missing images": 1, "drivable maps without an image": 1, "lane maps without an image": 1,
        "segmentation maps without an image": 1, "images without a lane map": 1,
    }  # fmt: skip
    assert "lane" not in source.read_annotations(0)
    (tmp_path / f"bdd100k/images/100k/train/{NAMES[2]}.jpg").unlink()
    with pytest.raises(DataError, match="2 of its 4 images are not under"):
        opened(tmp_path)


@pytest.mark.fault("D6")
def test_another_size_than_the_images(tmp_path):
    bdd100k_tree(tmp_path)
    with pytest.raises(DataError, match=rf"{NAMES[0]}\.jpg .*is for 1280 x 720 pixels, but .* has 64 x 48"):
        opened(tmp_path, size=[720, 1280]).load_sample(0)
    assert opened(tmp_path, size=None).load_sample(0).annotations["detection"].boxes[0].tolist() == [5.5, 10, 25.5, 30]
    frames = with_frame(size={"height": 48, "width": 60})
    with pytest.raises(DataError, match="is for 60 x 48"):
        detections(tmp_path, frames).load_sample(0)
    write_image(tmp_path / f"bdd100k/labels/lane/masks/train/{NAMES[0]}.png", np.full((24, 32), 255, np.uint8))
    with pytest.raises(DataError, match=r"lane.*is for 32 x 24"):
        opened(tmp_path, detection_task=None).load_sample(0)
    (tmp_path / f"bdd100k/images/100k/train/{NAMES[1]}.jpg").write_bytes(b"no image")
    source = detections(tmp_path / "b", size=None)  # training skips the image when it is read
    assert len(source) == 3
    for size in ([0, 5], [-1, 5], [48, 10**9]):
        with pytest.raises(ConfigError, match="size"):
            validate_config(Bdd100kConfig, {**PLAIN, "size": size})


@pytest.mark.fault("D7")
@pytest.mark.parametrize("corner", ["1e999", "-1e999", str(10**400), "1e9"])
def test_invalid_boxes_are_skipped_and_counted(tmp_path, corner):
    text = json.dumps(bdd100k_frames(NAMES)).replace('"x1": 5.5', f'"x1": {corner}', 1)
    source = detections(tmp_path, text)
    assert source.problems["invalid boxes skipped"] == 1
    assert len(source.read_annotations(0)["detection"].boxes) == 2


@pytest.mark.fault("D8")
def test_boxes_are_clipped_and_those_outside_skipped(tmp_path):
    boxes = [bdd100k_box("car", box) for box in ((-5, -6, 9, 9), (60, 40, 99, 99), (70, 1, 80, 9), (0, 0, 63, 47))]
    source = detections(tmp_path, [bdd100k_frame(NAMES[0], *boxes)])
    assert source.read_annotations(0)["detection"].boxes.tolist() == [[0, 0, 10, 10], [60, 40, 64, 48], [0, 0, 64, 48]]
    assert source.problems["boxes outside the image skipped"] == 1
    assert source.problems["boxes clipped by more than a pixel"] == 2


@pytest.mark.fault("D10")
def test_one_image_twice(tmp_path):
    frames = bdd100k_frames(NAMES)
    with pytest.raises(DataError, match=rf"'{NAMES[1]}\.jpg' is given twice"):
        detections(tmp_path, [*frames, frames[1]])
    with pytest.raises(DataError, match="two frames refer to the same image"):
        detections(tmp_path, [*frames, {**frames[1], "name": f"./{NAMES[1]}.jpg"}])


NONSENSE = [None, 3, "", "x", [], [1], {"a": [2]}, [[1, 2]], True, 10**400, "\ud800", "x" * 5000]


@pytest.mark.fault("D13")
@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("key", ["name", "attributes", "labels", "size"])
def test_frames_that_are_none(tmp_path, key, value):
    frames = with_frame(**{key: value})
    fine = {"attributes": (None, {"a": [2]}), "labels": (None, []), "size": (None,), "name": ("x",)}
    if any(value == good and type(value) is type(good) for good in fine.get(key, ())):
        assert len(detections(tmp_path, frames)) == 3 - (key == "name")  # "x" is a missing image
        return
    with pytest.raises(DataError, match=r"det_train\.json, frame 0") as error:
        detections(tmp_path, frames)
    assert len(str(error.value).encode()) < 1000


@pytest.mark.fault("D13")
@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("key", ["category", "box2d", "attributes"])
def test_labels_that_are_none(tmp_path, key, value):
    frames = with_label(**{key: value})
    if (key, value) == ("category", "x"):
        with pytest.raises(DataError, match="class 'x' is not in the recipe"):
            detections(tmp_path, frames)
    elif value is None and key == "box2d":
        source = detections(tmp_path, frames)
        assert source.problems == {"labels without a shape skipped": 1}
    elif key == "attributes" and (value is None or value == {"a": [2]}):
        assert len(detections(tmp_path, frames)) == 3
    else:
        with pytest.raises(DataError, match=rf"det_train\.json, frame 0 \('{NAMES[0]}\.jpg'\): ") as error:
            detections(tmp_path, frames)
        assert len(str(error.value).encode()) < 1000


@pytest.mark.fault("D13")
@pytest.mark.parametrize("box", [{}, {"x1": 1, "y1": 1, "x2": 5}, dict.fromkeys(("x1", "y1", "x2", "y2"), "1 2"),
                                 dict.fromkeys(("x1", "y1", "x2", "y2"), True), [1, 2, 3, 4]])  # fmt: skip
def test_what_is_no_box(tmp_path, box):
    with pytest.raises(DataError, match=r"frame 0 .*box2d is"):
        detections(tmp_path, with_label(box2d=box))
    with pytest.raises(DataError, match=r"frame 0 .*crowd is 'perhaps'"):
        detections(tmp_path, with_label(attributes={"crowd": "perhaps"}))


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"3", b"null", b"[1]", b'{"frames": 3}', b'{"frames": []}', b"[NaN]", b"\xff\xfe",
     b"[" * 100_000, b'[{"name": "a", "name": "b"}]'],
)  # fmt: skip
def test_json_that_is_none_of_bdd100ks(tmp_path, content):
    with pytest.raises(DataError, match=r"det_train\.json"):
        detections(tmp_path, content)


@pytest.mark.fault("D14")
@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a\\b.jpg", "a\0.jpg", ".."])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(DataError, match=r"det_train\.json"):
        detections(tmp_path, with_frame(name=name))


@pytest.mark.fault("D14")
@pytest.mark.parametrize("name", ["images/100k/train/{}.jpg", "labels/lane/masks/train/{}.png"])
def test_links_that_lead_out(tmp_path, name):
    bdd100k_tree(tmp_path / "root")
    path = tmp_path / "root/bdd100k" / name.format(NAMES[1])
    outside = path.rename(tmp_path / f"secret{path.suffix}")
    path.symlink_to(outside)
    with pytest.raises(DataError, match="leads out of"):
        opened(tmp_path / "root")
