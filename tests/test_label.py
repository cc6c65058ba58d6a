"""`perception label`: what a network is sure of becomes labels that the readers read; what it is not stays without."""

import os
import signal

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_runtime import without_torch

from perception import cli, config
from perception.data import SourceConfig, open_source
from perception.deploy.agreement import agreed, mirrored
from perception.deploy.label import label
from perception.types import Camera, DataError, DenseMap, ImageLabel, Instances, PerceptionError, TaskSpec

SPECS = {
    spec.name: spec
    for spec in (
        TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("thing", "other")),
        TaskSpec("segmentation", "dense", ("label_map",), ("ground", "sky", "thing")),
        TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0)),
        TaskSpec("classification", "label", ("probabilities",), ("day", "night")),
        TaskSpec("weather", "label", ("probabilities",), ("rain", "sun"), multi_label=True, threshold=0.5),
    )
}
CLASSES = {name: spec.classes for name, spec in SPECS.items()}
SKY, GROUND, THING = (40, 90, 240), (100, 100, 100), (230, 30, 30)
BOX = (30, 24, 54, 44)
HORIZON = 30


class ByColour:
    """A network that tells things by their colour, and so says the same of every view; but for what is told not to."""

    size = (96, 160)
    specs = SPECS

    def __init__(self, left_only: bool = False) -> None:
        self.left_only = left_only
        self.seen: list[tuple[int, ...]] = []

    def placed(self, size=None):
        return size or self.size

    def run(self, images):
        self.seen.append(images.shape)
        red, _, blue = images.astype(int).transpose(1, 0, 2, 3)
        things = (red > 170) & (blue < 90)
        if self.left_only:
            things[:, :, things.shape[2] // 2 :] = False
        labels = np.where(things, 2, np.where(blue > 170, 1, 0)).astype(np.uint8)
        boxes = np.zeros((len(images), 3, 4), np.float32)
        scores = np.zeros((len(images), 3), np.float32)
        for i, thing in enumerate(things):
            if thing.any():
                rows, columns = np.flatnonzero(thing.any(1)), np.flatnonzero(thing.any(0))
                boxes[i, 0] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                boxes[i, 1], scores[i, 1] = (0, 0, 12, 12), 0.15  # something, faintly, in the corner
                scores[i, 0] = 0.9
        return {
            "detection.boxes": boxes,
            "detection.scores": scores,
            "detection.labels": np.zeros((len(images), 3), np.int64),
            "segmentation.label_map": labels,
            "depth.depth": np.where(labels == 1, 70, 5).astype(np.float32),
            "classification.probabilities": np.tile(np.float32([0.8, 0.2]), (len(images), 1)),
            "weather.probabilities": np.array([[0.9, 0.9 if t.any() else 0.1] for t in things], np.float32),
        }


def scene() -> np.ndarray:
    picture = np.full((60, 100, 3), GROUND, np.uint8)
    picture[:HORIZON] = SKY
    picture[BOX[1] : BOX[3], BOX[0] : BOX[2]] = THING
    return picture


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "data" / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name in ("a.png", "deeper/b.png"):
        cv2.imwrite(str(folder / name), scene()[:, :, ::-1])
    return folder


def labelled(network, pictures, **options):
    """The samples of a source made of what was written, by its pictures' names."""
    root = pictures.parent
    label(network, pictures, root / "labels", root=root, quiet=True, **options)
    entries = yaml.safe_load((root / "labels" / "labels.yaml").read_text())
    source = open_source(config.build(SourceConfig, {"name": "own", "labels": entries}), root, CLASSES)
    assert source is not None
    return {source.pictures[i].path.name: source.sample(i) for i in range(len(source))}


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_what_all_views_say_is_read_back_by_the_readers(pictures, name):
    camera = Camera(80, 80, 50, 30)
    sample = labelled(ByColour(), pictures, camera=camera)[name]
    assert sample.camera == camera
    truth = np.zeros((60, 100), np.uint8)
    truth[:HORIZON] = 1
    truth[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 2
    map = sample.annotations["segmentation"]
    assert (map.values[map.valid] == truth[map.valid]).all()
    flat = cv2.dilate(truth, np.ones((5, 5))) == cv2.erode(truth, np.ones((5, 5)))
    assert map.valid[flat].all()  # unsure only at borders
    depth = sample.annotations["depth"]
    np.testing.assert_allclose(depth.values[depth.valid & flat], np.where(truth == 1, 70, 5)[depth.valid & flat], 0.01)
    assert depth.valid[flat & (truth != 2)].all()
    boxes = sample.annotations["detection"]
    np.testing.assert_allclose(boxes.boxes[~boxes.ignore], [BOX], atol=1)
    assert boxes.labels[~boxes.ignore].tolist() == [0]
    assert boxes.ignore.any()  # what is faint is neither object nor background
    assert sample.annotations["classification"].values.tolist() == [1, 0]
    assert sample.annotations["weather"].values.tolist() == [1, 1]


def test_what_the_mirror_image_does_not_confirm_is_unlabelled(pictures):
    sample = labelled(ByColour(left_only=True), pictures)[
        "a.png"
    ]  # a part of the thing: right in one, left in the other
    map, boxes = sample.annotations["segmentation"], sample.annotations["detection"]
    assert not map.valid[BOX[1] + 2 : BOX[3] - 2, BOX[0] + 2 : 46].any()
    assert map.valid[:20].all()
    assert boxes.ignore.all()
    assert len(boxes.boxes)


def test_without_the_mirror_the_picture_alone_counts(pictures):
    sample = labelled(ByColour(left_only=True), pictures, mirror=False)["a.png"]
    assert sample.annotations["segmentation"].valid[BOX[1] + 2 : BOX[3] - 2, BOX[0] + 2 : 46].all()


def test_it_is_seen_at_several_sizes(pictures, tmp_path):
    network = ByColour()
    label(network, pictures, tmp_path / "labels", quiet=True)
    assert {shape[2:] for shape in network.seen} == {(96, 160), (64, 128), (128, 192)}
    assert all(shape[0] == 2 for shape in network.seen)


def test_a_network_of_one_size_is_asked_at_that(pictures, tmp_path):
    class Fixed(ByColour):
        def placed(self, size=None):
            if size not in (None, self.size):
                raise PerceptionError("one size")
            return self.size

    network = Fixed()
    label(network, pictures, tmp_path / "labels", quiet=True)
    assert {shape[2:] for shape in network.seen} == {(96, 160)}


def test_stopped_halfway_what_is_written_is_whole(pictures):
    class Impatient(ByColour):
        def run(self, images):
            if len(self.seen) == 4:  # in the midst of the second picture
                raise KeyboardInterrupt
            return super().run(images)

    root = pictures.parent
    done = label(Impatient(), pictures, root / "labels", root=root, quiet=True)
    assert done.interrupted == signal.SIGINT
    assert done.pictures == 1
    entries = yaml.safe_load((root / "labels" / "labels.yaml").read_text())
    source = open_source(config.build(SourceConfig, {"name": "own", "labels": entries}), root, CLASSES)
    assert source is not None
    assert {len(reader.images) for reader in source.readers} == {1}


def test_a_signal_ends_it_and_the_exit_code_says_which(pictures, tmp_path, monkeypatch):
    class Terminated(ByColour):
        def run(self, images):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().run(images)

    monkeypatch.setattr("perception.cli.deployment._perceiver", lambda parsed, threads: Terminated())
    assert cli.main(["label", "network.onnx", str(pictures), "--out", str(tmp_path / "labels")]) == 143


def test_two_pictures_that_would_share_a_map_are_refused(pictures, tmp_path):
    cv2.imwrite(str(pictures / "a.jpg"), scene())
    with pytest.raises(DataError, match="differ only in their extension"):
        label(ByColour(), pictures, tmp_path / "labels", quiet=True)
    assert not (tmp_path / "labels").exists()


def test_nothing_sure_makes_no_entry(pictures):
    class Unsure(ByColour):
        turn = 0

        def run(self, images):
            found = super().run(images)
            self.turn += 1
            found["segmentation.label_map"] = np.full_like(found["segmentation.label_map"], self.turn % 3)
            found["classification.probabilities"] = np.float32([[0.9, 0.1], [0.1, 0.9]])
            return found

    root = pictures.parent
    done = label(Unsure(), pictures, root / "labels", root=root, quiet=True)
    assert set(done.entries) == {"detection", "depth", "weather"}
    assert done.kept["segmentation"] == "0.0% of the pixels"
    assert done.kept["classification"] == "0 of 2 pictures"


def test_the_command_labels_with_an_exported_network_and_without_torch(exported, pictures):
    root, out = pictures.parent, pictures.parent / "labels"
    arguments = ["label", str(exported), str(pictures), "--out", str(out), "--root", str(root), "--threads", "1"]
    said = without_torch(f"from perception import cli; raise SystemExit(cli.main({arguments!r}))")
    assert "labels of 2 pictures" in said
    entries = yaml.safe_load((out / "labels.yaml").read_text())
    assert entries
    assert {entry["images"] for entry in entries} == {"pictures"}
    assert all(f"format: {entry['format']}" in said for entry in entries)


def test_what_cannot_be_read_is_told_and_passed_over(exported, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    assert cli.main(["label", str(exported), str(pictures), "--out", str(tmp_path / "labels"), "--threads", "1"]) == 1
    said = capsys.readouterr().out
    assert "labels of 2 pictures" in said
    assert "not labelled: broken.png: " in said


def test_paths_are_those_of_the_recipe_though_links_lead_elsewhere(pictures, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(pictures, target_is_directory=True)
    done = label(ByColour(), root / "linked", root / "labels", root=root, quiet=True)
    assert {entry["images"] for entry in done.entries.values()} == {"linked"}
    elsewhere = label(ByColour(), pictures, tmp_path / "labels", root=root, quiet=True)
    assert {entry["images"] for entry in elsewhere.entries.values()} == {str(pictures)}


def test_a_folder_that_holds_something_is_left_alone(exported, pictures, tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert cli.main(["label", str(exported), str(pictures), "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "x"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_agreed_pixels_are_those_of_equal_ids(flips, seed):
    random = np.random.default_rng(seed)
    first = random.integers(0, 3, (4, 6)).astype(np.uint8)
    views = [first] + [np.where(random.random((4, 6)) < 0.2, k, first).astype(np.uint8) for k in flips]
    found = agreed([DenseMap(view, np.ones((4, 6), bool)) for view in views], SPECS["segmentation"])
    same = np.all([view == first for view in views], axis=0)
    if found is None:
        assert not same.any()
    else:
        assert (found.valid == same).all()
        assert (found.values == np.where(same, first, 255)).all()


@pytest.mark.parametrize(
    "annotation",
    [
        DenseMap(np.arange(12).reshape(3, 4).astype(np.uint8), np.arange(12).reshape(3, 4) % 2 == 0),
        Instances(np.float32([[0, 1, 2, 3], [1, 0, 4, 2]]), np.array([0, 1]), np.float32([0.5, 0.9])),
        ImageLabel(np.float32([0.2, 0.8])),
    ],
    ids=lambda annotation: type(annotation).__name__,
)
def test_mirrored_twice_is_as_it_was(annotation):
    turned = mirrored(annotation, 4)
    twice = mirrored(turned, 4)
    for name in ("values", "valid", "boxes", "labels", "scores"):
        if hasattr(annotation, name):
            np.testing.assert_array_equal(getattr(twice, name), getattr(annotation, name))
    if isinstance(turned, Instances):
        assert turned.boxes.tolist() == [[2, 1, 4, 3], [0, 0, 3, 2]]


def test_an_object_that_only_another_view_has_is_no_background():
    box, none = np.float32([[10, 10, 30, 30]]), np.zeros((0, 4), np.float32)
    seen = Instances(box, np.array([0]), np.float32([0.8]))
    blind = Instances(none, np.zeros(0, np.int64), np.zeros(0, np.float32))
    found = agreed([blind, seen], SPECS["detection"])
    assert isinstance(found, Instances)
    assert found.boxes.tolist() == box.tolist()
    assert found.ignore.tolist() == [True]
    other = Instances(box, np.array([1]), np.float32([0.8]))  # the same place, another class
    assert agreed([seen, other], SPECS["detection"]).ignore.all()
