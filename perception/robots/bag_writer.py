"""Writing ROS 2 bags (MCAP) without ROS."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from perception.files.safe_write import writing
from perception.robots.definitions import typestore
from perception.robots.messages import Message, Stamp, all_messages, doubts
from perception.runtime.result import Result
from perception.types import PerceptionError


class BagWriter:
    """Writes a new ROS 2 bag (a folder with an MCAP file and metadata.yaml). Use as a context manager.

    Messages may come with any stamps; their time in the recording is what `write` is told. Raises PerceptionError where
    something is already there.
    """

    def __init__(self, path: str | Path) -> None:
        self._store = typestore()
        from rosbags.rosbag2 import StoragePlugin, Writer

        self.path = Path(path)
        if self.path.exists():
            raise PerceptionError(f"{self.path} exists already. Nothing is overwritten: give another name.")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(self.path, version=8, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        self._connections: dict[tuple[str, str], Any] = {}
        self.count = 0

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if error is not None else nullcontext():
            self.close()

    def write(self, topic: str, message: Message, nanoseconds: int) -> None:
        """Record ``message`` on ``topic`` at a time."""
        self.write_cdr(topic, message.type, to_cdr(message, self._store), nanoseconds)

    def write_result(self, prefix: str, result: Result, stamp: Stamp, nanoseconds: int, point_step: int) -> None:
        """Record all that the network says by its relative topics under ``prefix``, and what is wrong with it on
        ``/diagnostics``."""
        for topic, message in all_messages(result, stamp, point_step).items():
            self.write(f"{prefix}/{topic}", message, nanoseconds)
        if (doubt := doubts(result, prefix, stamp)) is not None:
            self.write("/diagnostics", doubt, nanoseconds)

    def write_cdr(self, topic: str, type: str, data: bytes, nanoseconds: int) -> None:
        """Record a message of a standard type as it is."""
        with writing(self.path):
            connection = self._connections.get((topic, type))
            if connection is None:
                connection = self._writer.add_connection(topic, type, typestore=self._store)
                self._connections[topic, type] = connection
            self._writer.write(connection, nanoseconds, data)
        self.count += 1

    def close(self) -> None:
        """Complete the file. Without this (a kill) it can be read up to the last chunk that was written."""
        with writing(self.path):
            self._writer.close()


def to_store(value: Any, store: Any) -> Any:
    """A `Message` as the dataclass of a rosbags type store; lists and values within it likewise."""
    if isinstance(value, Message):
        fields = {name: to_store(item, store) for name, item in value.fields.items()}
        return store.types[value.type](**fields)
    return [to_store(item, store) for item in value] if isinstance(value, list) else value


def to_cdr(message: Message, store: Any) -> bytes:
    """A `Message` as ROS 2 sends and records it."""
    return bytes(store.serialize_cdr(to_store(message, store), message.type))
