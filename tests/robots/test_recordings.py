"""Recordings of every kind: read the same, carried over as ROS 2, and never lost in silence."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
from bag_files import (
    CAMERA,
    CAMERA_INFO,
    IMAGE,
    NUM_IMAGES,
    SIZE,
    START,
    compressed_image,
    make_stamp,
    noise_image,
    recorded_messages,
    write_folder,
    write_mcap,
    write_ros1,
    write_ros2,
    write_wal,
    write_zstd,
)
from fake_predictor import FakePredictor
from rosbags.highlevel import AnyReader

from perception import cli
from perception.robots.bags import BagReader, is_bag
from perception.robots.definitions import make_typestore
from perception.robots.messages import MessageHeader, make_image
from perception.types import PerceptionError
from perception.video.replay import replay
from perception.video.run import PredictOptions

METADATA = "rosbag2_bagfile_information:\n  version: 9\n  storage_identifier: ''\n  relative_file_paths: [{}]\n"
HALVES = (
    lambda p: write_mcap(p, recorded_messages()[:NUM_IMAGES]),
    lambda p: write_mcap(p, recorded_messages()[NUM_IMAGES:]),
)

WRITERS: dict[str, Callable[[Path], Path]] = {
    "ROS 1": lambda p: write_ros1(p / "drive.bag"),
    "ROS 1, bz2": lambda p: write_ros1(p / "drive.bag", kind="bz2", size=20_000),
    "ROS 1, lz4": lambda p: write_ros1(p / "drive.BAG", kind="lz4"),
    "SQLite": lambda p: write_ros2(p / "drive", plugin="sqlite3"),
    "SQLite, messages compressed": lambda p: write_ros2(p / "drive", plugin="sqlite3", packed="message"),
    "SQLite, file compressed": lambda p: write_ros2(p / "drive", plugin="sqlite3", packed="file"),
    "SQLite, one file": lambda p: next(write_ros2(p / "b", plugin="sqlite3").glob("*.db3")).rename(p / "50%? #1.db3"),
    "SQLite, write-ahead log": lambda p: write_wal(p / "drive"),
    "MCAP": lambda p: write_ros2(p / "drive"),
    "MCAP, one file": lambda p: write_mcap(p / "drive.mcap", chunk_size=20_000),
    "MCAP, lz4": lambda p: write_mcap(p / "drive.mcap", compression="lz4"),
    "MCAP, zstd": lambda p: write_mcap(p / "drive.mcap", compression="zstd"),
    "MCAP, file compressed": lambda p: write_zstd(p / "drive.mcap.zstd", write_mcap(p / "drive.mcap")),
    "MCAP, no chunks": lambda p: write_mcap(p / "drive.mcap", use_chunking=False),
    "MCAP, no message index": lambda p: write_mcap(p / "drive.mcap", without=("MESSAGE",)),
    "MCAP, no chunk index": lambda p: write_mcap(p / "drive.mcap", without=("CHUNK",)),
    "MCAP, no statistics": lambda p: write_mcap(p / "drive.mcap", use_statistics=False),
    "MCAP, no channels in its summary": lambda p: write_mcap(p / "drive.mcap", repeat_channels=False),
    "MCAP of ROS 1": lambda p: write_mcap(p / "drive.mcap", encoding="ros1"),
    "MCAP, protobuf": lambda p: write_mcap(p / "drive.mcap", encoding="protobuf"),
    "MCAP, JSON": lambda p: write_mcap(p / "drive.mcap", encoding="json"),
    "MCAP, foxglove_msgs": lambda p: write_mcap(p / "drive.mcap", encoding="cdr of foxglove_msgs"),
    "split": lambda p: write_folder(p / "d", *HALVES, metadata=METADATA.format("d/drive_0.mcap, drive_1.mcap")),
    "split, no metadata": lambda p: write_folder(p / "drive", *HALVES),
    "split, of other names": lambda p: write_folder(p / "drive", *HALVES, metadata=METADATA.format("old_0.mcap")),
    "no metadata": lambda p: write_folder(p / "drive", write_mcap),
    "damaged metadata": lambda p: write_folder(p / "drive", write_mcap, metadata="rosbag2_bagfile_information: ]["),
    "with another suffix": lambda p: write_mcap(p / "drive.db3"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_recording_gives_the_same_images_and_a_bag_that_others_read(kind, tmp_path):
    path = WRITERS[kind](tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert is_bag(path)
    with BagReader(path) as bag:
        assert (bag.topics, len(bag)) == ([IMAGE], NUM_IMAGES)
        frames = list(bag.read_frames())
        assert [text for text in bag.damage() if "old_0.mcap" not in text] == []
    assert [(f.header, f.log_time, f.camera) for f in frames] == [
        (make_stamp(n), make_stamp(n).nanoseconds + 3_000_000, CAMERA) for n in range(NUM_IMAGES)
    ]
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, noise_image(n))
    assert replay(FakePredictor(), path, tmp_path / "out").frames == NUM_IMAGES
    assert {p: p.read_bytes() for p in before} == before, "nobody's file is changed"
    counts: dict[str, int] = {}
    with AnyReader([tmp_path / "out"], default_typestore=make_typestore()) as reader:
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            n = counts[connection.topic] = counts.get(connection.topic, -1) + 1
            if connection.topic == IMAGE:
                np.testing.assert_array_equal(message.data, noise_image(n).ravel())
            assert message.header.frame_id == "front_optical"
    assert counts == dict.fromkeys((IMAGE, CAMERA_INFO, "/front/perception/detections"), NUM_IMAGES - 1)
    _check_by_mcap(next((tmp_path / "out").glob("*.mcap")))


def _check_by_mcap(path: Path) -> None:
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    with path.open("rb") as file:
        found = list(
            make_reader(file, decoder_factories=[DecoderFactory()]).iter_decoded_messages([IMAGE, CAMERA_INFO])
        )
    assert [m.height for *_, m in found] == [SIZE[0]] * 2 * NUM_IMAGES
    assert bytes(found[0][3].data) == noise_image(0).tobytes()


def seen(path: Path) -> tuple[list[int], list[str]]:
    """The numbers of the images that are read, and what is told of damage."""
    numbers = {noise_image(n).tobytes(): n for n in range(NUM_IMAGES)}
    with BagReader(path) as bag:
        found = [numbers[frame.image.tobytes()] for frame in bag.read_frames() if frame.image is not None]
        return found, list(bag.damage())


def kill_ros1(path: Path) -> Path:
    """As rosbag leaves it: no index at its end, its header not filled in; a chunk that is not whole."""
    data = bytearray(path.read_bytes())
    head = 13 + 4 + data[13:].index(b"index_pos=") - 4
    place = struct.unpack_from("<Q", data, head + 10)[0]
    data[head + 10 : head + 18] = bytes(8)
    out = path.with_name("drive.bag.active")
    out.write_bytes(data[:place])
    return out


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize(
    ("write", "least"),
    [
        (lambda p: kill_ros1(write_ros1(p / "drive.bag")), NUM_IMAGES),
        (lambda p: kill_ros1(write_ros1(p / "drive.bag", kind="lz4", size=30_000)), NUM_IMAGES),
        (lambda p: cut(kill_ros1(write_ros1(p / "drive.bag")), 0.7), 3),
        (lambda p: cut(write_ros1(p / "drive.bag"), 0.7), 3),
        (lambda p: cut(write_ros1(p / "drive.bag", size=10**6), 0.7), 3),
        (lambda p: cut(write_mcap(p / "drive.mcap"), 0.7), 3),
        (lambda p: cut(write_mcap(p / "drive.mcap", chunk_size=10**6), 0.7), 3),
        (lambda p: cut(write_mcap(p / "drive.mcap", compression="lz4"), 0.7), 3),
        (lambda p: cut(write_mcap(p / "drive.mcap", compression="zstd", chunk_size=20_000), 0.7), 3),
        (lambda p: cut(write_mcap(p / "drive.mcap", use_chunking=False), 0.7), 3),
    ],
)
def test_what_a_killed_recorder_left_is_read_up_to_its_end_and_told(write, least, tmp_path):
    path = write(tmp_path)
    assert is_bag(path)
    numbers, damage = seen(path)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= least
    assert damage
    assert str(path) in damage[0]


def spoil(path: Path, number: int, how: Callable[[bytes], bytes] = lambda data: bytes(len(data))) -> Path:
    """Change 16 bytes in the middle of an image."""
    data, part = path.read_bytes(), noise_image(number).tobytes()[4000:4016]
    assert data.count(part) == 1
    path.write_bytes(data.replace(part, how(part)))
    return path


def spoil_length(path: Path, number: int) -> Path:
    """The message says that its image is longer than it is."""
    data = path.read_bytes()
    at = data.index(noise_image(number).tobytes()[:100]) - 4
    path.write_bytes(data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :])
    return path


def spoil_file(path: Path, n: int = 0) -> Path:
    next(path.glob(f"*_{n}.*")).write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: spoil(write_mcap(p / "drive.mcap"), 2), "checksum"),
        (lambda p: spoil_length(write_mcap(p / "drive.mcap", enable_crcs=False), 2), "damaged"),
        (lambda p: spoil_length(write_ros1(p / "drive.bag"), 2), "damaged"),
        (lambda p: spoil_length(next(write_ros2(p / "drive", plugin="sqlite3").glob("*.db3")), 2), "damaged"),
    ],
)
def test_damage_in_the_middle_costs_what_is_damaged_and_is_counted(write, words, tmp_path):
    path = write(tmp_path)
    report = replay(FakePredictor(), path, tmp_path / "out")
    assert report.frames == NUM_IMAGES - 1
    assert words in str(report)
    assert "1 x " in str(report)
    assert seen(path)[0] == [0, 1, 3, 4, 5]


def test_a_file_of_a_split_bag_that_cannot_be_read_is_told_and_the_others_are_read(tmp_path):
    path = spoil_file(write_folder(tmp_path / "drive", *HALVES, metadata=METADATA.format("drive_0.mcap,drive_1.mcap")))
    numbers, damage = seen(path)
    assert numbers == [3, 4, 5]
    assert "drive_0.mcap" in damage[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"#ROSBAG V1.2\n" + bytes(99), "rosbag migrate"),
        (b"<html>", "begins with"),
        (b"SQLite format 3\0" + bytes(4096), "copy it again"),
    ],
)
def test_what_is_no_recording_is_told_with_the_mend(content, words, tmp_path):
    path = tmp_path / "drive.bag"
    path.write_bytes(content)
    with pytest.raises(PerceptionError, match=rf"(?i)drive\.bag.*{words}"):
        BagReader(path)


def test_a_folder_without_recordings_is_none_and_one_whose_files_are_missing_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "metadata.yaml").write_text("name: x")
    assert not is_bag(tmp_path)
    (tmp_path / "metadata.yaml").write_text(METADATA.format("drive_0.mcap"))
    assert is_bag(tmp_path)
    with pytest.raises(PerceptionError, match=r"not its files \(drive_0\.mcap\)"):
        BagReader(tmp_path)


def test_messages_come_in_the_order_of_recording_whatever_that_of_the_file(tmp_path):
    shuffled = [recorded_messages()[i] for i in (8, 2, 10, 0, 4, 6)]
    for path in (write_mcap(tmp_path / "a.mcap", shuffled), write_ros1(tmp_path / "a.bag", shuffled)):
        assert seen(path) == (list(range(NUM_IMAGES)), [])


def test_a_recording_is_not_loaded_whole(tmp_path):
    import tracemalloc

    many = [
        (IMAGE, make_image(np.full((400, 500, 3), n, np.uint8), "rgb8", make_stamp(n)), make_stamp(n).nanoseconds)
        for n in range(60)
    ]
    for path in (
        write_mcap(tmp_path / "a.mcap", many, chunk_size=1 << 20),
        write_mcap(tmp_path / "b.mcap", many, use_chunking=False),
        write_ros1(tmp_path / "a.bag", many),
        write_ros2(tmp_path / "c", many, plugin="sqlite3"),
    ):
        tracemalloc.start()
        with BagReader(path) as bag:
            assert sum(frame.image is not None for frame in bag.read_frames()) == 60
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12e6, f"{path}: {peak / 1e6:.0f} MB of {60 * 0.6:.0f}"


def test_a_chunk_that_says_it_is_huge_is_not_unpacked(tmp_path):
    path = write_mcap(tmp_path / "drive.mcap", compression="zstd", enable_crcs=False)
    data = path.read_bytes()
    place = data.index(b"zstd") - 4 - 4 - 8  # of the size in the head of the first chunk
    path.write_bytes(data[:place] + struct.pack("<Q", 50 << 30) + data[place + 8 :])
    numbers, damage = seen(path)
    assert numbers == [1, 2, 3, 4, 5]
    assert "GB decompressed" in damage[0]


def test_each_topic_has_its_own_limit_and_empty_topics_are_told(tmp_path):
    late = [
        ("/rear/image", make_image(noise_image(n), "rgb8", make_stamp(n)), make_stamp(n).nanoseconds + 10**9)
        for n in range(4)
    ]
    path = write_ros2(tmp_path / "in", recorded_messages() + late)
    report = replay(FakePredictor(), path, tmp_path / "out", options=PredictOptions(max_frames=2))
    assert report.frames == 4
    with AnyReader([tmp_path / "out"], default_typestore=make_typestore()) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts["/front/perception/detections"] == counts["/rear/perception/detections"] == 2


def test_stamps_of_zero_are_replaced_by_the_time_of_recording_and_told(tmp_path):
    messages = [
        (IMAGE, make_image(noise_image(n), "rgb8", MessageHeader(0, "cam")), make_stamp(n).nanoseconds)
        for n in range(3)
    ]
    with BagReader(write_ros2(tmp_path / "in", messages)) as bag:
        frames = list(bag.read_frames())
    assert [frame.header for frame in frames] == [MessageHeader(make_stamp(n).nanoseconds, "cam") for n in range(3)]
    assert all("has no usable time" in frame.problem for frame in frames)


def test_a_recording_whose_images_change_their_size_and_whose_time_jumps_is_run(tmp_path):
    times = [0, 1, 2, 2, 1, 10**6, 10**6 + 1]
    sizes = [(48, 64), (48, 64), (24, 32), (24, 32), (48, 64), (64, 48), (48, 64)]
    messages = []
    for n, (seconds, size) in enumerate(zip(times, sizes, strict=True)):
        picture = np.random.default_rng(n).integers(0, 255, (*size, 3), np.uint8)
        when = make_stamp(0).nanoseconds + seconds * 10**9
        messages.append((IMAGE, make_image(picture, "rgb8", MessageHeader(when, "cam")), when))
    report = replay(
        FakePredictor(),
        write_ros2(tmp_path / "in", messages),
        tmp_path / "out",
        options=PredictOptions(smoothing_seconds=0.3),
    )
    assert (report.frames, report.problems) == (7, {})


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rich", "pydantic", "torch", "PIL", "matplotlib", "scipy", "google", "tqdm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from perception import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_recording_of_which_nothing_is_decoded_ends_with_1(tmp_path, exported, capsys):
    unreadable = make_image(noise_image(0), "nv99", make_stamp(0))
    for name, messages in {
        "encoding": [(IMAGE, unreadable, START)],
        "damaged": [(f"{IMAGE}/compressed", compressed_image(b"\xff\xd8\xff no image"), START)],
        "nothing": [(IMAGE, make_image(noise_image(0), "rgb8", make_stamp(0)), START)],
    }.items():
        bag = write_ros2(tmp_path / name, messages)
        if name == "nothing":
            base = write_ros2(tmp_path / "sqlite", messages, plugin="sqlite3")
            (bag := next(base.glob("*.db3"))).chmod(0o644)
            with closing(sqlite3.connect(bag)) as connection:
                connection.execute("DELETE FROM messages")
                connection.commit()
        out = tmp_path / f"out-{name}"
        assert cli.main(["predict", str(exported), str(bag), "--out", str(out), "--threads", "1"]) == 1
        said = capsys.readouterr().err
        assert "No image could be decoded" in said
        assert "Fetch the file again" not in said


def test_recordings_need_the_packages_of_their_extra_only(tmp_path, exported):
    for n, path in enumerate([write_mcap(tmp_path / "a.mcap"), write_ros1(tmp_path / "b.bag")]):
        out = tmp_path / f"out{n}"
        command = ["predict", str(exported), str(path), "--out", str(out), "--max-frames", "1"]
        done = subprocess.run([sys.executable, "-c", BLOCKED, *command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"1 frames of {IMAGE}" in done.stderr


FULL = """
import resource, signal, sys
from perception import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk_ends_in_a_sentence(tmp_path, exported):
    command = ["predict", str(exported), str(write_mcap(tmp_path / "a.mcap")), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", FULL, *command], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "cannot be written: File too large. Free some space" in done.stderr
