"""What recorders write, whatever the format: channels, messages, and chunks of them that are unpacked with bounds."""

from __future__ import annotations

import bz2
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

MAX_UNPACKED_BYTES = 1 << 30
"""Bytes that a chunk or a message may have unpacked. Recorders write chunks of about a megabyte."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

RecordedMessage = tuple[int, int, bytes]
"""A message as recorded: nanoseconds at which it was, number of its channel, content."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Messages of one kind on one topic.

    type:     like "sensor_msgs/msg/Image" (also of ROS 1), or the name of a schema like "foxglove.RawImage"
    encoding: of the messages: cdr, ros1, protobuf, json, ...
    count:    of its messages, by the file's own index
    """

    topic: str
    type: str
    encoding: str
    count: int


class RecordingFile(Protocol):
    """channels: by number. damage: what could not be read, a sentence each."""

    channels: dict[int, Channel]
    damage: list[str]

    def read_messages(self, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """Those of the channels with these numbers, by time. What is damaged is left out, and told in `damage`."""
        ...

    def close(self) -> None: ...


def to_ros2_type(name: str) -> str:
    """ "sensor_msgs/Image" of ROS 1, "sensor_msgs::msg::dds_::Image_" of DDS -> "sensor_msgs/msg/Image"."""
    if "::" in name:
        name = name.replace("::", "/").replace("/dds_/", "/").removesuffix("_")
    package, slash, kind = name.partition("/")
    return f"{package}/msg/{kind}" if slash and "/" not in kind else name


class DamageError(Exception):
    """What is recorded is damaged at a place; the rest may be sound."""


def decompress_chunk(compression: str, data: bytes, size: int, is_truncated: bool = False) -> bytes:
    """``size`` bytes of a chunk compressed as ``compression`` says; as many as there are where its end is
    ``is_truncated`` off.

    Raises DamageError where it is larger than `LARGEST`, of another size, or cannot be unpacked.
    """
    if size > MAX_UNPACKED_BYTES:
        raise DamageError(
            f"it says it has {size / 1e9:.1f} GB unpacked, and at most {MAX_UNPACKED_BYTES / 1e9:.1f} GB are read"
        )
    try:
        found = _decompress(compression, data, size + 1)
    except DamageError:
        raise
    except Exception as error:  # whatever a decompressor meets in damaged bytes
        raise DamageError(f"it cannot be unpacked ({error})") from error
    if len(found) != size and not is_truncated:
        raise DamageError(f"it does not unpack to the {size} bytes that it should have")
    return found


def _decompress(compression: str, data: bytes, max_bytes: int) -> bytes:
    if compression in ("", "none"):
        return data
    if compression == "lz4":
        from lz4.frame import LZ4FrameDecompressor

        return LZ4FrameDecompressor().decompress(data, max_bytes)
    if compression == "zstd":
        return decompress_zstd(data, max_bytes)
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(data, max_bytes)
    raise DamageError(f"its compression '{compression}' is unknown")


def decompress_zstd(data: bytes, max_bytes: int) -> bytes:
    """At most ``max_bytes`` bytes of what was compressed by Zstandard."""
    from zstandard import ZstdDecompressor

    return ZstdDecompressor().stream_reader(data).read(max_bytes)


def merge_by_time(chunks: Iterable[tuple[int, Callable[[], Iterator[RecordedMessage]]]]) -> Iterator[RecordedMessage]:
    """The messages of all chunks by time. A chunk, given with the time of its first message, is read when that has
    come; so only chunks that overlap are in memory together."""

    def lazily(start: int, read: Callable[[], Iterator[RecordedMessage]]) -> Iterator[RecordedMessage]:
        yield start, -1, b""
        yield from read()

    for found in heapq.merge(*(lazily(*chunk) for chunk in chunks), key=itemgetter(0)):
        if found[1] >= 0:
            yield found
