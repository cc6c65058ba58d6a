"""Converts Foxglove images and calibrations (Protocol Buffers, JSON or foxglove_msgs) to ROS messages.

Field names and numbers follow https://docs.foxglove.dev/docs/sdk/schemas and are stable.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from struct import unpack
from typing import Any

import numpy as np

from perception.robots.images import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE
from perception.robots.messages import Message, MessageHeader

PROTOBUF_FIELDS = {
    IMAGE: {1: "timestamp", 2: "width", 3: "height", 4: "encoding", 5: "step", 6: "data", 7: "frame_id"},
    COMPRESSED_IMAGE: {1: "timestamp", 2: "data", 3: "format", 4: "frame_id"},
    CAMERA_INFO: {1: "timestamp", 2: "width", 3: "height", 4: "distortion_model",
                  5: "d", 6: "k", 7: "r", 8: "p", 9: "frame_id"},
}  # fmt: skip
"""ROS type -> field number in the Protocol Buffer -> field name."""
UINT32_LIMIT = 2**32


def from_protobuf(data: bytes, ros_type: str) -> Message:
    """Parse a Protocol Buffer to a message of ``ros_type``. Raises ValueError, struct.error or UnicodeDecodeError."""
    values: dict[str, Any] = {}
    for number, value in _read_fields(data):
        name = PROTOBUF_FIELDS[ros_type].get(number)
        if name == "timestamp":
            time = dict(_read_fields(value))
            values[name] = (_to_signed(time.get(1, 0)), _to_signed(time.get(2, 0)))
        elif name in ("width", "height", "step"):
            values[name] = int.from_bytes(value, "little")
        elif name in ("d", "k", "r", "p"):
            values[name] = [*values.get(name, []), *unpack(f"<{len(value) // 8}d", value)]
        elif name is not None:
            values[name] = bytes(value) if name == "data" else value.decode()
    return _make_message(values, ros_type)


def from_json(data: bytes, ros_type: str) -> Message:
    """Parse JSON to a message of ``ros_type``, like `from_protobuf`."""
    values = {name.lower(): value for name, value in json.loads(data).items()}
    time = values.get("timestamp") or {}
    values["timestamp"] = int(time.get("sec", 0)), int(time.get("nsec", 0))
    values["data"] = base64.b64decode(values.get("data", ""), validate=True)
    return _make_message(values, ros_type)


def from_ros_message(message: Any, ros_type: str) -> Message:
    """Convert a message of foxglove_msgs to one of ``ros_type``."""
    values = {name: getattr(message, name) for name in PROTOBUF_FIELDS[ros_type].values()}
    values["timestamp"] = message.timestamp.sec, message.timestamp.nanosec
    return _make_message(values, ros_type)


def _make_message(values: dict[str, Any], ros_type: str) -> Message:
    seconds, nanoseconds = values.get("timestamp", (0, 0))
    fields: dict[str, Any] = {
        "header": MessageHeader(seconds * 10**9 + nanoseconds, str(values.get("frame_id", ""))).to_message()
    }
    if ros_type in (IMAGE, CAMERA_INFO):
        for name in ("width", "height", *(["step"] if ros_type == IMAGE else [])):
            fields[name] = int(values.get(name, 0))
            if not 0 <= fields[name] < UINT32_LIMIT:
                raise ValueError(f"{name} {fields[name]}")
    if ros_type == CAMERA_INFO:
        for name, length in (("k", 9), ("r", 9), ("p", 12)):
            given = np.asarray(values.get(name, ()), float).ravel()
            fields[name] = given if len(given) == length else np.zeros(length)
        region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        fields |= {
            "distortion_model": str(values.get("distortion_model", "")),
            "d": np.asarray(values.get("d", ()), float).ravel(),
            "binning_x": 0,
            "binning_y": 0,
            "roi": Message("sensor_msgs/msg/RegionOfInterest", region),
        }
        return Message(ros_type, fields)
    fields["data"] = np.frombuffer(values.get("data", b""), np.uint8)
    name = "encoding" if ros_type == IMAGE else "format"
    fields[name] = str(values.get(name, ""))
    return Message(ros_type, fields | ({"is_bigendian": 0} if ros_type == IMAGE else {}))


def _read_fields(data: object) -> Iterator[tuple[int, Any]]:
    """Field number and value of each field of a Protocol Buffer: an integer (varint) or bytes (all others)."""
    if not isinstance(data, bytes | memoryview):
        raise ValueError("found a number, expected a message")
    view, at = memoryview(data), 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(view, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _read_varint(view, at)
        else:
            length = {1: 8, 5: 4}[kind] if kind in (1, 5) else len(view)
        if at + length > len(view):
            raise ValueError("a field exceeds its message")
        yield tag >> 3, view[at : at + length] if kind != 2 else bytes(view[at : at + length])
        at += length


def _read_varint(view: memoryview, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(view):
            break
        value |= (view[offset] & 0x7F) << shift
        offset += 1
        if view[offset - 1] < 0x80:
            return value, offset
    raise ValueError("a varint is not terminated")


def _to_signed(value: Any) -> int:
    return value - 2**64 if value >= 2**63 else value
