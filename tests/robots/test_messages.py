"""Results as ROS messages: the conventions, without ROS."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from perception.robots.camera_info import parse_camera_info
from perception.robots.definitions import VISION_MSGS, make_typestore
from perception.robots.images import COMPRESSED_IMAGE, IMAGE, decode_image_message
from perception.robots.messages import Message, MessageHeader, make_camera_info, make_diagnostics, result_to_messages
from perception.runtime.result import Result
from perception.types import Camera, DenseMap, ImageLabel, Instances, PerceptionError, Prediction, TaskSpec

pytest.importorskip("rosbags")
ROS2 = Path(__file__).parents[2] / "ros2" / "perception_ros"
STAMP = MessageHeader(1_700_000_000_123_456_789, "front_optical")
SIZE = (6, 8)
SPECS = {
    "detection": TaskSpec(
        "detection", "instances", ("boxes", "scores", "labels"), ("car", "sign"), score_threshold=0.3
    ),
    "segmentation": TaskSpec("segmentation", "dense", ("mask",), ("road", "sky")),
    "depth": TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0), 500.0, 1.0),
    "classification": TaskSpec("classification", "label", ("probabilities",), ("day", "night")),
}


CAMERA = Camera(10, 20, 4, 3)


def result() -> Result:
    valid = np.ones(SIZE, bool)
    valid[0, 0] = False
    boxes = np.array([[1, 1, 5, 3], [0, 0, 2, 2], [2, 2, 4, 4]], np.float32)
    found = Instances(
        boxes, np.array([1, 0, 0]), np.array([0.9, 0.5, 0.1], np.float32), track_ids=np.array([7, -1, -1])
    )
    annotations = {
        "detection": found,
        "segmentation": DenseMap(np.arange(48).reshape(SIZE) % 2, valid),
        "depth": DenseMap(np.full(SIZE, 5.0, np.float32), valid),
        "classification": ImageLabel(np.array([0.25, 0.75], np.float32)),
    }
    distances = np.array([5.0, np.nan, 3.0], np.float32)
    image = np.arange(144, dtype=np.uint8).reshape(*SIZE, 3)
    return Result(Prediction(annotations, SIZE, distances=distances), SPECS, image, CAMERA)


def every(message: Message):
    yield message
    for value in message.fields.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Message):
                yield from every(item)


def test_the_definitions_have_the_hashes_that_ros_computes():
    store = make_typestore()
    expected = {
        "Detection2DArray": "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
        "LabelInfo": "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
        "VisionClass": "1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
    }
    for name, digest in expected.items():
        assert store.hash_rihs01(f"vision_msgs/msg/{name}") == f"RIHS01_{digest}"
    assert set(expected) <= set(VISION_MSGS)


def test_every_message_has_exactly_the_fields_of_its_definition_and_the_images_header():
    store = make_typestore()
    messages = result_to_messages(result(), STAMP)
    assert set(messages) == {
        "detections", "label_image", "label_info", "depth/image_rect", "depth/camera_info", "points", "scene",
    }  # fmt: skip
    for message in [*messages.values(), make_diagnostics("node", 1, "slow", {"dropped": 3}, 5)]:
        for part in every(message):
            assert list(part.fields) == [name for name, _ in store.fielddefs[part.type][1]], part.type
    for message in messages.values():
        header = message.fields["header"]
        time = header.fields["stamp"].fields
        assert (time["sec"], time["nanosec"], header.fields["frame_id"]) == (
            1_700_000_000,
            123_456_789,
            "front_optical",
        )


def test_detections_name_class_score_track_and_place_in_metres():
    first, second = result_to_messages(result(), STAMP)["detections"].fields[
        "detections"
    ]  # the third is under the threshold
    box = first.fields["bbox"].fields
    center = box["center"].fields["position"].fields
    assert (center["x"], center["y"], box["size_x"], box["size_y"]) == (3.0, 2.0, 4.0, 2.0)
    hypothesis = first.fields["results"][0].fields["hypothesis"].fields
    assert (hypothesis["class_id"], hypothesis["score"]) == ("sign", pytest.approx(0.9))
    assert (first.fields["id"], second.fields["id"]) == ("7", "")
    pose = first.fields["results"][0].fields["pose"].fields
    place = pose["pose"].fields["position"].fields
    assert (place["x"], place["y"], place["z"]) == ((3 - 4) / 10 * 5, (2 - 3) / 20 * 5, 5.0)
    assert pose["covariance"][0] == 0
    assert second.fields["results"][0].fields["pose"].fields["covariance"][0] == -1


def test_depth_is_metres_with_nan_where_unknown_and_the_label_image_says_255():
    messages = result_to_messages(result(), STAMP)
    depth, label = messages["depth/image_rect"].fields, messages["label_image"].fields
    values = depth["data"].view("<f4").reshape(SIZE)
    assert (depth["encoding"], depth["step"], depth["is_bigendian"]) == ("32FC1", 4 * SIZE[1], 0)
    assert np.isnan(values[0, 0])
    assert (values.ravel()[1:] == 5).all()
    assert (label["encoding"], label["step"]) == ("mono8", SIZE[1])
    assert label["data"].tolist()[:3] == [255, 1, 0]
    names = {c.fields["class_id"]: c.fields["class_name"] for c in messages["label_info"].fields["class_map"]}
    assert names == {0: "road", 1: "sky", 255: "UNLABELED"}


def test_points_are_those_that_depth_image_proc_computes_from_depth_and_camera_info():
    """x = (u - cx) z / fx with whole u for the center of a pixel: ROS's convention."""
    messages = result_to_messages(result(), STAMP, point_stride=1)
    cloud, info = messages["points"].fields, messages["depth/camera_info"].fields
    rows = cloud["data"].view(np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")]))
    assert len(rows) == cloud["width"] == SIZE[0] * SIZE[1] - 1
    k = info["k"].reshape(3, 3)
    v, u = np.nonzero(np.isfinite(messages["depth/image_rect"].fields["data"].view("<f4").reshape(SIZE)))
    np.testing.assert_allclose(rows["x"], (u - k[0, 2]) / k[0, 0] * 5, rtol=1e-6)
    np.testing.assert_allclose(rows["y"], (v - k[1, 2]) / k[1, 1] * 5, rtol=1e-6)
    pixel = result().image[v[0], u[0]].astype(int)
    assert rows["rgb"][0] == pixel[0] << 16 | pixel[1] << 8 | pixel[2]
    assert info["p"].reshape(3, 4)[:, :3].tolist() == k.tolist()
    assert cloud["row_step"] == len(cloud["data"])


def info_of(message: Message, **changes) -> SimpleNamespace:
    """A CameraInfo as rosbags and ROS give it."""
    fields = {**message.fields, "roi": SimpleNamespace(**message.fields["roi"].fields), **changes}
    return SimpleNamespace(**fields)


def test_camera_info_goes_round():
    info = info_of(result_to_messages(result(), STAMP)["depth/camera_info"])
    assert parse_camera_info(info, SIZE) == (CAMERA, "")
    assert parse_camera_info(info, (480, 640))[0] is None


def test_a_subset_of_tasks_gives_a_subset_of_topics():
    whole = result()
    boxes = {"detection": whole.annotations["detection"]}
    alone = Result(Prediction(boxes, SIZE), {"detection": SPECS["detection"]}, whole.image)
    assert set(result_to_messages(alone, STAMP)) == {"detections"}
    pose = result_to_messages(alone, STAMP)["detections"].fields["detections"][0].fields["results"][0].fields["pose"]
    assert pose.fields["covariance"][0] == -1


def picture(encoding: str, data: bytes, width: int, height: int, step: int, big: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        encoding=encoding, data=np.frombuffer(data, np.uint8), width=width, height=height, step=step, is_bigendian=big
    )


RGB = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_color_images_whatever_the_order_and_the_padding(encoding, padding):
    pixels = RGB if encoding.startswith("rgb") else RGB[..., ::-1]
    if "a8" in encoding:
        pixels = np.concatenate([pixels, np.full((4, 6, 1), 9, np.uint8)], 2)
    rows = np.zeros((4, 6 * pixels.shape[2] + padding), np.uint8)
    rows[:, : 6 * pixels.shape[2]] = pixels.reshape(4, -1)
    found = decode_image_message(picture(encoding, rows.tobytes(), 6, 4, rows.shape[1]), IMAGE, "x")
    np.testing.assert_array_equal(found, RGB)


def test_gray_sixteen_bit_bayer_and_yuv_images():
    gray = RGB[..., 0]
    for kind, data, big in (
        ("mono8", gray, 0),
        ("mono16", gray.astype("<u2") << 8, 0),
        ("mono16", (gray.astype("<u2") << 8).astype(">u2"), 1),
    ):
        found = decode_image_message(picture(kind, data.tobytes(), 6, 4, data.nbytes // 4, big), IMAGE, "x")
        np.testing.assert_array_equal(found, np.repeat(gray[..., None], 3, 2))
    red = np.zeros((8, 8), np.uint8)
    red[::2, ::2] = 200  # RGGB: red at even rows and columns
    found = decode_image_message(picture("bayer_rggb8", red.tobytes(), 8, 8, 8), IMAGE, "x")
    assert found[2:-2, 2:-2, 0].min() == 200
    assert found[2:-2, 2:-2, 1:].max() == 0
    for kind, data in (("yuv422", [128, 90, 128, 90]), ("yuv422_yuy2", [90, 128, 90, 128])):
        found = decode_image_message(picture(kind, bytes(data * 8), 4, 4, 8), IMAGE, "x")
        assert np.ptp(found) == 0
    nv12 = bytes([90] * 16 + [128] * 8)
    assert np.ptp(decode_image_message(picture("nv12", nv12, 4, 4, 4), IMAGE, "x")) == 0


def test_compressed_images():
    import cv2

    data = cv2.imencode(".png", RGB[..., ::-1])[1]
    message = SimpleNamespace(format="rgb8; png compressed bgr8", data=data.ravel())
    np.testing.assert_array_equal(decode_image_message(message, COMPRESSED_IMAGE, "x"), RGB)


@pytest.mark.parametrize(
    ("message", "kind", "words"),
    [
        (picture("rgb8", b"123", 6, 4, 18), IMAGE, "3 bytes"),
        (picture("rgb8", bytes(100), 0, 4, 18), IMAGE, "0x4"),
        (picture("rgb8", bytes(100), 6, 4, 5), IMAGE, "rows of 5"),
        (picture("weird", bytes(100), 6, 4, 18), IMAGE, "'weird'"),
        (SimpleNamespace(format="jpeg", data=np.zeros(0, np.uint8)), COMPRESSED_IMAGE, "0 bytes"),
        (SimpleNamespace(format="jpeg", data=np.ones(50, np.uint8)), COMPRESSED_IMAGE, "50 bytes"),
    ],
)
def test_what_is_no_image_is_named(message, kind, words):
    with pytest.raises(PerceptionError, match=words) as caught:
        decode_image_message(message, kind, "drive, /front at 3.5")
    assert str(caught.value).startswith("drive, /front at 3.5")


# The node, with the parts of rclpy that it uses standing in.


@pytest.fixture
def ros(monkeypatch):
    """A stand-in for ROS: what was subscribed, published and remapped. ROS itself cannot be installed by pip."""
    made = SimpleNamespace(subscriptions={}, published=[], qualities={}, parameters={}, remapped={})
    made.timers, made.errors = [], []

    class Any_:
        def __init__(self):
            self.__dict__["set"] = {}

    class Node:
        def __init__(self, name):
            self.name = name

        def declare_parameter(self, name, default):
            return SimpleNamespace(value=made.parameters.get(name, default))

        def create_subscription(self, kind, topic, callback, quality):
            made.subscriptions[topic] = (kind, callback, quality)

        def create_publisher(self, kind, topic, quality):
            made.qualities[topic] = quality
            return SimpleNamespace(publish=lambda message: made.published.append((topic, kind, message)))

        def create_timer(self, period, callback):
            made.timers.append((period, callback))

        def resolve_topic_name(self, name):
            return made.remapped.get(name, f"/{name}")

        def get_clock(self):
            return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=STAMP.nanoseconds + 10**8))

        def get_logger(self):
            return SimpleNamespace(error=lambda text, **_: made.errors.append(text))

        def get_fully_qualified_name(self):
            return "/camera/perception"

        def destroy_node(self):
            pass

    def module(name, **content):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))

    module("rclpy", init=lambda: None)
    module("rclpy.node", Node=Node)
    durability, reliability = SimpleNamespace(TRANSIENT_LOCAL="latched"), SimpleNamespace(RELIABLE="reliable")
    module(
        "rclpy.qos",
        DurabilityPolicy=durability,
        ReliabilityPolicy=reliability,
        QoSProfile=lambda **settings: settings,
        qos_profile_sensor_data="sensor data",
    )
    for name in {kind.split("/")[0] for kind in make_typestore().fielddefs}:
        kinds = {kind.split("/")[2] for kind in make_typestore().fielddefs if kind.startswith(name + "/")}
        module(f"{name}.msg", **{kind: type(kind, (), {}) for kind in kinds})
    monkeypatch.syspath_prepend(str(ROS2))
    for name in ("perception_ros.node", "perception_ros.convert", "perception_ros.worker", "perception_ros"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def image_message(size=(96, 160)):
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1_700_000_000, nanosec=123_456_789), frame_id="front_optical")
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    return SimpleNamespace(header=header, **vars(picture("rgb8", pixels.tobytes(), size[1], size[0], size[1] * 3)))


def wait_for(condition):
    import time

    for _ in range(400):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not within 8 s")


def test_the_node_publishes_each_image_with_its_own_stamp_and_frame(ros, exported):
    from importlib import import_module

    ros.parameters = {"model": str(exported), "deadline": 0.05}
    node = import_module("perception_ros.node").PerceptionNode()
    kind, take, quality = ros.subscriptions["image"]
    assert (kind.__name__, quality) == ("Image", "sensor data")
    assert ros.subscriptions["camera_info"][2] == "sensor data"
    info = info_of(make_camera_info(Camera(100, 100, 80, 48), (96, 160), STAMP))
    ros.subscriptions["camera_info"][1](info)
    take(image_message())
    wait_for(lambda: node._worker.processed == 1)
    topics = {topic: message for topic, _, message in ros.published}
    assert set(topics) == {f"perception/{name}" for name in result_to_messages(result(), STAMP)}
    for message in topics.values():
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
        assert message.header.frame_id == "front_optical"
    assert ros.qualities["perception/label_info"]["durability"] == "latched"
    assert ros.qualities["perception/detections"] == "sensor data"
    assert topics["perception/depth/camera_info"].k[2] == 79.5
    assert len(bytes(topics["perception/label_image"].data)) == 96 * 160
    ((period, diagnose),) = ros.timers
    diagnose()
    status = ros.published[-1][2].status[0]
    assert (period, status.level, status.name) == (1.0, b"\x01", "/camera/perception")
    assert "1 late" in status.message
    assert {pair.key: pair.value for pair in status.values}["processed"] == "1"
    diagnose()
    assert ros.published[-1][2].status[0].message == "running"
    dark = image_message()
    dark.data = bytes(len(dark.data))
    for done in (2, 3):
        take(dark)
        wait_for(lambda done=done: node._worker.processed == done)
    diagnose()
    status = ros.published[-1][2].status[0]
    assert (status.level, status.message) == (b"\x02", "image: black"), "in the second of a row"
    node.destroy_node()


def test_the_node_goes_by_p_on_a_rectified_topic_and_says_why_a_camera_is_not_used(ros, exported):
    from importlib import import_module

    ros.parameters, ros.remapped = {"model": str(exported)}, {"image": "/front/image_rect_color"}
    node = import_module("perception_ros.node").PerceptionNode()
    found = make_camera_info(Camera(100, 100, 80, 48), (96, 160), STAMP)
    whole = info_of(found, p=found.fields["p"] * 1.5)
    for done, info in enumerate([whole, info_of(found, binning_x=2)], start=1):
        ros.subscriptions["camera_info"][1](info)
        ros.subscriptions["image"][1](image_message())
        wait_for(lambda done=done: node._worker.processed == done)
        ros.timers[0][1]()
        if info is whole:
            used = [m for topic, _, m in ros.published if topic == "perception/depth/camera_info"]
            assert used[-1].k[0] == 150
    status = ros.published[-1][2].status[0]
    assert "binned" in status.message
    assert "default focal length" in status.message
    node.destroy_node()


def test_the_node_outlives_a_bad_image_and_says_so(ros, exported):
    from importlib import import_module

    ros.parameters = {"model": str(exported), "tasks": ["detection"]}
    node = import_module("perception_ros.node").PerceptionNode()
    take = ros.subscriptions["image"][1]
    bad = image_message()
    bad.encoding = "weird"
    take(bad)
    wait_for(lambda: node._worker.failed == 1)
    assert "'weird'" in ros.errors[0]
    ros.timers[0][1]()
    assert ros.published[-1][2].status[0].level == b"\x02"
    take(image_message())
    wait_for(lambda: node._worker.processed == 1)
    assert [topic for topic, *_ in ros.published if topic != "/diagnostics"] == ["perception/detections"]
    node.destroy_node()


def test_a_node_that_is_too_slow_drops_the_oldest_and_counts(ros):
    from importlib import import_module
    from threading import Event

    go, seen = Event(), []
    queue = import_module("perception_ros.worker").LatestItemWorker(lambda item: (go.wait(5), seen.append(item)), print)
    queue.put(0)
    wait_for(lambda: queue._pending is None)
    for item in range(1, 10):
        queue.put(item)
    go.set()
    wait_for(lambda: queue.processed == 2)
    assert seen == [0, 9]
    assert (queue.received, queue.dropped) == (10, 8)
    assert queue.latency_percentiles()[0] >= 0
    queue.close()
