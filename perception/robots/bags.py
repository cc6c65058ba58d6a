"""The pictures and cameras of a recording (ROS 2, ROS 1, or MCAP of Foxglove), read without ROS."""

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

from perception.files.safe_names import printable
from perception.robots import foxglove
from perception.robots.bag_writer import BagWriter as BagWriter
from perception.robots.bag_writer import to_cdr
from perception.robots.camera_info import is_rectified, lens
from perception.robots.definitions import typestore
from perception.robots.images import CAMERA_INFO, decode
from perception.robots.messages import Stamp
from perception.robots.recorded_messages import LARGEST, ZSTD, Channel, unzstd
from perception.robots.recording import Recording
from perception.robots.recording import is_bag as is_bag
from perception.robots.topics import KINDS, choose, info_topic, is_image, is_read
from perception.types import Camera, PerceptionError

SAMPLE = 20
"""Pictures of a topic by which its rate is judged."""
LAST = 2**31 * 10**9
"""Nanoseconds of the first time that ROS 2 cannot hold."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A recorded message as ROS 2 records it: CDR."""

    topic: str
    type: str
    logged: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BagFrame:
    """A picture of a recording.

    image:  uint8 RGB [H, W, 3]; None where the message holds no picture, and ``problem`` says why
    stamp:  header of the message; of the time of recording where it has none. logged: nanoseconds of the recording
    camera: intrinsics by the CameraInfo of its namespace; None where there is none, or none to be used (``problem``)
    raw:    the message, for copying; None where it is damaged
    """

    topic: str
    image: NDArray[np.uint8] | None
    stamp: Stamp
    logged: int
    camera: Camera | None
    raw: Raw | None
    problem: str = ""


class Bag:
    """An opened recording. Use as a context manager.

    path:     a file, or the folder of a bag
    topics:   image topics to read; None = those of pictures, each once: not depth and label images, not what repeats
        another topic in compressed form
    left_out: other topics of images -> why they are not read. others: topics of anything else

    Raises PerceptionError where it is no recording, is damaged, or has no such topic.
    """

    def __init__(self, path: str | Path, topics: Sequence[str] | None = None) -> None:
        self._store = typestore()
        self.path = Path(path)
        self._recording = Recording(self.path)
        try:
            channels = [c for file in self._recording.files for c in file.channels.values()]
            self.topics, self.left_out = choose(channels, topics, self.path)
        except BaseException:
            self._recording.close()
            raise
        self._images = {(c.topic, c.type) for c in channels if is_image(c) and c.topic in self.topics}
        calibrations = [c for c in channels if is_read(c) and not is_image(c)]
        names = {c.topic for c in calibrations}
        self._info_of = {topic: info_topic(topic, names) for topic in self.topics}
        self._infos = {(c.topic, c.type) for c in calibrations if c.topic in self._info_of.values() and c.count}
        read = {*self.topics, *self.left_out, *names}
        self.others = sorted({c.topic for c in channels} - read)
        self._counts = Counter[str]()
        for channel in channels:
            if (channel.topic, channel.type) in self._images:
                self._counts[channel.topic] += channel.count

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *_: object) -> None:
        self._recording.close()

    def __len__(self) -> int:
        """Number of pictures, by the recording's own index."""
        return self._counts.total()

    def count(self, topic: str) -> int:
        """Pictures of a topic, by the recording's own index."""
        return self._counts[topic]

    def damage(self) -> dict[str, int]:
        """What of the recording could not be read until now: sentence -> count."""
        return self._recording.damage()

    def frames(self, limit: int | None = None, take_info: Callable[[Raw], None] | None = None) -> Iterator[BagFrame]:
        """The pictures in the order of recording. A picture has the newest CameraInfo, or else the first one.

        limit: pictures of each topic. take_info: gets the CameraInfo messages between them
        """
        infos, done = self._first_infos(), Counter[str]()
        for channel, logged, data in self._recording.messages(self._images | self._infos):
            kind, topic = KINDS[channel.type], channel.topic
            if kind != CAMERA_INFO and limit is not None and done[topic] >= limit:
                continue
            message, raw, problem = self._read(channel, logged, data)
            if kind == CAMERA_INFO:
                if raw is not None:
                    infos[topic] = message
                    if take_info is not None:
                        take_info(raw)
                continue
            done[topic] += 1
            if raw is None:
                yield BagFrame(topic, None, Stamp(logged, ""), logged, None, None, problem)
            else:
                yield self._frame(raw, message, infos.get(self._info_of[topic] or ""))
            if limit is not None and all(done[t] >= min(limit, self._counts[t]) for t in self.topics):
                return

    def rates(self) -> dict[str, float]:
        """Pictures per second of each topic, by the first ones; 10 where these do not tell."""
        times: dict[str, list[int]] = {topic: [] for topic in self.topics}
        first = zip(range(SAMPLE * len(times)), self._recording.messages(self._images), strict=False)
        for _, (channel, logged, _) in first:
            times[channel.topic].append(logged)
        found = {}
        for topic, some in times.items():
            gaps = [after - before for before, after in pairwise(some) if after > before]
            found[topic] = min(max(1e9 / median(gaps), 0.1), 1000.0) if gaps else 10.0
        return found

    def _first_infos(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        topics = {topic for topic, _ in self._infos}
        for channel, logged, data in self._recording.messages(self._infos) if topics else ():
            message, raw, _ = self._read(channel, logged, data)
            if raw is not None:
                found.setdefault(channel.topic, message)
            if len(found) == len(topics):
                break
        return found

    def _frame(self, raw: Raw, message: Any, info: Any) -> BagFrame:
        header = message.header
        time = header.stamp.sec * 10**9 + header.stamp.nanosec
        problems = []
        if not 0 < time < LAST:
            time = min(raw.logged, LAST - 1)
            problems.append("no usable time in its header: that of the recording is taken.")
        stamp = Stamp(time, header.frame_id)
        try:
            image = decode(message, raw.type, printable(raw.topic))
        except PerceptionError as error:
            return BagFrame(raw.topic, None, stamp, raw.logged, None, raw, str(error))
        camera = None
        if info is not None:
            camera, problem = lens(info, image.shape[:2], is_rectified(raw.topic))
            if problem:
                problems.append(problem if camera else f"{problem} Metres assume --camera or the default focal length.")
        told = " ".join(f"{printable(raw.topic)}: {problem}" for problem in problems)
        return BagFrame(raw.topic, image, stamp, raw.logged, camera, raw, told)

    def _read(self, channel: Channel, logged: int, data: bytes) -> tuple[Any, Raw | None, str]:
        """A message as one of ROS 2, and as it is copied; None with a sentence where it is damaged."""
        kind, store = KINDS[channel.type], self._store
        try:
            if data.startswith(ZSTD) and channel.encoding == "cdr":  # rosbag2 compresses messages one by one, too
                data = unzstd(data, LARGEST)
            if channel.encoding in ("protobuf", "json"):
                parse = foxglove.from_protobuf if channel.encoding == "protobuf" else foxglove.from_json
                data = to_cdr(parse(data, kind), store)
            elif channel.encoding == "ros1":
                data = bytes(store.ros1_to_cdr(data, channel.type))
            if channel.type.startswith("foxglove_msgs/"):
                data = to_cdr(foxglove.from_object(store.deserialize_cdr(data, channel.type), kind), store)
            message = store.deserialize_cdr(data, kind)
        except Exception as error:  # whatever its generated code meets in bytes that are no such message
            what = printable(f"{channel.topic}: a message is damaged or no {channel.type} ({channel.encoding})")
            return None, None, f"{what}: {printable(str(error))[:120] or type(error).__name__}"
        return message, Raw(channel.topic, kind, logged, data), ""
