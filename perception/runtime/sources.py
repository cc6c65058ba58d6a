"""Where pictures come from: files, folders, globs, lists, addresses, standard input, cameras and streams. No torch."""

from __future__ import annotations

import dataclasses
import http.client
import os
import re
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from perception.files.file_types import HEAD, is_indexed_last, kind_of, moves
from perception.files.image_headers import read_bytes
from perception.files.images import decode_image
from perception.files.safe_names import printable
from perception.files.unsupported_formats import unread
from perception.runtime import source_files, urls
from perception.types import PerceptionError

MOST = 64 << 20
"""Bytes of a picture at an address that tells no length."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a source: uint8 RGB [H, W, 3].

    time:    seconds from the start of a video; None = a picture
    arrived: when it was decoded, by `time.monotonic`
    id:      unique within a run: "deeper/b.jpg", "drive.mp4#12"
    place:   where what belongs to it is written, relative to the output's folder and without suffix: "deeper/b",
             "drive/000012"
    """

    image: NDArray[np.uint8]
    time: float | None = None
    arrived: float = 0.0
    id: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """One picture file, video file, camera or stream.

    id:      unique within a run and usable as a relative path; ``address`` is what is opened
    trouble: why it cannot be read, where that is known before; it is then of the kind "picture"
    origin:  where a file was fetched from
    held:    keeps what was fetched on the disk; of a live stream the connection that was made to ask what it is
    """

    id: str
    address: str | int
    kind: Literal["picture", "video", "live"]
    trouble: str = ""
    origin: str = ""
    held: object = field(default=None, repr=False, compare=False)

    @property
    def is_video(self) -> bool:
        return self.kind != "picture"

    @property
    def shown(self) -> str:
        """The address as it may be told: a URL without its password."""
        if isinstance(self.address, int):
            return f"camera {self.address}"
        if self.origin or self.kind == "live":
            return printable(self.origin or urls.without_secrets(self.address))
        return printable(self.address)


def find(source: str | Path | int, timeout: float = 5.0) -> list[Source]:
    """What ``source`` names.

    A file; all files of a folder and its folders, of a glob, of a numbered pattern (``%04d``) or of a list (.txt,
    .csv, .m3u: one path or address a line); a camera's number; an address; ``-`` for standard input, read to its end.
    A picture or a film at an http(s) address is fetched whole, and what never ends is live.

    timeout: seconds that a server may be silent
    Raises PerceptionError where it names nothing that can be read.
    """
    text = str(source)
    if not text.strip() or "\0" in text:
        raise PerceptionError(f"{text!r} is no source. Give an image, folder, glob, video, camera or URL.")
    if text == "-":
        return [_piped(sys.stdin.buffer, "standard input", "stdin")]
    if text.isdecimal() and text.isascii() and not os.path.lexists(text):
        return [Source(f"camera{text}", int(text), "live")]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _at_address(text, timeout)
    state = _state(text)
    if state is not None and not (stat.S_ISREG(state) or stat.S_ISDIR(state)):
        if number := re.fullmatch(r"/dev/video(\d+)", text):
            return [Source(f"camera{number[1]}", int(number[1]), "live")]
        with open(text, "rb") as pipe:  # noqa: PTH123
            return [_piped(pipe, printable(text), "pipe")]
    if state is None and text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111
    found = [_of_file(item, timeout) for item in source_files.find_files(text)]
    return list({item.id: item for item in found}.values())


def _state(path: str) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return None


def _of_file(item: source_files.Found, timeout: float) -> Source:
    if item.kind == "address":
        try:
            there = _at_address(item.path, timeout)[0]
            if isinstance(there.held, urls.Opened):
                there.held.close()  # its turn comes later: what it delivers until then is not waited for
            return dataclasses.replace(there, id=f"{item.id}/{there.id}")
        except PerceptionError as error:
            return Source(item.id, item.path, "picture", str(error), urls.without_secrets(item.path))
    return Source(item.id, item.path, item.kind, item.trouble)


def _at_address(address: str, timeout: float) -> list[Source]:
    """Asks what is there, if it is an http(s) address. Where nobody answers it is a stream that may come."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise PerceptionError(f"{printable(address)} is no address: {error}. Correct it.") from None
    scheme = parts.scheme.lower()
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise PerceptionError(f"{printable(address)} is on another machine, {parts.netloc}. Mount or copy it.")
        path = url2pathname(address.partition("://")[2].removeprefix(parts.netloc).partition("#")[0].partition("?")[0])
        return find(Path(path if os.path.lexists(path) else unquote(address.partition("://")[2])))
    stream = Source("stream", address, "live")
    if scheme not in ("http", "https"):
        return [stream]
    try:
        answer = urls.request(address, timeout)
    except (OSError, http.client.HTTPException, ValueError):
        return [stream]
    opened = urls.Opened(answer)
    try:
        found = _answered(opened, address)
    except (OSError, ValueError):
        found = None
    except PerceptionError:
        opened.close()
        raise
    if found is None and opened.is_stream:
        return [dataclasses.replace(stream, held=opened)]  # a camera may let in nobody twice
    opened.close()
    return [found or stream]


def _answered(opened: urls.Opened, address: str) -> Source | None:
    """The picture or film that an answer holds, fetched; None where it is a stream."""
    answer = opened.answer
    if answer.headers.get_content_maintype() == "multipart":
        opened.is_stream = True
        return None
    shown, head = urls.without_secrets(address), b""
    try:
        while len(head) < HEAD and (piece := answer.read1(HEAD - len(head))):
            opened.head = head = head + piece
            if head.startswith(b"--"):
                opened.is_stream = True
                return None
    except (http.client.HTTPException, ConnectionError):
        raise urls.stopped(shown, len(head)) from None
    kind = kind_of(head)
    if other := unread(head):
        raise PerceptionError(f"{shown} {other}.")
    whole = kind == "picture" or answer.length is not None or is_indexed_last(head)
    if kind == "playlist" or not whole:
        return None
    if kind is None and answer.headers.get_content_maintype() not in ("video", "image", "application"):
        raise PerceptionError(
            f"{shown} is {answer.headers.get_content_type()}, beginning with {head[:16]!r}. Expected a picture, a film "
            "or a stream."
        )
    limit = MOST if kind == "picture" else sys.maxsize
    path, held = urls.fetch(answer, head, shown, urls.name_of(address), limit)
    return _fetched(path, held, shown, path.name, kind)


def _piped(stream: object, what: str, name: str) -> Source:
    if getattr(stream, "isatty", bool)():
        raise PerceptionError(f"{what} is a terminal. Pipe a picture or a film into it: perception predict M - < FILE")
    path, held = urls.copy(stream, name, what)  # type: ignore[arg-type]
    with path.open("rb") as file:
        head = file.read(HEAD)
    if other := unread(head):
        raise PerceptionError(f"{what} {other}.")
    return _fetched(path, held, what, name, kind_of(head))


def _fetched(path: Path, held: object, shown: str, name: str, kind: str | None) -> Source:
    is_picture = kind == "picture" and not moves(path)
    return Source(name, str(path), "picture" if is_picture else "video", origin=shown, held=held)


def read_picture(source: Source) -> Shot:
    """The picture file. Raises PerceptionError where it is damaged or needs a decoder that is not installed."""
    if source.trouble:
        raise PerceptionError(source.trouble)
    path, shown = Path(str(source.address)), source.shown
    try:
        return Shot(decode_image(read_bytes(path), shown), arrived=time.monotonic())
    except ModuleNotFoundError as error:
        raise PerceptionError(f"{shown} needs {error.name} to be decoded. Install it, or convert to PNG.") from error
    except PerceptionError as error:
        raise type(error)(str(error).replace(str(path), shown)) from error
