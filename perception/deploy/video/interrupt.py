"""Ending a run from outside so that all it wrote is closed: SIGTERM, a closed window."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """Someone wants the run to end. signal: its number; 0 = there was none."""

    def __init__(self, signal: int = 0) -> None:
        super().__init__()
        self.signal = signal


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Stopped in the main thread, as Ctrl-C raises KeyboardInterrupt; other threads get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
