"""ROS 1 bags of version 2.0, also not closed by their recorder, cut off or damaged (http://wiki.ros.org/Bags/Format)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import error as StructError
from struct import iter_unpack, unpack, unpack_from

from perception.robots import recorded_messages
from perception.robots.recorded_messages import Channel, DamageError, Found, in_time, ros2_type

MAGIC = b"#ROSBAG V2.0\n"
MESSAGE, BAG, INDEX, CHUNK, CONNECTION = 2, 3, 4, 5, 7
MAX_DEFINITION = 64 << 20

Header = dict[bytes, bytes]


@dataclass
class _Chunk:
    """place, length: of its content. start: time of its first message. counts: connection -> messages."""

    place: int
    length: int
    kind: str
    size: int
    start: int = 0
    counts: dict[int, int] = field(default_factory=dict)


class Ros1File:
    """Implements `RecordingFile`. shown: the file's name for people. Raises DamageError where nothing can be read."""

    def __init__(self, path: Path, shown: Path) -> None:
        self._path, self._file, self._size = shown, path.open("rb"), path.stat().st_size
        self.channels: dict[int, Channel] = {}
        self.damage: list[str] = []
        self._chunks: list[_Chunk] = []
        try:
            self._scan()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def _scan(self) -> None:
        place, closed = len(MAGIC), False
        try:
            while place < self._size:
                header, at, length = self._record(place)
                if b"op" not in header:
                    raise DamageError(f"it is damaged at byte {place}")
                kind = _number(header, b"op", 1)
                place = at + length
                if kind == BAG:
                    closed = _number(header, b"index_pos", 8) > 0
                    if header.get(b"encryptor"):
                        name = header[b"encryptor"].decode(errors="replace")
                        raise DamageError(f"it is encrypted by {name}. Decrypt it first (`rosbag decrypt`)")
                elif kind == CHUNK:
                    name = header.get(b"compression", b"").decode(errors="replace")
                    self._chunks.append(_Chunk(at, length, name, _number(header, b"size", 4)))
                elif kind == INDEX and self._chunks:
                    self._index(header, at, length)
                elif kind == CONNECTION:
                    self._connect(header, self._content(at, length))
                if place > self._size:
                    raise DamageError(f"it ends in the middle of a chunk, at byte {self._size}")
            if not closed:
                self.damage.append(f"{self._path} was not closed by its recorder: read up to its end")
        except DamageError as error:
            if not self._chunks:
                raise
            self.damage.append(f"{self._path}: {error}. What follows is lost")
        for chunk in self._chunks:
            if not chunk.counts or not set(chunk.counts) <= set(self.channels):
                self._look_into(chunk)
        for chunk in self._chunks:
            for number, count in chunk.counts.items():
                if (channel := self.channels.get(number)) is not None:
                    self.channels[number] = Channel(
                        channel.topic, channel.type, channel.encoding, channel.count + count
                    )

    def _index(self, header: Header, place: int, length: int) -> None:
        if length % 12 or length > MAX_DEFINITION:
            raise DamageError(f"the index at byte {place} is damaged")
        times = [second * 10**9 + nano for second, nano, _ in iter_unpack("<III", self._content(place, length))]
        chunk = self._chunks[-1]
        if times:
            chunk.start = min([*times, *([chunk.start] if chunk.counts else [])])
            chunk.counts[_number(header, b"conn", 4)] = len(times)

    def _look_into(self, chunk: _Chunk) -> None:
        """Its connections and messages, where no index tells them."""
        times, counts = [], dict[int, int]()
        try:
            for kind, header, data in self._chunk_records(chunk):
                if kind == CONNECTION:
                    self._connect(header, bytes(data))
                elif kind == MESSAGE:
                    number = _number(header, b"conn", 4)
                    counts[number] = counts.get(number, 0) + 1
                    times.append(_time(header))
        except DamageError:
            pass  # told when it is read
        chunk.start, chunk.counts = min(times, default=0), counts

    def _connect(self, header: Header, data: bytes) -> None:
        fields = _fields(data)
        topic = (header.get(b"topic") or fields.get(b"topic", b"")).decode(errors="replace")
        topic = "/" * topic.startswith("/") + "/".join(part for part in topic.split("/") if part)
        name = ros2_type(fields.get(b"type", b"").decode(errors="replace"))
        self.channels[_number(header, b"conn", 4)] = Channel(topic, name, "ros1", 0)

    def _record(self, place: int) -> tuple[Header, int, int]:
        """Header, place of the data and its length. The data of a chunk may go over the end of the file."""
        length = self._length(place)
        if place + 4 + length > self._size:
            raise DamageError(f"it ends in the middle of a record, at byte {self._size}, or is damaged at byte {place}")
        header = _fields(self._content(place + 4, length))
        at = place + 4 + length
        size = self._length(at)
        if at + 4 + size > self._size and _number(header, b"op", 1) != CHUNK:
            raise DamageError(f"it ends in the middle of a record, at byte {self._size}, or is damaged at byte {place}")
        return header, at + 4, size

    def _length(self, place: int) -> int:
        data = self._content(place, 4)
        if len(data) < 4:
            raise DamageError(f"it ends in the middle of a record, at byte {self._size}")
        return unpack("<I", data)[0]

    def _content(self, place: int, length: int) -> bytes:
        self._file.seek(place)
        return self._file.read(length)

    def _chunk_records(self, chunk: _Chunk) -> Iterator[tuple[int, Header, memoryview]]:
        """Kind, header and data of the records within a chunk."""
        packed = self._content(chunk.place, min(chunk.length, self._size - chunk.place))
        data = recorded_messages.unpack(chunk.kind, packed, chunk.size, len(packed) < chunk.length)
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
            header = _fields(bytes(whole[at + 4 : at + 4 + head]))
            yield _number(header, b"op", 1), header, whole[begin : begin + length]
            at = begin + length

    def messages(self, wanted: set[int]) -> Iterator[Found]:
        """By time."""
        some = [chunk for chunk in self._chunks if not chunk.counts or wanted & set(chunk.counts)]
        return in_time((chunk.start, partial(self._read, chunk, wanted)) for chunk in some)

    def _read(self, chunk: _Chunk, wanted: set[int]) -> Iterator[Found]:
        found: list[Found] = []
        try:
            for kind, header, data in self._chunk_records(chunk):
                if kind == MESSAGE and (number := _number(header, b"conn", 4)) in wanted:
                    found.append((_time(header), number, bytes(data)))
        except DamageError as error:
            at = chunk.place
            self.damage.append(f"{self._path}: the chunk at byte {at} is damaged: {error}. Messages of it are lost")
        yield from sorted(found, key=lambda message: message[0])


def _fields(data: bytes) -> Header:
    """name=value pairs, each after its length."""
    found: Header = {}
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


def _number(header: Header, name: bytes, size: int) -> int:
    value = header.get(name, b"")
    if len(value) != size:
        raise DamageError(f"a header has no {name.decode()}")
    return int.from_bytes(value, "little")


def _time(header: Header) -> int:
    value = _number(header, b"time", 8)
    return (value & 0xFFFFFFFF) * 10**9 + (value >> 32)
