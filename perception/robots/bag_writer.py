"""Writes ROS 2 bags (MCAP) without ROS."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perception.files.safe_write import convert_write_errors
from perception.robots.definitions import make_typestore
from perception.robots.messages import Message, MessageHeader, make_flag_diagnostics, result_to_messages
from perception.runtime.result import Result
from perception.types import PerceptionError

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore


class BagWriter:
    """Writes a new ROS 2 bag (a folder with an MCAP file and metadata.yaml). Use as a context manager.

    The log time of a message is the time passed to `write`, independent of its stamp. Raises PerceptionError if the
    path exists.
    """

    def __init__(self, path: str | Path) -> None:
        self._typestore = make_typestore()
        from rosbags.rosbag2 import StoragePlugin, Writer

        self.path = Path(path)
        if self.path.exists():
            raise PerceptionError(f"{self.path} already exists. Nothing is overwritten: choose another name.")
        with convert_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(self.path, version=8, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        self._connections: dict[tuple[str, str], Any] = {}
        self.num_messages = 0

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if error is not None else nullcontext():
            self.close()

    def write(self, topic: str, message: Message, nanoseconds: int) -> None:
        """Record ``message`` on ``topic`` with the given log time."""
        self.write_cdr(topic, message.type, to_cdr(message, self._typestore), nanoseconds)

    def write_result(
        self, prefix: str, result: Result, header: MessageHeader, nanoseconds: int, point_stride: int
    ) -> None:
        """Record all outputs of a result on topics under ``prefix``, and its flags on ``/diagnostics``."""
        for topic, message in result_to_messages(result, header, point_stride).items():
            self.write(f"{prefix}/{topic}", message, nanoseconds)
        if (doubt := make_flag_diagnostics(result, prefix, header)) is not None:
            self.write("/diagnostics", doubt, nanoseconds)

    def write_cdr(self, topic: str, type: str, data: bytes, nanoseconds: int) -> None:
        """Record a serialized message (CDR) of a standard type."""
        with convert_write_errors(self.path):
            connection = self._connections.get((topic, type))
            if connection is None:
                connection = self._writer.add_connection(topic, type, typestore=self._typestore)
                self._connections[topic, type] = connection
            self._writer.write(connection, nanoseconds, data)
        self.num_messages += 1

    def close(self) -> None:
        """Complete the file. Without this (killed process), the file is readable up to the last written chunk."""
        with convert_write_errors(self.path):
            self._writer.close()


def to_rosbags(value: object, typestore: Typestore) -> Any:
    """Convert a `Message` to the dataclass of a rosbags type store, with its nested lists and values."""
    if isinstance(value, Message):
        fields = {name: to_rosbags(item, typestore) for name, item in value.fields.items()}
        return typestore.types[value.type](**fields)
    return [to_rosbags(item, typestore) for item in value] if isinstance(value, list) else value


def to_cdr(message: Message, typestore: Typestore) -> bytes:
    """Serialize a `Message` to CDR, as ROS 2 sends and records it."""
    return bytes(typestore.serialize_cdr(to_rosbags(message, typestore), message.type))
