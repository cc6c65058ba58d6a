"""Four images on one input: every label true to the pixels, and nothing said that not all tiles say."""

import dataclasses

import numpy as np
import pytest
from data_trees import CLASSES, coco_tree, depth_maps_tree, image_labels_tree, label_maps_tree, open_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from street_samples import boxes_from_pixels, render_sample

from perception.config import validate_config
from perception.data import AugmentConfig
from perception.data.loader import make_train_loader
from perception.data.mixture import Mixture
from perception.data.mosaic import Mosaic, join_samples, sample_tiles
from perception.ops.image import PAD_VALUE
from perception.types import Camera, DataError, DenseMap, ImageLabel, Instances, Sample

SIZE = (128, 256)
TILES = [(0, 0, 10, 6), (10, 0, 22, 6), (0, 6, 10, 26), (10, 6, 22, 26)]
WHOLE = (32, 32)


def blank(tile, annotations, camera=None) -> Sample:
    return Sample(np.zeros((tile[3], tile[2], 3), np.uint8), annotations, camera, None, "s/a", "s")


def of(task: str, *parts, cameras=(None,) * 4):
    """The mosaic of one task's annotations, and its camera."""
    given = [{} if part is None else {task: part} for part in parts]
    sample = join_samples([blank(t, g, c) for t, g, c in zip(TILES, given, cameras, strict=True)], TILES, WHOLE)
    return sample.annotations.get(task), sample.camera


def boxes(*rows, ignore=None, classes=None, labels=None, partial=None) -> Instances:
    table = np.array(rows, np.float32).reshape(-1, 4)
    labels = np.zeros(len(table), np.int64) if labels is None else np.array(labels)
    return Instances(table, labels, ignore=ignore, labeled_classes=classes, partial_classes=partial)


@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_tiles_fill_the_input_once(blocks, seed):
    size = blocks[0] * 32, blocks[1] * 32
    covered = np.zeros(size, int)
    for x, y, width, height in sample_tiles(size, np.random.default_rng(seed)):
        assert min(width / size[1], height / size[0]) >= 0.3 - 1 / 32
        covered[y : y + height, x : x + width] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("seed", range(8))
def test_every_label_of_a_mosaic_is_true_to_the_pixels(seed):
    """Boxes hold the pixels that they own; depth is the truth times the ratio of the focal lengths."""
    mosaic = Mosaic(SIZE, validate_config(AugmentConfig, {"scale": [1.0, 1.6]}), np.random.default_rng(seed))
    samples, zooms = [], []
    for number in range(4):
        picture, sample = render_sample(seed + number)
        if number == 2:  # taken with a lens twice as long
            sample = dataclasses.replace(sample, camera=Camera(2 * sample.camera.fx, 2 * sample.camera.fy, 128, 64))
        first = sample.camera.fx
        sample.annotations["owners"].values[sample.annotations["owners"].values > 0] += 1000 * number
        samples.append(mosaic.place_tile(picture, sample, number, np.random.default_rng(number)))
        zooms.append(samples[-1].camera.fx / first)
    assert np.ptp(zooms) < 0.02 * max(zooms)  # things keep their size
    whole = mosaic.join_tiles(samples, np.random.default_rng(0))
    assert whole.image.shape == (*SIZE, 3)
    assert (whole.camera.fx, whole.camera.cy) == (samples[0].camera.fx, samples[0].camera.cy)
    target, seen = whole.annotations["detection"], boxes_from_pixels(whole.annotations["owners"])
    assert target.track_ids is None
    for owner, pixels in seen.items():
        x, y, width, height = mosaic.tiles[owner // 1000]
        assert (pixels >= (x, y, x, y)).all()
        assert (pixels <= (x + width, y + height) * 2).all()
        holds = np.concatenate([pixels[:2] - target.boxes[:, :2], target.boxes[:, 2:] - pixels[2:]], 1)
        mine = (holds > -1.5).all(1) & (target.boxes >= (x, y, x, y)).all(1)
        assert mine.any()
        rows, columns = np.nonzero(whole.annotations["segmentation"].valid[y : y + height, x : x + width])
        sight = np.array([x + columns.min(), y + rows.min(), x + columns.max() + 1, y + rows.max() + 1])
        if (np.abs(pixels - sight) > 4).all():  # all of the thing is seen
            assert holds[mine].max(1).min() <= 3
    assert len(target.boxes) - len(seen) <= target.ignore.sum()
    depth, points = whole.annotations["depth"], whole.annotations["points"]
    assert np.array_equal(depth.valid, points.valid)
    for number, (x, y, width, height) in enumerate(mosaic.tiles):
        inside = slice(y, y + height), slice(x, x + width)
        mine, valid = samples[number].annotations["depth"], depth.valid[inside]
        assert np.array_equal(valid, mine.valid)
        factor = samples[0].camera.fx / samples[number].camera.fx
        assert number != 2 or factor < 1
        assert np.allclose(depth.values[inside][valid], mine.values[valid] * factor, rtol=2e-2)
    outside = ~whole.annotations["segmentation"].valid
    assert outside.any() == (whole.image[outside] == PAD_VALUE).any()


def test_boxes_move_with_their_tiles_and_unlabeled_tiles_are_ignore_regions():
    found, _ = of("boxes", boxes([1, 2, 3, 4]), None, boxes(), boxes([0, 0, 5, 5], ignore=np.array([True])))
    assert found.boxes.tolist() == [[1, 2, 3, 4], [10, 0, 32, 6], [10, 6, 15, 11]]
    assert found.ignore.tolist() == [False, True, True]
    assert found.labels.dtype == np.int64
    assert found.boxes.dtype == np.float32
    assert found.labeled_classes is None
    nothing, _ = of("boxes", boxes(), boxes(), boxes(), boxes())
    assert nothing.boxes.shape == (0, 4)


def test_only_classes_that_all_tiles_label_are_labeled():
    first, second = np.array([True, True, False]), np.array([False, True, True])
    parts = [
        boxes([0, 0, 1, 1], [2, 2, 3, 3], classes=first, labels=[0, 1]),
        boxes([0, 0, 1, 1], [1, 1, 2, 2], classes=second, labels=[2, 1], ignore=np.array([True, False])),
        boxes([4, 4, 5, 5], labels=[0]),
        None,
    ]
    found, _ = of("boxes", *parts)
    assert found.labeled_classes.tolist() == [False, True, False]
    assert list(zip(found.labels.tolist(), found.ignore.tolist(), strict=True)) == [
        (1, False), (2, True), (1, False), (0, True),
    ]  # fmt: skip


def test_what_a_tile_labels_in_part_is_so_in_the_mosaic_as_far_as_all_tiles_label_it():
    first = boxes(classes=np.array([True, True, False]), partial=np.array([True, True, False]))
    second = boxes(classes=np.array([True, False, True]))
    found, _ = of("boxes", first, second, second, second)
    assert found.labeled_classes.tolist() == found.partial_classes.tolist() == [True, False, False]


def plane(tile, value, kind=np.uint8) -> DenseMap:
    values = np.full((tile[3], tile[2]), value, kind)
    return DenseMap(values, np.indices(values.shape).sum(0) > 0)


def test_label_maps_are_invalid_where_a_tile_has_none():
    found, _ = of("map", plane(TILES[0], 3), None, plane(TILES[2], 5), plane(TILES[3], 7))
    assert found.values.dtype == np.uint8
    assert found.values[5, 9] == 3
    assert found.values[31, 9] == 5
    assert found.values[31, 31] == 7
    assert not found.valid[:6, 10:].any()
    assert not found.valid[0, 0]
    assert found.valid.sum() == 60 + 260 + 22 * 26 - 3
    assert of("map", None, None, None, None)[0] is None
    layers = [DenseMap(np.ones((2, t[3], t[2]), np.uint8), np.ones((t[3], t[2]), bool)) for t in TILES]
    assert of("map", *layers)[0].values.shape == (2, *WHOLE)


def test_depth_is_told_as_the_first_known_camera_sees_it():
    far, near = Camera(200, 200, 5, 3), Camera(100, 104, 11, 13)
    parts = [plane(tile, 10, np.float32) for tile in TILES]
    found, camera = of("depth", *parts, cameras=(None, far, near, far))
    assert camera == Camera(200, 200, 15, 3)
    assert not found.valid[:6, :10].any()  # no camera
    assert (found.values[:6, 10:] == 10).all()
    assert np.allclose(found.values[6:, :10], 10 * 200 / 102)
    assert found.values.dtype == np.float32
    found, camera = of("depth", *parts)
    assert camera is None
    assert (found.values == 10).all()
    assert found.valid.sum() == 32 * 32 - 4


@pytest.mark.parametrize(("clip", "shift"), [(0.5, 0), (0.25, 1)])
def test_images_without_camera_keep_the_default_focal_relation(clip, shift):
    """The default focal length is a fraction of the letterboxed image's width: one zoom for all tiles keeps it."""
    mosaic = Mosaic(
        (64, 128), validate_config(AugmentConfig, {"scale": [clip, clip * 2]}), np.random.default_rng(shift)
    )
    for number, source in enumerate([(100, 200), (375, 750), (64, 128), (50, 100)]):
        picture, _ = render_sample(0)
        picture = dataclasses.replace(picture, size=source, _decoded=np.zeros((*source, 3), np.uint8))
        camera = Camera(source[1], source[1], source[1] / 2, source[0] / 2)  # the default 1.0, spelt out
        sample = mosaic.place_tile(picture, Sample(None, {}, camera), number, np.random.default_rng(number))
        assert sample.camera.fx == pytest.approx(mosaic.zoom * 128, rel=0.03)


def label(*values, classes=None) -> ImageLabel:
    return ImageLabel(np.array(values, np.float32), None if classes is None else np.array(classes, bool))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([label(1, 0)] * 4, ([1, 0], None)),
        ([label(1, 0)] * 3 + [label(0, 1)], None),
        ([label(1, 0)] * 3 + [None], None),
        ([label(1, 0, 0, classes=[1, 1, 0])] * 3 + [label(0, 1, 1, classes=[0, 1, 1])], ([0, 1, 0], [0, 1, 0])),
        ([label(1, 0, classes=[1, 0])] * 2 + [label(0, 1, classes=[0, 1])] * 2, None),
        ([label(1, 0, classes=[1, 1])] * 3 + [label(1, 0)], None),
        ([label(1, 1, classes=[1, 1])] * 4, ([1, 1], [1, 1])),
    ],
)
def test_image_labels_hold_where_all_tiles_agree(parts, expected):
    found, _ = of("scene", *parts)
    if expected is None:
        assert found is None
    else:
        assert found.values.tolist() == expected[0]
        assert (found.labeled_classes is None) == (expected[1] is None)
        assert found.labeled_classes is None or found.labeled_classes.tolist() == expected[1]


def sources(root) -> list:
    trees = {"boxes": coco_tree, "maps": label_maps_tree, "depth": depth_maps_tree, "scenes": image_labels_tree}
    return [open_tree(root, tree(root), name=name) for name, tree in trees.items()]


def test_mosaics_come_as_often_as_asked_and_alter_no_other_sample(tmp_path):
    config = {"color": 0.5, "rotate": 5}
    plain, half, all_of_them = (
        Mixture(sources(tmp_path), (64, 96), validate_config(AugmentConfig, {**config, "mosaic": p}), seed=2)
        for p in (0, 0.5, 1)
    )
    same = [np.array_equal(plain.load_sample(p).image, half.load_sample(p).image) for p in range(40)]
    assert 10 < sum(same) < 30
    for p in range(8):
        sample, alone = all_of_them.load_sample(p), plain.load_sample(p)
        assert sample.image.shape == (64, 96, 3)
        assert (sample.id, sample.source) == (alone.id, alone.source)
        assert not np.array_equal(sample.image, alone.image)


@pytest.mark.fault("T1")
def test_mosaics_are_the_same_with_any_number_of_workers(tmp_path):
    config = validate_config(AugmentConfig, {"mosaic": 0.7, "rotate": 8, "weather": 0.3, "degrade": 0.4})
    tasks = tuple(CLASSES)
    one, two = (
        list(make_train_loader(Mixture(sources(tmp_path), (64, 96), config, seed=9), tasks, 4, 3, workers=workers))
        for workers in (0, 2)
    )
    for first, second in zip(one, two, strict=True):
        assert (first.images == second.images).all()
        for task in tasks:
            for a, b in zip(first.annotations[task], second.annotations[task], strict=True):
                assert type(a) is type(b)
                for name in () if a is None else type(a).__dataclass_fields__:
                    assert np.array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.fault("D1")
def test_a_damaged_tile_is_replaced(tmp_path):
    config = coco_tree(tmp_path, 6)
    path = tmp_path / "coco/images/002.jpg"
    path.write_bytes(path.read_bytes()[:300])
    source = open_tree(tmp_path, config, name="boxes")
    first, second = (
        Mixture([source], (64, 96), validate_config(AugmentConfig, {"mosaic": 1}), seed=1) for _ in range(2)
    )
    for p in range(6):
        assert np.array_equal(first.load_sample(p).image, second.load_sample(p).image)
    assert list(first.skipped) == ["boxes/coco/images/002.jpg"]
    for i in range(6):
        (tmp_path / f"coco/images/{i:03d}.jpg").unlink()
    with pytest.raises(DataError, match="20 images in a row"):
        first.load_sample(0)
