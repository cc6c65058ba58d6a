"""NYU Depth V2: frames, lists, segmentation masks of 13 and 40 classes, the camera."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_trees import CLASSES, check_annotation, noise_image, open_tree, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees_kitti import nyuv2_tree, write_text

from perception.config import validate_config
from perception.data import Nyuv2Config
from perception.data.formats.nyuv2 import CLASSES_13, CLASSES_40, OFFICIAL_CAMERA, Nyuv2Reader
from perception.types import Camera, ConfigError, DataError

ANY = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINE = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579\n"


def test_depth_labels_and_camera(tmp_path):
    source = open_tree(tmp_path, nyuv2_tree(tmp_path))
    assert [p.path.name for p in source.records] == ["rgb_00046.jpg", "rgb_00045.jpg", "rgb_00047.jpg"]
    first, last = source.load_sample(1), source.load_sample(2)
    depth, labels = first.annotations["depth"], first.annotations["segmentation"]
    assert depth.values[5, 1:3].tolist() == pytest.approx([1.031, 1.063])
    assert depth.values[5, 63] == pytest.approx(3.0)
    assert not depth.valid[:, 0].any()
    assert [labels.values[y, 15] for y in (10, 25, 35, 42, 47)] == [1, 0, 2, 255, 255]
    assert set(last.annotations) == {"depth"}
    assert source.problems == {"images without a segmentation mask": 1}
    assert first.camera == Camera(51.88579, 51.94696, pytest.approx(32.55824), pytest.approx(25.37362))
    only = open_tree(tmp_path, {**nyuv2_tree(tmp_path), "labels": None, "max_depth": 2}).readers[0]
    assert only.tasks == ("depth",)
    assert only.read_annotations(0)["depth"].values.max() <= 2


def test_the_camera_fits_the_image(tmp_path):
    config = nyuv2_tree(tmp_path, 1)
    write_image(tmp_path / "nyu/kitchen_0028b/rgb_00045.jpg", noise_image(0, (480, 640)))
    assert open_tree(tmp_path, config).camera(0) == OFFICIAL_CAMERA == Camera(518.8579, 519.4696, 325.5824, 253.7362)
    write_image(tmp_path / "nyu/kitchen_0028b/rgb_00045.jpg", noise_image(0, (432, 560)))  # cropped: who knows where
    assert open_tree(tmp_path, config).camera(0) is None
    own = {"fx": 10, "fy": 20, "cx": 3, "cy": 4}
    assert open_tree(tmp_path, {**config, "camera": own}).camera(0) == Camera(10, 20, 3, 4)
    (tmp_path / "nyu/kitchen_0028b/rgb_00045.jpg").write_bytes(b"GIF8")
    assert open_tree(tmp_path, config).camera(0) is None


def test_lists_as_they_are_handed_around(tmp_path):
    config = {**nyuv2_tree(tmp_path), "image_list": "train.txt"}
    lines = [
        LINE,
        "bedroom_0004/rgb_00046.jpg bedroom_0004/sync_depth_00046.png\n",
        "/kitchen_0028b/rgb_00047.jpg None 259",
    ]
    write_text(tmp_path / "train.txt", "".join(lines))
    source = open_tree(tmp_path, config)
    assert len(source) == 2  # the third has neither depth nor a segmentation mask
    assert set(source.read_annotations(1)) == {"depth", "segmentation"}
    assert source.problems == {"images without a depth map": 1, "images without a segmentation mask": 1}
    assert source.camera(1).fx == 518.8579  # the image's size is no matter: somebody measured it
    assert source.camera(1).fy == pytest.approx(519.4696)
    assert source.camera(0).fx == 51.88579
    (tmp_path / "nyu/bedroom_0004/sync_depth_00046.png").unlink()
    source = open_tree(tmp_path, {**config, "labels": None})
    assert len(source) == 1
    assert source.problems == {"images without a depth map": 2}


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "none of its 0 images"),
        ("a.jpg\n", "line 1: 1 words. Expected an image, its depth map"),
        ("a b c d\n", "line 1: 4 words"),
        (LINE * 2, "line 2: .* is given twice"),
        (LINE.replace("518.8579", "x"), "line 1: 'x' are not all numbers. Expected the focal length"),
        (LINE.replace("518.8579", "-5"), "line 1: .* is not a pinhole camera"),
        (LINE.replace("518.8579", "nan"), "line 1: .* is not a pinhole camera"),
        ("../../etc/passwd b\n", "line 1: file name .* is refused"),
        ("/kitchen_0028b/rgb_00045.jpg ../../secret.png\n", "line 1: file name .* is refused"),
        ("a\\b.jpg b\n", "line 1: file name .* is refused"),
        ("/ b\n", "line 1: .* is not a file name"),
        ("/missing/rgb_1.jpg /missing/sync_depth_1.png\n", "none of its 1 images"),
        (f"{'a' * 999}/b.jpg c.png\n", "none of its 1 images"),
        (b"\xff\xd8", "not UTF-8"),
    ],
)
def test_lists_that_are_none(content, words, tmp_path):
    config = {**nyuv2_tree(tmp_path), "image_list": "train.txt"}
    write_text(tmp_path / "train.txt", content)
    with pytest.raises(DataError, match=rf"train\.txt.*{words}"):
        open_tree(tmp_path, config)


def test_classes_are_the_official_ones_and_ids_start_where_they_are_said_to(tmp_path):
    assert (len(CLASSES_40), len(CLASSES_13)) == (len(set(CLASSES_40)), len(set(CLASSES_13))) == (40, 13)
    assert CLASSES_40[0] == "wall"
    assert CLASSES_40[39] == "otherprop"
    config = {"format": "nyuv2", "root": "nyu", "labels": "nyu_labels"}
    nyuv2_tree(tmp_path, 1)
    label_map = np.arange(48 * 64).reshape(48, 64) % 13
    path = tmp_path / "nyu_labels/kitchen_0028b/label_00045.png"
    for first in (0, 1):
        stored = (label_map + first).astype(np.uint8)
        stored[0], stored[1] = 255, 0
        write_image(path, stored)
        options = {"num_classes": 13, "first_id": first}
        found = open_tree(tmp_path, {**config, **options}, segmentation=CLASSES_13).read_annotations(0)["segmentation"]
        assert np.array_equal(found.values[2:], label_map[2:])
        assert not found.valid[0].any()
        assert found.valid[1].all() == (first == 0)
    write_image(path, np.full((48, 64), 13, np.uint8))
    with pytest.raises(
        DataError, match=r"label_00045\.png .*Expected 0 to 12 .*Correct num_classes \(13 or 40\) or first_id"
    ):
        open_tree(tmp_path, {**config, "num_classes": 13, "first_id": 0}, segmentation=CLASSES_13).read_annotations(0)


@pytest.mark.parametrize("name", ["rgb_00045.png", "00045.png"])
def test_names_of_label_maps(name, tmp_path):
    config = nyuv2_tree(tmp_path, 1)
    path = tmp_path / "nyu_labels/kitchen_0028b/label_00045.png"
    path.rename(path.with_name(name))
    assert "segmentation" in open_tree(tmp_path, config).read_annotations(0)
    path.with_name(name).rename(path.with_name("45.png"))
    with pytest.raises(DataError, match=r"None of the 1 images .* Expected <scene>/rgb_00045\.png"):
        open_tree(tmp_path, config)


def test_what_is_not_there_is_counted_or_refused(tmp_path):
    config = nyuv2_tree(tmp_path)
    (tmp_path / "nyu/kitchen_0028b/rgb_00045.jpg").unlink()
    (tmp_path / "nyu/bedroom_0004/sync_depth_00046.png").unlink()
    source = open_tree(tmp_path, config)
    assert len(source) == 2
    assert source.problems == {
        "images without a depth map": 1, "depth maps without an image": 1, "images without a segmentation mask": 1
    }  # fmt: skip
    with pytest.raises(DataError, match=r"labels nothing that the recipe trains: 1 images, 0 depth maps"):
        open_tree(tmp_path, {**config, "labels": None, "root": "nyu/bedroom_0004"})
    camera = {"fx": 0, "fy": 1, "cx": 1, "cy": 1}
    for change in ({"scale": 0}, {"scale": float("inf")}, {"num_classes": 14}, {"first_id": 2}, {"camera": camera}):
        with pytest.raises(ConfigError):
            validate_config(Nyuv2Config, {**config, **change})


@pytest.mark.fault("D16")
def test_and_D6_depth_maps_that_are_none(tmp_path):
    config = nyuv2_tree(tmp_path, 2)
    write_image(tmp_path / "nyu/kitchen_0028b/sync_depth_00045.png", np.zeros((48, 64), np.uint8))
    write_image(tmp_path / "nyu/bedroom_0004/sync_depth_00046.png", np.ones((60, 64), np.uint16))
    source = open_tree(tmp_path, config)
    for index, words in ((0, "is for 64 x 60 pixels"), (1, "8 bits per pixel")):
        with pytest.raises(DataError, match=words):
            source.load_sample(index)


@pytest.mark.fault("D14")
def test_links_that_lead_out(tmp_path):
    root = tmp_path / "root"
    config = nyuv2_tree(root)
    path = root / "nyu/kitchen_0028b/sync_depth_00045.png"
    shutil.move(path, tmp_path / "secret.png")
    path.symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leads out of"):
        open_tree(root, config)
    write_text(root / "train.txt", LINE)
    with pytest.raises(DataError, match="leads out of"):
        open_tree(root, {**config, "image_list": "train.txt"})


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, Nyuv2Config]:
    root = tmp_path_factory.mktemp("nyu")
    return root, validate_config(Nyuv2Config, {**nyuv2_tree(root), "image_list": "train.txt", "max_missing": 1.0})


PATHS = "/kitchen_0028b/rgb_00045.jpg", "bedroom_0004/rgb_00046.jpg", "/kitchen_0028b/sync_depth_00045.png"
WORDS = st.sampled_from([*PATHS, "None", "518.8579", "1e999", "-0", "\n", "\n", "/", "..", ".", "ä" * 200,
                         "kitchen_0028b", "//", "\x1c"])  # fmt: skip


@ANY
@given(st.one_of(st.binary(max_size=100), st.lists(WORDS, max_size=12).map(lambda words: " ".join(words).encode())))
def test_any_bytes_are_a_list_or_an_error(tree, content):
    root, config = tree
    write_text(root / "train.txt", content)
    with contextlib.suppress(DataError):
        found = Nyuv2Reader(config, root, CLASSES)
        for index in range(len(found.images)):
            annotations = found.read_annotations(index, (48, 64))
            assert annotations, "an image that carries no label is none of the reader's"
            for task, annotation in annotations.items():
                check_annotation(annotation, (48, 64), CLASSES[task])
