"""Reading of archives, one member after the other, with bounded memory. Only files and folders are accepted."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from perception.types import DataError

ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
    RuntimeError, IndexError, OverflowError, AttributeError,
)  # fmt: skip
"""Errors of the standard library for invalid archives, besides OSError. RuntimeError covers RecursionError and the
error of zipfile for an unknown compression."""

_MIN_RATIO_BYTES = 64 << 20
"""The compression ratio is not checked for archives that unpack to less than this."""
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_XZ_MEMORY_BYTES = 256 << 20
_REFUSED_TYPES = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)


class SupportsRead(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file or folder of an archive.

    Attributes:
        name: path in the archive.
        chunks: content of the file; None = a folder.
    """

    name: str
    chunks: Iterator[bytes] | None


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits for unpacking an archive.

    Attributes:
        archive: path of the archive.
        packed_bytes: size of the archive.
        max_bytes: largest total size of the unpacked files.
        max_files: largest number of files and folders.
        max_ratio: largest number of unpacked bytes per byte of the archive.
    """

    archive: Path
    packed_bytes: int
    max_bytes: int
    max_files: int
    max_ratio: float

    def check(self, total: int, files: int) -> None:
        """Raise DataError if ``total`` bytes or ``files`` members exceed a limit."""
        if total > self.max_bytes:
            raise self._make_error(f"it unpacks to more than {self.max_bytes} bytes", "max_bytes")
        if total > max(_MIN_RATIO_BYTES, self.max_ratio * self.packed_bytes):
            raise self._make_error(
                f"its {self.packed_bytes} bytes unpack to {total} or more, over {self.max_ratio:g} times its size",
                "max_ratio",
            )
        if files > self.max_files:
            raise self._make_error(f"it holds more than {self.max_files} files", "max_files")

    def _make_error(self, what: str, limit: str) -> DataError:
        return DataError(f"{self.archive} is refused: {what}. If you trust it, raise {limit}.")


def read_members(file: IO[bytes], limits: ArchiveLimits, temporary: Path) -> Iterator[ArchiveMember]:
    """Yield the members of an archive in order. Each must be read before the next is requested.

    Args:
        file: the opened archive.
        limits: limits for unpacking it.
        temporary: a folder on the disk that it will be unpacked to.

    Raises:
        DataError: a member is refused, or a limit is exceeded.
        ARCHIVE_ERRORS: the archive is damaged. It may also be an OSError without an errno.
    """
    magic = file.read(262)
    file.seek(0)
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _read_zip_members(file, limits, temporary)
    elif magic.startswith(b"\x1f\x8b"):
        yield from _read_tar_members(gzip.GzipFile(fileobj=file), limits)
    elif magic.startswith(b"BZh"):
        yield from _read_tar_members(bz2.BZ2File(file), limits)
    elif magic.startswith(b"\xfd7zXZ\0"):
        yield from _read_tar_members(_XzReader(file), limits)
    elif magic[257:262] == b"ustar":
        yield from _read_tar_members(file, limits)
    else:
        raise DataError(
            f"{limits.archive} is not an archive that can be unpacked: it begins with {magic[:8]!r}. Expected a zip, "
            "tar, tar.gz, tar.bz2 or tar.xz file."
        )


def _read_zip_members(file: IO[bytes], limits: ArchiveLimits, temporary: Path) -> Iterator[ArchiveMember]:
    _check_zip_directory(file, limits)
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
        total = sum(member.file_size for member in listed)
        limits.check(total, len(listed))
        free = shutil.disk_usage(temporary).free
        if total > free:
            raise DataError(f"{limits.archive} unpacks to {total} bytes, but {temporary.parent} has {free} free.")
        for member in listed:
            _check_zip_member(member, limits.archive)
        for member in listed:
            yield ArchiveMember(member.filename, None if member.is_dir() else _read_zip_member(archive, member))


def _check_zip_directory(file: IO[bytes], limits: ArchiveLimits) -> None:
    """Refuse a zip with a table of contents that is too large to load; an entry takes about 100 bytes."""
    start = max(0, limits.packed_bytes - 65557 - 20)
    file.seek(start)
    tail = file.read(65557 + 20)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise DataError(f"{limits.archive} is a truncated zip: its table of contents is missing. Fetch it again.")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        file.seek(int.from_bytes(tail[at - 12 : at - 4], "little"))
        record = file.read(56)
        size = max(size, int.from_bytes(record[40:48], "little")) if record[:4] == b"PK\x06\x06" else size
        size = size if size != 0xFFFFFFFF else limits.packed_bytes
    limits.check(0, min(size, limits.packed_bytes) // 100)
    file.seek(0)


def _check_zip_member(member: zipfile.ZipInfo, archive: Path) -> None:
    where = f"{archive}: {member.orig_filename[:200]!r}"
    if "\0" in member.orig_filename:
        raise DataError(f"{where} has a NUL in its name and is refused. Create the archive again.")
    split_safe_path(member.filename, archive)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind in _REFUSED_TYPES:
        raise DataError(
            f"{where} is a {_describe_file_type(kind)} and is refused: only files and folders are unpacked."
        )
    if member.flag_bits & 1:
        raise DataError(f"{where} is encrypted. Unpack it with the password yourself.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{where} uses compression method {member.compress_type}. Expected 0 (stored) or 8 (deflate): repack it."
        )


def _describe_file_type(mode: int) -> str:
    return "link" if mode == stat.S_IFLNK else "pipe or socket" if mode in _REFUSED_TYPES[3:] else "device"


def _read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as content:
        left = member.file_size
        while chunk := content.read(_CHUNK_BYTES):
            left -= len(chunk)
            yield chunk
    if left:
        raise EOFError(f"{member.filename!r} ends {left} bytes early")


def _read_tar_members(stream: SupportsRead, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    forward = _ForwardReader(stream, limits)
    with tarfile.open(fileobj=forward, mode="r:", encoding="utf-8") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members = []  # tarfile would keep all of them in memory
            where = f"{limits.archive}: {member.name[:200]!r}"
            if member.size < 0:
                raise ValueError(f"{member.name[:200]!r} has {member.size} bytes")
            if member.issym() or member.islnk():
                raise DataError(f"{where} is a link to {member.linkname[:200]!r} and is refused. Pack the file itself.")
            if member.issparse() or not (member.isreg() or member.isdir()):
                what = "sparse" if member.issparse() else f"of type {member.type!r}"
                raise DataError(f"{where} is {what} and is refused: only plain files and folders are unpacked.")
            if member.isdir():
                yield ArchiveMember(member.name, None)
            else:
                forward.seek(member.offset_data)
                yield ArchiveMember(member.name, forward.read_chunks(member.size))
    if forward.header != bytes(tarfile.BLOCKSIZE):
        raise EOFError(f"the tar ends after {forward.tell()} bytes, without an end mark")
    while forward.read(_CHUNK_BYTES):  # the check sum is at the very end
        pass


class _ForwardReader:
    """A file object for tarfile that only moves forward, rejects large headers and enforces the limits."""

    def __init__(self, stream: SupportsRead, limits: ArchiveLimits) -> None:
        self._stream, self._limits = stream, limits
        self._position, self._last, self._repeat = 0, b"", False
        self.header = b""

    def tell(self) -> int:
        return self._position - self._repeat

    def seek(self, position: int, whence: int = 0) -> int:
        """Move forward, or one byte back (tarfile reads the last byte of a file again)."""
        self._repeat = False
        if position == self._position - 1 and self._last:
            self._repeat = True
        elif whence or position < self._position:
            raise ValueError(f"it points back from byte {self._position} to byte {position}")
        while self._position < position and not self._repeat:
            if not self._read_next(min(_CHUNK_BYTES, position - self._position)):
                raise EOFError(f"it ends at byte {self._position}")
        return position

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end. Raises ValueError if ``size`` is larger than a header."""
        if not 0 <= size <= _MAX_HEADER_BYTES + tarfile.BLOCKSIZE:
            raise ValueError(f"it has a header of {size} bytes")
        parts = []
        if self._repeat and size:
            self._repeat = False
            parts.append(self._last)
            size -= 1
        while size > 0 and (chunk := self._read_next(size)):
            parts.append(chunk)
            size -= len(chunk)
        self.header = b"".join(parts)
        return self.header

    def read_chunks(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes in chunks."""
        while size > 0:
            chunk = self._read_next(min(size, _CHUNK_BYTES))
            if not chunk:
                raise EOFError(f"it ends {size} bytes early")
            size -= len(chunk)
            yield chunk

    def _read_next(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._position += len(chunk)
        self._last = chunk[-1:] or self._last
        self._limits.check(self._position, 0)
        return chunk


class _XzReader:
    """An xz stream read with bounded memory. The standard library's reader allocates what the header requests."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        while True:
            if self._decoder.eof:
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed and (packed := self._file.read(_CHUNK_BYTES)):
                    packed = packed.lstrip(b"\0")  # padding between streams
                if not packed:
                    return b""
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
            elif self._decoder.needs_input:
                packed = self._file.read(1 << 16)
                if not packed:
                    raise EOFError("the xz stream ends early")
            else:
                packed = b""
            if chunk := self._decoder.decompress(packed, size):
                return chunk


def split_safe_path(name: str, archive: Path) -> list[str]:
    """Split a member's name into folders and file; empty for the root. Raises DataError for an unsafe name."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        longest = max((len(part.encode()) for part in parts), default=0)
    except UnicodeEncodeError:
        raise DataError(f"{archive}: the name {name[:200]!r} is not UTF-8. Create the archive again.") from None
    if (
        not name or name.startswith("/") or ".." in parts or "\\" in name or re.match(r"[A-Za-z]:", name)
        or any(ord(c) < 32 or ord(c) == 127 for c in name)
    ):  # fmt: skip
        raise DataError(
            f"{archive}: the name {name[:200]!r} is refused. Expected a plain relative path with '/', without '..'."
        )
    if longest > 255 or len(parts) > 64 or len(name) > 4000:
        raise DataError(f"{archive}: the name {name[:200]!r}... is refused: it is too long or too deep.")
    return parts
