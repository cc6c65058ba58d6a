"""KITTI's objects and depth: torchvision's reading of the labels, KITTI's formula for depth, faults in every text."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_trees import CLASSES as TASKS
from data_trees import check_annotation, noise_image, open_tree, write_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees_kitti import (
    DRIVE,
    P2,
    kitti_depth_tree,
    kitti_line,
    kitti_selection_tree,
    kitti_tree,
    sparse_depth_map,
    write_text,
)

from perception.config import validate_config
from perception.data import KittiConfig, KittiDepthConfig
from perception.data.formats.kitti import CLASSES, KittiReader, read_calibration, read_kitti_boxes, read_projection
from perception.data.formats.kitti_depth import read_frame_list, read_raw_calibration
from perception.types import Camera, ConfigError, DataError

ANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABEL, CALIB = "kitti/training/label_2/000000.txt", "kitti/training/calib/000000.txt"


def reader(root: Path, label: str | bytes | None = None, count: int = 3, **options):
    config = kitti_tree(root, count)
    if label is not None:
        write_text(root / LABEL, label)
    return open_tree(root, {**config, **options}).readers[0]


def test_boxes_regions_and_camera(tmp_path):
    found = reader(tmp_path)
    first, last = (found.read_annotations(i, (48, 64))["detection"] for i in (0, 2))
    assert first.boxes.tolist() == [[4, 5, 24, 20], [30, 10, 36, 40], [40, 10, 60, 30], [50, 30, 63, 47]]
    assert first.labels[:2].tolist() == [0, 1]
    assert first.ignore.tolist() == [False, False, True, True]  # the van, and the region of no class
    assert first.labeled_classes is None
    assert last.boxes.shape == (0, 4)
    assert found.camera(0) == Camera(72, 73, 31, 23)
    assert found.tasks == ("detection",)
    assert not found.problems


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_label_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import Kitti

    random = np.random.default_rng(0)
    config = kitti_tree(tmp_path, 4)
    expected = {}
    for i in range(4):
        names = random.choice([*CLASSES, "DontCare"], 7)
        starts = random.uniform(0, 30, (7, 2))
        boxes = np.concatenate([starts, starts + random.uniform(2, 17, (7, 2))], 1)
        lines = [kitti_line(*item) for item in zip(names, boxes, random.uniform(0, 1, 7), range(7), strict=True)]
        write_text(tmp_path / f"kitti/training/label_2/{i:06d}.txt", "".join(lines))
    (tmp_path / "Kitti").mkdir()
    (tmp_path / "Kitti/raw").symlink_to(tmp_path / "kitti")
    theirs = Kitti(str(tmp_path), train=True)
    order = {Path(path).stem: i for i, path in enumerate(theirs.images)}
    all_classes = {key: value for key, value in config.items() if key not in ("rename", "ignore", "background")}
    ours = open_tree(tmp_path, all_classes, detection=CLASSES).readers[0]
    for index, path in enumerate(ours.images):
        expected = theirs[order[path.stem]][1]
        found = ours.read_annotations(index)["detection"]
        assert np.allclose(found.boxes, [item["bbox"] for item in expected], atol=1e-5)
        region = np.array([item["type"] == "DontCare" for item in expected])
        assert np.array_equal(region, np.zeros(7, bool) if found.ignore is None else found.ignore)
        names = [item["type"] for item in expected if item["type"] != "DontCare"]
        assert [CLASSES[label] for label in found.labels[~region]] == names


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({}, []),
        ({"max_occluded": 0, "max_truncated": 0.15, "min_height": 40}, [1, 2, 3, 4]),  # easy
        ({"max_occluded": 1, "max_truncated": 0.3, "min_height": 25}, [2, 3, 4]),  # moderate
        ({"max_occluded": 2, "max_truncated": 0.5, "min_height": 25}, [4]),  # hard
    ],
)
def test_the_levels_of_the_benchmark(options, ignored, tmp_path):
    boxes = [(0, 0, 9, 41), (10, 0, 19, 30), (20, 0, 29, 30), (30, 0, 39, 41), (40, 0, 49, 20)]
    hidden = [(0.1, 0), (0.1, 1), (0.2, 2), (0.45, 0), (0, 0)]
    lines = [kitti_line("Car", box, *values) for box, values in zip(boxes, hidden, strict=True)]
    found = reader(tmp_path, "".join(lines), **options).read_annotations(0)["detection"]
    assert len(found.boxes) == 5
    assert ([] if found.ignore is None else np.flatnonzero(found.ignore).tolist()) == ignored


def test_a_list_of_images(tmp_path):
    write_text(tmp_path / "kitti/ImageSets/train.txt", "000002\n\n000000\n")
    found = reader(tmp_path, image_list="kitti/ImageSets/train.txt")
    assert [path.stem for path in found.images] == ["000002", "000000"]
    assert found.read_annotations(1)["detection"].boxes[0].tolist() == [4, 5, 24, 20]
    assert not found.problems
    for content, words in (
        ("000001\n000001\n", "line 2: 000001 is given twice"),
        ("000001\n000007\n000008\n000009\n", "3 of its 4 images are not under"),
        ("7\n8\n", "none of its 2 images"),
        ("", "none of its 0 images"),
        ("../../secret\n", r"line 1: file name '../../secret.png' is refused"),
        ("000001\n/etc/passwd\n", "line 2: file name"),
        ("a" * 300, "none of its 1 images"),
        (f"{'a' * 300}/b", "none of its 1 images"),
        (b"\xff\xfd", "not UTF-8"),
    ):
        write_text(tmp_path / "kitti/ImageSets/train.txt", content)
        with pytest.raises(DataError, match=words):
            reader(tmp_path, image_list="kitti/ImageSets/train.txt")
    write_text(tmp_path / "kitti/ImageSets/train.txt", "000001\n000007\n")
    assert reader(tmp_path, image_list="kitti/ImageSets/train.txt").problems == {"missing images": 1}


def test_own_classes_and_results(tmp_path):
    lines = kitti_line("person", (1, 2, 3, 4)) + kitti_line("dontcare", (5, 5, 9, 9))
    with pytest.raises(DataError, match=r"000000\.txt, line 1: class 'person' .* classes: \[...\]"):
        reader(tmp_path, lines)
    own = {"classes": ["person", "Car", "Pedestrian", "Van"], "rename": {"person": "pedestrian", "Car": "vehicle"}}
    found = reader(tmp_path, lines, **own, ignore="rest", background=[])
    assert found.read_annotations(0)["detection"].labels[0] == 1
    assert found.read_annotations(0)["detection"].ignore.tolist() == [False, True]
    scored = kitti_line("Car", (1, 2, 3, 4)).strip() + " 0.9\n"
    assert reader(tmp_path, scored).problems == {"boxes with a score: results, not labels": 1}


def test_images_without_labels_still_have_a_camera(tmp_path):
    config = kitti_tree(tmp_path)
    (tmp_path / "kitti/training/label_2/000001.txt").unlink()
    (tmp_path / "kitti/training/calib/000002.txt").unlink()
    write_text(tmp_path / "kitti/training/label_2/000009.txt", "")
    found = open_tree(tmp_path, config).readers[0]
    assert len(found.images) == 3
    assert found.read_annotations(1) == {}
    assert found.camera(1) == Camera(72, 73, 31, 23)
    assert found.camera(2) is None
    assert found.problems == {
        "images without a label file": 1, "images without a calibration": 1, "label files without an image": 1
    }  # fmt: skip
    shutil.rmtree(tmp_path / "kitti/training/label_2")
    with pytest.raises(DataError, match=r"No folder of KITTI labels at .*label_2"):
        open_tree(tmp_path, config)
    (tmp_path / "kitti/training/label_2").mkdir()
    with pytest.raises(DataError, match=r"none of the 3 images has a file in label_2. Expected label_2/000000\.txt"):
        open_tree(tmp_path, config)
    (tmp_path / "kitti/training").rename(tmp_path / "kitti/testing")
    shutil.rmtree(tmp_path / "kitti/testing/label_2")
    found = open_tree(tmp_path, {**config, "split": "testing"}).readers[0]
    assert found.tasks == ()
    assert found.read_annotations(0) == {}
    assert found.camera(0) == Camera(72, 73, 31, 23)
    shutil.rmtree(tmp_path / "kitti/testing/calib")
    assert open_tree(tmp_path, {**config, "split": "testing"}).camera(0) is None


@pytest.mark.parametrize(
    "change", [{"classes": ["a", "a"]}, {"classes": []}, {"min_height": -1}, {"min_height": float("nan")}]
)
def test_config_is_checked(change):
    with pytest.raises(ConfigError, match="kitti"):
        validate_config(KittiConfig, {"root": "a", **change})


GOOD = kitti_line("Car", (4, 5, 24, 20)).split()


def changed(column: int, value: str) -> str:
    return (
        kitti_line("Car", (1, 1, 5, 5)) + " ".join(value if i == column else word for i, word in enumerate(GOOD)) + "\n"
    )


@pytest.mark.fault("D13")
@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Car 0 0 0 1 2 3\n", "line 1: 7 columns. Expected 15: type truncated"),
        (" ".join([*GOOD, "1", "1"]), "line 1: 17 columns"),
        (changed(0, "car"), "line 2: class 'car' is not among Car, Cyclist"),
        (changed(0, "C" * 500), "line 2: class 'CCC"),
        (changed(4, "left"), "line 2: .* are not all numbers. Expected numbers after the class"),
        (changed(4, "1_0"), "line 2: .* are not all numbers"),
        (changed(14, "--1"), "line 2: .* are not all numbers"),
        ("\n\n" + changed(2, ""), "line 4: 14 columns"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
        (b"Car\0", "has a NUL at byte 3"),
        ("Car 0 0\r\n", "line 1: 3 columns"),
        ("Car " * 10**6, "line 1: 1000000 columns"),
        ("\n" * (17 << 20), "bytes. Expected a text file of at most"),
    ],
)
def test_labels_that_are_none(label, words, tmp_path):
    with pytest.raises(DataError, match=rf"000000\.txt.*{words}"):
        reader(tmp_path, label)


@pytest.mark.fault("D7")
@pytest.mark.parametrize(
    "box", [("nan", 1, 5, 5), (1, 1, "inf", 5), (9, 9, 5, 5), (5, 5, 5, 9), (1, 1, "1e99", 5), (1, 1, 1e9, 5)]
)
def test_boxes_that_are_none_are_skipped_and_counted(box, tmp_path):
    words = GOOD[:4] + [str(value) for value in box] + GOOD[8:]
    found = reader(tmp_path, kitti_line("Car", (1, 1, 5, 5)) + " ".join(words))
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[1, 1, 5, 5]]
    assert found.problems == {"invalid boxes skipped": 1}


@pytest.mark.fault("D8")
def test_boxes_are_clipped_and_those_outside_skipped(tmp_path):
    boxes = (-5, -6, 10, 10), (60, 40, 90, 90), (64, 1, 70, 5)
    found = reader(tmp_path, "".join(kitti_line("Car", box) for box in boxes))
    assert found.read_annotations(0)["detection"].boxes.tolist() == [[0, 0, 10, 10], [60, 40, 64, 48]]
    assert found.problems["boxes outside the image skipped"] == 1


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("", "has no entry P2"),
        ("P0: 1\nP1: 1\n", "has no entry P2. Found P0, P1"),
        (f"P0: 1\n{'9' * 5000}: 1\n", "has no entry P2. Found P0, 9+[.]{3}9+[.]$"),
        ("P2: 1 2 3", "is not a projection. Expected 12 numbers"),
        (f"P2: {P2} 1", "is not a projection"),
        (f"P2: {P2}".replace("7.2e+01", "0"), "is not a pinhole camera"),
        (f"P2: {P2}".replace("7.2e+01", "nan"), "is not a pinhole camera"),
        (f"P2: {P2}".replace("7.3e+01", "-7"), "is not a pinhole camera"),
        (f"P2: {P2}".replace("3.1e+01", "inf"), "is not a pinhole camera"),
        (f"P2: {P2}".replace("1.0e+00", "2"), "is not a projection"),
        (f"P2: {P2}".replace("7.3e+01", "x"), "are not all numbers"),
        (f"P2 {P2}", "line 1: .* is not an entry"),
        (": 1", "line 1: .* is not an entry"),
        (b"\xff\xd8\xff", "not UTF-8"),
    ],
)
def test_calibrations_that_are_none(calibration, words, tmp_path):
    config = kitti_tree(tmp_path)
    write_text(tmp_path / CALIB, calibration)
    with pytest.raises(DataError, match=rf"calib/000000\.txt.*{words}") as caught:
        open_tree(tmp_path, config)
    assert len(str(caught.value)) < 1000


@pytest.mark.fault("D14")
@pytest.mark.parametrize("file", [LABEL, CALIB])
def test_folders_pipes_and_links_for_files(file, tmp_path):
    root = tmp_path / "root"
    config = kitti_tree(root)
    secret = write_text(tmp_path / "secret.txt", "")
    (root / file).unlink()
    (root / file).symlink_to(secret)
    with pytest.raises(DataError, match="leads out of"):
        open_tree(root, config)
    (root / file).unlink()
    (root / file).mkdir()
    with pytest.raises(DataError, match=r"000000\.txt is not a regular file"):
        open_tree(root, config)
    (root / file).rmdir()
    os.mkfifo(root / file)
    with pytest.raises(DataError, match=r"000000\.txt is not a regular file"):
        open_tree(root, config)


@pytest.mark.fault("D1")
def test_a_damaged_image_is_the_images_error(tmp_path):
    from perception.files.images import ImageError

    config = kitti_tree(tmp_path)
    (tmp_path / "kitti/training/image_2/000000.png").write_bytes(b"<html>")
    source = open_tree(tmp_path, config)
    with pytest.raises(ImageError):
        source.load_sample(0)
    source.load_sample(1)
    write_image(tmp_path / "kitti/training/image_2/000001.png", noise_image(0, (48, 72)))
    with pytest.raises(DataError, match=r"000001\.png.*64 x 48"):
        source.load_sample(1)


WORDS = st.sampled_from([*CLASSES, "DontCare", "0", "1.5", "-1", "nan", "inf", "1e400", "-0", "", "\t", "\n", "ä",
                         "P2:", ":", "1_0", "0x1", "١", "\u2028", "\x1c"])  # fmt: skip
LINES = st.lists(WORDS, max_size=60).map(lambda words: " ".join(words).encode())
BOX_LINES = st.lists(
    st.tuples(st.sampled_from(CLASSES), *[st.floats().map(repr)] * 14).map(" ".join), max_size=4
).map(lambda lines: "\n".join(lines).encode())  # fmt: skip
BYTES = st.one_of(st.binary(max_size=200), LINES, BOX_LINES)


@ANY
@given(BYTES)
def test_any_bytes_are_labels_or_an_error(tmp_path, content):
    path = write_text(tmp_path / "x.txt", content)
    with contextlib.suppress(DataError):
        for box in read_kitti_boxes(path, frozenset(CLASSES)):
            assert len(box.corners) == 4


@ANY
@given(BYTES)
def test_any_bytes_are_a_calibration_or_an_error(tmp_path, content):
    path = write_text(tmp_path / "x.txt", content)
    for read in (
        read_calibration,
        lambda path: read_projection(path, "P2"),
        lambda path: read_raw_calibration(path, "02"),
    ):
        with contextlib.suppress(DataError):
            read(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("kitti")
    return root, validate_config(KittiConfig, kitti_tree(root, 2))


@settings(ANY, max_examples=30)
@given(BOX_LINES)
def test_any_boxes_are_targets_or_an_error(tree, content):
    root, config = tree
    write_text(root / LABEL, content)
    with contextlib.suppress(DataError):
        found = KittiReader(config, root, TASKS).read_annotations(0)["detection"]
        check_annotation(found, (48, 64), TASKS["detection"])


def depth_reader(root: Path, **options):
    return open_tree(root, {**kitti_depth_tree(root), **options}).readers[0]


@pytest.mark.fault("D16")
def test_depth_is_stored_divided_by_256(tmp_path):
    source = open_tree(tmp_path, kitti_depth_tree(tmp_path))
    assert len(source) == 4
    sample = source.load_sample(0)
    depth, stored = sample.annotations["depth"], sparse_depth_map(0)
    assert sample.id == f"source/kitti_raw/2011_09_26/{DRIVE}/image_02/data/0000000005.png"
    assert np.allclose(depth.values, stored.astype(float) / 256, rtol=1e-6)
    assert np.array_equal(depth.valid, stored > 0)
    assert sample.camera == Camera(72, 73, 31, 23)
    assert not source.problems
    left = depth_reader(tmp_path, cameras=["image_02"], max_depth=20)
    assert len(left.images) == 3
    assert left.read_annotations(0)["depth"].values.max() <= 20
    pickle.loads(pickle.dumps(left))


def test_raw_images_without_the_folder_of_their_date(tmp_path):
    config = kitti_depth_tree(tmp_path)
    raw = tmp_path / "kitti_raw"
    (raw / "2011_09_26" / DRIVE).rename(raw / DRIVE)
    for path in (raw / DRIVE / "image_02/data").iterdir():
        write_image(path.with_suffix(".jpg"), noise_image(0))
        path.unlink()
    source = open_tree(tmp_path, config)
    assert len(source) == 4
    assert source.camera(0) == Camera(72, 73, 31, 23)
    (raw / "2011_09_26/calib_cam_to_cam.txt").rename(raw / DRIVE / "calib_cam_to_cam.txt")
    assert open_tree(tmp_path, config).camera(0) == Camera(72, 73, 31, 23)
    (raw / DRIVE / "calib_cam_to_cam.txt").unlink()
    source = open_tree(tmp_path, config)
    assert source.camera(0) is None
    assert source.problems == {"images without a calibration": 4}


def test_the_selection(tmp_path):
    config = kitti_selection_tree(tmp_path)
    source = open_tree(tmp_path, config)
    assert len(source) == 3
    assert np.array_equal(source.load_sample(1).annotations["depth"].valid, sparse_depth_map(1) > 0)
    assert [source.camera(i) for i in range(3)] == [Camera(72, 73, 30 + i, 23) for i in range(3)]
    inner = {**config, "root": "depth_selection/val_selection_cropped", "cameras": ["image_02"]}
    assert len(open_tree(tmp_path, inner)) == 2
    at = tmp_path / "depth_selection/val_selection_cropped"
    next((at / "image").glob("*0000000005*")).unlink()
    next((at / "groundtruth_depth").glob("*0000000008*")).unlink()
    next((at / "intrinsics").glob("*0000000011*")).unlink()
    source = open_tree(tmp_path, config)
    assert len(source) == 1
    assert source.camera(0) is None
    assert source.problems == {
        "images without a depth map": 1, "depth maps without an image": 1, "images without intrinsics": 1
    }  # fmt: skip
    next((at / "groundtruth_depth").glob("*0000000011*")).unlink()
    with pytest.raises(DataError, match="None of the depth maps under"):
        open_tree(tmp_path, config)


def test_lists_of_images_as_they_are_handed_around(tmp_path):
    raw, depth = f"2011_09_26/{DRIVE}/image_02/data", f"{DRIVE}/proj_depth/groundtruth/image_02"
    bts = f"{raw}/0000000005.png {depth}/0000000005.png 721.5377\n{raw}/0000000099.png None 721.5377\n"
    for content, stems in ((bts, ["0000000005"]), (f"2011_09_26/{DRIVE} 5 r\n2011_09_26/{DRIVE} 7 l\n", ["07", "05"]),
                           (f"2011_09_26/{DRIVE} 6 2", ["06"])):  # fmt: skip
        write_text(tmp_path / "eigen.txt", content)
        found = depth_reader(tmp_path, image_list="eigen.txt")
        assert [path.stem[-2:] for path in found.images] == [stem[-2:] for stem in stems]
    write_text(tmp_path / "eigen.txt", bts)
    assert depth_reader(tmp_path, image_list="eigen.txt").problems == {"listed images without a depth map": 1}
    (tmp_path / "kitti_depth/val").mkdir()
    assert len(depth_reader(tmp_path, image_list="eigen.txt", split="train+val").images) == 1
    for content in ("", "a\n", f"2011_09_26/{DRIVE} x l", f"2011_09_26/{DRIVE} 5 q", b"\xff", f"{raw}/5.png", "\0"):
        write_text(tmp_path / "eigen.txt", content)
        with pytest.raises(DataError, match=r"eigen\.txt"):
            depth_reader(tmp_path, image_list="eigen.txt")


def test_what_is_not_there_is_counted_or_refused(tmp_path):
    config = kitti_depth_tree(tmp_path)
    data = tmp_path / "kitti_raw/2011_09_26" / DRIVE / "image_02/data"
    (data / "0000000005.png").unlink()
    assert open_tree(tmp_path, config).problems == {"depth maps without an image": 1}
    maps = tmp_path / "kitti_depth/train" / DRIVE / "proj_depth/groundtruth/image_02"
    (maps / "0000000006.png").unlink()
    assert open_tree(tmp_path, config).problems["images without a depth map"] == 1
    with pytest.raises(DataError, match=r"No folder of KITTI depth maps \(val\)"):
        open_tree(tmp_path, {**config, "split": "val"})
    (tmp_path / "kitti_depth/val").mkdir()
    with pytest.raises(DataError, match=r"No depth map under .* Expected <split>/2011"):
        open_tree(tmp_path, {**config, "split": "val"})
    shutil.rmtree(tmp_path / "kitti_raw/2011_09_26" / DRIVE)
    with pytest.raises(DataError, match=r"None of the depth maps under .* has its image"):
        open_tree(tmp_path, config)
    for change in ({"raw_images": None}, {"split": "selection", "image_list": "a"}, {"cameras": []}):
        with pytest.raises(ConfigError, match="kitti_depth"):
            validate_config(KittiDepthConfig, {**config, **change})


@pytest.mark.fault("D16")
def test_depth_maps_that_are_none(tmp_path):
    config = kitti_depth_tree(tmp_path)
    at = tmp_path / "kitti_depth/train" / DRIVE / "proj_depth/groundtruth/image_02"
    write_image(at / "0000000005.png", np.zeros((48, 64), np.uint8))
    write_image(at / "0000000006.png", sparse_depth_map(0, size=(48, 60)))
    source = open_tree(tmp_path, config)
    for index, words in ((0, "8 bits per pixel"), (1, "is for 60 x 48 pixels")):
        with pytest.raises(DataError, match=words):
            source.load_sample(index)
    path = tmp_path / "kitti_raw/2011_09_26/calib_cam_to_cam.txt"
    whole = path.read_text()
    write_text(path, whole.replace("6.4e+01 4.8e+01", "1.242e+03 3.75e+02"))
    with pytest.raises(DataError, match="calibrated for 1242 x 375"):
        open_tree(tmp_path, config).load_sample(2)
    for old, new in (
        ("S_rect_02: 6.4e+01", "S_rect_02: x"),
        ("S_rect_02: 6.4e+01", "S_rect_02: nan"),
        ("P_rect_02", "Q"),
    ):
        write_text(path, whole.replace(old, new))
        with pytest.raises(DataError, match=r"calib_cam_to_cam\.txt"):
            open_tree(tmp_path, config)
    write_text(path, whole.replace("S_rect_02", "T"))
    open_tree(tmp_path, config).load_sample(2)


@pytest.mark.fault("D14")
def test_a_drive_that_links_out(tmp_path):
    config = kitti_depth_tree(tmp_path / "root")
    drive = tmp_path / "root/kitti_raw/2011_09_26" / DRIVE
    drive.rename(tmp_path / "elsewhere")
    drive.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        open_tree(tmp_path / "root", config)


FRAME_WORDS = st.sampled_from([f"2011_09_26/{DRIVE}", "5", "l", "r", "\n", f"{DRIVE}/image_02/data/0000000005.png",
                               "None", "٣", "99999999999999999999", "/" * 50])  # fmt: skip


@ANY
@given(
    st.one_of(st.binary(max_size=200), st.lists(FRAME_WORDS, max_size=30).map(lambda words: " ".join(words).encode()))
)
def test_any_bytes_are_a_list_or_an_error(tmp_path, content):
    with contextlib.suppress(DataError):
        assert read_frame_list(write_text(tmp_path / "x.txt", content))
