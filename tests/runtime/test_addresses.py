"""What is at an address: an image or a video with an end is a file, each frame once; what never ends is live."""

import io
import socket
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from prediction_files import read_records, read_summary, write_noise_video
from torch_free import without_torch
from video_server import FileServer, JpegServer, Response, encode_jpeg, scripted_frames, wait_until

from perception.runtime.predictor import Predictor
from perception.runtime.sources import find_sources, read_image_frame
from perception.runtime.urls import redact_url
from perception.types import PerceptionError
from perception.video.predict import PredictOptions, predict
from perception.video.stream import VideoStream

IMAGE = encode_jpeg(np.full((48, 80, 3), 200, np.uint8))
COUNT = 45
"""More than the frames after which a live source counts as sound, and would be opened for ever."""


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    return write_noise_video(tmp_path_factory.mktemp("film") / "drive.mp4", COUNT, 25).read_bytes()


def test_an_image_is_one_record_and_a_video_each_frame_once(exported, film, tmp_path):
    perceiver, server = (
        Predictor(exported, threads=1),
        FileServer({"/a b.jpg": Response(IMAGE), "/f.mp4": Response(film)}),
    )
    with server as url:
        for name, ids in (("a b.jpg", ["a b.jpg"]), ("f.mp4", [f"f.mp4#{i}" for i in range(COUNT)])):
            report = predict(perceiver, f"{url}/{name}", tmp_path / name, PredictOptions(save=("jsonl",)), quiet=True)
            assert [record["id"] for record in read_records(report.out)] == ids
            assert (report.failures, report.dropped, read_summary(report.out)["worst_status"]) == ([], 0, "OK")
    assert len(server.requested) == 2


ANSWERS = {
    "told as something else": Response(content_type="text/plain"),
    "told as nothing": Response(content_type=""),
    "told as an image": Response(content_type="image/png"),
    "in pieces": Response(chunked=True),
    "without its length": Response(length=None),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_an_image_is_one_however_it_is_told(how):
    answer = ANSWERS[how]
    answer.body = IMAGE
    with FileServer({"/x": answer}) as url:
        (source,) = find_sources(f"{url}/x?time=1")
        assert (source.id, source.kind) == ("x", "image")
        assert read_image_frame(source).image.shape == (48, 80, 3)


@pytest.mark.parametrize("kind", ["video/mp4", "text/plain", "application/octet-stream"])
def test_a_video_is_fetched_whole_and_removed_again(film, kind):
    with FileServer({"/x.mp4": Response(film, kind), "/moved": Response(status=302, location="/x.mp4")}) as url:
        (source,) = find_sources(f"{url}/moved")
    path = Path(str(source.address))
    assert path.read_bytes() == film
    video = VideoStream(source)
    assert (sum(1 for _ in video), video.is_live, video.num_dropped) == (COUNT, False, 0)
    video.stop()
    del source, video
    assert wait_until(lambda: not path.parent.exists())


def test_a_video_without_a_length_is_a_file_where_its_container_tells_one(film, tmp_path):
    data = moov_first(film)
    with FileServer({"/x.mp4": Response(data, chunked=True)}) as url:
        (source,) = find_sources(f"{url}/x.mp4")
        video = VideoStream(source)
        assert (sum(1 for _ in video), video.is_live) == (COUNT, False)


def test_a_video_without_a_length_whose_index_comes_last_is_fetched(film):
    assert film.index(b"mdat") < film.index(b"moov")
    with FileServer({"/x.mp4": Response(film, chunked=True)}) as url:
        (source,) = find_sources(f"{url}/x.mp4")
    assert (source.id, source.kind, Path(str(source.address)).read_bytes() == film) == ("x.mp4", "video", True)


def moov_first(film: bytes) -> bytes:
    """The index before the frames, as the web wants it."""
    boxes, at = {}, 0
    while at < len(film):
        size = int.from_bytes(film[at : at + 4], "big")
        boxes[film[at + 4 : at + 8]] = film[at : at + size]
        at += size
    moov = bytearray(boxes[b"moov"])
    at = moov.index(b"stco")
    for entry in range(at + 12, at + 12 + 4 * int.from_bytes(moov[at + 8 : at + 12], "big"), 4):
        moved = int.from_bytes(moov[entry : entry + 4], "big") + len(moov)
        moov[entry : entry + 4] = moved.to_bytes(4, "big")
    return b"".join([boxes[b"ftyp"], moov, *(boxes[name] for name in boxes if name not in (b"ftyp", b"moov"))])


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_the_answer_of_a_server_that_refuses_is_told(status):
    with (
        FileServer({"/x.mp4": Response(status=status)}) as url,
        pytest.raises(PerceptionError, match=rf"/x\.mp4\?token=\*\*\*: the server answers {status} ") as raised,
    ):
        find_sources(f"{url.replace('//', '//me:secret@')}/x.mp4?token=hidden")
    assert "secret" not in str(raised.value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("digest", [False, True])
def test_the_password_in_an_address_opens_and_is_not_told(digest):
    with FileServer({"/x.jpg": Response(IMAGE, credentials="me:se cret", digest_auth=digest)}) as url:
        (source,) = find_sources(f"{url.replace('//', '//me:se%20cret@')}/x.jpg")
        assert read_image_frame(source).image.shape == (48, 80, 3)
        assert "cret" not in source.display_name
        with pytest.raises(PerceptionError, match=r"401 Unauthorized\. Give the user and the password"):
            find_sources(f"{url}/x.jpg")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("rtsp://me:pw@cam/front", "rtsp://cam/front"),
        ("http://cam/v.cgi?user=me&pwd=pw&fps=5", "http://cam/v.cgi?user=me&pwd=***&fps=5"),
        ("https://s3/x.mp4?X-Amz-Signature=pw;b=1", "https://s3/x.mp4?X-Amz-Signature=***;b=1"),
    ],
)
def test_no_address_is_told_with_its_secrets(address, told):
    assert redact_url(address) == told


@pytest.mark.parametrize(
    "answer",
    [
        Response(length=10**5),
        Response(chunked=True, truncated=True),
    ],
    ids=["a length", "pieces"],
)
@pytest.mark.parametrize("size", [1, 50])
def test_a_server_that_stops_early_is_told(answer, size):
    answer.body = IMAGE * size
    with (
        FileServer({"/x.jpg": answer}) as url,
        pytest.raises(PerceptionError, match=rf"the server stopped after {len(answer.body):,} bytes"),
    ):
        find_sources(f"{url}/x.jpg")


def test_a_video_larger_than_the_disk_is_told_before_it_is_fetched(film):
    with (
        FileServer({"/x.mp4": Response(film, length=10**18)}) as url,
        pytest.raises(PerceptionError, match=r"has 1000000000\.0 GB and .* has no room"),
    ):
        find_sources(f"{url}/x.mp4")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
        (b"hello", "beginning with b'hello'"),
    ],
)
def test_what_is_neither_image_nor_video_is_told(body, words):
    with FileServer({"/x": Response(body, "text/html")}) as url, pytest.raises(PerceptionError, match=words):
        find_sources(f"{url}/x")


@pytest.mark.parametrize("content", ["multipart/x-mixed-replace; boundary=--cut", "multipart/mixed", "text/plain", ""])
def test_a_stream_of_jpegs_is_live_whatever_its_server_calls_it(content):
    with JpegServer(lambda number: scripted_frames(40), content=content) as url:
        (source,) = find_sources(url)
        assert (source.id, source.kind) == ("stream", "live")
        video = VideoStream(source, max_attempts=0)
        assert [shot.image.shape for shot in islice(video, 3)] == [(48, 80, 3)] * 3
        video.stop()


def test_a_server_that_is_not_there_may_come_and_one_that_is_silent_is_left_in_time():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        assert find_sources(f"http://127.0.0.1:{server.getsockname()[1]}/x.mp4", 0.5)[0].kind == "live"
        server.listen()
        assert find_sources(f"http://127.0.0.1:{server.getsockname()[1]}/x.mp4", 0.5)[0].kind == "live"
    assert find_sources("rtsp://robot/front")[0].kind == "live"


@pytest.mark.parametrize("ends", [True, False])
def test_a_playlist_is_a_video_if_it_has_an_end(tmp_path, ends):
    path = tmp_path / "0.ts"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (160, 96))
    for i in range(COUNT):
        writer.write(np.full((96, 160, 3), 3 * i, np.uint8))
    writer.release()
    text = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.8,\n0.ts\n"
    text += "#EXT-X-ENDLIST\n" if ends else ""
    with FileServer({"/a.m3u8": Response(text.encode()), "/0.ts": Response(path.read_bytes(), "video/mp2t")}) as url:
        video = VideoStream(find_sources(f"{url}/a.m3u8")[0], timeout=2, max_attempts=0)
        assert video.is_live is not ends
        if ends:
            assert sum(1 for _ in video) == COUNT
            assert video.num_dropped == 0
        video.stop()


def test_a_file_address_is_its_path(tmp_path):
    (tmp_path / "a b").mkdir()
    path = tmp_path / "a b" / "c.jpg"
    path.write_bytes(IMAGE)
    for address in (
        f"file://{tmp_path}/a%20b/c.jpg",
        f"file://localhost{tmp_path}/a b/c.jpg",
        f"FILE://{tmp_path}/a%20b",
    ):
        (source,) = find_sources(address)
        assert (source.id, Path(str(source.address)), source.kind) == ("c.jpg", path, "image")
    with pytest.raises(PerceptionError, match="another machine, robot"):
        find_sources("file://robot/c.jpg")
    with pytest.raises(PerceptionError, match="no address"):
        find_sources("http://[::1/x")


def test_standard_input_is_an_image_a_video_or_jpegs(exported, film, tmp_path):
    code = """
from perception.runtime.sources import find_sources, read_image_frame
from perception.video.stream import VideoStream
(source,) = find_sources("-")
print(source.kind, source.display_name, *([read_image_frame(source).image.shape] if source.kind == "image" else
      [sum(1 for _ in VideoStream(source))]), sep="|")
"""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 48)).save(buffer, "PNG")
    cut = IMAGE[: len(IMAGE) // 2]
    for content, said in (
        (IMAGE, "image|standard input|(48, 80, 3)"),
        (buffer.getvalue(), "image|standard input|(48, 80, 3)"),
        (film, f"video|standard input|{COUNT}"),
        (IMAGE * 3 + cut + IMAGE * 2, "video|standard input|5"),
    ):
        (tmp_path / "in").write_bytes(content)
        with (tmp_path / "in").open("rb") as stream:
            assert without_torch(code, stdin=stream).strip() == said
