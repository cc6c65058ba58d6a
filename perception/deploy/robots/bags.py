"""Recordings: ROS 2 bags (MCAP or SQLite), single .mcap files and ROS 1 bags, read and written without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.deploy.result import Result
from perception.deploy.robots.definitions import typestore
from perception.deploy.robots.messages import Message, Stamp, all_messages, doubts
from perception.deploy.robots.pictures import CAMERA_INFO, COMPRESSED, IMAGE, decode, lens
from perception.types import Camera, PerceptionError

SUFFIXES = (".mcap", ".bag", ".db3")


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` is a recording: one of `SUFFIXES`, or a folder with a bag's metadata.yaml."""
    path = Path(path)
    return (path.is_file() and path.suffix in SUFFIXES) or (path.is_dir() and (path / "metadata.yaml").is_file())


@dataclass(frozen=True, slots=True)
class BagFrame:
    """A picture of a recording.

    image:  uint8 RGB [H, W, 3]; None where the message holds no picture, and ``problem`` says why
    stamp:  header of the message. logged: nanoseconds at which it was recorded
    camera: intrinsics by the CameraInfo of its namespace
    raw:    the message as recorded, for copying
    """

    topic: str
    image: NDArray[np.uint8] | None
    stamp: Stamp
    logged: int
    camera: Camera | None
    raw: Raw
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Raw:
    """A recorded message, not decoded. connection: of rosbags."""

    connection: Any
    logged: int
    data: bytes


class Bag:
    """An opened recording. Use as a context manager.

    topics: image topics to read; None = all of sensor_msgs/Image (but depth and label images) and CompressedImage

    Raises PerceptionError where it is no recording, is damaged, or has no such topic.
    """

    def __init__(self, path: str | Path, topics: Sequence[str] | None = None) -> None:
        store = typestore()
        from rosbags.highlevel import AnyReader

        self.path = Path(path)
        try:
            self._reader = AnyReader([self.path], default_typestore=store)
            self._reader.open()
        except Exception as error:  # whatever its reader meets in bytes that are no bag
            raise PerceptionError(
                f"{path} cannot be read as a bag: {error} Where its recording was cut off, `mcap recover` (MCAP) or "
                "`rosbag reindex` (ROS 1) mends it; else copy it again."
            ) from error
        images = [c for c in self._reader.connections if c.msgtype in (IMAGE, COMPRESSED)]
        names = sorted({c.topic for c in images})
        if missing := sorted(set(topics or ()) - set(names)):
            self._reader.close()
            raise PerceptionError(f"{path} has no image topic {missing[0]}. It has: {', '.join(names) or 'none'}.")
        self.topics = [name for name in names if (name in topics if topics else _may_be_picture(name))]
        if not self.topics:
            self._reader.close()
            raise PerceptionError(f"{path} has no image topic. It has: {', '.join(sorted(self._reader.topics))}.")
        self._images = [c for c in images if c.topic in self.topics]
        wanted = {info_topic(topic) for topic in self.topics}
        self._infos = [c for c in self._reader.connections if c.msgtype == CAMERA_INFO and c.topic in wanted]

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def __len__(self) -> int:
        """Number of pictures."""
        return sum(c.msgcount for c in self._images)

    def rate(self, topic: str) -> float:
        """Pictures of ``topic`` per second."""
        count = sum(c.msgcount for c in self._images if c.topic == topic)
        return max(count - 1, 1) / self.span if self.span > 0 else 1.0

    @property
    def span(self) -> float:
        """Seconds from the first message to the last."""
        return self._reader.duration / 1e9

    def infos(self) -> Iterator[Raw]:
        """The CameraInfo messages of the read topics, as recorded."""
        for connection, logged, data in self._messages(self._infos):
            yield Raw(connection, logged, data)

    def frames(self) -> Iterator[BagFrame]:
        """The pictures in the order of recording. A picture has the newest CameraInfo, or else the first one."""
        infos: dict[str, Any] = {}
        for connection, _, data in self._messages(self._infos):
            infos.setdefault(connection.topic, self._decoded(data, connection))
        for connection, logged, data in self._messages([*self._images, *self._infos]):
            message = self._decoded(data, connection)
            if connection.msgtype == CAMERA_INFO:
                infos[connection.topic] = message
                continue
            yield self._frame(connection, logged, data, message, infos.get(info_topic(connection.topic)))

    def _frame(self, connection: Any, logged: int, data: bytes, message: Any, info: Any) -> BagFrame:
        time = message.header.stamp
        stamp = Stamp(time.sec * 10**9 + time.nanosec, message.header.frame_id)
        raw = Raw(connection, logged, data)
        where = f"{self.path}, {connection.topic} at {stamp.nanoseconds / 1e9:.6f}"
        try:
            image = decode(message, connection.msgtype, where)
        except PerceptionError as error:
            return BagFrame(connection.topic, None, stamp, logged, None, raw, str(error))
        height, width = image.shape[:2]
        camera = None if info is None else lens(info, (height, width))
        problem = "" if camera or info is None else f"{where}: its CameraInfo is for {info.width}x{info.height} pixels."
        return BagFrame(connection.topic, image, stamp, logged, camera, raw, problem)

    def _messages(self, connections: list[Any]) -> Iterator[tuple[Any, int, bytes]]:
        if not connections:
            return
        try:
            yield from self._reader.messages(connections)
        except Exception as error:  # whatever its reader meets in damaged bytes
            raise PerceptionError(f"{self.path} is damaged: {error}") from error

    def _decoded(self, data: bytes, connection: Any) -> Any:
        try:
            return self._reader.deserialize(data, connection.msgtype)
        except Exception as error:  # whatever its generated code meets in bytes that are no such message
            raise PerceptionError(
                f"{self.path}: a message of {connection.topic} is no {connection.msgtype}: {error}"
            ) from error


def _may_be_picture(topic: str) -> bool:
    """Not a depth, label or mask image, whose encoding may look like that of a grey picture."""
    parts = topic.lower().replace("_", "/").split("/")
    return not {"depth", "label", "labels", "mask", "disparity", "compresseddepth"} & set(parts)


def namespace(topic: str) -> str:
    """ "/front/image_raw/compressed" -> "/front"."""
    return topic.removesuffix("/compressed").rpartition("/")[0]


def info_topic(topic: str) -> str:
    """The CameraInfo that belongs to an image topic: its neighbour."""
    return f"{namespace(topic)}/camera_info"


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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(self.path, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self.count = 0

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, topic: str, message: Message, nanoseconds: int) -> None:
        """Record ``message`` on ``topic`` at a time."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, message.type, typestore=self._store)
        data = self._store.serialize_cdr(to_store(message, self._store), message.type)
        self._writer.write(self._connections[topic], nanoseconds, data)
        self.count += 1

    def write_result(self, prefix: str, result: Result, stamp: Stamp, nanoseconds: int, point_step: int) -> None:
        """Record all that the network says by its relative topics under ``prefix``, and what is wrong with it on
        ``/diagnostics``."""
        for topic, message in all_messages(result, stamp, point_step).items():
            self.write(f"{prefix}/{topic}", message, nanoseconds)
        if (doubt := doubts(result, prefix, stamp)) is not None:
            self.write("/diagnostics", doubt, nanoseconds)

    def copy(self, raw: Raw) -> None:
        """Record a message of another bag as it is."""
        source = raw.connection
        if source.topic not in self._connections:
            definition = source.msgdef.data if source.msgdef.data else None
            known = source.msgtype in self._store.fielddefs
            options = (
                {"typestore": self._store}
                if known or not definition
                else {"msgdef": definition, "rihs01": source.digest}
            )
            self._connections[source.topic] = self._writer.add_connection(source.topic, source.msgtype, **options)
        self._writer.write(self._connections[source.topic], raw.logged, raw.data)
        self.count += 1

    def close(self) -> None:
        """Complete the file. Without this (a kill) it can be read up to the last chunk that was written."""
        self._writer.close()


def to_store(value: Any, store: Any) -> Any:
    """A `Message` as the dataclass of a rosbags type store; lists and values within it likewise."""
    if isinstance(value, Message):
        fields = {name: to_store(item, store) for name, item in value.fields.items()}
        return store.types[value.type](**fields)
    return [to_store(item, store) for item in value] if isinstance(value, list) else value
