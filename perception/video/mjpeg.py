"""HTTP streams of JPEGs (``multipart/x-mixed-replace``), common on low-cost cameras. Standard library only."""

from __future__ import annotations

import contextlib
import http.client

from perception.runtime.urls import PeekedResponse, open_url
from perception.types import PerceptionError

MAX_IMAGE_BYTES = 64 << 20
"""Maximum size of one image."""
MAX_LINE_BYTES = 4096
CHUNK_BYTES = 1 << 16


class MjpegStream:
    """An opened stream. The timeout of the connection applies to each received piece."""

    def __init__(self, response: http.client.HTTPResponse, boundary: str, head: bytes = b"") -> None:
        self._response, self._buffer = response, head
        self._boundary = b"--" + boundary.removeprefix("--").encode("latin-1", "replace")

    def read(self) -> bytes | None:
        """Return the next part; None at the end, or if the data is not such a stream. Raises TimeoutError."""
        try:
            length = self._read_header()
            if length is None:
                return None
            return self._read_exactly(length) if length >= 0 else self._read_until_boundary()
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _read_header(self) -> int | None:
        """Content-Length of the next part, -1 if missing, None at the end."""
        line = self._read_line()
        while not line.startswith(self._boundary):
            if not line:
                return None
            line = self._read_line()
        length = -1
        while (line := self._read_line()).strip():
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if length > MAX_IMAGE_BYTES:
            raise ValueError("too long")
        return length if line else None

    def _read_line(self) -> bytes:
        """A line with its line end, cut after `MAX_LINE_BYTES`; empty at the end of the stream."""
        while b"\n" not in self._buffer and len(self._buffer) < MAX_LINE_BYTES and self._read_more():
            pass
        cut = self._buffer.find(b"\n", 0, MAX_LINE_BYTES) + 1 or min(len(self._buffer), MAX_LINE_BYTES)
        line, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return line

    def _read_exactly(self, length: int) -> bytes | None:
        parts, missing = [self._buffer[:length]], length - len(self._buffer)
        self._buffer = self._buffer[length:]
        while missing > 0:
            if not (piece := self._response.read1(min(missing, CHUNK_BYTES))):
                return None
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def _read_until_boundary(self) -> bytes | None:
        begin = 0
        while (place := self._buffer.find(b"\r\n" + self._boundary, begin)) < 0:
            begin = max(0, len(self._buffer) - len(self._boundary) - 2)
            if len(self._buffer) > MAX_IMAGE_BYTES:
                raise ValueError("too long")
            if not self._read_more():
                return None
        data, self._buffer = self._buffer[:place], self._buffer[place + 2 :]
        return data

    def _read_more(self) -> bool:
        piece = self._response.read1(CHUNK_BYTES)
        self._buffer += piece
        return bool(piece)


def open_mjpeg(address: str, timeout: float, peeked: PeekedResponse | None = None) -> MjpegStream | None:
    """Open the stream at an http(s) URL. Return None if there is none, or something else (a video, a playlist).

    ``peeked`` is an already opened connection to it, which can be used once.
    """
    if peeked is None or peeked.is_consumed or peeked.response.isclosed():
        try:
            peeked = PeekedResponse(open_url(address, timeout))
        except (PerceptionError, OSError, http.client.HTTPException, ValueError):
            return None
    peeked.is_consumed = True
    answer, head, boundary = peeked.response, peeked.head, None
    if answer.headers.get_content_maintype() == "multipart":
        boundary = answer.headers.get_boundary()
    if not boundary and not head:  # some cameras send no or a wrong content type
        with contextlib.suppress(OSError, http.client.HTTPException):
            head = answer.read1(CHUNK_BYTES)
    if not boundary and head.startswith(b"--"):
        boundary = head.partition(b"\n")[0].strip().decode("latin-1")
    if boundary:
        return MjpegStream(answer, boundary, head)
    answer.close()
    return None
