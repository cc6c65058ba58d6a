"""Streams that misbehave: a small HTTP server of JPEGs on this machine, whose script says what it sends and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain

import cv2
import numpy as np

Script = Callable[[int], Iterable[np.ndarray | bytes | float]]
"""Number of the connection -> what is sent: pictures (BGR or gray), bytes as a part, or seconds to wait."""


def jpeg(image: np.ndarray) -> bytes:
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
                        data = item if isinstance(item, bytes) else jpeg(item)
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


def frames(count: int, size: tuple[int, int] = (48, 80), pause: float = 0.005, gray: bool = False):
    """Pictures of growing brightness, each followed by a pause."""
    for i in range(count):
        yield np.full(size if gray else (*size, 3), 40 + i, np.uint8)
        yield pause


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()
