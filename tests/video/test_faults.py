"""V1: videos and streams with changed bytes are frames or an error; no signal, no hang, no traceback, no bomb."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mutations import mutated
from PIL import Image
from video_server import FileServer, Response, encode_jpeg

from perception.runtime.sources import find_sources
from perception.types import PerceptionError
from perception.video.stream import VideoStream

CODES = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".ts": "mp4v", ".gif": "", ".mjpg": ""}
LOOK = """
import os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from perception.runtime.sources import find_sources, read_image_frame
from perception.video.stream import VideoStream
from perception.types import PerceptionError
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, flush=True)
    try:
        for source in find_sources(path):
            if source.kind == "image":
                read_image_frame(source)
                continue
            video = VideoStream(source, timeout=10)
            for shot in video:
                assert shot.image.ndim == 3, path
            video.stop()
    except PerceptionError as error:
        assert path.name in str(error), (path, error)
print("done", flush=True)
os._exit(0)
"""


def pictures(count: int) -> list[np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 20, 3), np.uint8)
    return [cv2.resize(image, (160, 96)) for image in noise]


def film(folder: Path, suffix: str) -> bytes:
    path = folder / f"whole{suffix}"
    if suffix == ".gif":
        images = [Image.fromarray(image).quantize(16) for image in pictures(6)]
        images[0].save(path, save_all=True, append_images=images[1:])
    elif suffix == ".mjpg":
        return b"".join(encode_jpeg(image) for image in pictures(12))
    else:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODES[suffix]), 25, (160, 96))
        for image in pictures(12):
            writer.write(image)
        writer.release()
    return path.read_bytes()


def survive(tmp_path: Path, suffix: str, count: int) -> None:
    whole, folder = film(tmp_path, suffix), tmp_path / "changed"
    folder.mkdir()
    for seed in range(count):
        chance = random.Random(f"{suffix} {seed}")
        head = chance.choice((0, 0, 400))  # where most of the structure is
        data = mutated(whole[:head], chance) + whole[head:] if head else mutated(whole, chance)
        (folder / f"{seed:04d}{suffix}").write_bytes(data)
    command = [sys.executable, "-c", LOOK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count, check=False)
    last = done.stdout.splitlines()[-1:]
    assert (done.returncode, last) == (0, ["done"]), done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]


@pytest.mark.fault("V1")
@pytest.mark.parametrize("suffix", CODES)
def test_no_changed_video_ends_the_program(tmp_path, suffix):
    survive(tmp_path, suffix, 25)


@pytest.mark.fault("V1")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", CODES)
def test_nor_do_five_hundred(tmp_path, suffix):
    survive(tmp_path, suffix, 500)


def streams(count: int) -> None:
    parts = b"".join(
        b"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)
        for data in map(encode_jpeg, pictures(6))
    )
    kind = "multipart/x-mixed-replace; boundary=cut"
    bodies = {f"/{seed}": mutated(parts, random.Random(seed)) for seed in range(count)}
    with FileServer({path: Response(body, kind, length=None) for path, body in bodies.items()}) as url:
        for path in bodies:
            try:
                video = VideoStream(find_sources(f"{url}{path}")[0], timeout=2, max_attempts=0)
                assert all(shot.image.ndim == 3 for shot in video)
                video.stop()
            except PerceptionError as error:
                assert url in str(error)  # noqa: PT017


@pytest.mark.fault("V1")
def test_no_changed_stream_of_jpegs_is_a_traceback():
    streams(40)


@pytest.mark.fault("V1")
@pytest.mark.slow
def test_nor_are_five_hundred_streams():
    streams(500)
