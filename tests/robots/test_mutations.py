"""Recordings with random damage, in the file or in a message: run to a report or an error of our own, in bounded time
and memory. Each kind runs in a process of its own, so that a signal would be seen."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
import bag_files
from bag_files import (
    CAMERA,
    SIZE,
    compressed_image,
    make_stamp,
    noise_image,
    write_mcap,
    write_ros1,
    write_ros2,
    write_zstd,
)
from fake_predictor import FakePredictor

from perception.robots.messages import make_camera_info, make_image
from perception.types import PerceptionError
from perception.video.replay import replay

SECONDS = 10.0
MEMORY = 6 << 30


def drive() -> bag_files.Messages:
    found: bag_files.Messages = []
    jpeg = cv2.imencode(".jpg", noise_image(0))[1].tobytes()
    for n in range(3):
        small = noise_image(n)[:12, :16]
        encoding, data = [("rgb8", small), ("bayer_rggb8", small[..., 0]), ("nv12", small[..., 0])][n]
        found.append(("/a/image", make_image(data, encoding, make_stamp(n)), make_stamp(n).nanoseconds))
        found.append(("/a/camera_info", make_camera_info(CAMERA, SIZE, make_stamp(n)), make_stamp(n).nanoseconds))
        found.append(
            ("/b/image", compressed_image(jpeg, n, "bayer_rggb8; jpeg compressed "), make_stamp(n).nanoseconds + 1)
        )
    return found


WRITERS: dict[str, Callable[[Path], Path]] = {
    "ros1": lambda p: write_ros1(p / "a.bag", drive()),
    "ros1 lz4": lambda p: write_ros1(p / "a.bag", drive(), kind="lz4", size=5000),
    "sqlite": lambda p: next(write_ros2(p / "a", drive(), plugin="sqlite3").glob("*.db3")),
    "mcap": lambda p: write_mcap(p / "a.mcap", drive(), chunk_size=3000),
    "mcap zstd": lambda p: write_mcap(p / "a.mcap", drive(), compression="zstd", enable_crcs=False),
    "mcap loose": lambda p: write_mcap(p / "a.mcap", drive(), use_chunking=False),
    "mcap file zstd": lambda p: write_zstd(p / "a.mcap.zstd", write_mcap(p / "b.mcap", drive())),
    "mcap of ros1": lambda p: write_mcap(p / "a.mcap", drive(), encoding="ros1"),
    "protobuf": lambda p: write_mcap(p / "a.mcap", drive(), encoding="protobuf"),
    "json": lambda p: write_mcap(p / "a.mcap", drive(), encoding="json"),
}
ENCODING = {"mcap": "cdr", "mcap of ros1": "ros1", "protobuf": "protobuf", "json": "json"}
"""Of those kinds whose messages are damaged, too: a file that is sound."""


def damaged(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, how = draw.randrange(len(found)), draw.randrange(6)
        if how == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            found[at : at + draw.choice((1, 4, 8))] = draw.choice((b"\xff", b"\x00", b"\x7f")) * draw.choice((1, 4, 8))
        elif how == 2:
            del found[at : at + draw.choice((1, 4, 100, len(found)))]
        elif how == 3:
            found[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif how == 4:
            found[at : at + 50] = found[draw.randrange(len(found)) :][:50]
        else:
            found[at] = draw.randrange(256)
        if not found:
            return b""
    return bytes(found)


def run(kind: str, count: int) -> None:
    """In a process of its own: print and fail at what is no report and no error of our own."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS[kind](Path(folder))
        sound, encoder = path.read_bytes(), bag_files.ENCODERS.get(ENCODING.get(kind, ""))
        for seed in range(count):
            draw = random.Random(f"{kind} {seed}")
            if encoder is not None and seed % 2:

                def one(message, draw=draw, encoder=encoder):
                    name, schema, data = encoder(message)
                    return name, schema, damaged(data, draw) if draw.random() < 0.5 else data

                bag_files.ENCODERS[ENCODING[kind]] = one
                WRITERS[kind](Path(folder))
                bag_files.ENCODERS[ENCODING[kind]] = encoder
            else:
                path.write_bytes(damaged(sound, draw))
            out, begin = Path(folder) / f"out{seed}", time.perf_counter()
            try:
                report = replay(FakePredictor(), path, out)
                told = bool(report.frames) or "\n" in str(report)
            except PerceptionError as error:
                told = path.name in str(error)
            except BaseException:
                print(f"{kind} {seed}", flush=True)
                raise
            assert told, f"{kind} {seed}: nothing, and no word why"
            assert time.perf_counter() - begin < SECONDS, f"{kind} {seed} took too long"
            subprocess.run(["rm", "-r", str(out)], check=False, stderr=subprocess.DEVNULL)


def check(kind: str, count: int) -> None:
    command = [sys.executable, __file__, kind, str(count)]
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tests.parent), str(tests / "helpers")))}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=count * SECONDS, env=environment
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_recording_is_run_or_told(kind):
    check(kind, 25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_3000_damaged_recordings_are_run_or_told(kind):
    check(kind, 3000)


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
