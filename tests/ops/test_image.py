"""The one geometry: to the input and back, for images, maps, boxes and cameras alike."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perception.ops.image import (
    PAD_VALUE,
    compute_letterbox,
    focal_scale,
    unwarp_boxes,
    unwarp_map,
    warp_annotation,
    warp_boxes,
    warp_image,
    warp_map,
)
from perception.types import Camera, DenseMap, ImageLabel, ImageTransform, Instances

geometry = settings(max_examples=60, deadline=None)

sides = st.integers(1, 120)
sizes = st.tuples(sides, sides)


@st.composite
def frames(draw, minimum: int = 1) -> ImageTransform:
    """Any crop of any source, placed anywhere in any input."""
    source, size = draw(sizes), draw(sizes)
    assume(min(*source, *size) >= minimum)
    cut = [draw(st.integers(minimum, side)) for side in source]
    placed = [draw(st.integers(minimum, side)) for side in size]
    y, x = (draw(st.integers(0, side - part)) for side, part in zip(source, cut, strict=True))
    top, left = (draw(st.integers(0, side - part)) for side, part in zip(size, placed, strict=True))
    return ImageTransform(source, size, (x, y, cut[1], cut[0]), (left, top, placed[1], placed[0]), draw(st.booleans()))


def window(frame: ImageTransform) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the image within the input, mirrored or not."""
    x, y, width, height = frame.placement
    left = frame.input_size[1] - x - width if frame.flip else x
    return left, y, left + width, y + height


@geometry
@given(sizes, sizes)
def test_letterbox_holds_the_whole_image_and_keeps_its_shape(source, size):
    frame = compute_letterbox(source, size)
    assert frame.crop == (0, 0, source[1], source[0])
    x, y, width, height = frame.placement
    assert (x, y) == (0, 0)
    assert width == size[1] or height == size[0]
    scale = min(size[0] / source[0], size[1] / source[1])
    assert abs(width - source[1] * scale) <= 1
    assert abs(height - source[0] * scale) <= 1


@geometry
@given(frames(), arrays(np.float32, (5, 4), elements=st.floats(0, 1, width=32)))
def test_boxes_inside_the_crop_come_back(frame, fractions):
    x, y, width, height = frame.crop
    corners = np.sort(fractions.reshape(5, 2, 2), axis=1).reshape(5, 4)
    boxes = (corners * (width, height, width, height) + (x, y, x, y)).astype(np.float32)
    moved = warp_boxes(boxes, frame)
    assert (moved[:, 2:] >= moved[:, :2]).all()
    left, top, right, bottom = window(frame)
    assert (moved >= np.array([left, top, left, top]) - 1e-2).all()
    assert (moved <= np.array([right, bottom, right, bottom]) + 1e-2).all()
    assert np.allclose(unwarp_boxes(moved, frame), boxes, atol=1e-3 * max(1, 1 / min(frame.scale)))


@geometry
@given(frames())
def test_a_map_shows_at_every_pixel_what_the_box_transform_says(frame):
    """Column and row numbers, warped, are where the inverse of `warp_boxes` puts each pixel's center."""
    rows, columns = np.indices(frame.source_size).astype(np.float32)
    seen = warp_map(np.ones(frame.source_size, np.uint8), frame, 0).astype(bool)
    left, top, right, bottom = window(frame)
    expected = np.zeros(frame.input_size, bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(seen, expected)
    v, u = np.nonzero(seen)
    points = unwarp_boxes(np.stack([u, v, u, v], 1).astype(np.float32) + 0.5, frame)
    assert np.abs(warp_map(columns, frame, -1)[v, u] + 0.5 - points[:, 0]).max() <= 0.5 + 1e-2
    assert np.abs(warp_map(rows, frame, -1)[v, u] + 0.5 - points[:, 1]).max() <= 0.5 + 1e-2


@geometry
@given(frames(minimum=8))
def test_an_image_moves_as_its_boxes_do(frame):
    """The edge of a half-white image is where the edge of its box goes, mirrored too."""
    x, y, width, height = frame.crop
    middle = x + width // 2
    image = np.zeros((*frame.source_size, 3), np.uint8)
    image[:, middle:] = 255
    moved = warp_image(image, frame)
    assert moved.shape == (*frame.input_size, 3)
    left, top, right, bottom = window(frame)
    outside = np.ones(frame.input_size, bool)
    outside[top:bottom, left:right] = False
    assert (moved[outside] == PAD_VALUE).all()
    box = warp_boxes(np.array([[middle, y, x + width, y + height]], np.float32), frame)[0]
    bright = moved[top:bottom, left:right, 0].astype(float).sum(1) / 255
    assert np.abs(bright - (box[2] - box[0])).max() <= 1 + frame.scale[0]


@geometry
@given(sizes, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_label_maps_come_back_exactly_from_a_whole_enlargement(source, across, down, flip, seed):
    labels = np.random.default_rng(seed).integers(0, 19, source, np.uint8)
    placed = source[1] * across, source[0] * down
    frame = ImageTransform(source, (placed[1] + 3, placed[0] + 5), (0, 0, source[1], source[0]), (2, 1, *placed), flip)
    assert np.array_equal(unwarp_map(warp_map(labels, frame, 255), frame, smooth=False), labels)
    assert unwarp_map(warp_map(labels.astype(np.float32), frame, 0), frame, smooth=True).shape == source


@geometry
@given(sizes, sizes)
def test_unwarped_maps_have_the_sources_size(source, size):
    frame = compute_letterbox(source, size)
    values = np.random.default_rng(0).random(size, np.float32)
    for smooth in (False, True):
        back = unwarp_map(values, frame, smooth)
        assert back.shape == source
        assert values.min() - 1e-5 <= back.min()
        assert back.max() <= values.max() + 1e-5


@geometry
@given(
    frames(),
    st.tuples(st.floats(-5, 5), st.floats(-3, 3), st.floats(0.5, 50)),
    st.tuples(st.floats(10, 900), st.floats(10, 900), st.floats(-50, 200), st.floats(-50, 200)),
)
def test_projecting_then_warping_is_projecting_through_the_frame(frame, point, intrinsics):
    camera = Camera(*intrinsics)
    x, y, z = point
    u, v = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
    assume(max(abs(u), abs(v)) < 1e4)
    warped = warp_boxes(np.array([[u, v, u, v]], np.float64), frame)[0]
    moved = camera.to_input(frame)
    mirrored = -x if frame.flip else x
    expected = moved.fx * mirrored / z + moved.cx, moved.fy * y / z + moved.cy
    assert np.allclose(warped, [*expected, *expected], rtol=1e-4, atol=1e-2)


@geometry
@given(frames())
def test_the_neutral_frame_and_mirroring_twice_change_nothing(frame):
    height, width = frame.source_size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    whole = (0, 0, width, height)
    mirror = ImageTransform(frame.source_size, frame.source_size, whole, whole, flip=True)
    assert np.array_equal(warp_image(image, ImageTransform(frame.source_size, frame.source_size, whole, whole)), image)
    assert np.array_equal(warp_image(warp_image(image, mirror), mirror), image)
    camera = Camera(100, 110, 0.3 * width, 0.4 * height)
    back = camera.to_input(mirror).to_input(mirror)
    assert (back.fx, back.fy, back.cx, back.cy) == pytest.approx((camera.fx, camera.fy, camera.cx, camera.cy))


def test_boxes_are_clipped_to_what_is_in_sight_and_doubtful_ones_ignored():
    frame = ImageTransform((100, 100), (100, 100), (50, 0, 50, 100), (0, 0, 50, 100))
    boxes = np.array(
        [[60, 10, 80, 30], [40, 10, 80, 30], [10, 10, 55, 30], [10, 10, 40, 30], [60, 50, 60.5, 60]], np.float32
    )
    target = Instances(boxes, np.arange(5), labeled_classes=np.array([True]), track_ids=np.arange(5) + 9)
    moved = warp_annotation(target, frame, min_visibility=0.25)
    assert moved.boxes.tolist() == [[10, 10, 30, 30], [0, 10, 30, 30], [0, 10, 5, 30], [10, 50, 10.5, 60]]
    assert moved.labels.tolist() == [0, 1, 2, 4]
    assert moved.track_ids.tolist() == [9, 10, 11, 13]
    assert moved.ignore.tolist() == [False, False, True, True]  # 11 % in sight; half a pixel wide
    assert moved.labeled_classes.tolist() == [True]


@geometry
@given(frames(), st.integers(0, 5))
def test_warped_targets_lie_in_sight(frame, count):
    rng = np.random.default_rng(count)
    corners = np.sort(rng.random((count, 2, 2)) * frame.source_size[::-1], axis=1).reshape(count, 4).astype(np.float32)
    ignore = rng.random(count) < 0.5
    moved = warp_annotation(Instances(corners, np.arange(count), ignore=ignore), frame)
    left, top, right, bottom = window(frame)
    assert (moved.boxes >= [left, top, left, top]).all()
    assert (moved.boxes <= [right, bottom, right, bottom]).all()
    assert moved.ignore[np.isin(moved.labels, np.flatnonzero(ignore))].all()


@geometry
@given(frames())
def test_dense_maps_are_invalid_in_the_padding(frame):
    valid = np.random.default_rng(0).random(frame.source_size) < 0.8
    moved = warp_annotation(DenseMap(np.where(valid, 2.5, 0).astype(np.float32), valid), frame)
    assert moved.values.shape == moved.valid.shape == frame.input_size
    assert moved.values.dtype == np.float32
    assert (moved.values[moved.valid] == 2.5).all()
    left, top, right, bottom = window(frame)
    assert moved.valid.sum() == moved.valid[top:bottom, left:right].sum()
    planes = warp_annotation(DenseMap(np.zeros((2, *frame.source_size), np.float32), valid), frame)
    assert planes.values.shape == (2, *frame.input_size)


def test_image_labels_do_not_move():
    label = ImageLabel(np.ones(3, np.float32))
    assert warp_annotation(label, compute_letterbox((10, 10), (5, 5))) is label


def test_focal_factor_follows_zoom_and_falls_back():
    frame = compute_letterbox((100, 200), (50, 100))
    assert focal_scale(Camera(400, 420, 100, 50), frame, 0.0, 1.0) == 1
    assert focal_scale(Camera(400, 420, 100, 50), frame, 100.0, 1.0) == pytest.approx(205 / 100)
    assert focal_scale(None, frame, 200.0, 1.2) == pytest.approx(1.2 * 100 / 200)
