"""HTTP streams of JPEGs (``multipart/x-mixed-replace``), as cheap cameras and robots serve them. Standard library."""

from __future__ import annotations

import contextlib
import http.client

from perception.runtime.urls import Opened, request
from perception.types import PerceptionError

MAX_BYTES = 64 << 20
"""Of one picture."""
MAX_LINE = 4096
CHUNK = 1 << 16


class Stream:
    """An opened stream. Every read takes at most the timeout of its connection for each piece that arrives."""

    def __init__(self, answer: http.client.HTTPResponse, boundary: str, head: bytes = b"") -> None:
        self._answer, self._rest = answer, head
        self._boundary = b"--" + boundary.removeprefix("--").encode("latin-1", "replace")

    def read(self) -> bytes | None:
        """The next part; None at the end, and where what arrives is no such stream. Raises TimeoutError."""
        try:
            length = self._header()
            if length is None:
                return None
            return self._exactly(length) if length >= 0 else self._until_boundary()
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def close(self) -> None:
        self._answer.close()

    def _header(self) -> int | None:
        """Content-Length of the next part, -1 where it is not told, None at the end."""
        line = self._line()
        while not line.startswith(self._boundary):
            if not line:
                return None
            line = self._line()
        length = -1
        while (line := self._line()).strip():
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if length > MAX_BYTES:
            raise ValueError("too long")
        return length if line else None

    def _line(self) -> bytes:
        """A line with its end, or what there is of one after `MAX_LINE` bytes; empty at the end of the stream."""
        while b"\n" not in self._rest and len(self._rest) < MAX_LINE and self._more():
            pass
        cut = self._rest.find(b"\n", 0, MAX_LINE) + 1 or min(len(self._rest), MAX_LINE)
        line, self._rest = self._rest[:cut], self._rest[cut:]
        return line

    def _exactly(self, length: int) -> bytes | None:
        parts, missing = [self._rest[:length]], length - len(self._rest)
        self._rest = self._rest[length:]
        while missing > 0:
            if not (piece := self._answer.read1(min(missing, CHUNK))):
                return None
            parts.append(piece)
            missing -= len(piece)
        return b"".join(parts)

    def _until_boundary(self) -> bytes | None:
        begin = 0
        while (place := self._rest.find(b"\r\n" + self._boundary, begin)) < 0:
            begin = max(0, len(self._rest) - len(self._boundary) - 2)
            if len(self._rest) > MAX_BYTES:
                raise ValueError("too long")
            if not self._more():
                return None
        data, self._rest = self._rest[:place], self._rest[place + 2 :]
        return data

    def _more(self) -> bool:
        piece = self._answer.read1(CHUNK)
        self._rest += piece
        return bool(piece)


def connect(address: str, timeout: float, opened: Opened | None = None) -> Stream | None:
    """The stream at an http(s) URL; None where there is none, or something else (a film, a playlist).

    opened: a connection to it that is there already; it is used once
    """
    if opened is None or opened.taken or opened.answer.isclosed():
        try:
            opened = Opened(request(address, timeout))
        except (PerceptionError, OSError, http.client.HTTPException, ValueError):
            return None
    opened.taken = True
    answer, head, boundary = opened.answer, opened.head, None
    if answer.headers.get_content_maintype() == "multipart":
        boundary = answer.headers.get_boundary()
    if not boundary and not head:  # cameras that do not tell, or tell another type
        with contextlib.suppress(OSError, http.client.HTTPException):
            head = answer.read1(CHUNK)
    if not boundary and head.startswith(b"--"):
        boundary = head.partition(b"\n")[0].strip().decode("latin-1")
    if boundary:
        return Stream(answer, boundary, head)
    answer.close()
    return None
