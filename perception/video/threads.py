"""Threads that may hang in C++ code that cannot be interrupted (OpenCV, FFmpeg, network), and a safe process exit.

If the interpreter exits while such a thread runs C++ code, CPython before 3.14 kills the thread there, and the C++
runtime aborts the process (SIGABRT, code 134; python/cpython#87135).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress

from perception.video.interrupt import SIGNALS

EXIT_TIMEOUT = 6.0
"""Seconds that the process waits for these threads at exit. OpenCV closes a silent source after 5 s."""

_started: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start and return a daemon thread: it does not keep the process alive."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    _started.add(thread)
    thread.start()
    return thread


def join_threads(threads: Iterable[threading.Thread], timeout: float) -> None:
    """Wait until all threads have ended, for at most ``timeout`` seconds in total."""
    end = time.monotonic() + timeout
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


def exit_despite_hung_threads(code: int) -> None:
    """Exit this process now with ``code`` if a thread hangs; else do nothing.

    For programs, not for libraries: it flushes stdout and stderr, but skips `atexit` handlers.
    """
    if not any(thread.is_alive() for thread in _started):
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # broken pipe, closed, or None
            stream.flush()
    os._exit(code)


@atexit.register
def _join_at_exit() -> None:
    join_threads(list(_started), EXIT_TIMEOUT)
