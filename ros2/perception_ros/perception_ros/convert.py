"""Converts `perception.robots.messages.Message` to ROS messages."""

from array import array
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from perception.robots.messages import Message


def ros_class(name: str) -> type:
    """Return the ROS message class of a type name like "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


def to_ros(value: Any, find_class: Callable[[str], type] = ros_class) -> Any:
    """Convert a `Message` to its ROS message, with nested lists and values. ``find_class``: type name -> class."""
    if isinstance(value, Message):
        message = find_class(value.type)()
        for name, item in value.fields.items():
            setattr(message, name, _to_byte(item) if _is_byte_field(value.type, name) else to_ros(item, find_class))
        return message
    if isinstance(value, list):
        return [to_ros(item, find_class) for item in value]
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        data = array("B")  # rclpy accepts this type without checking each element
        data.frombytes(value.tobytes())
        return data
    return value


def _is_byte_field(type: str, field: str) -> bool:
    return type == "diagnostic_msgs/msg/DiagnosticStatus" and field == "level"


def _to_byte(value: int) -> bytes:
    return bytes([value])
