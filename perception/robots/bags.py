"""Reads images and camera calibrations of a recording (ROS 2, ROS 1, or Foxglove MCAP) without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_names import escape_unprintable
from perception.robots import foxglove
from perception.robots.bag_writer import BagWriter as BagWriter
from perception.robots.bag_writer import to_cdr
from perception.robots.camera_info import is_rectified, parse_camera_info
from perception.robots.definitions import make_typestore
from perception.robots.images import CAMERA_INFO, decode_image_message
from perception.robots.messages import MessageHeader
from perception.robots.recorded_messages import MAX_UNPACKED_BYTES, ZSTD_MAGIC, Channel, decompress_zstd
from perception.robots.recording import Recording
from perception.robots.recording import is_bag as is_bag
from perception.robots.topics import ROS_TYPES, find_info_topic, is_image, is_supported, select_topics
from perception.types import Camera, PerceptionError

RATE_SAMPLES = 20
"""Images per topic used to estimate its frame rate."""
MAX_TIME_NS = 2**31 * 10**9
"""First time in nanoseconds that ROS 2 cannot represent."""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A recorded message in ROS 2 serialization (CDR); ``log_time`` in nanoseconds."""

    topic: str
    type: str
    log_time: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BagFrame:
    """An image of a recording.

    Attributes:
        topic: its topic.
        image: uint8 RGB [H, W, 3]; None if the message has no decodable image (see ``problem``).
        header: header of the message, with the log time if its stamp is not usable.
        log_time: nanoseconds, time of recording.
        camera: intrinsics from the matching CameraInfo; None if missing or not usable (see ``problem``).
        raw: the message, for copying; None if it is damaged.
        problem: sentences about problems, "" = none.
    """

    topic: str
    image: NDArray[np.uint8] | None
    header: MessageHeader
    log_time: int
    camera: Camera | None
    raw: RawMessage | None
    problem: str = ""


class BagReader:
    """An opened recording. Use as a context manager.

    Args:
        path: a file, or the folder of a bag.
        topics: image topics to read; None = every image once, without depth and label images, and without compressed
            copies of another topic.

    Attributes:
        topics: image topics that are read.
        skipped_topics: other image topics -> why they are not read.
        other_topics: all other topics.

    Raises:
        PerceptionError: the path is not a recording, is damaged, or has no such topic.
    """

    def __init__(self, path: str | Path, topics: Sequence[str] | None = None) -> None:
        self._typestore = make_typestore()
        self.path = Path(path)
        self._recording = Recording(self.path)
        try:
            channels = [c for file in self._recording.files for c in file.channels.values()]
            self.topics, self.skipped_topics = select_topics(channels, topics, self.path)
        except BaseException:
            self._recording.close()
            raise
        self._image_channels = {(c.topic, c.type) for c in channels if is_image(c) and c.topic in self.topics}
        calibrations = [c for c in channels if is_supported(c) and not is_image(c)]
        names = {c.topic for c in calibrations}
        self._info_topics = {topic: find_info_topic(topic, names) for topic in self.topics}
        self._info_channels = {
            (c.topic, c.type) for c in calibrations if c.topic in self._info_topics.values() and c.count
        }
        read = {*self.topics, *self.skipped_topics, *names}
        self.other_topics = sorted({c.topic for c in channels} - read)
        self._counts = Counter[str]()
        for channel in channels:
            if (channel.topic, channel.type) in self._image_channels:
                self._counts[channel.topic] += channel.count

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._recording.close()

    def __len__(self) -> int:
        """Return the number of images according to the index of the recording."""
        return self._counts.total()

    def count_frames(self, topic: str) -> int:
        """Return the number of images of a topic according to the index of the recording."""
        return self._counts[topic]

    def damage(self) -> dict[str, int]:
        """Return sentence -> count for the parts that could not be read so far."""
        return self._recording.damage()

    def read_frames(
        self, max_frames: int | None = None, on_camera_info: Callable[[RawMessage], None] | None = None
    ) -> Iterator[BagFrame]:
        """Yield the images in recording order. Each image uses the latest CameraInfo before it, or else the first.

        Args:
            max_frames: maximum number of images per topic.
            on_camera_info: called with each CameraInfo message in between.
        """
        infos, done = self._read_first_infos(), Counter[str]()
        for channel, logged, data in self._recording.read_messages(self._image_channels | self._info_channels):
            kind, topic = ROS_TYPES[channel.type], channel.topic
            if kind != CAMERA_INFO and max_frames is not None and done[topic] >= max_frames:
                continue
            message, raw, problem = self._decode_message(channel, logged, data)
            if kind == CAMERA_INFO:
                if raw is not None:
                    infos[topic] = message
                    if on_camera_info is not None:
                        on_camera_info(raw)
                continue
            done[topic] += 1
            if raw is None:
                yield BagFrame(topic, None, MessageHeader(logged, ""), logged, None, None, problem)
            else:
                yield self._decode_frame(raw, message, infos.get(self._info_topics[topic] or ""))
            if max_frames is not None and all(done[t] >= min(max_frames, self._counts[t]) for t in self.topics):
                return

    def estimate_rates(self) -> dict[str, float]:
        """Return topic -> images per second, from the first images; 10 if they do not suffice."""
        times: dict[str, list[int]] = {topic: [] for topic in self.topics}
        first = zip(range(RATE_SAMPLES * len(times)), self._recording.read_messages(self._image_channels), strict=False)
        for _, (channel, logged, _) in first:
            times[channel.topic].append(logged)
        found = {}
        for topic, some in times.items():
            gaps = [after - before for before, after in pairwise(some) if after > before]
            found[topic] = min(max(1e9 / median(gaps), 0.1), 1000.0) if gaps else 10.0
        return found

    def _read_first_infos(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        topics = {topic for topic, _ in self._info_channels}
        for channel, logged, data in self._recording.read_messages(self._info_channels) if topics else ():
            message, raw, _ = self._decode_message(channel, logged, data)
            if raw is not None:
                found.setdefault(channel.topic, message)
            if len(found) == len(topics):
                break
        return found

    def _decode_frame(self, raw: RawMessage, message: Any, info: Any) -> BagFrame:
        header = message.header
        time = header.stamp.sec * 10**9 + header.stamp.nanosec
        problems = []
        if not 0 < time < MAX_TIME_NS:
            time = min(raw.log_time, MAX_TIME_NS - 1)
            problems.append("its header has no usable time: the time of recording is used.")
        stamp = MessageHeader(time, header.frame_id)
        try:
            image = decode_image_message(message, raw.type, escape_unprintable(raw.topic))
        except PerceptionError as error:
            return BagFrame(raw.topic, None, stamp, raw.log_time, None, raw, str(error))
        camera = None
        if info is not None:
            camera, problem = parse_camera_info(info, image.shape[:2], is_rectified(raw.topic))
            if problem:
                problems.append(
                    problem if camera else f"{problem} Metres assume --intrinsics or the default focal length."
                )
        told = " ".join(f"{escape_unprintable(raw.topic)}: {problem}" for problem in problems)
        return BagFrame(raw.topic, image, stamp, raw.log_time, camera, raw, told)

    def _decode_message(self, channel: Channel, log_time: int, data: bytes) -> tuple[Any, RawMessage | None, str]:
        """A message in ROS 2 form, its copy for writing (None if damaged), and the problem as a sentence."""
        kind, store = ROS_TYPES[channel.type], self._typestore
        try:
            if data.startswith(ZSTD_MAGIC) and channel.encoding == "cdr":  # rosbag2 can compress single messages
                data = decompress_zstd(data, MAX_UNPACKED_BYTES)
            if channel.encoding in ("protobuf", "json"):
                parse = foxglove.from_protobuf if channel.encoding == "protobuf" else foxglove.from_json
                data = to_cdr(parse(data, kind), store)
            elif channel.encoding == "ros1":
                data = bytes(store.ros1_to_cdr(data, channel.type))
            if channel.type.startswith("foxglove_msgs/"):
                data = to_cdr(foxglove.from_ros_message(store.deserialize_cdr(data, channel.type), kind), store)
            message = store.deserialize_cdr(data, kind)
        except Exception as error:  # the generated code may raise anything on invalid bytes
            what = escape_unprintable(
                f"{channel.topic}: a message is damaged or is not a {channel.type} ({channel.encoding})"
            )
            return None, None, f"{what}: {escape_unprintable(str(error))[:120] or type(error).__name__}"
        return message, RawMessage(channel.topic, kind, log_time, data), ""
