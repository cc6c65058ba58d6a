"""What augmentation does to a sample: every label stays true to the pixels, and what is random can be repeated."""

import io
import math

import cv2
import data_trees
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from street_samples import SIZE, boxes_from_pixels, render_sample

from perception.config import validate_config
from perception.data import AugmentConfig
from perception.data.color_transforms import (
    add_noise,
    add_weather,
    apply_color_matrix,
    color_matrix,
    degrade_image,
    jitter_color,
)
from perception.data.rotate import roll_sample
from perception.data.transforms import choose_reduction, prepare_for_training, sample_image_transform, transform_sample
from perception.files.images import ImageError, open_image, read_image
from perception.ops.image import PAD_VALUE, crop_and_resize, warp_boxes, warp_image
from perception.types import Camera, ConfigError, DenseMap, ImageLabel, ImageTransform, Instances, Sample

PLAIN = {"color": 0, "degrade": 0, "flip": 0}


def ramps(height: int, width: int) -> np.ndarray:
    """Red counts columns, green rows, as finely as bytes can."""
    rows, columns = np.indices((height, width)) + 0.5
    return np.stack([255 * columns / width, 255 * rows / height, np.full((height, width), 90)], -1).astype(np.uint8)


def saved(path, image: np.ndarray, **options):
    Image.fromarray(image).save(path, "JPEG", **{"quality": 97, **options})
    return path


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(150, 420), st.integers(150, 420)),
    st.floats(0.06, 0.5),
    st.sampled_from([0, 2]),
    st.booleans(),
    st.integers(0, 99),
)
def test_an_image_decoded_smaller_is_the_whole_one_shrunk(tmp_path_factory, source, scale, subsampling, flip, seed):
    """Within a tenth of an input pixel in place and a level in brightness, whatever is left over at the edges."""
    path = saved(tmp_path_factory.mktemp("ramps") / "a.jpg", ramps(*source), subsampling=subsampling)
    picture = open_image(path)
    frame = sample_image_transform(source, (64, 96), scale, float(flip), np.random.default_rng(seed))
    shrunk = choose_reduction(frame)
    assert picture.is_reducible
    assert shrunk == max(n for n in (1, 2, 4, 8) if scale * n <= 1)
    whole, small = (crop_and_resize(picture.decode(n), frame, n).astype(float) for n in (1, shrunk))
    assert whole.shape == small.shape == (frame.placement[3], frame.placement[2], 3)
    difference = (small - whole).mean((0, 1))
    for channel, side, factor in ((0, source[1], frame.scale[0]), (1, source[0], frame.scale[1])):
        assert abs(difference[channel]) / (255 / side / factor) < 0.1 + 0.5 * side / 255 * factor
    assert np.abs(difference).max() < 1
    assert np.abs(small - whole).mean() < 1.5


def test_the_brightness_of_a_street_is_the_same_decoded_smaller(tmp_path):
    image = cv2.resize(render_sample(0)[0].decode(), (1024, 512), interpolation=cv2.INTER_CUBIC)
    picture = open_image(saved(tmp_path / "a.jpg", image, quality=90, subsampling=2))
    for scale in (0.5, 0.3, 0.2, 0.125):
        frame = sample_image_transform((512, 1024), (64, 128), scale, 0.0, np.random.default_rng(1))
        whole, small = (
            crop_and_resize(picture.decode(n), frame, n).astype(float) for n in (1, choose_reduction(frame))
        )
        assert choose_reduction(frame) > 1
        assert np.abs((small - whole).mean((0, 1))).max() < 0.5
        assert np.sqrt(((small - whole) ** 2).mean()) < 5
        moved = np.roll(small, 1, 1)
        assert ((small - whole) ** 2).mean() < 0.3 * ((moved - whole) ** 2).mean()


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.floats(0.002, 30),
    st.integers(0, 2**32),
)
def test_random_frames_lie_within_source_and_input(source, size, scale, seed):
    frame = sample_image_transform(source, size, scale, 0.5, np.random.default_rng(seed))
    for (x, y, width, height), (rows, columns) in ((frame.crop, source), (frame.placement, size)):
        assert min(x, y) >= 0
        assert min(width, height) >= 1
        assert x + width <= columns
        assert y + height <= rows
    shrunk = choose_reduction(frame)
    assert not any(side % shrunk for side in frame.crop)
    assert shrunk == 1 or (
        frame.crop[2] >= shrunk * frame.placement[2] and frame.crop[3] >= shrunk * frame.placement[3]
    )


@pytest.mark.fault("D1")
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("deed", ["truncate", "overwrite"])
def test_damage_is_found_at_every_scale(tmp_path, factor, deed):
    path = saved(tmp_path / "a.jpg", data_trees.noise_image(1, (240, 320)))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = b"\xff\xd9" if deed == "truncate" else b"\x00" * 512 + data[middle + 512 :]
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.jpg is damaged"):
        open_image(path).decode(factor)


@pytest.mark.fault("D2")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_decoded_whole(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    path = saved(tmp_path / "a.jpg", data_trees.noise_image(0, (48, 72)), exif=exif)
    picture = open_image(path)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert picture.is_reducible == (orientation == 1)
    assert picture.size == upright.shape[:2]
    assert np.abs(picture.decode().astype(int) - upright).mean() < 1
    frame = sample_image_transform(picture.size, (16, 16), 0.2, 0.0, np.random.default_rng(0))
    config = validate_config(AugmentConfig, PLAIN)
    sample = transform_sample(picture, Sample(None, {}), frame, config, np.random.default_rng(0))
    assert np.abs(sample.image.astype(int) - warp_image(upright, frame)).mean() < 3


@pytest.mark.fault("D2")
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II*\0", b""]))
def test_whatever_exif_says_the_image_is_read(tmp_path_factory, content, header):
    buffer = io.BytesIO()
    Image.fromarray(data_trees.noise_image(0, (16, 24))).save(buffer, "JPEG")
    data, exif = buffer.getvalue(), b"Exif\0\0" + header + content
    path = tmp_path_factory.mktemp("exif") / "a.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    picture = open_image(path)
    assert picture.size == picture.decode().shape[:2]
    assert np.array_equal(picture.decode(), read_image(path))


def lengths(points: np.ndarray, camera: Camera, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far from the optical axis the true points are, and where the sample's camera puts them."""
    x, y, z = points
    seen = np.hypot((columns + 0.5 - camera.cx) / camera.fx, (rows + 0.5 - camera.cy) / camera.fy) * z
    return np.hypot(x, y), seen


@pytest.mark.parametrize(("rotate", "seed"), [(rotate, seed) for rotate in (0, 15, 45) for seed in range(6)])
def test_every_label_stays_true_to_the_pixels(rotate, seed):
    """Boxes hold the pixels that they own (and no more, without a roll); depth and camera give the true points."""
    config = validate_config(AugmentConfig, {"rotate": rotate, "scale": [0.4, 1.6]})
    picture, before = render_sample(seed)
    sample = prepare_for_training(picture, before, SIZE, config, np.random.default_rng(seed))
    target, owners, depth = (sample.annotations[task] for task in ("detection", "owners", "depth"))
    seen = boxes_from_pixels(owners)
    row_of = {identity: row + 1 for row, identity in enumerate(before.annotations["detection"].track_ids.tolist())}
    for box, ignore, identity in zip(target.boxes, target.ignore, target.track_ids.tolist(), strict=True):
        pixels = seen.pop(row_of[identity], None)
        assert box.min() >= 0
        assert (box[2:] <= SIZE[::-1]).all()
        if pixels is None:
            assert ignore or (box[2:] - box[:2]).min() < 4  # too thin to be hit by a pixel's center
            continue
        out = np.array([*(box[:2] - pixels[:2]), *(pixels[2:] - box[2:])])
        assert out.max() <= 1.5
        if not rotate:
            assert out.min() >= (-2.5 if sample.camera.fx >= before.camera.fx else -4.5)  # shrinking loses tips
    assert not seen  # no thing without a box
    scale = sample.camera.fx / before.camera.fx
    assert sample.camera.fy / before.camera.fy == pytest.approx(scale, rel=0.02)
    points = sample.annotations["points"]
    rows, columns = np.nonzero(points.valid)
    truth, found = lengths(points.values[:, rows, columns].astype(float), sample.camera, rows, columns)
    pixel = points.values[2, rows, columns] / sample.camera.fx
    assert (np.abs(truth - found) / pixel).max() < 1.2 * max(scale, 1) + 1
    assert np.array_equal(depth.values[depth.valid], points.values[2][depth.valid])
    assert not depth.values[~depth.valid].any()
    padding = ~sample.annotations["segmentation"].valid
    inner = cv2.erode(padding.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert (sample.image[inner] == PAD_VALUE).all()


def test_a_roll_turns_points_about_the_center():
    """Twice the angle of a known roll: what albumentations turns, boxes and principal point turn too."""
    image = np.zeros((90, 120, 3), np.uint8)
    owners = np.zeros((90, 120), np.uint8)
    owners[30:60, 20:50] = 1
    target = Instances(
        np.array([[20, 30, 50, 60], [0, 0, 3, 2]], np.float32), np.array([1, 0]), labeled_classes=np.ones(2, bool)
    )
    annotations = {"detection": target, "map": DenseMap(owners, np.ones((90, 120), bool)), "label": None}
    sample = Sample(image, annotations, Camera(80, 80, 100, 20), None, "a", "b")
    for seed in range(5):
        turned = roll_sample(sample, 40, 0.25, np.random.default_rng(seed))
        x, y = turned.camera.cx - 60, turned.camera.cy - 45
        angle = math.atan2(y, x) - math.atan2(20 - 45, 100 - 60)
        assert math.hypot(x, y) == pytest.approx(math.hypot(40, 25), abs=1e-3)
        assert abs(math.degrees(angle)) <= 40
        assert (turned.camera.fx, turned.camera.fy) == (80, 80)
        corners = np.array([[20, 30], [50, 30], [50, 60], [20, 60]]) - (60, 45)
        spun = corners @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) + (60, 45)
        expected = np.clip([*spun.min(0), *spun.max(0)], 0, [120, 90, 120, 90])
        after = turned.annotations["detection"]
        assert np.abs(after.boxes[0] - expected).max() < 0.05 or (spun < 0).any() or (spun > (120, 90)).any()
        assert after.labeled_classes.all()
        pixels = boxes_from_pixels(DenseMap(turned.annotations["map"].values.astype(int), owners >= 0))[1]
        assert np.abs(after.boxes[0] - pixels).max() <= 1.5
        assert turned.annotations["label"] is None
        assert not turned.annotations["map"].valid.all()
        assert len(after.boxes) == 1 or after.ignore[1]  # the box in the corner is out of sight, or nearly


def test_a_box_that_rolls_out_of_sight_is_ignored_or_gone():
    target = Instances(
        np.array([[0, 0, 60, 10], [50, 40, 60, 50]], np.float32), np.array([0, 1]), ignore=np.array([0, 1], bool)
    )
    sample = Sample(np.zeros((90, 120, 3), np.uint8), {"detection": target})
    kinds = set()
    for seed in range(30):
        after = roll_sample(sample, 45, 0.6, np.random.default_rng(seed)).annotations["detection"]
        assert after.ignore[after.labels == 1].all()
        mine = after.ignore[after.labels == 0].tolist()
        kinds.add(mine[0] if mine else None)
    assert {True, False} <= kinds


def test_what_a_roll_of_nothing_leaves():
    empty = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    sample = Sample(np.zeros((32, 32, 3), np.uint8), {"detection": empty, "depth": None})
    after = roll_sample(sample, 10, 0.25, np.random.default_rng(0))
    assert after.annotations["detection"].boxes.shape == (0, 4)
    assert after.camera is None


def test_boxes_follow_albumentations_to_the_pixel_and_frames_exactly():
    """The frame alone, with the camera of an image whose pixels are not square."""
    frame = ImageTransform((100, 200), (64, 96), (10, 20, 90, 60), (3, 2, 60, 50), True)
    camera = Camera(100, 120, 90, 50).to_input(frame)
    corner = warp_boxes(np.array([[90, 50, 90, 50]], np.float32), frame)[0]
    assert (camera.cx, camera.cy) == pytest.approx(corner[:2].tolist(), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(-3.2, 3.2), st.floats(0, 2))
def test_hue_and_saturation_leave_grays_and_luma(hue, saturation):
    matrix = color_matrix(hue, saturation)
    assert np.allclose(matrix[:, :3].sum(1), 1)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.allclose(luma @ matrix[:, :3], luma)
    assert np.allclose(color_matrix()[:, :3], np.eye(3))
    full = color_matrix(2 * math.pi * round(hue), 1.0)
    assert np.allclose(full[:, :3], np.eye(3))


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.42, 0.42), st.floats(0.5, 1.5), st.floats(0.7, 1.3), st.floats(-64, 64), st.integers(0, 99))
def test_a_color_matrix_is_applied_within_one_level(hue, saturation, gain, offset, seed):
    image = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), np.uint8)
    matrix = color_matrix(hue, saturation, gain, offset)
    expected = np.clip(image @ matrix[:, :3].T + matrix[:, 3], 0, 255)
    assert np.abs(apply_color_matrix(image, matrix) - expected).max() <= 1.01


def test_colors_change_as_often_as_they_should_and_nothing_moves():
    image = render_sample(1)[0].decode()
    rng = np.random.default_rng(0)
    assert jitter_color(image, 0.0, rng) is image
    assert degrade_image(image, 0.0, rng) is image
    changed = [not np.array_equal(jitter_color(image, 0.3, np.random.default_rng(i)), image) for i in range(200)]
    assert 0.48 < np.mean(changed) < 0.68  # 1 - 0.7 * 0.7 * 0.85 = 0.58
    for change in (lambda i, r: jitter_color(i, 1, r), lambda i, r: degrade_image(i, 1, r), add_weather):
        for seed in range(8):
            first, second = (change(image, np.random.default_rng(seed)) for _ in range(2))
            assert np.array_equal(first, second)
            assert first.shape == image.shape
            assert first.dtype == np.uint8
            ours, theirs = (cv2.GaussianBlur(i.mean(2), (9, 9), 0).ravel() for i in (image, first))
            assert np.corrcoef(ours, theirs)[0, 1] > 0.75


def test_noise_has_its_strength_and_differs():
    image = np.full((200, 600, 3), 128, np.uint8)
    first, second = (add_noise(image, 0.04, np.random.default_rng(seed)).astype(float) for seed in (0, 1))
    assert first.std() == pytest.approx(0.04 * 255, rel=0.05)
    assert abs(first.mean() - 128) < 0.3
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_weather_takes_image_labels_away_and_nothing_else():
    picture, sample = render_sample(2)
    sample.annotations["scene"] = ImageLabel(np.array([1, 0], np.float32))
    clear, wet = (
        prepare_for_training(
            picture, sample, SIZE, validate_config(AugmentConfig, {**PLAIN, "weather": p}), np.random.default_rng(3)
        )
        for p in (0, 1)
    )
    assert clear.annotations["scene"] is not None
    assert wet.annotations["scene"] is None
    assert np.array_equal(clear.annotations["detection"].boxes, wet.annotations["detection"].boxes)
    assert not np.array_equal(clear.image, wet.image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotate": 46}, "rotate is 46"), ({"rotate": float("nan")}, "rotate is nan"), ({"scale": [2, 1]}, "scale"),
        ({"mosaic": 1.1}, "mosaic is 1.1"), ({"weather": -0.1}, "weather is -0.1"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate_config(AugmentConfig, settings)
