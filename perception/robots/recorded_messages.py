"""Common parts of all recording formats: channels, messages, and chunks that are decompressed with size limits."""

from __future__ import annotations

import bz2
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

MAX_UNPACKED_BYTES = 1 << 30
"""Maximum decompressed size of a chunk or message in bytes. Recorders write chunks of about a megabyte."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

RecordedMessage = tuple[int, int, bytes]
"""Log time in nanoseconds, channel id, content."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Messages of one type on one topic.

    Attributes:
        topic: topic name.
        type: like "sensor_msgs/msg/Image" (also for ROS 1), or a schema name like "foxglove.RawImage".
        encoding: cdr, ros1, protobuf, json, ...
        count: number of messages according to the file's index.
    """

    topic: str
    type: str
    encoding: str
    count: int


class RecordingFile(Protocol):
    """An opened file of a recording.

    Attributes:
        channels: channel id -> channel.
        damage: one sentence for each part that could not be read.
    """

    channels: dict[int, Channel]
    damage: list[str]

    def read_messages(self, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """Yield the messages of these channels by time. Damaged ones are skipped and reported in ``damage``."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def to_ros2_type(name: str) -> str:
    """Convert a type name of ROS 1 or DDS: "sensor_msgs/Image" -> "sensor_msgs/msg/Image"."""
    if "::" in name:
        name = name.replace("::", "/").replace("/dds_/", "/").removesuffix("_")
    package, slash, kind = name.partition("/")
    return f"{package}/msg/{kind}" if slash and "/" not in kind else name


class DamageError(Exception):
    """A part of a recording is damaged; the rest may be readable."""


def decompress_chunk(compression: str, data: bytes, size: int, is_truncated: bool = False) -> bytes:
    """Decompress a chunk to ``size`` bytes, or to fewer if its end is missing (``is_truncated``).

    Raises DamageError if it exceeds `MAX_UNPACKED_BYTES`, has another size, or cannot be decompressed.
    """
    if size > MAX_UNPACKED_BYTES:
        raise DamageError(
            f"it declares {size / 1e9:.1f} GB decompressed, and the limit is {MAX_UNPACKED_BYTES / 1e9:.1f} GB"
        )
    try:
        found = _decompress(compression, data, size + 1)
    except DamageError:
        raise
    except Exception as error:  # a decompressor may raise anything on damaged bytes
        raise DamageError(f"it cannot be decompressed ({error})") from error
    if len(found) != size and not is_truncated:
        raise DamageError(f"it does not decompress to the expected {size} bytes")
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
    """Decompress at most ``max_bytes`` bytes of Zstandard data."""
    from zstandard import ZstdDecompressor

    return ZstdDecompressor().stream_reader(data).read(max_bytes)


def merge_by_time(chunks: Iterable[tuple[int, Callable[[], Iterator[RecordedMessage]]]]) -> Iterator[RecordedMessage]:
    """Merge the messages of all chunks by time. Each chunk is given with the time of its first message.

    A chunk is read only when that time is reached, so only overlapping chunks are in memory together.
    """

    def lazily(start: int, read: Callable[[], Iterator[RecordedMessage]]) -> Iterator[RecordedMessage]:
        yield start, -1, b""
        yield from read()

    for found in heapq.merge(*(lazily(*chunk) for chunk in chunks), key=itemgetter(0)):
        if found[1] >= 0:
            yield found
