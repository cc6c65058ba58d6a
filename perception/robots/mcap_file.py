"""Reads MCAP files of any profile, also truncated, partly damaged or without an index (https://mcap.dev/spec)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import Any

from perception.robots.recorded_messages import (
    Channel,
    DamageError,
    RecordedMessage,
    decompress_chunk,
    merge_by_time,
    to_ros2_type,
)
from perception.types import PerceptionError

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, STATISTICS, DATA_END = 2, 3, 4, 5, 6, 8, 11, 15
MAX_DEFINITION_BYTES = 64 << 20
"""Maximum size of a record that is not a message, chunk or attachment."""


class McapFile:
    """Reader of an MCAP file (`RecordingFile`). Raises DamageError if nothing can be read.

    ``display_path`` is the file name in messages; ``path`` may be an unpacked copy.
    """

    def __init__(self, path: Path, display_path: Path) -> None:
        try:
            import mcap.records as records
            from mcap.data_stream import ReadDataStream
        except ModuleNotFoundError as error:
            raise PerceptionError(
                "MCAP files need the package mcap. Install it: pip install 'dense-perception[robots]'"
            ) from error

        def parse(kind: str, data: bytes | memoryview) -> Any:
            try:
                return getattr(records, kind).read(ReadDataStream(BytesIO(data)))
            except Exception as error:  # the parser may raise anything on damaged bytes
                raise DamageError(f"a record of its index is damaged ({error})") from error

        self._parse = parse
        self._path, self._file, self._size = display_path, path.open("rb"), path.stat().st_size
        self.damage: list[str] = []
        self.channels: dict[int, Channel] = {}
        self._schemas: dict[int, str] = {}
        self._chunks: list[tuple[int, int, set[int]]] = []
        """Time of the first message, offset, channel ids (empty = unknown). An offset may also point to the first of
        several consecutive messages outside of chunks."""
        try:
            if not self._read_summary():
                self._chunks.clear()
                self._scan()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_summary(self) -> bool:
        """Read channels and chunks from the summary at the end of the file; False if it is missing or incomplete."""
        self._file.seek(max(0, self._size - 37))
        footer = self._file.read()
        if len(footer) != 37 or footer[0] != FOOTER or footer[-8:] != MAGIC:
            return False
        (start,) = unpack_from("<Q", footer, 9)
        statistics = None
        try:
            for kind, place, length in self._iterate_records(start, self._size - 37) if start else ():
                if kind == STATISTICS:
                    statistics = self._parse("Statistics", self._read_bytes(place, length))
                elif kind == CHUNK_INDEX:
                    index = self._parse("ChunkIndex", self._read_bytes(place, length))
                    at = index.chunk_start_offset
                    if at + index.chunk_length > self._size:
                        return False
                    self._chunks.append((index.message_start_time, at, set(index.message_index_offsets)))
                else:
                    self._read_definition(kind, place, length)
        except DamageError:
            return False
        if statistics is None or len(self._chunks) != statistics.chunk_count or not self._chunks:
            return False
        counts = statistics.channel_message_counts
        if not set(counts) <= set(self.channels) or sum(counts.values()) != statistics.message_count:
            return False
        self._set_counts(counts)
        return True

    def _scan(self) -> None:
        """Find channels and chunks by scanning the file."""
        loose, counts = False, Counter[int]()
        try:
            for kind, place, length in self._iterate_records(len(MAGIC), self._size):
                if kind in (FOOTER, DATA_END):
                    return
                if kind == CHUNK:
                    loose = False
                    counts += self._scan_chunk(place)
                elif kind == MESSAGE:
                    channel, time = _read_channel_time(self._read_bytes(place, min(length, 22)))
                    counts[channel] += 1
                    if not loose:
                        self._chunks.append((time, place - 9, set()))
                    loose = True
                else:
                    self._read_definition(kind, place, length)
            self.damage.append(f"{self._path} has no index, as after a killed recorder: it was read up to its end")
        except DamageError as error:
            self.damage.append(f"{self._path}: {error}. The rest is lost (`mcap recover` may find more)")
        finally:
            self._set_counts(counts)

    def _scan_chunk(self, offset: int) -> Counter[int]:
        """Read the channels of a chunk. Return channel id -> message count."""
        times, counts = [], Counter[int]()
        try:
            for kind, data in self._iterate_chunk(offset):
                if kind == MESSAGE:
                    channel, time = _read_channel_time(data)
                    counts[channel] += 1
                    times.append(time)
                else:
                    self._parse_definition(kind, data)
        except DamageError:
            pass  # reported when the chunk is read
        self._chunks.append((min(times, default=0), offset - 9, set(counts)))
        return counts

    def _set_counts(self, counts: Mapping[int, int]) -> None:
        self.channels = {n: Channel(c.topic, c.type, c.encoding, counts.get(n, 0)) for n, c in self.channels.items()}

    def _read_definition(self, kind: int, offset: int, length: int) -> None:
        if kind in (SCHEMA, CHANNEL):
            if length > MAX_DEFINITION_BYTES:
                raise DamageError(f"a definition at byte {offset} declares {length} bytes, which is too large")
            self._parse_definition(kind, self._read_bytes(offset, length))

    def _parse_definition(self, kind: int, data: bytes | memoryview) -> None:
        if kind == SCHEMA:
            schema = self._parse("Schema", data)
            self._schemas[schema.id] = schema.name
        elif kind == CHANNEL:
            found = self._parse("Channel", data)
            name = to_ros2_type(self._schemas.get(found.schema_id, ""))
            self.channels[found.id] = Channel(found.topic, name, found.message_encoding, 0)

    def _iterate_records(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Kind, content offset and length of each record. Raises DamageError after a truncated chunk or record."""
        while offset < end:
            self._file.seek(offset)
            head = self._file.read(9)
            if len(head) < 9:
                raise DamageError(f"it ends in the middle of a record, at byte {self._size}")
            kind, length = unpack_from("<BQ", head)
            if kind == 0:
                raise DamageError(f"it is damaged at byte {offset}")
            if offset + 9 + length > end and kind != CHUNK:
                raise DamageError(f"the record at byte {offset} exceeds the file: the file is cut off or damaged there")
            yield kind, offset + 9, length
            if offset + 9 + length > end:
                raise DamageError(f"it ends in the middle of a chunk, at byte {self._size}")
            offset += 9 + length

    def _read_bytes(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def _iterate_chunk(self, offset: int) -> Iterator[tuple[int, memoryview]]:
        """Kind and content of each record in a chunk."""
        length = unpack_from("<Q", self._read_bytes(offset - 8, 8))[0]
        content = self._read_bytes(offset, min(length, self._size - offset))
        cut = len(content) < length
        try:
            _, _, size, crc, name = unpack_from("<QQQII", content)
            kind = content[32 : 32 + name].decode()
            (packed,) = unpack_from("<Q", content, 32 + name)
        except (StructError, UnicodeDecodeError) as error:
            raise DamageError("its header is damaged") from error
        data = decompress_chunk(kind, content[40 + name : 40 + name + packed], size, cut)
        if crc and not cut and zlib.crc32(data) != crc:
            raise DamageError("its checksum does not match")
        whole, at = memoryview(data), 0
        while at < len(data):
            if at + 9 > len(data):
                raise DamageError("it ends in the middle of a record")
            op, size = unpack_from("<BQ", data, at)
            if at + 9 + size > len(data):
                raise DamageError("it ends in the middle of a record")
            yield op, whole[at + 9 : at + 9 + size]
            at += 9 + size

    def read_messages(self, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """Yield the messages of these channels by log time."""
        chunks = [(time, place) for time, place, channels in self._chunks if not channels or channels & channel_ids]
        return merge_by_time((time, partial(self._read_chunk, place, channel_ids)) for time, place in chunks)

    def _read_chunk(self, offset: int, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        if self._read_bytes(offset, 1) != bytes([CHUNK]):
            yield from self._read_unchunked(offset, channel_ids)
            return
        found: list[RecordedMessage] = []
        try:
            for kind, data in self._iterate_chunk(offset + 9):
                if kind == MESSAGE:
                    channel, time = _read_channel_time(data)
                    if channel in channel_ids:
                        found.append((time, channel, bytes(data[22:])))
        except DamageError as error:
            self.damage.append(
                f"{self._path}: the chunk at byte {offset} is damaged: {error}. Some of its messages are lost"
            )
        yield from sorted(found, key=lambda message: message[0])

    def _read_unchunked(self, offset: int, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """The messages outside of chunks, up to the next chunk."""
        try:
            for kind, at, length in self._iterate_records(offset, self._size):
                if kind in (CHUNK, DATA_END, FOOTER):
                    return
                if kind == MESSAGE:
                    channel, time = _read_channel_time(self._read_bytes(at, min(length, 22)))
                    if channel in channel_ids:
                        yield time, channel, self._read_bytes(at + 22, length - 22)
        except DamageError:
            return  # reported by the scan


def _read_channel_time(message: bytes | memoryview) -> tuple[int, int]:
    """Channel and time of a message record."""
    if len(message) < 22:
        raise DamageError("a message is shorter than its header")
    channel, _, logged, published = unpack_from("<HIQQ", message)
    return channel, logged or published
