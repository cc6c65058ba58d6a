"""Which sample comes where: proportions, epochs, determinism, independent sources; what augmentation keeps."""

import logging

import data_trees
import numpy as np
import pytest
from data_trees import coco_content, coco_tree, depth_maps_tree, image_labels_tree, label_maps_tree, open_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.config import validate_config
from perception.data import AugmentConfig
from perception.data.mixture import Mixture
from perception.data.transforms import prepare_for_evaluation, sample_training_transform
from perception.ops.image import PAD_VALUE
from perception.types import Camera, DataError, Instances

SIZE = (64, 96)


def same(first, second) -> bool:
    """Samples equal to the bit."""
    if not np.array_equal(first.image, second.image) or first.annotations.keys() != second.annotations.keys():
        return False
    parts = lambda a: [getattr(a, name) for name in type(a).__dataclass_fields__]  # noqa: E731
    return first.camera == second.camera and all(
        np.array_equal(a, b)
        for task in first.annotations
        for a, b in zip(parts(first.annotations[task]), parts(second.annotations[task]), strict=True)
    )


def street(root, depth_only: bool = False) -> list:
    depth = open_tree(root, depth_maps_tree(root), name="depth")
    if depth_only:
        return [depth]
    boxes = open_tree(root, coco_tree(root), name="boxes")
    maps = open_tree(root, label_maps_tree(root), name="maps")
    scenes = open_tree(root, image_labels_tree(root), name="scenes")
    return [boxes, maps, scenes, depth]


def test_a_sample_is_a_function_of_the_seed_and_its_turn(tmp_path):
    sources = street(tmp_path)
    first, second = Mixture(sources, SIZE, seed=3), Mixture(street(tmp_path), SIZE, seed=3)
    order = list(range(24))
    one = {p: first.load_sample(p) for p in order}
    two = {p: second.load_sample(p) for p in reversed(order)}
    assert all(same(one[p], two[p]) for p in order)
    other = Mixture(sources, SIZE, seed=4)
    assert not all(same(one[p], other.load_sample(p)) for p in order)
    without = Mixture(sources[:3], SIZE, seed=3)
    kept = [p for p in order if one[p].source != "depth"]
    again = {without.sampler.locate_turn(p): without.load_sample(p) for p in range(len(kept))}
    matched = [same(one[p], again[first.sampler.locate_turn(p)]) for p in kept if first.sampler.locate_turn(p) in again]
    assert len(matched) > 12
    assert all(matched)


@pytest.mark.fault("D17")
def test_each_sample_carries_only_what_its_source_labels(tmp_path):
    mixture = Mixture(street(tmp_path), SIZE)
    carried = {"boxes": {"detection"}, "maps": {"segmentation"}, "scenes": {"classification"}, "depth": {"depth"}}
    for p in range(24):
        sample = mixture.load_sample(p)
        assert set(sample.annotations) == carried[sample.source]
        assert sample.image.shape == (*SIZE, 3)
        assert (sample.camera is not None) == (sample.source == "depth")
        if sample.source == "boxes":
            assert sample.annotations["detection"].labeled_classes.tolist() == [True, True, False]


def test_a_source_of_vehicles_only_marks_the_other_classes_as_unlabeled(tmp_path):
    content = coco_content(4)
    content["categories"] = content["categories"][:1]
    content["annotations"] = content["annotations"][::2]
    source = open_tree(tmp_path, coco_tree(tmp_path, 4, content))
    for p in range(8):
        assert Mixture([source], SIZE).load_sample(p).annotations["detection"].labeled_classes.tolist() == [
            True,
            False,
            False,
        ]


def test_the_camera_follows_the_image(tmp_path):
    """A pixel of the depth map, projected back by the sample's camera, is the point that the source shows there."""
    mixture = Mixture(
        street(tmp_path, depth_only=True), SIZE, validate_config(AugmentConfig, {"color": 0, "degrade": 0})
    )
    mirrored = 0
    for p in range(12):
        sample = mixture.load_sample(p)
        depth, camera = sample.annotations["depth"], sample.camera
        rows, columns = np.nonzero(depth.valid)
        z = depth.values[rows, columns].astype(float)
        x = (columns + 0.5 - camera.cx) / camera.fx * z
        # in the source z = 1 + 2 i / 63 in column i, and x = (i + 0.5 - 32) / 60 z
        expected = ((z - 1) * 63 / 2 + 0.5 - 32) / 60 * z
        error = min(np.abs(x - expected).max(), np.abs(-x - expected).max())
        mirrored += np.abs(-x - expected).max() < np.abs(x - expected).max()
        assert error < 3.2 / 60 * 1.2  # a nearest source pixel
    assert 0 < mirrored < 12


def test_padding_stays_gray_and_no_augmentation_is_the_letterbox(tmp_path):
    source = open_tree(tmp_path, coco_tree(tmp_path))
    plain = validate_config(AugmentConfig, {"scale": [1, 1], "flip": 0, "color": 0, "degrade": 0})
    sample = Mixture([source], (64, 128), plain).load_sample(0)
    still = prepare_for_evaluation(
        source.load_sample(Mixture([source], (64, 128), plain).sampler.locate_image(0)[1]), (64, 128)
    )
    assert still.transform is not None
    columns = np.flatnonzero((sample.image != PAD_VALUE).any((0, 2)))
    placed = sample.image[:, columns[0] : columns[0] + still.transform.placement[2]]
    assert np.array_equal(placed, still.image[:, : still.transform.placement[2]])
    strong = validate_config(AugmentConfig, {"scale": [0.3, 0.4], "color": 1, "degrade": 1})
    image = Mixture([source], (64, 128), strong).load_sample(1).image
    assert (image[0] == PAD_VALUE).all() or (image[-1] == PAD_VALUE).all()


def test_evaluation_leaves_annotations_and_camera_in_source_pixels(tmp_path):
    source = street(tmp_path, depth_only=True)[0]
    sample = prepare_for_evaluation(source.load_sample(0), SIZE)
    assert sample.transform is not None
    assert sample.image.shape == (*SIZE, 3)
    assert sample.annotations["depth"].values.shape == (48, 64)
    assert sample.camera == Camera(60, 60, 32, 24)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    st.integers(0, 2**32),
)
def test_training_frames_lie_within_source_and_input(source, blocks, scale, seed):
    size = blocks[0] * 32, blocks[1] * 32
    config = validate_config(AugmentConfig, {"scale": sorted(scale)})
    frame = sample_training_transform(source, size, config, np.random.default_rng(seed))
    for (x, y, width, height), (rows, columns) in ((frame.crop, source), (frame.placement, size)):
        assert min(x, y) >= 0
        assert min(width, height) >= 1
        assert x + width <= columns
        assert y + height <= rows
    if min(source) > 64 and min(frame.placement[2:]) > 32:
        assert frame.scale[0] / frame.scale[1] == pytest.approx(1, abs=0.1)


def test_flips_come_in_their_proportion():
    rng = np.random.default_rng(0)
    flips = [
        sample_training_transform((100, 100), SIZE, validate_config(AugmentConfig, {"flip": 0.3}), rng).flip
        for _ in range(500)
    ]
    assert 0.22 < np.mean(flips) < 0.38


def damaged(root, count: int, *broken: int):
    config = coco_tree(root, count)
    for i in broken:
        path = root / f"coco/images/{i:03d}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    return open_tree(root, config, name="boxes")


@pytest.mark.fault("D1")
def test_a_damaged_image_is_replaced_counted_and_reported(tmp_path, caplog):
    source = damaged(tmp_path, 8, 5)
    mixture = Mixture([source], SIZE, seed=1)
    position = next(p for p in range(8) if mixture.sampler.locate_image(p)[1] == 5)
    sample = mixture.load_sample(position)
    assert sample.id != "boxes/coco/images/005.jpg"
    assert same(sample, Mixture([source], SIZE, seed=1).load_sample(position))
    assert list(mixture.skipped) == ["boxes/coco/images/005.jpg"]
    with caplog.at_level(logging.WARNING):
        mixture.record_skipped({})
        mixture.record_skipped({})
    assert len(caplog.records) == 1
    assert "005.jpg is a truncated or damaged JPEG" in caplog.text


@pytest.mark.fault("D1")
def test_too_many_damaged_images_are_an_error(tmp_path):
    mixture = Mixture([damaged(tmp_path, 8, 2, 5)], SIZE)
    for p in range(8):
        mixture.load_sample(p)
    with pytest.raises(DataError, match=r"2 of its 8 images cannot be read. At most 1.0% may"):
        mixture.record_skipped({})
    patient = Mixture(mixture.sources, SIZE, max_damaged=0.3)
    patient.record_skipped(mixture.skipped)
    with pytest.raises(DataError, match="20 images in a row cannot be read"):
        Mixture([damaged(tmp_path, 8, *range(8))], SIZE).load_sample(0)


@pytest.mark.fault("D5")
def test_an_image_that_vanishes_after_opening_is_replaced(tmp_path):
    source = damaged(tmp_path, 8)
    (tmp_path / "coco/images/003.jpg").unlink()
    mixture = Mixture([source], SIZE)
    assert all(mixture.load_sample(p).id for p in range(8))
    assert len(mixture.skipped) == 1


def test_wrong_labels_are_never_skipped(tmp_path):
    config = label_maps_tree(tmp_path)
    data_trees.write_image(tmp_path / "maps/masks/000.png", np.full((48, 64), 9, np.uint8))
    mixture = Mixture([open_tree(tmp_path, config)], SIZE)
    with pytest.raises(DataError, match="ids without a name"):
        [mixture.load_sample(p) for p in range(3)]
    path = tmp_path / "maps/masks/000.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        [mixture.load_sample(p) for p in range(3)]


def test_boxes_follow_the_image(tmp_path):
    """A bright square and its box stay together through zoom, crop and mirroring."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 24, 16, 12]}],
        "categories": [{"id": 1, "name": "vehicle"}],
    }
    config = coco_tree(tmp_path, 1, content)
    image = np.zeros((60, 80, 3), np.uint8)
    image[24:36, 20:36] = 255
    data_trees.write_image(tmp_path / "coco/images/a.png", image)
    mixture = Mixture(
        [open_tree(tmp_path, config)], (96, 96), validate_config(AugmentConfig, {"color": 0, "degrade": 0})
    )
    seen = 0
    for p in range(30):
        sample = mixture.load_sample(p)
        target = sample.annotations["detection"]
        assert isinstance(target, Instances)
        bright = (sample.image[..., 0] > 127) & (sample.image[..., 0] != PAD_VALUE)
        if not len(target.boxes) or not bright.any():
            continue
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(target.boxes[0] - found).max() <= 1.0
        seen += 1
    assert seen > 20
