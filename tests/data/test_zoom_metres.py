"""Metres survive crop, resize and mirroring: the geometry, and a network that learned depth under zoom."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.data.transforms import AugmentConfig, sample_training_transform
from perception.ops.image import compute_letterbox, focal_scale, warp_annotation
from perception.ops.postprocess import restore_annotations
from perception.tasks.depth import DepthConfig, DepthTask, Raw
from perception.types import Camera, DenseMap, ImageTransform

geometry = settings(max_examples=80, deadline=None)

sizes = st.tuples(st.integers(12, 120), st.integers(12, 120))
cameras = st.builds(Camera, st.floats(20, 900), st.floats(20, 900), st.floats(-50, 200), st.floats(-50, 200))
points = st.tuples(st.floats(-5, 5), st.floats(-3, 3), st.floats(0.5, 50))


@st.composite
def frames_of(draw, source: tuple[int, int]) -> ImageTransform:
    """Any crop of a source, enlarged or shrunk up to four times, with padding anywhere, mirrored or not."""
    cut = [draw(st.integers(8, side)) for side in source]
    placed = [draw(st.integers(max(2, part // 4), 4 * part)) for part in cut]
    y, x = (draw(st.integers(0, side - part)) for side, part in zip(source, cut, strict=True))
    top, left, below, right = (draw(st.integers(0, 20)) for _ in range(4))
    size = top + placed[0] + below, left + placed[1] + right
    return ImageTransform(source, size, (x, y, cut[1], cut[0]), (left, top, placed[1], placed[0]), draw(st.booleans()))


@st.composite
def chains(draw) -> list[ImageTransform]:
    """One to three frames, each of the image that the one before it made."""
    frames = [draw(frames_of(draw(sizes)))]
    for _ in range(draw(st.integers(0, 2))):
        if min(frames[-1].input_size) < 8:
            break
        frames.append(draw(frames_of(frames[-1].input_size)))
    return frames


def matrix(frame: ImageTransform) -> np.ndarray:
    """Source pixels to input pixels, homogeneous [3, 3]: cut, scale, place, mirror."""
    cut = np.array([[1, 0, -frame.crop[0]], [0, 1, -frame.crop[1]], [0, 0, 1]])
    scale = np.diag([frame.placement[2] / frame.crop[2], frame.placement[3] / frame.crop[3], 1])
    place = np.array([[1, 0, frame.placement[0]], [0, 1, frame.placement[1]], [0, 0, 1]])
    mirror = np.array([[-1, 0, frame.input_size[1]], [0, 1, 0], [0, 0, 1]]) if frame.flip else np.eye(3)
    return mirror @ place @ scale @ cut


def projected(camera: Camera, point: tuple[float, float, float]) -> np.ndarray:
    """Homogeneous pixel [3] of a point in the camera's frame."""
    x, y, z = point
    return np.array([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy, 1.0])


@geometry
@given(chains(), cameras, points)
def test_a_point_lands_where_the_frames_move_its_pixel(chain, camera, point):
    """Projecting through the moved camera equals moving the projected pixel, to a millionth of a pixel."""
    moved, there = camera, projected(camera, point)
    for frame in chain:
        moved, there = moved.to_input(frame), matrix(frame) @ there
    mirrored = sum(frame.flip for frame in chain) % 2
    seen = (-point[0] if mirrored else point[0], *point[1:])
    np.testing.assert_allclose(projected(moved, seen), there, rtol=0, atol=1e-6)


@geometry
@given(st.data(), cameras, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_training_moves_the_camera_with_the_pixels(data, camera, seed, flip):
    """Each pixel of a training image is seen along the ray that it had in the source image.

    The depth map holds the number of the source's column (plus 1), so the image itself says where a pixel came from.
    """
    height, width = data.draw(sizes)
    columns = np.tile(np.arange(1, width + 1, dtype=np.float32), (height, 1))
    config = AugmentConfig(scale=(0.4, 2.5), flip=flip)
    frame = sample_training_transform((height, width), (64, 96), config, np.random.default_rng(seed))
    depth = warp_annotation(DenseMap(columns, np.ones((height, width), bool)), frame)
    lens = camera.to_input(frame)
    v, u = np.nonzero(depth.valid)
    now = (u + 0.5 - lens.cx) / lens.fx
    before = (depth.values[v, u] - 0.5 - camera.cx) / camera.fx
    pixel = 0.51 / camera.fx  # the nearest pixel's center is at most half a pixel away
    assert np.abs((-now if frame.flip else now) - before).max() <= pixel


@geometry
@given(chains(), cameras, st.floats(20, 900), st.floats(2, 60))
def test_the_metres_that_training_divides_are_those_that_prediction_multiplies(chain, camera, canonical, metres):
    """A wall at some distance, seen in training through any frames: where the loss is zero, restoring gives metres."""
    *before, last = chain
    for frame in before:
        camera = camera.to_input(frame)
    task = depth_task(canonical)
    factor = focal_scale(camera, last, canonical, 1.0)
    stride = min(task.strides)  # the head says a value for every cell of so many pixels
    cells = [-(-side // stride) for side in last.input_size]
    exact = torch.full((1, 1, *cells), math.log(metres / factor))
    raw = Raw(exact, torch.zeros_like(exact))
    pixels = torch.full([stride * side for side in cells], metres)
    wall = DenseMap(pixels, torch.ones_like(pixels, dtype=torch.bool))
    parts = task.compute_loss_terms(raw, [wall], [camera.to_input(last)])
    assert float(parts["log"].total) < 1e-5
    assert float(parts["gradient"].total) < 1e-5
    frame = compute_letterbox(last.source_size, (64, 96))
    seen = np.full((64, 96), metres / focal_scale(camera, frame, canonical, 1.0), np.float32)
    outputs = {"depth.depth": seen, "depth.error": np.full_like(seen, 0.1)}
    restored = restore_annotations(outputs, {"depth": task.spec}, frame, camera)["depth"]
    assert restored.values.shape == last.source_size
    np.testing.assert_allclose(restored.values, metres, rtol=1e-5)


@geometry
@given(st.data(), cameras, st.floats(20, 900), st.floats(2, 60))
def test_two_zooms_of_an_image_mean_the_same_metres(data, camera, canonical, metres):
    """The canonical depths of two views differ by the ratio of their focal lengths, and by nothing else."""
    source = data.draw(sizes)
    first, second = data.draw(frames_of(source)), data.draw(frames_of(source))
    lenses = [camera.to_input(frame) for frame in (first, second)]
    focals = [0.5 * (lens.fx + lens.fy) for lens in lenses]
    seen = [metres / focal_scale(camera, frame, canonical, 1.0) for frame in (first, second)]
    assert math.isclose(seen[0] * focals[0] / canonical, seen[1] * focals[1] / canonical, rel_tol=1e-9)
    assert math.isclose(seen[0] * focals[0] / canonical, metres, rel_tol=1e-9)
    assert math.isclose(seen[0] / seen[1], focals[1] / focals[0], rel_tol=1e-9)


@geometry
@given(st.data(), cameras, st.floats(20, 900))
def test_cutting_an_image_first_changes_no_metre(data, camera, canonical):
    """A frame of a cut-out image with the cut-out's camera is the frame of the whole with the whole's camera."""
    source = data.draw(sizes)
    cut = data.draw(frames_of(source))
    _, _, width, height = cut.crop
    alone = ImageTransform(source, (height, width), cut.crop, (0, 0, width, height))
    frame = ImageTransform((height, width), cut.input_size, (0, 0, width, height), cut.placement, cut.flip)
    np.testing.assert_allclose(
        [getattr(camera.to_input(alone).to_input(frame), name) for name in ("fx", "fy", "cx", "cy")],
        [getattr(camera.to_input(cut), name) for name in ("fx", "fy", "cx", "cy")],
        rtol=0,
        atol=1e-6,
    )
    parts = focal_scale(camera.to_input(alone), frame, canonical, 1.0), focal_scale(camera, cut, canonical, 1.0)
    assert math.isclose(*parts, rel_tol=1e-12)


def depth_task(canonical: float) -> DepthTask:
    """The depth task with every pixel in its loss, limits that no wall of these tests touches."""
    config = DepthConfig(limits=(0.1, 1000.0), canonical_focal=canonical, loss_stride=1, strides=(8, 16), channels=8)
    return DepthTask("depth", config, {8: 8, 16: 8})
