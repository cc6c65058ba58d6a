"""Images: what is drawn, what is not, and sizes that a video can rely on."""

import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest

from perception.ops.draw import (
    IGNORE_COLOR,
    INVALID_COLOR,
    draw_annotations,
    draw_depth,
    draw_segmentation_mask,
    format_label,
)
from perception.ops.draw_text import brighten
from perception.ops.palette import CITYSCAPES_COLORS, class_palette, color_distance
from perception.ops.panel import draw_panel
from perception.types import DenseMap, ImageLabel, Instances, TaskSpec

SPECS = {
    "detection": TaskSpec(
        "detection", "instances", ("boxes", "scores", "labels"), ("car", "person"), score_threshold=0.3
    ),
    "segmentation": TaskSpec("segmentation", "dense", ("mask",), ("road", "sky")),
    "depth": TaskSpec("depth", "dense", ("depth",), unit="m", limits=(0.5, 80.0)),
    "classification": TaskSpec("classification", "label", ("probabilities",), ("day", "dusk")),
}
SIZES = [(8, 8), (1, 40), (48, 64), (120, 160), (381, 641), (1080, 1920)]


def gray(size=(120, 160)):
    return np.full((*size, 3), 90, np.uint8)


def boxes(*corners, score=0.9, **rest):
    count = len(corners)
    scores = None if score is None else np.full(count, score, np.float32)
    return Instances(np.array(corners, np.float32).reshape(-1, 4), np.zeros(count, np.int64), scores, **rest)


def everything(size):
    height, width = size
    values = np.tile(np.arange(width) * 2 // width, (height, 1)).astype(np.uint8)
    distance = np.tile(np.linspace(1, 60, width, dtype=np.float32), (height, 1))
    return {
        "detection": boxes((width * 0.2, height * 0.3, width * 0.7, height * 0.8)),
        "segmentation": DenseMap(values, np.ones(size, bool)),
        "depth": DenseMap(distance, distance > 2),
        "classification": ImageLabel(np.array([0.9, 0.1], np.float32)),
    }


def nothing(size):
    return {
        "detection": boxes(),
        "segmentation": DenseMap(np.full(size, 255, np.uint8), np.zeros(size, bool)),
        "depth": DenseMap(np.zeros(size, np.float32), np.zeros(size, bool)),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("content", [everything, nothing, lambda size: {}], ids=["everything", "nothing", "none"])
def test_every_size_and_content_is_drawn(size, content):
    picture = draw_annotations(gray(size), content(size), SPECS, ["14 m"])
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_panel_does_not_depend_on_what_is_in_it(size):
    shapes = {draw_panel(gray(size), found, SPECS).shape for found in (everything(size), nothing(size), {})}
    ((height, width, _),) = shapes
    assert (height % 2, width % 2) == (0, 0)
    assert width >= 3 * size[1]


def test_the_image_itself_is_never_changed():
    image = gray()
    draw_panel(image, everything((120, 160)), SPECS)
    draw_annotations(image, everything((120, 160)), SPECS)
    assert (image == 90).all()


def test_an_empty_prediction_draws_nothing():
    assert (draw_annotations(gray(), {"detection": boxes()}, SPECS) == 90).all()
    assert (draw_annotations(gray(), {"detection": None, "unknown": boxes((0, 0, 9, 9))}, SPECS) == 90).all()


def test_a_box_is_drawn_where_it_is():
    changed = (draw_annotations(gray(), {"detection": boxes((40, 60, 100, 110))}, SPECS) != 90).any(2)
    rows, columns = np.nonzero(changed)
    assert changed[60, 40:101].all()
    assert changed[60:111, 40].all()
    assert columns.min() >= 38
    assert rows.max() <= 112
    assert not changed[80:100, 60:90].any()


def test_boxes_under_the_threshold_are_not_drawn_but_targets_are():
    assert (draw_annotations(gray(), {"detection": boxes((40, 60, 100, 110), score=0.29)}, SPECS) == 90).all()
    assert (draw_annotations(gray(), {"detection": boxes((40, 60, 100, 110), score=None)}, SPECS) != 90).any()


def test_ignore_regions_are_gray_and_without_text():
    target = boxes((40, 60, 100, 110), score=None, ignore=np.array([True]))
    picture = draw_annotations(gray(), {"detection": target}, SPECS)
    assert (picture.max(2) == picture.min(2)).all()
    assert (picture[:58] == 90).all()


def test_boxes_that_are_not_finite_are_left_out():
    found = boxes((np.nan, 0, 10, 10), (40, 60, np.inf, 110))
    assert (draw_annotations(gray(), {"detection": found}, SPECS) == 90).all()


def test_distance_and_track_are_written():
    found = boxes((40, 60, 100, 110))
    plain = draw_annotations(gray(), {"detection": found}, SPECS)
    assert (draw_annotations(gray(), {"detection": found}, SPECS, [""]) == plain).all()
    assert (draw_annotations(gray(), {"detection": found}, SPECS, ["14 m"]) != plain).any()
    followed = Instances(found.boxes, found.labels, found.scores, track_ids=np.array([3]))
    assert (draw_annotations(gray(), {"detection": followed}, SPECS) != plain).any()


def test_text_does_not_cover_text():
    """Thirty boxes at one place: the labels that find no room are left out, the others stay whole."""
    one = draw_annotations(gray((380, 640)), {"detection": boxes((300, 200, 340, 240))}, SPECS)
    many = draw_annotations(gray((380, 640)), {"detection": boxes(*[(300, 200, 340, 240)] * 30)}, SPECS)
    area = (slice(180, 198), slice(300, 390))
    assert (one[area] == many[area]).all()


def test_void_pixels_show_the_image():
    valid = np.zeros((120, 160), bool)
    valid[:, :80] = True
    picture = draw_annotations(gray(), {"segmentation": DenseMap(np.zeros((120, 160), np.uint8), valid)}, SPECS)
    assert (picture[:, 80:] == 90).all()
    expected = (90 + np.array(CITYSCAPES_COLORS["road"])) / 2
    assert np.abs(picture[:, :80] - expected).max() <= 1


def test_label_map_colors():
    found = draw_segmentation_mask(
        DenseMap(np.array([[0, 1, 255, 0]], np.uint8), np.array([[True, True, True, False]])), ["a", "sky"]
    )
    assert found[0].tolist() == [
        class_palette(["a", "sky"])[0].tolist(),
        list(CITYSCAPES_COLORS["sky"]),
        list(IGNORE_COLOR),
        list(IGNORE_COLOR),
    ]


def test_depth_alone_becomes_the_image_and_beside_others_it_does_not():
    found = everything((120, 160))
    alone = draw_annotations(gray(), {"depth": found["depth"]}, SPECS)
    assert (alone == draw_depth(found["depth"], (0.5, 80.0))).all()
    both = draw_annotations(gray(), {"depth": found["depth"], "detection": boxes()}, SPECS)
    assert (both == 90).all()


def test_near_is_red_far_is_blue_unknown_is_gray():
    values = np.array([[0.8, 60.0, 0.0, np.nan, 5.0]], np.float32)
    valid = np.array([[True, True, True, True, False]])
    near, far, *unknown = draw_depth(DenseMap(values, valid), (0.5, 80.0))[0].tolist()
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 20
    assert unknown == [list(INVALID_COLOR)] * 3


@pytest.mark.parametrize("limits", [None, (0.5, 80.0), (3.0, 3.0)])
def test_depth_limits_may_be_missing_or_equal(limits):
    for values in (np.zeros((4, 5), np.float32), np.full((4, 5), 3, np.float32)):
        assert draw_depth(DenseMap(values, values > 0), limits).shape == (4, 5, 3)


STREET = ("person", "cyclist", "car", "truck", "traffic light", "traffic sign")
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
UNBOXED = ("road", "building", "wall", "sky", "vegetation", "tree", "pavement", "pole", "fence")
KITTI = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]


@pytest.mark.parametrize("brightened", [False, True])
@pytest.mark.parametrize(
    ("classes", "least"),
    [
        (STREET, 0.13), (list(CITYSCAPES_COLORS), 0.11), (VOC, 0.09), (CAMVID, 0.1), (KITTI, 0.13),
        ([f"class {k}" for k in range(24)], 0.09), ([f"class {k}" for k in range(80)], 0.04),
        (["car", "vehicle", "Car", "person", "pedestrian"], 0.13),
    ],
    ids=["street", "cityscapes", "voc", "camvid", "kitti", "24", "80", "synonyms"],
)  # fmt: skip
def test_every_eye_tells_the_colors_of_classes_apart(classes, least, brightened):
    """A tenth of OKLab is plain to see, with and without a receptor for green; thin lines are brightened."""
    colors = class_palette(classes)
    if brightened:
        boxed = [k for k, name in enumerate(classes) if name.lower() not in UNBOXED]
        colors = np.array([brighten(color) for color in colors[boxed]])
    distances = np.array([color_distance(colors, color) for color in colors]) + 9 * np.eye(len(colors))
    assert distances.min() > least


def test_a_class_keeps_its_color():
    assert class_palette(["Traffic_Light", "tree", "vehicle"]).tolist() == [
        list(CITYSCAPES_COLORS[name]) for name in ("traffic light", "vegetation", "car")
    ]
    few, many = class_palette([f"class {k}" for k in range(5)]), class_palette([f"class {k}" for k in range(50)])
    assert (few == many[:5]).all()
    assert class_palette([]).shape == (0, 3)


def crowd(size: tuple[int, int], side: float) -> Instances:
    """Twelve rows of small boxes, closer to each other than a label is wide."""
    height, width = size
    x, y = np.meshgrid(np.linspace(side, width - 3 * side, 16), np.linspace(2 * side, height - 3 * side, 8))
    corners = np.stack([x, y, x + side, y + side], -1).reshape(-1, 4)
    return boxes(*corners)


@pytest.mark.parametrize("size", [(120, 160), (380, 640), (1440, 2560)])
def test_no_text_covers_a_small_box(size):
    found = crowd(size, size[1] / 50)
    picture = draw_annotations(gray(size), {"detection": found}, SPECS)
    line = max(1, round(min(size) / 200))
    for x1, y1, x2, y2 in np.rint(found.boxes).astype(int).tolist():
        assert (picture[y1 + line + 1 : y2 - line - 1, x1 + line + 1 : x2 - line - 1] == 90).all()
        assert (picture[y1 : y2 + 1, (x1, x2)] != 90).any(2).all()


def test_a_small_box_without_room_beside_it_has_a_label_with_a_line_to_it():
    close = boxes((300, 200, 312, 212), (314, 200, 326, 212), (300, 214, 312, 226), (314, 214, 326, 226))
    picture = draw_annotations(gray((380, 640)), {"detection": close}, SPECS)
    count, *_ = cv2.connectedComponentsWithStats((picture == picture[200, 300]).all(2).astype(np.uint8))
    alone = draw_annotations(gray((380, 640)), {"detection": boxes(close.boxes[0])}, SPECS)
    assert (picture != 90).any(2).sum() > 3.2 * (alone != 90).any(2).sum()
    assert count > 1


def test_text_grows_with_the_image():
    heights = {}
    for size in ((380, 640), (720, 1280), (1440, 2560), (2160, 3840)):
        height, width = size
        picture = draw_annotations(
            gray(size), {"detection": boxes((width * 0.3, height * 0.5, width * 0.8, height * 0.9))}, SPECS
        )
        rows = np.flatnonzero((picture[: round(height * 0.5) - round(height / 200)] != 90).any((1, 2)))
        heights[size] = (rows.max() + 1 - rows.min()) / np.sqrt(height * width)
        strip = draw_panel(gray(size), everything(size), SPECS).shape[0] - height
        assert strip / np.sqrt(height * width) == pytest.approx(0.08, rel=0.2)
    assert max(heights.values()) < 1.15 * min(heights.values())


def test_text_does_not_cover_a_small_image():
    found = boxes(*[(10 + 24 * k, 10 + 24 * j, 28 + 24 * k, 28 + 24 * j) for k in range(6) for j in range(4)])
    plain = draw_annotations(gray(), {"detection": dataclasses.replace(found, ignore=np.ones(24, bool))}, SPECS)
    covered = ((draw_annotations(gray(), {"detection": found}, SPECS) != 90).any(2) & (plain == 90).all(2)).mean()
    assert covered < 0.25


@pytest.mark.parametrize(
    ("values", "multi_label", "expected"),
    [
        ([0.9, 0.1], False, "day 0.90"),
        ([0.2, 0.1], False, "day 0.20"),
        ([0.0, 1.0], False, "dusk"),
        ([0.4, 0.8], True, "dusk 0.80, day 0.40"),
        ([0.1, 0.2], True, "no label"),
        ([1.0, 1.0], True, "day, dusk"),
    ],
)
def test_caption(values, multi_label, expected):
    spec = TaskSpec("labels", "label", ("probabilities",), ("day", "dusk"), multi_label=multi_label)
    assert format_label(ImageLabel(np.array(values, np.float32)), spec) == expected


def test_many_classes_have_a_legend_of_those_that_are_there():
    specs = {
        "segmentation": TaskSpec("segmentation", "dense", ("x",), tuple(f"long class name {k}" for k in range(150)))
    }
    values = np.full((120, 160), 149, np.uint8)
    shown = draw_panel(gray(), {"segmentation": DenseMap(values, np.ones(values.shape, bool))}, specs)
    strip = shown[120:, -160:].reshape(-1, 3)
    assert (strip == class_palette(specs["segmentation"].classes)[149]).all(1).any()


def test_needs_neither_torch_nor_matplotlib():
    code = "import sys, perception.ops.draw; print([m for m in ('torch', 'matplotlib', 'PIL') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
