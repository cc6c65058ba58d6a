"""Image topics, their cameras and encodings: by the conventions of sensor_msgs, image_transport and image_pipeline."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
from bag_files import (
    CAMERA,
    CAMERA_INFO,
    IMAGE,
    SIZE,
    compressed_image,
    make_stamp,
    noise_image,
    write_mcap,
    write_ros2,
)
from rosbags.highlevel import AnyReader

from perception import cli
from perception.robots.bags import BagReader
from perception.robots.camera_info import is_rectified, parse_camera_info
from perception.robots.images import COMPRESSED_IMAGE, decode_image_message
from perception.robots.images import IMAGE as RAW
from perception.robots.messages import Message, make_camera_info, make_image
from perception.robots.recorded_messages import Channel
from perception.robots.topics import assign_prefixes, find_info_topic, select_topics
from perception.types import Camera, PerceptionError

IMAGES, PACKED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def topics(*names: str) -> list[Channel]:
    """Images, compressed ones by their name."""
    return [Channel(name, PACKED if name.endswith("compressed") else IMAGES, "cdr", 5) for name in names]


@pytest.mark.parametrize(
    ("names", "chosen", "left_out"),
    [
        (
            ["/a/image_raw", "/a/image_raw/compressed"],
            ["/a/image_raw"],
            {"/a/image_raw/compressed": "are in /a/image_raw;"},
        ),
        (["/a/image_raw/compressed"], ["/a/image_raw/compressed"], {}),
        (["/a/image", "/a/image/zstd_compressed"], ["/a/image"], {"/a/image/zstd_compressed": "are in /a/image;"}),
        (["/a/image_raw", "/a/image_rect_color"], ["/a/image_raw", "/a/image_rect_color"], {}),
        (["/s/left/image_raw", "/s/right/image_raw"], ["/s/left/image_raw", "/s/right/image_raw"], {}),
        (
            ["/a/image", "/a/depth/image_rect_raw", "/a/image/compressedDepth"],
            ["/a/image"],
            {"/a/depth/image_rect_raw": "--topics", "/a/image/compressedDepth": "--topics"},
        ),
    ],
)
def test_each_image_is_run_once_and_what_is_left_out_is_named(names, chosen, left_out):
    found, why = select_topics(topics(*names), None, "drive")
    assert found == chosen
    assert set(why) == set(left_out)
    assert all(left_out[topic] in reason for topic, reason in why.items())


@pytest.mark.parametrize(("count", "chosen"), [(0, "/compressed"), (3, "/compressed"), (8, ""), (20, "")])
def test_a_raw_topic_with_few_images_does_not_hide_its_compressed_form(count, chosen):
    some = [Channel("/a/image", IMAGES, "cdr", count), Channel("/a/image/compressed", PACKED, "cdr", 9)]
    assert f"/a/image{chosen}" in select_topics(some, None, "drive")[0]


@pytest.mark.parametrize(
    ("kind", "encoding", "words"),
    [
        ("ffmpeg_image_transport_msgs/msg/FFMPEGPacket", "cdr", "video packets, not images"),
        ("theora_image_transport/msg/Packet", "ros1", "video packets, not images"),
        ("foxglove.CompressedVideo", "protobuf", "video packets, not images"),
        ("foxglove.CompressedImage", "flatbuffer", "'flatbuffer', which is not supported"),
    ],
)
def test_video_and_encodings_that_are_not_read_are_named_with_the_reason(kind, encoding, words):
    with pytest.raises(PerceptionError, match=f"drive has no image topic. It has: /a/x .*{words}"):
        select_topics([Channel("/a/x", kind, encoding, 3)], None, "drive")
    some = [*topics("/a/image"), Channel("/a/x", kind, encoding, 3)]
    assert words in select_topics(some, None, "drive")[1]["/a/x"]
    with pytest.raises(PerceptionError, match=f"no image topic /a/x .*{words}"):
        select_topics(some, ["/a/x"], "drive")


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["/a/image"], ["/a/perception"]),
        (["/image"], ["/perception"]),
        (["image"], ["/perception"]),
        (["/l/image", "/r/image"], ["/l/perception", "/r/perception"]),
        (["/a/image", "/a/image_rect"], ["/a/image/perception", "/a/image_rect/perception"]),
        (["/a/image", "/a/image/compressed"], ["/a/image/perception", "/a/image/compressed/perception"]),
        (["/a/b", "/a/c", "/a/b/c"], ["/a/b/perception", "/a/c/perception", "/a/b/c/perception"]),
    ],
)
def test_no_two_topics_share_the_place_of_their_results(names, places):
    assert list(assign_prefixes(names).values()) == places


def test_the_camera_of_a_topic_is_its_neighbor():
    infos = ["/a/camera_info", "/b/calibration", "/c/x_info", "/c/y_info", "/d/image/camera_info"]
    infos += ["/device_0/sensor_1/Color_0/info/camera_info", "/device_0/sensor_0/Depth_0/info/camera_info"]
    wanted = {"/a/image/compressed": "/a/camera_info", "/b/image": "/b/calibration", "/c/image": None}
    wanted |= {"/d/image/compressed": "/d/image/camera_info", "/e/image": None, "/a/b/image": None}
    wanted |= {"/device_0/sensor_1/Color_0/image/data": "/device_0/sensor_1/Color_0/info/camera_info"}
    assert {topic: find_info_topic(topic, infos) for topic in wanted} == wanted


def test_topics_of_one_namespace_do_not_mix_and_what_is_not_carried_over_is_told(tmp_path, exported, capsys):
    jpeg = cv2.imencode(".jpg", noise_image(0))[1].tobytes()
    messages = [
        message
        for n in range(3)
        for message in (
            (IMAGE, make_image(noise_image(n), "rgb8", make_stamp(n)), make_stamp(n).nanoseconds),
            (f"{IMAGE}/compressed", compressed_image(jpeg, n), make_stamp(n).nanoseconds),
            ("/front/image_rect", make_image(noise_image(n), "rgb8", make_stamp(n)), make_stamp(n).nanoseconds),
            ("/imu", make_stamp(n).to_message(), make_stamp(n).nanoseconds),
        )
    ]
    path = write_ros2(tmp_path / "in", messages)
    assert cli.main(["predict", str(exported), str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert (
        f"left out: {IMAGE}/compressed: 3 images, but 3 of the same camera are in {IMAGE}; use --topics to read it"
        in said
    )
    assert "not copied: /imu" in said
    with AnyReader([tmp_path / "out" / "in"]) as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts["/front/image_raw/perception/detections"] == counts["/front/image_rect/perception/detections"] == 3
    assert not any(topic.startswith("/front/perception") for topic in counts)


# Cameras


def info(**changes: object) -> SimpleNamespace:
    """A CameraInfo of CAMERA in K, and of half as long again in P."""
    fields = dict(make_camera_info(CAMERA, SIZE, make_stamp(0)).fields)
    fields["p"] = np.asarray(fields["p"]) * np.repeat([1.5, 1.5, 1], 4)
    region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    fields["roi"] = SimpleNamespace(**(region | changes.pop("roi", {})))  # pyright: ignore
    return SimpleNamespace(**(fields | changes))


OF_P = Camera(180.0, 181.5, (32.25 - 0.5) * 1.5 + 0.5, 24.0 * 1.5 + 0.5)
ZERO = np.zeros(9)


@pytest.mark.parametrize(
    ("message", "rectified", "size", "camera", "words"),
    [
        (info(), False, SIZE, CAMERA, ""),
        (info(), True, SIZE, OF_P, ""),
        (info(k=ZERO), False, SIZE, OF_P, ""),
        (info(p=np.zeros(12)), True, SIZE, CAMERA, ""),
        (info(k=ZERO, p=np.zeros(12)), True, SIZE, None, "not calibrated"),
        (info(k=np.full(9, np.inf), p=np.full(12, np.nan)), False, SIZE, None, "not calibrated"),
        (info(k=-np.eye(3).ravel(), p=np.zeros(12)), False, SIZE, None, "not calibrated"),
        (info(), False, (24, 32), None, "for 64x48 pixels, and the image has 32x24"),
        (info(binning_x=2, binning_y=2), False, (24, 32), None, "binning of 2x2 pixels"),
        (info(binning_x=2, binning_y=1), False, SIZE, None, "binning of 2x1 pixels"),
        (info(binning_x=1, binning_y=1), False, SIZE, CAMERA, ""),
        (info(roi={"width": 64, "height": 48}), False, SIZE, CAMERA, ""),
        (
            info(roi={"width": 32, "height": 24, "x_offset": 8, "y_offset": 4}),
            False,
            (24, 32),
            Camera(120.0, 121.0, 24.25, 20.5),
            "",
        ),
        (info(roi={"width": 32, "height": 24, "x_offset": 8, "y_offset": 4}), False, SIZE, None, "region of interest"),
        (info(distortion_model="equidistant", d=np.full(4, 0.1)), False, SIZE, CAMERA, "fisheye"),
        (info(distortion_model="equidistant", d=np.full(4, 0.1)), True, SIZE, OF_P, ""),
        (info(distortion_model="plumb_bob", d=np.full(5, 0.1)), False, SIZE, CAMERA, ""),
    ],
)
def test_a_camera_is_what_its_message_says_where_that_is_certain(message, rectified, size, camera, words):
    found, problem = parse_camera_info(message, size, rectified)
    assert found == camera
    assert words in problem
    assert bool(words) == bool(problem)


def test_rectified_topics_are_known_by_their_names():
    yes = ("/a/image_rect", "/a/image_rect_color/compressed", "/zed/rgb/color/rect/image", "/d435/image_rect_raw")
    no = ("/a/image_raw", "/rectangle/image", "/a/unrectified/image", "/direct/image")
    assert [is_rectified(topic) for topic in (*yes, *no)] == [True] * 4 + [False] * 4


def test_rectified_topics_of_a_recording_go_by_p_and_refused_cameras_are_told(tmp_path):
    fields = vars(info())
    wide = Message(
        "sensor_msgs/msg/CameraInfo",
        {**fields, "roi": Message("sensor_msgs/msg/RegionOfInterest", vars(fields["roi"]))},
    )
    binned = Message(wide.type, {**wide.fields, "binning_x": 2, "binning_y": 2})
    for kind, topic, camera in ((wide, "/front/image_rect", OF_P), (wide, IMAGE, CAMERA), (binned, IMAGE, None)):
        messages = [(topic, make_image(noise_image(0), "rgb8", make_stamp(0)), 5), (CAMERA_INFO, kind, 6)]
        with BagReader(write_mcap(tmp_path / "a.mcap", messages)) as bag:
            (frame,) = bag.read_frames()
        assert frame.camera == camera
        assert ("binned" in frame.problem) == ("default focal length" in frame.problem) == (camera is None)


# Encodings


def raw(encoding: str, data: np.ndarray, size: tuple[int, int], step: int) -> SimpleNamespace:
    return SimpleNamespace(
        encoding=encoding, data=data.ravel(), height=size[0], width=size[1], step=step, is_bigendian=0
    )


def scene(height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth colors, which every encoding keeps nearly."""
    y, x = np.mgrid[:height, :width]
    return np.dstack([60 + 3 * x, 200 - 3 * y, 90 + x + y]).astype(np.uint8)


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    gray = np.zeros(rgb.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        gray[i // 2 :: 2, i % 2 :: 2] = rgb[i // 2 :: 2, i % 2 :: 2, "rgb".index(colour)]
    return gray


def planes(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """[H * 3, W] or [H * 3 / 2, W], limited range."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u, v = 128 - 0.148 * r - 0.291 * g + 0.439 * b, 128 + 0.439 * r - 0.368 * g - 0.071 * b
    if encoding in ("nv12", "nv21", "i420", "yv12"):
        u, v = (c.reshape(len(c) // 2, 2, -1, 2).mean((1, 3)) for c in (u, v))
    first, second = (u, v) if encoding in ("nv12", "nv24", "i420") else (v, u)
    pair = [first, second] if encoding in ("i420", "yv12") else [np.dstack([first, second])]
    return np.rint(np.concatenate([y.ravel(), *(c.ravel() for c in pair)])).astype(np.uint8).reshape(-1, rgb.shape[1])


def packed422(rgb: np.ndarray, order: str) -> np.ndarray:
    whole = planes(rgb, "nv24")
    y, uv = whole[: len(rgb)], whole[len(rgb) :].reshape(*rgb.shape[:2], 2)
    values = {"y": y[:, ::2], "z": y[:, 1::2], "u": uv[:, ::2, 0], "v": uv[:, ::2, 1]}
    return np.dstack([values[name] for name in order]).reshape(len(rgb), -1)


def near(found: np.ndarray, wanted: np.ndarray, most: int = 8) -> bool:
    inner = (slice(2, -2), slice(2, -2))
    return found.shape == wanted.shape and int(np.abs(found[inner].astype(int) - wanted[inner]).max()) <= most


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "nv24", "nv42", "i420", "yv12", "NV12"])
def test_images_in_planes(encoding):
    rgb, data = scene(), planes(scene(), encoding.lower())
    for step in (48, 96 if encoding != "nv24" else 144):  # as drivers give it
        assert near(decode_image_message(raw(encoding, data, (32, 48), step), RAW, "x"), rgb)
    padded = np.pad(data, ((0, 0), (0, 16)))
    if encoding not in ("i420", "yv12"):
        assert near(decode_image_message(raw(encoding, padded, (32, 48), 64), RAW, "x"), rgb)


@pytest.mark.parametrize(
    ("encoding", "order"),
    [
        ("yuv422", "uyvz"),
        ("uyvy", "uyvz"),
        ("yuv422_yuy2", "yuzv"),
        ("yuyv", "yuzv"),
        ("YUY2", "yuzv"),
        ("yvyu", "yvzu"),
    ],
)
def test_images_of_yuv422(encoding, order):
    assert near(decode_image_message(raw(encoding, packed422(scene(), order), (32, 48), 96), RAW, "x"), scene())


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("suffix", ["jpeg compressed ", "png compressed", "jpeg compressed bgr8"])
def test_a_mosaic_in_a_compressed_image_is_made_color(pattern, suffix):
    name = ".png" if "png" in suffix else ".jpg"
    data = cv2.imencode(name, mosaic(scene(), pattern), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    message = SimpleNamespace(format=f"bayer_{pattern}8; {suffix}", data=data)
    assert near(decode_image_message(message, COMPRESSED_IMAGE, "x"), scene())


@pytest.mark.parametrize(
    ("format", "data", "wanted"),
    [
        ("bayer_rggb8; jpeg compressed bgr8", scene(), scene()),
        ("bayer_rggb8; png compressed mono8", np.repeat(scene()[..., :1], 3, 2), np.repeat(scene()[..., :1], 3, 2)),
        ("rgb8; png compressed bgr8", scene(), scene()),
        ("bgr8; jpeg compressed bgr8", scene(), scene()),
        ("png", scene(), scene()),
        ("", scene(), scene()),
        ("mono16; png compressed ", scene()[..., 0].astype(np.uint16) * 257, np.repeat(scene()[..., :1], 3, 2)),
        ("nv12; png compressed ", planes(scene(), "nv12"), scene()),
        ("nv24; png compressed ", planes(scene(), "nv24"), scene()),
        ("yuv422; jpeg compressed bgr8", scene(), scene()),
    ],
)
def test_compressed_images_by_their_format(format, data, wanted):
    stored = data[..., ::-1] if data.ndim == 3 else data
    packed = cv2.imencode(".png", stored)[1].tobytes()
    assert near(decode_image_message(SimpleNamespace(format=format, data=packed), COMPRESSED_IMAGE, "x"), wanted)


@pytest.mark.parametrize("format", ["16UC1; compressedDepth png", "32FC1; compressedDepth", "16UC1; png compressed "])
def test_depth_in_a_compressed_image_is_no_image(format):
    data = cv2.imencode(".png", np.full((4, 4), 2000, np.uint16))[1].tobytes()
    with pytest.raises(PerceptionError, match="is depth, not an image"):
        decode_image_message(SimpleNamespace(format=format, data=bytes(12) + data), COMPRESSED_IMAGE, "x")


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "nv12", "yuyv", "i420", "mono12"])
def test_what_is_no_image_or_of_a_size_that_its_encoding_has_not_is_told(encoding):
    with pytest.raises(PerceptionError, match=r"^/cam.*"):
        decode_image_message(
            raw(encoding, np.zeros((5, 5 * 4), np.uint8), (5, 5), 20 if "F" in encoding else 5), RAW, "/cam"
        )


def test_a_bomb_in_a_message_is_refused_before_it_is_decoded():
    data = cv2.imencode(".png", np.zeros((16000, 16000), np.uint8))[1].tobytes()
    tracemalloc.start()
    with pytest.raises(PerceptionError, match=r"16000 x 16000"):
        decode_image_message(SimpleNamespace(format="jpeg", data=data), COMPRESSED_IMAGE, "x")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_damaged_jpeg_of_a_recording_is_counted_and_never_half_gray(tmp_path):
    good = cv2.imencode(".jpg", noise_image(0))[1].tobytes()
    spoilt = good[: len(good) // 2] + bytes(40) + good[len(good) // 2 + 40 :]
    messages = [
        (IMAGE, compressed_image(data, n), n) for n, data in enumerate([good, spoilt, good[: len(good) // 2], good])
    ]
    with BagReader(write_ros2(tmp_path / "in", messages)) as bag:
        frames = list(bag.read_frames())
    assert [frame.image is not None for frame in frames] == [True, False, False, True]
    assert all("damaged" in frame.problem for frame in frames if frame.image is None)
    assert all(frame.raw is not None for frame in frames), "what was recorded is carried over as it is"
