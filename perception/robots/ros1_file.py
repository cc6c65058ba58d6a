"""Reads ROS 1 bags of version 2.0, also unclosed, truncated or damaged (http://wiki.ros.org/Bags/Format)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import error as StructError
from struct import iter_unpack, unpack, unpack_from

from perception.robots import recorded_messages
from perception.robots.recorded_messages import Channel, DamageError, RecordedMessage, merge_by_time, to_ros2_type

MAGIC = b"#ROSBAG V2.0\n"
MESSAGE, BAG, INDEX, CHUNK, CONNECTION = 2, 3, 4, 5, 7
MAX_DEFINITION_BYTES = 64 << 20

RecordHeader = dict[bytes, bytes]


@dataclass
class _Chunk:
    """offset, length: of its content. start_time: of its first message. counts: connection -> message count."""

    offset: int
    length: int
    compression: str
    size: int
    start_time: int = 0
    counts: dict[int, int] = field(default_factory=dict)


class Ros1File:
    """Reader of a ROS 1 bag (`RecordingFile`). Raises DamageError if nothing can be read.

    ``display_path`` is the file name in messages; ``path`` may be an unpacked copy.
    """

    def __init__(self, path: Path, display_path: Path) -> None:
        self._path, self._file, self._size = display_path, path.open("rb"), path.stat().st_size
        self.channels: dict[int, Channel] = {}
        self.damage: list[str] = []
        self._chunks: list[_Chunk] = []
        try:
            self._scan()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self) -> None:
        place, closed = len(MAGIC), False
        try:
            while place < self._size:
                header, at, length = self._read_record(place)
                if b"op" not in header:
                    raise DamageError(f"it is damaged at byte {place}")
                kind = _read_number(header, b"op", 1)
                place = at + length
                if kind == BAG:
                    closed = _read_number(header, b"index_pos", 8) > 0
                    if header.get(b"encryptor"):
                        name = header[b"encryptor"].decode(errors="replace")
                        raise DamageError(f"it is encrypted with {name}. Decrypt it first (`rosbag decrypt`)")
                elif kind == CHUNK:
                    name = header.get(b"compression", b"").decode(errors="replace")
                    self._chunks.append(_Chunk(at, length, name, _read_number(header, b"size", 4)))
                elif kind == INDEX and self._chunks:
                    self._read_index(header, at, length)
                elif kind == CONNECTION:
                    self._add_channel(header, self._read_bytes(at, length))
                if place > self._size:
                    raise DamageError(f"it ends in the middle of a chunk, at byte {self._size}")
            if not closed:
                self.damage.append(f"{self._path} was not closed by its recorder: it was read up to its end")
        except DamageError as error:
            if not self._chunks:
                raise
            self.damage.append(f"{self._path}: {error}. The rest is lost")
        for chunk in self._chunks:
            if not chunk.counts or not set(chunk.counts) <= set(self.channels):
                self._scan_chunk(chunk)
        for chunk in self._chunks:
            for number, count in chunk.counts.items():
                if (channel := self.channels.get(number)) is not None:
                    self.channels[number] = Channel(
                        channel.topic, channel.type, channel.encoding, channel.count + count
                    )

    def _read_index(self, header: RecordHeader, offset: int, length: int) -> None:
        if length % 12 or length > MAX_DEFINITION_BYTES:
            raise DamageError(f"the index at byte {offset} is damaged")
        times = [second * 10**9 + nano for second, nano, _ in iter_unpack("<III", self._read_bytes(offset, length))]
        chunk = self._chunks[-1]
        if times:
            chunk.start_time = min([*times, *([chunk.start_time] if chunk.counts else [])])
            chunk.counts[_read_number(header, b"conn", 4)] = len(times)

    def _scan_chunk(self, chunk: _Chunk) -> None:
        """Find the connections and messages of a chunk without an index."""
        times, counts = [], dict[int, int]()
        try:
            for kind, header, data in self._iterate_chunk(chunk):
                if kind == CONNECTION:
                    self._add_channel(header, bytes(data))
                elif kind == MESSAGE:
                    number = _read_number(header, b"conn", 4)
                    counts[number] = counts.get(number, 0) + 1
                    times.append(_read_time(header))
        except DamageError:
            pass  # reported when the chunk is read
        chunk.start_time, chunk.counts = min(times, default=0), counts

    def _add_channel(self, header: RecordHeader, data: bytes) -> None:
        fields = _parse_header(data)
        topic = (header.get(b"topic") or fields.get(b"topic", b"")).decode(errors="replace")
        topic = "/" * topic.startswith("/") + "/".join(part for part in topic.split("/") if part)
        name = to_ros2_type(fields.get(b"type", b"").decode(errors="replace"))
        self.channels[_read_number(header, b"conn", 4)] = Channel(topic, name, "ros1", 0)

    def _read_record(self, offset: int) -> tuple[RecordHeader, int, int]:
        """Header, data offset and data length. The data of a chunk may exceed the end of the file."""
        length = self._read_length(offset)
        if offset + 4 + length > self._size:
            raise DamageError(
                f"it ends in the middle of a record, at byte {self._size}, or is damaged at byte {offset}"
            )
        header = _parse_header(self._read_bytes(offset + 4, length))
        at = offset + 4 + length
        size = self._read_length(at)
        if at + 4 + size > self._size and _read_number(header, b"op", 1) != CHUNK:
            raise DamageError(
                f"it ends in the middle of a record, at byte {self._size}, or is damaged at byte {offset}"
            )
        return header, at + 4, size

    def _read_length(self, offset: int) -> int:
        data = self._read_bytes(offset, 4)
        if len(data) < 4:
            raise DamageError(f"it ends in the middle of a record, at byte {self._size}")
        return unpack("<I", data)[0]

    def _read_bytes(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def _iterate_chunk(self, chunk: _Chunk) -> Iterator[tuple[int, RecordHeader, memoryview]]:
        """Kind, header and data of each record in a chunk."""
        packed = self._read_bytes(chunk.offset, min(chunk.length, self._size - chunk.offset))
        data = recorded_messages.decompress_chunk(chunk.compression, packed, chunk.size, len(packed) < chunk.length)
        whole, at = memoryview(data), 0
        while at < len(data):
            try:
                (head,) = unpack_from("<I", data, at)
                (length,) = unpack_from("<I", data, at + 4 + head)
            except StructError:
                raise DamageError("it ends in the middle of a record") from None
            begin = at + 8 + head
            if begin + length > len(data):
                raise DamageError("it ends in the middle of a record")
            header = _parse_header(bytes(whole[at + 4 : at + 4 + head]))
            yield _read_number(header, b"op", 1), header, whole[begin : begin + length]
            at = begin + length

    def read_messages(self, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """Yield the messages of these channels by time."""
        some = [chunk for chunk in self._chunks if not chunk.counts or channel_ids & set(chunk.counts)]
        return merge_by_time((chunk.start_time, partial(self._read_chunk, chunk, channel_ids)) for chunk in some)

    def _read_chunk(self, chunk: _Chunk, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        found: list[RecordedMessage] = []
        try:
            for kind, header, data in self._iterate_chunk(chunk):
                if kind == MESSAGE and (number := _read_number(header, b"conn", 4)) in channel_ids:
                    found.append((_read_time(header), number, bytes(data)))
        except DamageError as error:
            at = chunk.offset
            self.damage.append(
                f"{self._path}: the chunk at byte {at} is damaged: {error}. Some of its messages are lost"
            )
        yield from sorted(found, key=lambda message: message[0])


def _parse_header(data: bytes) -> RecordHeader:
    """Parse name=value pairs, each preceded by its length."""
    found: RecordHeader = {}
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise DamageError("a header is damaged")
        (length,) = unpack_from("<I", data, at)
        name, equals, value = data[at + 4 : at + 4 + length].partition(b"=")
        at += 4 + length
        if not equals or at > len(data):
            raise DamageError("a header is damaged")
        found[name] = value
    return found


def _read_number(header: RecordHeader, name: bytes, size: int) -> int:
    value = header.get(name, b"")
    if len(value) != size:
        raise DamageError(f"a header has no valid field {name.decode()}")
    return int.from_bytes(value, "little")


def _read_time(header: RecordHeader) -> int:
    value = _read_number(header, b"time", 8)
    return (value & 0xFFFFFFFF) * 10**9 + (value >> 32)
