"""Bags: read and written without ROS, checked with rosbags' and MCAP's own readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perception import cli
from perception.robots.bag_writer import BagWriter, to_rosbags
from perception.robots.bags import BagReader, is_bag
from perception.robots.definitions import VISION_MSGS, make_typestore
from perception.robots.messages import MessageHeader, make_camera_info, make_image
from perception.robots.topics import namespace
from perception.runtime.predictor import Predictor
from perception.types import Camera, PerceptionError
from perception.video.replay import replay

pytest.importorskip("rosbags")
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

START = 1_700_000_000_000_000_000
CAMERA = Camera(120.0, 121.0, 80.25, 47.5)
SIZE = (96, 160)
COUNT = 5


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8)


def stamp(n: int) -> MessageHeader:
    return MessageHeader(START + n * 100_000_007, "front_optical")


@pytest.fixture
def drive(tmp_path) -> Path:
    """Five images, recorded 3 ms after their stamps; CameraInfo after the first of them; a depth image beside."""
    path = tmp_path / "drive"
    with BagWriter(path) as bag:
        for n in range(COUNT):
            logged = stamp(n).nanoseconds + 3_000_000
            bag.write("/front/image_raw", make_image(pixels(n), "rgb8", stamp(n)), logged)
            bag.write("/front/camera_info", make_camera_info(CAMERA, SIZE, stamp(n)), logged + 1)
            bag.write("/front/depth/image", make_image(np.ones(SIZE, np.float32), "32FC1", stamp(n)), logged)
    return path


def test_images_come_with_stamp_frame_and_camera(drive):
    assert is_bag(drive)
    assert is_bag(next(drive.glob("*.mcap")))
    assert not is_bag(drive.parent)
    with BagReader(drive) as bag:
        assert bag.topics == ["/front/image_raw"]
        assert len(bag) == COUNT
        frames = list(bag.read_frames())
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, pixels(n))
        assert (frame.header, frame.log_time, frame.camera) == (stamp(n), stamp(n).nanoseconds + 3_000_000, CAMERA)
    with BagReader(next(drive.glob("*.mcap"))) as bag:
        assert [frame.header for frame in bag.read_frames()] == [stamp(n) for n in range(COUNT)]


@pytest.fixture(scope="module")
def network(exported):
    return Predictor(exported, threads=1)


def test_results_are_read_by_rosbags_with_stamps_and_frames_equal_to_the_inputs(drive, network, tmp_path):
    report = replay(network, drive, tmp_path / "out")
    assert (report.frames, report.problems, report.stop_signal) == (COUNT, {}, None)
    genuine = get_typestore(Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        genuine.register(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    found: dict[str, list] = {}
    with AnyReader([tmp_path / "out"], default_typestore=genuine) as reader:
        for connection, logged, data in reader.messages():
            found.setdefault(connection.topic, []).append((logged, reader.deserialize(data, connection.msgtype)))
            assert connection.digest == genuine.hash_rihs01(connection.msgtype)
    results = {topic: items for topic, items in found.items() if topic.startswith("/front/perception/")}
    names = ("detections", "label_image", "label_info", "depth/image_rect", "depth/camera_info", "points", "scene")
    assert set(results) == {f"/front/perception/{name}" for name in names}
    for items in results.values():
        for n, (logged, message) in enumerate(items):
            time = message.header.stamp
            assert time.sec * 10**9 + time.nanosec == stamp(n).nanoseconds
            assert (message.header.frame_id, logged) == ("front_optical", stamp(n).nanoseconds + 3_000_000)
    expected = [network(pixels(n), CAMERA) for n in range(COUNT)]
    for n, result in enumerate(expected):
        depth = results["/front/perception/depth/image_rect"][n][1].data.view("<f4").reshape(SIZE)
        np.testing.assert_array_equal(depth, result.depth)
        boxes = results["/front/perception/detections"][n][1].detections
        assert [box.results[0].hypothesis.class_id for box in boxes] == result.labels
    assert {"/front/image_raw", "/front/camera_info"} < set(found), "the images are carried over"
    np.testing.assert_array_equal(found["/front/image_raw"][2][1].data, pixels(2).ravel())


def test_results_are_read_by_mcap(drive, network, tmp_path):
    decoders = pytest.importorskip("mcap_ros2.decoder")
    from mcap.reader import make_reader

    replay(network, drive, tmp_path / "out", copy_inputs=False, point_stride=0)
    with next((tmp_path / "out").glob("*.mcap")).open("rb") as file:
        reader = make_reader(file, decoder_factories=[decoders.DecoderFactory()])
        schemas = {schema.name for schema in reader.get_summary().schemas.values()}
        boxes = [m for *_, m in reader.iter_decoded_messages(["/front/perception/detections"])]
    assert {"vision_msgs/msg/Detection2DArray", "vision_msgs/msg/LabelInfo", "sensor_msgs/msg/Image"} <= schemas
    assert [m.header.stamp.nanosec for m in boxes] == [stamp(n).nanoseconds % 10**9 for n in range(COUNT)]
    first = network(pixels(0), CAMERA)
    assert [d.bbox.size_x for d in boxes[0].detections] == pytest.approx([x2 - x1 for x1, _, x2, _ in first.boxes])


def test_ros1_bags_and_sqlite_bags_are_read_too(tmp_path):
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2

    one = get_typestore(Stores.ROS1_NOETIC)
    types = one.types
    time = types["builtin_interfaces/msg/Time"](sec=17, nanosec=5)
    header = types["std_msgs/msg/Header"](seq=3, stamp=time, frame_id="cam")
    data = pixels(0).ravel()
    message = types["sensor_msgs/msg/Image"](header, SIZE[0], SIZE[1], "bgr8", 0, 3 * SIZE[1], data)
    k = np.array([50.0, 0, 10, 0, 51, 11, 0, 0, 1])
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    info = types["sensor_msgs/msg/CameraInfo"](
        header, SIZE[0], SIZE[1], "plumb_bob", np.zeros(5), k, np.eye(3).ravel(), np.zeros(12), 0, 0, roi
    )
    with Writer1(tmp_path / "old.bag") as bag:
        for topic, item in (("/cam/image", message), ("/cam/camera_info", info)):
            connection = bag.add_connection(topic, item.__msgtype__, typestore=one)
            bag.write(connection, 99, one.serialize_ros1(item, item.__msgtype__))
    store, when = make_typestore(), MessageHeader(17 * 10**9 + 5, "cam")
    items = {
        "image": make_image(pixels(0), "bgr8", when),
        "camera_info": make_camera_info(Camera(50, 51, 10.5, 11.5), SIZE, when),
    }
    with Writer2(tmp_path / "sqlite", version=8, storage_plugin=StoragePlugin.SQLITE3) as bag:
        for topic, item in items.items():
            connection = bag.add_connection(f"/cam/{topic}", item.type, typestore=store)
            bag.write(connection, 99, store.serialize_cdr(to_rosbags(item, store), item.type))
    for path in (tmp_path / "old.bag", tmp_path / "sqlite", next((tmp_path / "sqlite").glob("*.db3"))):
        assert is_bag(path)
        with BagReader(path) as bag:
            (frame,) = bag.read_frames()
        assert (frame.header, frame.log_time, frame.camera) == (
            MessageHeader(17 * 10**9 + 5, "cam"),
            99,
            Camera(50, 51, 10.5, 11.5),
        )
        np.testing.assert_array_equal(frame.image, pixels(0)[..., ::-1])


def test_a_bad_image_and_a_camera_of_another_resolution_are_counted_and_the_rest_is_done(network, tmp_path):
    with BagWriter(tmp_path / "in") as bag:
        bag.write("/cam/image", make_image(pixels(0), "rgb8", stamp(0)), 1)
        bag.write("/cam/image", make_image(pixels(0)[..., 0], "weird", stamp(1)), 2)
        bag.write("/cam/camera_info", make_camera_info(CAMERA, (1, 2), stamp(0)), 0)
    report = replay(network, tmp_path / "in", tmp_path / "out")
    assert report.frames == 1
    assert len(report.problems) == 2
    assert any("CameraInfo is for 2x1" in text for text in report.problems)
    assert any("'weird'" in text for text in report.problems)
    assert "1 x" in str(report)


@pytest.mark.parametrize(
    "content", [b"", b"\x89MCAP0\r\n" + bytes(100), b"#ROSBAG V2.0\n" + bytes(50), b"rubbish" * 99]
)
@pytest.mark.parametrize("suffix", [".mcap", ".bag", ".db3"])
def test_what_is_no_bag_is_told(tmp_path, content, suffix):
    path = tmp_path / f"drive{suffix}"
    path.write_bytes(content)
    with pytest.raises(PerceptionError, match="drive"), BagReader(path) as bag:
        list(bag.read_frames())


def test_a_truncated_bag_is_read_up_to_its_end_and_told(drive):
    path = next(drive.glob("*.mcap"))
    whole = path.read_bytes()
    counts = []
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with BagReader(path) as bag:
            frames = list(bag.read_frames())
            assert any("drive" in text and "lost" in text for text in bag.damage())
        for n, frame in enumerate(frames):
            np.testing.assert_array_equal(frame.image, pixels(n))
        counts.append(len(frames))
    assert 0 < counts[0] < counts[1] <= counts[2] == COUNT


def test_a_topic_that_is_not_there_is_named_beside_those_that_are(drive):
    with pytest.raises(PerceptionError, match=r"no image topic /rear.*/front/image_raw"):
        BagReader(drive, ["/rear"])
    with BagReader(drive, ["/front/depth/image"]) as bag:
        assert bag.topics == ["/front/depth/image"], "what is asked for by name is read"


def test_nothing_is_overwritten(drive, network):
    before = sorted((p.name, p.stat().st_size) for p in drive.iterdir())
    with pytest.raises(PerceptionError, match="already exists"):
        replay(network, drive, drive)
    assert sorted((p.name, p.stat().st_size) for p in drive.iterdir()) == before


def test_topics_and_their_namespaces():
    assert [namespace(t) for t in ("/front/image_raw/compressed", "/a/b/image", "/image")] == ["/front", "/a/b", ""]


def test_the_command_replays_a_bag(drive, exported, tmp_path, capsys):
    arguments = ["predict", str(exported), str(drive), "--out", str(tmp_path / "out"), "--topics", "/front/image_raw"]
    assert cli.main([*arguments, "--tasks", "detection"]) == 0
    assert "5 frames of /front/image_raw" in capsys.readouterr().err
    with AnyReader([tmp_path / "out" / "drive"], default_typestore=make_typestore()) as reader:
        topics = set(reader.topics)
    assert topics == {"/front/image_raw", "/front/camera_info", "/front/perception/detections"}
    assert cli.main([*arguments[:-1], "/rear", "--out", str(tmp_path / "other")]) == 2


def test_save_mcap_makes_a_bag_of_any_source(exported, tmp_path):
    import cv2

    for n in range(3):
        cv2.imwrite(str(tmp_path / f"{n}.png"), pixels(n))
    out = tmp_path / "out"
    assert cli.main(["predict", str(exported), str(tmp_path), "--out", str(out), "--save", "mcap,jsonl"]) == 0
    with BagReader(out / "images-bag") as bag:
        frames = list(bag.read_frames())
    assert [frame.header.nanoseconds for frame in frames] == [10**9, 2 * 10**9, 3 * 10**9]
    np.testing.assert_array_equal(frames[2].image, pixels(2)[..., ::-1])
    with AnyReader([out / "images-bag"], default_typestore=make_typestore()) as reader:
        assert {c.topic: c.msgcount for c in reader.connections}["/camera/perception/detections"] == 3


def test_a_bag_is_looked_at_as_a_video_is(exported, tmp_path):
    """Its bad images are flagged and its objects followed, of each topic by itself; --frames and --camera count."""
    pytest.importorskip("trackers")
    with BagWriter(tmp_path / "in") as bag:
        for n in range(6):
            for topic, seed in (("/left/image", 1), ("/right/image", 2)):
                pixel = np.zeros((*SIZE, 3), np.uint8) if topic == "/left/image" and n > 2 else pixels(seed + n)
                bag.write(topic, make_image(pixel, "rgb8", stamp(n)), stamp(n).nanoseconds)
    options = ["--track", "--smooth", "0.3", "--max-frames", "5", "--intrinsics", "90,90,80,48", "--size", "64x96"]
    assert cli.main(["predict", str(exported), str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 0
    found: dict[str, list] = {}
    with AnyReader([tmp_path / "out" / "in"], default_typestore=make_typestore()) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    assert {len(found[f"/{side}/perception/detections"]) for side in ("left", "right")} == {5}
    assert found["/left/perception/depth/camera_info"][0].k[0] == 90
    statuses = [item.status[0] for item in found["/diagnostics"] if item.status[0].name == "/left/perception"]
    assert [(status.level, status.message) for status in statuses] == [(2, "image: black")], "from the second on"


@pytest.mark.parametrize(
    "option", [["--maps"], ["--save", "jsonl"], ["--batch-size", "2"], ["--deadline", "9"], ["--show"]]
)
def test_what_a_bag_would_leave_unheard_is_refused(drive, exported, tmp_path, capsys, option):
    assert cli.main(["predict", str(exported), str(drive), "--out", str(tmp_path / "out"), *option]) == 2
    assert f"{option[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
