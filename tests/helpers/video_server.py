"""Streams that misbehave: a small HTTP server of JPEGs on this machine, whose script says what it sends and when."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from urllib.parse import unquote

import cv2
import numpy as np

Script = Callable[[int], Iterable[np.ndarray | bytes | float]]
"""Number of the connection -> what is sent: images (BGR or gray), bytes as a part, or seconds to wait."""


def encode_jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


class JpegServer:
    """``with JpegServer(script) as url``. lengths: each part tells its length, as most servers do."""

    def __init__(self, script: Script, lengths: bool = True, content: str = "multipart/x-mixed-replace; boundary=cut"):
        self.connections = 0
        self._stopped = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                number, outer.connections = outer.connections, outer.connections + 1
                try:
                    items = iter(script(number))
                    first = next(items, None)
                    if first is None:
                        self.send_error(503)
                        return
                    self.send_response(200)
                    self.send_header("Content-Type", content)
                    self.end_headers()
                    for item in chain([first], items):
                        if isinstance(item, float):
                            if outer._stopped.wait(item):
                                return
                            continue
                        data = item if isinstance(item, bytes) else encode_jpeg(item)
                        length = b"Content-Length: %d\r\n" % len(data) if lengths else b""
                        self.wfile.write(b"--cut\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n" + data + b"\r\n")
                        self.wfile.flush()
                except OSError:
                    pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/video"

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@dataclass
class Response:
    """What a `FileServer` says to a path.

    length: as it is told; None = not told, the connection closes at the end
    chunked: in pieces, of which the last says so unless ``truncated``
    credentials: "user:password" that it asks for
    digest_auth: by a digest and not in clear
    """

    body: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    length: int | None = -1
    chunked: bool = False
    truncated: bool = False
    location: str = ""
    credentials: str = ""
    digest_auth: bool = False


class FileServer:
    """``with FileServer({"/a.jpg": Answer(...)}) as url``: no HEAD, no ranges. requested: the paths, in order."""

    def __init__(self, answers: dict[str, Response]):
        self.requested: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                outer.requested.append(self.path)
                answer = answers.get(unquote(self.path.partition("?")[0]), Response(status=404))
                ask = "Digest" if answer.digest_auth else "Basic"
                if answer.credentials and not self._knows(answer):
                    answer = Response(status=401)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Connection", "close")
                if answer.status == 401:
                    self.send_header("WWW-Authenticate", f'{ask} realm="cameras", nonce="7", qop="auth"')
                if answer.location:
                    self.send_header("Location", answer.location)
                if answer.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif answer.length is not None:
                    self.send_header("Content-Length", str(len(answer.body) if answer.length < 0 else answer.length))
                self.end_headers()
                with contextlib.suppress(OSError):
                    if answer.chunked:
                        for begin in range(0, len(answer.body), 1000):
                            piece = answer.body[begin : begin + 1000]
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                        self.wfile.write(b"" if answer.truncated else b"0\r\n\r\n")
                    else:
                        self.wfile.write(answer.body)
                self.close_connection = True

            def _knows(self, answer: Response) -> bool:
                told = self.headers.get("Authorization", "")
                if not answer.digest_auth:
                    return told == f"Basic {base64.b64encode(answer.credentials.encode()).decode()}"
                user, _, password = answer.credentials.partition(":")
                fields = dict(re.findall(r'(\w+)="?([^",]*)', told))
                first, second = md5(f"{user}:cameras:{password}"), md5(f"GET:{self.path}")
                middle = ":".join(fields.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
                return fields.get("response") == md5(f"{first}:{middle}:{second}")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def scripted_frames(count: int, size: tuple[int, int] = (48, 80), pause: float = 0.005, gray: bool = False):
    """Images of growing brightness, each followed by a pause."""
    for i in range(count):
        yield np.full(size if gray else (*size, 3), 40 + i, np.uint8)
        yield pause


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()
