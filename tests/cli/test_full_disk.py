"""Disks that are full, folders that cannot be written: a sentence, an exit code, and all that was written is whole."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import full_disks
import numpy as np
import pytest
from prediction_files import read_records, write_noise_video

from perception.files import safe_write
from perception.files.safe_write import DiskFullError, append_line, check_free_space, write_atomic
from perception.robots.bags import BagWriter
from perception.robots.messages import MessageHeader, make_image
from perception.types import PerceptionError


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_noise_video(tmp_path_factory.mktemp("film") / "drive.mp4", 200, 25)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 4 MB of its own."""
    with full_disks.small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def closed(tmp_path) -> Iterator[Path]:
    (tmp_path / "closed").mkdir()
    with full_disks.read_only_folder(tmp_path / "closed") as folder:
        yield folder


def run(*command: object, limit: int | None = None) -> subprocess.CompletedProcess:
    """limit: bytes that any file may have, as ``ulimit -f`` sets it"""
    return subprocess.run(
        [sys.executable, "-m", "perception.cli", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )


def frames_of(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = sum(iter(lambda: video.read()[0], False))
    video.release()
    return count


def said_once(done: subprocess.CompletedProcess, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count(words[0]) == 1, done.stderr


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(40):
        cv2.imwrite(str(folder / f"{number:02}.png"), generator.integers(0, 256, (300, 400, 3), np.uint8))
    return folder


def test_a_full_disk_ends_a_video_with_what_was_written_whole(exported, film, disk):
    out = disk / "o"
    done = run("predict", exported, film, "--out", out, "--threads", 1, "--maps")
    said_once(done, 1, "its disk is full")
    lines = read_records(out)
    assert 5 < len(lines) < 200
    assert frames_of(out / "drive.mp4") == len(lines)
    assert json.loads((out / "summary.json").read_text())["frames"] == len(lines)
    for line in lines:
        assert cv2.imread(str(out / line["segmentation"]["file"]), -1) is not None


def test_a_full_disk_ends_images_with_what_was_written_whole(exported, pictures, disk):
    out = disk / "o"
    done = run("predict", exported, pictures, "--out", out, "--threads", 1)
    said_once(done, 1, "its disk is full")
    written = sorted(out.glob("*.jpg"))
    assert 5 < len(written) < 40
    assert len(read_records(out)) == len(written)
    assert all(cv2.imread(str(path)) is not None for path in written)


def test_a_full_disk_ends_labeling_and_more_room_lets_it_go_on(exported, pictures, disk):
    out = disk / "labels"
    (disk / "balloon").write_bytes(bytes(2_700_000))
    options = ("label", exported, pictures, "--out", out, "--threads", 1, "--no-mirror")
    said_once(run(*options), 1, "its disk is full", "--resume")
    entries = json.loads((out / "detection.json").read_text())["images"]
    assert 0 < len(entries) < 40
    (disk / "balloon").unlink()
    subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
    done = run(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((out / "detection.json").read_text())["images"]) == 40


def bag(path: Path, count: int) -> Path:
    generator = np.random.default_rng(0)
    with BagWriter(path) as writer:
        for number in range(count):
            at = MessageHeader((number + 1) * 40_000_000, "camera")
            message = make_image(generator.integers(0, 256, (96, 160, 3), np.uint8), "rgb8", at)
            writer.write("/camera/image_raw", message, at.nanoseconds)
    return path


def test_a_full_disk_ends_a_bag_that_can_be_read(exported, tmp_path, disk):
    from rosbags.highlevel import AnyReader

    source = bag(tmp_path / "drive", 200)
    said_once(run("predict", exported, source, "--out", disk / "o", "--threads", 1), 1, "its disk is full")
    with AnyReader([disk / "o" / "drive"]) as reader:
        count = sum(1 for _ in reader.messages())
    assert count > 20


@pytest.mark.parametrize("save", ["jsonl", "mp4"])
def test_a_limit_on_the_size_of_files_leaves_what_was_written_whole(exported, film, tmp_path, save):
    out = tmp_path / "o"
    options = ["--threads", 1, "--save", save, "--tasks", "segmentation" if save == "mp4" else "detection"]
    done = run("predict", exported, film, "--out", out, *options, limit=500_000)
    said_once(done, 1, "File too large" if save == "jsonl" else "is incomplete")
    count = len(read_records(out)) if save == "jsonl" else frames_of(out / "drive.mp4")
    assert 5 < count < 200
    assert json.loads((out / "summary.json").read_text())["frames"] >= count


@pytest.mark.parametrize("command", ["predict", "label", "ood fit"])
def test_a_folder_that_cannot_be_written_is_a_sentence_and_code_2(exported, film, pictures, closed, command):
    source = film if command == "ood fit" else pictures
    done = run(*command.split(), exported, source, "--out", closed / "o", "--threads", 1)
    said_once(done, 2, "cannot be written", str(closed))


def test_an_output_that_is_a_file_or_below_one_is_told(exported, pictures, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for command in ("predict", "label"):
            done = run(command, exported, pictures, "--out", out)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr
            assert str(out) in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x"
    write_atomic(path, b"before")

    def torn(self, data):
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(DiskFullError, match=f"{path} cannot be written: No space left"):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_a_line_is_whole_or_not_there(tmp_path):
    path = tmp_path / "lines"

    class Torn:
        def __init__(self, file):
            self._file, self.room = file, 5

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            count = self._file.write(bytes(data)[: self.room])
            self.room -= count
            return count

    with path.open("ab", buffering=0) as file:
        append_line(file, path, "one")
        with pytest.raises(DiskFullError):
            append_line(Torn(file), path, "another")
        append_line(file, path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_room_is_kept_to_close_what_is_open(tmp_path, monkeypatch):
    check_free_space(tmp_path)
    monkeypatch.setattr(safe_write.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DiskFullError, match="1 bytes are left"):
        check_free_space(tmp_path)
    monkeypatch.undo()
    with pytest.raises(PerceptionError, match="missing"):
        check_free_space(tmp_path / "missing")


def test_a_video_plays_up_to_where_its_writer_was_killed(tmp_path):
    code = """
import os, sys
import numpy as np
from pathlib import Path
from perception.video.mp4_writer import Mp4Writer
video = Mp4Writer(Path(sys.argv[1]), 25, (480, 640))
for number in range(100):
    video.write(np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8), number / 25)
os.kill(os.getpid(), 9)
"""
    path = tmp_path / "killed.mp4"
    subprocess.run([sys.executable, "-c", code, path], check=False, timeout=60)
    assert frames_of(path) > 50
