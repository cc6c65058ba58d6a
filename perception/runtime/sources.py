"""Where images come from: files, folders, globs, lists, addresses, standard input, cameras and streams. No torch."""

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

from perception.files.file_types import HEAD_BYTES, detect_file_type, has_trailing_index, is_animated
from perception.files.image_headers import read_image_bytes
from perception.files.images import decode_image
from perception.files.safe_names import escape_unprintable
from perception.files.unsupported_formats import describe_unsupported
from perception.runtime import source_files, urls
from perception.types import PerceptionError

MAX_IMAGE_BYTES = 64 << 20
"""Bytes of an image at an address that tells no length."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a source: uint8 RGB [H, W, 3].

    time:    seconds from the start of a video; None = an image
    arrival_time: when it was decoded, by `time.monotonic`
    id:      unique within a run: "deeper/b.jpg", "drive.mp4#12"
    output_stem:   where what belongs to it is written, relative to the output's folder and without suffix: "deeper/b",
             "drive/000012"
    """

    image: NDArray[np.uint8]
    time: float | None = None
    arrival_time: float = 0.0
    id: str = ""
    output_stem: str = ""


@dataclass(frozen=True, slots=True)
class MediaSource:
    """One image file, video file, camera or stream.

    id:      unique within a run and usable as a relative path; ``address`` is what is opened
    problem: why it cannot be read, where that is known before; it is then of the kind "image"
    origin:  where a file was fetched from
    resource:    keeps what was fetched on the disk; of a live stream the connection that was made to ask what it is
    """

    id: str
    address: str | int
    kind: Literal["image", "video", "live"]
    problem: str = ""
    origin: str = ""
    resource: object = field(default=None, repr=False, compare=False)

    @property
    def is_video(self) -> bool:
        return self.kind != "image"

    @property
    def display_name(self) -> str:
        """The address as it may be told: a URL without its password."""
        if isinstance(self.address, int):
            return f"camera {self.address}"
        if self.origin or self.kind == "live":
            return escape_unprintable(self.origin or urls.redact_url(self.address))
        return escape_unprintable(self.address)


def find_sources(source: str | Path | int, timeout: float = 5.0) -> list[MediaSource]:
    """What ``source`` names.

    A file; all files of a folder and its folders, of a glob, of a numbered pattern (``%04d``) or of a list (.txt,
    .csv, .m3u: one path or address a line); a camera's number; an address; ``-`` for standard input, read to its end.
    An image or a video at an http(s) address is fetched whole, and what never ends is live.

    timeout: seconds that a server may be silent
    Raises PerceptionError where it names nothing that can be read.
    """
    text = str(source)
    if not text.strip() or "\0" in text:
        raise PerceptionError(f"{text!r} is no source. Give an image, folder, glob, video, camera or URL.")
    if text == "-":
        return [_copy_pipe(sys.stdin.buffer, "standard input", "stdin")]
    if text.isdecimal() and text.isascii() and not os.path.lexists(text):
        return [MediaSource(f"camera{text}", int(text), "live")]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return _find_at_address(text, timeout)
    state = _stat_mode(text)
    if state is not None and not (stat.S_ISREG(state) or stat.S_ISDIR(state)):
        if number := re.fullmatch(r"/dev/video(\d+)", text):
            return [MediaSource(f"camera{number[1]}", int(number[1]), "live")]
        with open(text, "rb") as pipe:  # noqa: PTH123
            return [_copy_pipe(pipe, escape_unprintable(text), "pipe")]
    if state is None and text.startswith("~"):
        text = os.path.expanduser(text)  # noqa: PTH111
    found = [_make_source(item, timeout) for item in source_files.find_files(text)]
    return list({item.id: item for item in found}.values())


def _stat_mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return None


def _make_source(item: source_files.FoundFile, timeout: float) -> MediaSource:
    if item.kind == "url":
        try:
            there = _find_at_address(item.path, timeout)[0]
            if isinstance(there.resource, urls.PeekedResponse):
                there.resource.close()  # its turn comes later: what it delivers until then is not waited for
            return dataclasses.replace(there, id=f"{item.id}/{there.id}")
        except PerceptionError as error:
            return MediaSource(item.id, item.path, "image", str(error), urls.redact_url(item.path))
    return MediaSource(item.id, item.path, item.kind, item.problem)


def _find_at_address(address: str, timeout: float) -> list[MediaSource]:
    """Asks what is there, if it is an http(s) address. Where nobody answers it is a stream that may come."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise PerceptionError(f"{escape_unprintable(address)} is no address: {error}. Correct it.") from None
    scheme = parts.scheme.lower()
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise PerceptionError(
                f"{escape_unprintable(address)} is on another machine, {parts.netloc}. Mount or copy it."
            )
        path = url2pathname(address.partition("://")[2].removeprefix(parts.netloc).partition("#")[0].partition("?")[0])
        return find_sources(Path(path if os.path.lexists(path) else unquote(address.partition("://")[2])))
    stream = MediaSource("stream", address, "live")
    if scheme not in ("http", "https"):
        return [stream]
    try:
        answer = urls.open_url(address, timeout)
    except (OSError, http.client.HTTPException, ValueError):
        return [stream]
    opened = urls.PeekedResponse(answer)
    try:
        found = _fetch_response(opened, address)
    except (OSError, ValueError):
        found = None
    except PerceptionError:
        opened.close()
        raise
    if found is None and opened.is_stream:
        return [dataclasses.replace(stream, resource=opened)]  # a camera may let in nobody twice
    opened.close()
    return [found or stream]


def _fetch_response(response: urls.PeekedResponse, address: str) -> MediaSource | None:
    """The image or video that an answer holds, fetched; None where it is a stream."""
    answer = response.response
    if answer.headers.get_content_maintype() == "multipart":
        response.is_stream = True
        return None
    shown, head = urls.redact_url(address), b""
    try:
        while len(head) < HEAD_BYTES and (piece := answer.read1(HEAD_BYTES - len(head))):
            response.head = head = head + piece
            if head.startswith(b"--"):
                response.is_stream = True
                return None
    except (http.client.HTTPException, ConnectionError):
        raise urls.make_truncation_error(shown, len(head)) from None
    kind = detect_file_type(head)
    if other := describe_unsupported(head):
        raise PerceptionError(f"{shown} {other}.")
    whole = kind == "image" or answer.length is not None or has_trailing_index(head)
    if kind == "playlist" or not whole:
        return None
    if kind is None and answer.headers.get_content_maintype() not in ("video", "image", "application"):
        raise PerceptionError(
            f"{shown} is {answer.headers.get_content_type()}, beginning with {head[:16]!r}. Expected an image, a video "
            "or a stream."
        )
    limit = MAX_IMAGE_BYTES if kind == "image" else sys.maxsize
    path, held = urls.fetch_file(answer, head, shown, urls.url_file_name(address), limit)
    return _make_fetched_source(path, held, shown, path.name, kind)


def _copy_pipe(stream: object, what: str, name: str) -> MediaSource:
    if getattr(stream, "isatty", bool)():
        raise PerceptionError(f"{what} is a terminal. Pipe an image or a video into it: perception predict M - < FILE")
    path, held = urls.copy_stream(stream, name, what)  # type: ignore[arg-type]
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if other := describe_unsupported(head):
        raise PerceptionError(f"{what} {other}.")
    return _make_fetched_source(path, held, what, name, detect_file_type(head))


def _make_fetched_source(path: Path, resource: object, display_name: str, name: str, kind: str | None) -> MediaSource:
    is_image = kind == "image" and not is_animated(path)
    return MediaSource(name, str(path), "image" if is_image else "video", origin=display_name, resource=resource)


def read_image_frame(source: MediaSource) -> Frame:
    """The image file. Raises PerceptionError where it is damaged or needs a decoder that is not installed."""
    if source.problem:
        raise PerceptionError(source.problem)
    path, shown = Path(str(source.address)), source.display_name
    try:
        return Frame(decode_image(read_image_bytes(path), shown), arrival_time=time.monotonic())
    except ModuleNotFoundError as error:
        raise PerceptionError(f"{shown} needs {error.name} to be decoded. Install it, or convert to PNG.") from error
    except PerceptionError as error:
        raise type(error)(str(error).replace(str(path), shown)) from error
