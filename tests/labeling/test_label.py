"""`perception label`: what a network is sure of becomes labels that the readers read; what it is not stays without."""

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from labeling_networks import SPECS, ByColor, Slow, make
from torch_free import without_torch
from video_server import wait_until

from perception import cli, config
from perception.data import SourceConfig, open_source
from perception.files.safe_write import DiskFullError
from perception.labeling.consensus import find_consensus, mirror_annotation
from perception.labeling.jobs import label_in_parallel
from perception.labeling.label import label_images
from perception.types import Camera, DataError, DenseMap, ImageLabel, Instances, PerceptionError

CLASSES = {name: spec.classes for name, spec in SPECS.items()}
SKY, GROUND, THING = (40, 90, 240), (100, 100, 100), (230, 30, 30)
BOX = (30, 24, 54, 44)
HORIZON = 30


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
    """The samples of a source made of what was written, by its images' names."""
    root = pictures.parent
    label_images(network, pictures, root / "labels", root=root, quiet=True, **options)
    entries = yaml.safe_load((root / "labels" / "labels.yaml").read_text())
    source = open_source(config.validate_config(SourceConfig, {"name": "own", "labels": entries}), root, CLASSES)
    assert source is not None
    return {source.records[i].path.name: source.load_sample(i) for i in range(len(source))}


@pytest.mark.parametrize("name", ["a.png", "b.png"])
def test_what_all_views_say_is_read_back_by_the_readers(pictures, name):
    camera = Camera(80, 80, 50, 30)
    sample = labelled(ByColor(), pictures, camera=camera)[name]
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


def test_what_the_mirror_image_does_not_confirm_is_unlabeled(pictures):
    sample = labelled(ByColor(left_only=True), pictures)[
        "a.png"
    ]  # a part of the thing: right in one, left in the other
    map, boxes = sample.annotations["segmentation"], sample.annotations["detection"]
    assert not map.valid[BOX[1] + 2 : BOX[3] - 2, BOX[0] + 2 : 46].any()
    assert map.valid[:20].all()
    assert boxes.ignore.all()
    assert len(boxes.boxes)


def test_without_the_mirror_the_image_alone_counts(pictures):
    sample = labelled(ByColor(left_only=True), pictures, mirror=False)["a.png"]
    assert sample.annotations["segmentation"].valid[BOX[1] + 2 : BOX[3] - 2, BOX[0] + 2 : 46].all()


def test_it_is_seen_at_several_sizes(pictures, tmp_path):
    network = ByColor()
    label_images(network, pictures, tmp_path / "labels", quiet=True)
    assert {shape[2:] for shape in network.seen} == {(96, 160), (64, 128), (128, 192)}
    assert all(shape[0] == 2 for shape in network.seen)


def test_a_network_of_one_size_is_asked_at_that(pictures, tmp_path):
    class Fixed(ByColor):
        def letterbox_size(self, size=None):
            if size not in (None, self.size):
                raise PerceptionError("one size")
            return self.size

    network = Fixed()
    label_images(network, pictures, tmp_path / "labels", quiet=True)
    assert {shape[2:] for shape in network.seen} == {(96, 160)}


def test_stopped_halfway_what_is_written_is_whole(pictures):
    class Impatient(ByColor):
        def run(self, images):
            if len(self.seen) == 4:  # in the midst of the second image
                raise KeyboardInterrupt
            return super().run(images)

    root = pictures.parent
    done = label_images(Impatient(), pictures, root / "labels", root=root, quiet=True)
    assert done.stop_signal == signal.SIGINT
    assert done.num_images == 1
    entries = yaml.safe_load((root / "labels" / "labels.yaml").read_text())
    source = open_source(config.validate_config(SourceConfig, {"name": "own", "labels": entries}), root, CLASSES)
    assert source is not None
    assert {len(reader.images) for reader in source.readers} == {1}


def test_a_signal_ends_it_and_the_exit_code_says_which(pictures, tmp_path, monkeypatch):
    class Terminated(ByColor):
        def run(self, images):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().run(images)

    monkeypatch.setattr("perception.cli.inference._open_predictor", lambda parsed, threads: Terminated())
    assert cli.main(["label", "network.onnx", str(pictures), "--out", str(tmp_path / "labels")]) == 143


def test_two_images_that_would_share_a_map_are_refused(pictures, tmp_path):
    cv2.imwrite(str(pictures / "a.jpg"), scene())
    with pytest.raises(DataError, match="differ only in their extension"):
        label_images(ByColor(), pictures, tmp_path / "labels", quiet=True)
    assert not (tmp_path / "labels").exists()


def test_nothing_sure_makes_no_entry(pictures):
    class Unsure(ByColor):
        turn = 0

        def run(self, images):
            found = super().run(images)
            self.turn += 1
            found["segmentation.mask"] = np.full_like(found["segmentation.mask"], self.turn % 3)
            found["classification.probabilities"] = np.float32([[0.9, 0.1], [0.1, 0.9]])
            return found

    root = pictures.parent
    done = label_images(Unsure(), pictures, root / "labels", root=root, quiet=True)
    assert set(done.entries) == {"detection", "depth", "weather"}
    assert done.coverage["segmentation"] == "0.0% of the pixels"
    assert done.coverage["classification"] == "0 of 2 images"


def test_the_command_labels_with_an_exported_network_and_without_torch(exported, pictures):
    root, out = pictures.parent, pictures.parent / "labels"
    arguments = ["label", str(exported), str(pictures), "--out", str(out), "--root", str(root), "--threads", "1"]
    said = without_torch(f"from perception import cli; raise SystemExit(cli.main({arguments!r}))")
    assert "labels of 2 images" in said
    entries = yaml.safe_load((out / "labels.yaml").read_text())
    assert entries
    assert {entry["images"] for entry in entries} == {"pictures"}
    assert all(f"format: {entry['format']}" in said for entry in entries)


def test_what_cannot_be_read_is_told_and_passed_over(exported, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    assert cli.main(["label", str(exported), str(pictures), "--out", str(tmp_path / "labels"), "--threads", "1"]) == 1
    said = capsys.readouterr().out
    assert "labels of 2 images" in said
    assert "not labeled: broken.png: " in said


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_names_that_are_not_utf8_keep_no_other_image_from_being_labeled(exported, pictures, tmp_path, capsys, jobs):
    for name in (b"caf\xe9.png", b"f\xe9/c.png"):
        path = pictures / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((pictures / "a.png").read_bytes())
    out = ["--out", str(tmp_path / "labels"), "--jobs", jobs, "--threads", "1"]
    assert cli.main(["label", str(exported), str(pictures), *out]) == 1
    said = capsys.readouterr().out
    assert "labels of 2 images" in said
    assert r"not labeled: caf\udce9.png: its name is not UTF-8. Rename it" in said
    assert r"not labeled: f\udce9/c.png" in said


def test_paths_are_those_of_the_recipe_though_links_lead_elsewhere(pictures, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(pictures, target_is_directory=True)
    done = label_images(ByColor(), root / "linked", root / "labels", root=root, quiet=True)
    assert {entry["images"] for entry in done.entries.values()} == {"linked"}
    elsewhere = label_images(ByColor(), pictures, tmp_path / "labels", root=root, quiet=True)
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
    found = find_consensus([DenseMap(view, np.ones((4, 6), bool)) for view in views], SPECS["segmentation"])
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
    turned = mirror_annotation(annotation, 4)
    twice = mirror_annotation(turned, 4)
    for name in ("values", "valid", "boxes", "labels", "scores"):
        if hasattr(annotation, name):
            np.testing.assert_array_equal(getattr(twice, name), getattr(annotation, name))
    if isinstance(turned, Instances):
        assert turned.boxes.tolist() == [[2, 1, 4, 3], [0, 0, 3, 2]]


def test_an_object_that_only_another_view_has_is_no_background():
    box, none = np.float32([[10, 10, 30, 30]]), np.zeros((0, 4), np.float32)
    seen = Instances(box, np.array([0]), np.float32([0.8]))
    blind = Instances(none, np.zeros(0, np.int64), np.zeros(0, np.float32))
    found = find_consensus([blind, seen], SPECS["detection"])
    assert isinstance(found, Instances)
    assert found.boxes.tolist() == box.tolist()
    assert found.ignore.tolist() == [True]
    other = Instances(box, np.array([1]), np.float32([0.8]))  # the same place, another class
    assert find_consensus([seen, other], SPECS["detection"]).ignore.all()


def many(folder: Path, count: int = 12) -> Path:
    """Images of things in different places."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture = scene()
        cv2.circle(picture, (8 * number, 12), 9, THING, -1)
        cv2.imwrite(str(folder / f"{number:02}.png"), picture[:, :, ::-1])
    return folder


def files(out: Path) -> dict[str, bytes]:
    """All that is written, but for the records."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".records" not in path.parts
    }


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import labeling_networks
from perception.labeling.label import label_images
network, identity = labeling_networks.make({kind!r})
done = label_images(network, {images!r}, {out!r}, root={root!r}, quiet=True, resume=True, identity=identity)
print(*done.summary_lines(), sep="\\n")
raise SystemExit(1 if done.failures else 0)
"""


def start(kind: str, pictures: Path, out: Path) -> subprocess.Popen:
    values = {
        "tests": str(Path(__file__).parents[1] / "helpers"),
        "images": str(pictures),
        "out": str(out),
        "root": str(out.parent),
    }
    code = PROGRAM.format(kind=kind, **values)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def records_of(out: Path) -> int:
    """Files of records: one for each start that got to work."""
    return len(list((out / ".records").glob("*.jsonl")))


def test_killed_at_any_moment_it_ends_up_with_the_same_bytes(tmp_path):
    pictures = many(tmp_path / "pictures", 20)
    label_images(Slow(), pictures, tmp_path / "whole", root=tmp_path, quiet=True, identity="slow")
    choose, out = random.Random(5), tmp_path / "killed"
    for turn in range(6):
        process = start("slow", pictures, out)
        wait_until(lambda p=process, n=turn: records_of(out) > n or p.poll() is not None, 60)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=choose.uniform(0.0, 0.5))
        process.kill()
        with process:
            pass
    process = start("slow", pictures, out)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert records_of(out) >= 3  # it was killed at work, and went on
    renamed = {name: data.replace(b"killed/", b"whole/") for name, data in files(out).items()}
    assert renamed == files(tmp_path / "whole")
    assert not list(out.rglob(".partial-*"))


def test_an_image_that_kills_the_process_is_left_out_and_told(tmp_path):
    pictures = many(tmp_path / "pictures", 4)
    cv2.imwrite(str(pictures / "01a.png"), np.full((60, 100, 3), (0, 0, 9), np.uint8))  # a kill without a reason
    cv2.imwrite(str(pictures / "01b.png"), np.full((60, 100, 3), (9, 0, 0), np.uint8))  # a crash
    cv2.imwrite(str(pictures / "01c.png"), np.full((60, 100, 3), 255, np.uint8))  # an error
    codes = []
    for _ in range(6):
        process = start("deadly", pictures, tmp_path / "out")
        said = process.communicate(timeout=60)[0]
        codes.append(process.returncode)
        if process.returncode == 1:
            break
    assert codes[-1] == 1
    assert set(codes[:-1]) == {-signal.SIGKILL, -signal.SIGSEGV}
    assert len(codes) <= 5
    assert "01a.png: the process was killed 3 times" in said
    assert "01b.png: it crashed the process (Fatal Python error: Segmentation fault)" in said
    assert "01c.png: RuntimeError: too bright" in said
    images = json.loads((tmp_path / "out" / "detection.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["00.png", "01.png", "02.png", "03.png"]


def test_an_image_that_was_mended_is_labeled_by_the_next_start(pictures, tmp_path):
    sound = (pictures / "a.png").read_bytes()
    (pictures / "a.png").write_bytes(sound[:60])
    done = label_images(ByColor(), pictures, tmp_path / "out", quiet=True)
    assert [failure.split(":")[0] for failure in done.failures] == ["a.png"]
    (pictures / "a.png").write_bytes(sound)
    done = label_images(ByColor(), pictures, tmp_path / "out", quiet=True, resume=True)
    assert (done.num_images, done.failures) == (2, [])


def test_any_number_of_processes_writes_the_same_bytes(tmp_path):
    pictures = many(tmp_path / "pictures")
    label_images(ByColor(), pictures, tmp_path / "one", root=tmp_path / "one", quiet=True, identity="plain")
    network = functools.partial(make, "plain")
    label_in_parallel(network, 3, pictures, tmp_path / "jobs", root=tmp_path / "jobs", quiet=True)
    for number in (3, 1, 2):
        options = {"shard": (number, 3), "quiet": True, "identity": "plain"}
        done = label_images(ByColor(), pictures, tmp_path / "shards", root=tmp_path / "shards", **options)
        assert "--resume" in done.summary_lines()[0]
    merged = tmp_path / "shards"
    label_images(ByColor(), pictures, merged, root=merged, quiet=True, resume=True, identity="plain")
    written = {name: files(tmp_path / name) for name in ("one", "jobs", "shards")}
    assert len(written["one"]) == 2 * 12 + 5
    assert written["jobs"] == written["one"]
    assert written["shards"] == written["one"]


def test_an_image_that_kills_one_of_several_processes_is_left_out_at_once(tmp_path):
    pictures = many(tmp_path / "pictures", 5)
    cv2.imwrite(str(pictures / "02a.png"), np.full((60, 100, 3), (0, 0, 9), np.uint8))
    done = label_in_parallel(functools.partial(make, "deadly"), 2, pictures, tmp_path / "out", quiet=True)
    assert done.num_images == 5
    assert [failure.split(":")[0] for failure in done.failures] == ["02a.png"]


def test_labels_are_not_mixed_with_those_of_other_settings(pictures, tmp_path):
    out = tmp_path / "out"
    label_images(ByColor(), pictures, out, quiet=True)
    before = files(out)
    with pytest.raises(PerceptionError, match="mirror was true, is false"):
        label_images(ByColor(), pictures, out, quiet=True, resume=True, mirror=False)
    with pytest.raises(PerceptionError, match="network was"):
        label_images(ByColor(), pictures, out, quiet=True, resume=True, identity="other")
    with pytest.raises(PerceptionError, match="--resume"):
        label_images(ByColor(), pictures, out, quiet=True)
    assert files(out) == before


def test_a_full_disk_loses_no_labels(pictures, tmp_path, monkeypatch):
    network, out = ByColor(), tmp_path / "out"
    monkeypatch.setattr("perception.labeling.label.check_free_space", lambda _: full(network))
    with pytest.raises(DiskFullError, match="--resume"):
        label_images(network, pictures, out, quiet=True)
    assert len(json.loads((out / "detection.json").read_text())["images"]) == 1
    monkeypatch.undo()
    assert label_images(network, pictures, out, quiet=True, resume=True).num_images == 2


def full(network: ByColor) -> None:
    if network.seen:
        raise DiskFullError("disk full")


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "a/b", "..", "nul"])
def test_a_task_cannot_lead_out_of_the_folder(pictures, tmp_path, name):
    network = ByColor()
    network.specs = {name: dataclasses.replace(SPECS["segmentation"], name=name)}
    with pytest.raises(PerceptionError, match="cannot be the name of a file"):
        label_images(network, pictures, tmp_path / "deep" / "out", quiet=True)
    assert not list(tmp_path.rglob("*x*"))


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_of_jobs(pictures, tmp_path, number, code):
    program = f"""
import functools, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
import labeling_networks
from perception.labeling.jobs import label_in_parallel
if __name__ == "__main__":
    network = functools.partial(labeling_networks.make, "slow")
    done = label_in_parallel(network, 2, {str(pictures.parent)!r}, {str(tmp_path / "o")!r})
    raise SystemExit(128 + done.stop_signal)
"""
    many(pictures.parent / "more", 300)
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - one thread
    )
    assert wait_until(lambda: list((tmp_path / "o").rglob("*.png")) != [], 60)
    os.killpg(process.pid, number)  # as a terminal does
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert wait_until(lambda: not group_lives(process.pid))
    assert yaml.safe_load((tmp_path / "o" / "labels.yaml").read_text())
