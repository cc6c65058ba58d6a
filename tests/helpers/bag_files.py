"""Recordings of every kind, written small: the same drive of `COUNT` images in each."""

from __future__ import annotations

import base64
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

from perception.robots.bag_writer import to_cdr
from perception.robots.definitions import make_typestore
from perception.robots.messages import Message, MessageHeader, make_camera_info, make_image
from perception.types import Camera

START = 1_700_000_000_000_000_000
NUM_IMAGES = 6
SIZE = (48, 64)
CAMERA = Camera(120.0, 121.0, 32.25, 24.5)
IMAGE, CAMERA_INFO = "/front/image_raw", "/front/camera_info"
STORE = make_typestore()


def noise_image(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8)


def make_stamp(n: int) -> MessageHeader:
    return MessageHeader(START + n * 100_000_007, "front_optical")


def recorded_messages() -> list[tuple[str, Message, int]]:
    """Topic, message and time of recording: an image and its camera, ten times a second."""
    found: list[tuple[str, Message, int]] = []
    for n in range(NUM_IMAGES):
        logged = make_stamp(n).nanoseconds + 3_000_000
        found.append((IMAGE, make_image(noise_image(n), "rgb8", make_stamp(n)), logged))
        found.append((CAMERA_INFO, make_camera_info(CAMERA, SIZE, make_stamp(n)), logged + 1))
    return found


def compressed_image(data: bytes, n: int = 0, format: str = "jpeg", header: Message | None = None) -> Message:
    content = {"header": header or make_stamp(n).to_message(), "format": format, "data": np.frombuffer(data, np.uint8)}
    return Message("sensor_msgs/msg/CompressedImage", content)


Messages = list[tuple[str, Message, int]]


def write_ros1(path: Path, messages: Messages | None = None, kind: str = "none", size: int = 1) -> Path:
    """size: bytes after which a chunk is closed: one message in each by default."""
    store = get_typestore(Stores.ROS1_NOETIC)
    writer = Ros1Writer(path)
    if kind != "none":
        writer.set_compression(getattr(Ros1Writer.CompressionFormat, kind.upper()))
    writer.chunk_threshold = size
    with writer:
        connections = {}
        for topic, message, logged in messages or recorded_messages():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.type, typestore=store)
            data = STORE.cdr_to_ros1(to_cdr(message, STORE), message.type)
            writer.write(connections[topic], logged, data)
    return path


def write_ros2(path: Path, messages: Messages | None = None, plugin: str = "mcap", packed: str = "") -> Path:
    """packed: "" or what rosbag2 compresses: message, file."""
    writer = Ros2Writer(path, version=8, storage_plugin=getattr(StoragePlugin, plugin.upper()))
    if packed:
        writer.set_compression(getattr(CompressionMode, packed.upper()), CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, message, logged in messages or recorded_messages():
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.type, typestore=STORE)
            writer.write(connections[topic], logged, to_cdr(message, STORE))
    return path


def write_mcap(
    path: Path,
    messages: Messages | None = None,
    encoding: str = "cdr",
    compression: str = "none",
    chunk_size: int = 1,
    without: tuple[str, ...] = (),
    **options: bool,
) -> Path:
    """As any recorder may: `messages` in an ``encoding``; without: kinds of index records that are left out."""
    profile = {"cdr": "ros2", "ros1": "ros1"}.get(encoding, "")
    index = IndexType.ALL
    for kind in without:
        index &= ~IndexType[kind]
    with path.open("wb") as file:
        writer = Writer(
            file,
            chunk_size=chunk_size,
            compression=CompressionType[compression.upper()],
            index_types=index,
            **{"use_summary_offsets": True, **options},
        )
        writer.start(profile, "a test")
        channels = {}
        for topic, message, logged in messages or recorded_messages():
            name, kind, data = ENCODERS[encoding](message)
            if topic not in channels:
                schema = writer.register_schema(name, kind, b"")
                channels[topic] = writer.register_channel(topic, encoding.partition(" ")[0], schema)
            writer.add_message(channels[topic], logged, data, logged)
        writer.finish()
    return path


def _cdr(message: Message) -> tuple[str, str, bytes]:
    return message.type, "ros2msg", to_cdr(message, STORE)


def _ros1(message: Message) -> tuple[str, str, bytes]:
    data = bytes(STORE.cdr_to_ros1(to_cdr(message, STORE), message.type))
    return message.type.replace("/msg/", "/"), "ros1msg", data


FOXGLOVE = {"Image": "RawImage", "CompressedImage": "CompressedImage", "CameraInfo": "CameraCalibration"}


def _foxglove(message: Message) -> tuple[str, dict]:
    fields = dict(message.fields)
    header = fields.pop("header").fields
    time = header["stamp"].fields
    fields |= {"timestamp": (time["sec"], time["nanosec"]), "frame_id": header["frame_id"]}
    return FOXGLOVE[message.type.rpartition("/")[2]], fields


def _json(message: Message) -> tuple[str, str, bytes]:
    name, fields = _foxglove(message)
    seconds, nano = fields["timestamp"]
    plain = {"timestamp": {"sec": seconds, "nsec": nano}, "frame_id": fields["frame_id"]}
    for key in ("width", "height", "encoding", "step", "format", "distortion_model"):
        if key in fields:
            plain[key] = fields[key]
    if "data" in fields:
        plain["data"] = base64.b64encode(fields["data"].tobytes()).decode()
    for key in "dkrp":
        if key in fields:
            plain[key.upper()] = fields[key].tolist()
    return f"foxglove.{name}", "jsonschema", json.dumps(plain).encode()


NUMBERS = {
    "RawImage": {"timestamp": 1, "width": 2, "height": 3, "encoding": 4, "step": 5, "data": 6, "frame_id": 7},
    "CompressedImage": {"timestamp": 1, "data": 2, "format": 3, "frame_id": 4},
    "CameraCalibration": {"timestamp": 1, "width": 2, "height": 3, "distortion_model": 4,
                          "d": 5, "k": 6, "r": 7, "p": 8, "frame_id": 9},
}  # fmt: skip


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _protobuf(message: Message) -> tuple[str, str, bytes]:
    name, fields = _foxglove(message)
    found = b""
    for key, number in NUMBERS[name].items():
        value = fields[key]
        if key in ("width", "height", "step"):
            found += _varint(number << 3 | 5) + struct.pack("<I", value)
            continue
        if key == "timestamp":
            value = b"\x08" + _varint(value[0]) + b"\x10" + _varint(value[1])
        value = value.encode() if isinstance(value, str) else bytes(value)
        found += _varint(number << 3 | 2) + _varint(len(value)) + value
    return f"foxglove.{name}", "protobuf", found


def _foxglove_msgs(message: Message) -> tuple[str, str, bytes]:
    name, fields = _foxglove(message)
    seconds, nano = fields["timestamp"]
    fields["timestamp"] = Message("builtin_interfaces/msg/Time", {"sec": seconds, "nanosec": nano})
    kind = f"foxglove_msgs/msg/{name}"
    wanted = [key for key, _ in STORE.fielddefs[kind][1]]
    return kind, "ros2msg", to_cdr(Message(kind, {key: fields[key] for key in wanted}), STORE)


ENCODERS: dict[str, Callable[[Message], tuple[str, str, bytes]]] = {
    "cdr": _cdr,
    "ros1": _ros1,
    "json": _json,
    "protobuf": _protobuf,
    "cdr of foxglove_msgs": _foxglove_msgs,
}


def write_folder(path: Path, *writers: Callable[[Path], Path], metadata: str = "") -> Path:
    """A folder with the files drive_0, drive_1, ..., and perhaps a metadata.yaml."""
    path.mkdir()
    for n, write in enumerate(writers):
        write(path / f"drive_{n}.mcap")
    if metadata:
        (path / "metadata.yaml").write_text(metadata)
    return path


def write_zstd(path: Path, plain: Path) -> Path:
    path.write_bytes(zstandard.compress(plain.read_bytes()))
    return path


def write_wal(path: Path) -> Path:
    """A bag of SQLite whose last messages are in the write-ahead log that a killed recorder left."""
    write_ros2(path.with_name("whole"), plugin="sqlite3")
    path.mkdir()
    base = sqlite3.connect(next(path.with_name("whole").glob("*.db3")))
    (path / "drive_0.db3").write_bytes(next(path.with_name("whole").glob("*.db3")).read_bytes())
    rows = base.execute("SELECT * FROM messages ORDER BY timestamp").fetchall()
    base.close()
    live = sqlite3.connect(path / "drive_0.db3")
    live.execute("PRAGMA journal_mode = WAL")
    live.execute("PRAGMA wal_autocheckpoint = 0")
    live.execute("DELETE FROM messages")
    live.executemany(f"INSERT INTO messages VALUES ({','.join('?' * len(rows[0]))})", rows)
    live.commit()
    log, main = (path / "drive_0.db3-wal").read_bytes(), (path / "drive_0.db3").read_bytes()
    live.close()
    (path / "drive_0.db3").write_bytes(main)
    (path / "drive_0.db3-wal").write_bytes(log)
    return path
