"""Threads that may hang in code that nobody can stop (OpenCV, FFmpeg, a network), and how a process ends beside them.

Where the interpreter ends while such a thread is in C++, CPython before 3.14 ends the thread there, and the C++ runtime
aborts the process (SIGABRT, code 134; python/cpython#87135).
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
"""Seconds that the end of a program waits for them: OpenCV gives up what is silent after 5."""

_started: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """A thread that has begun and does not keep the process alive."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    _started.add(thread)
    thread.start()
    return thread


def join_threads(threads: Iterable[threading.Thread], timeout: float) -> None:
    """Wait until all of them have ended, for at most so many seconds together."""
    end = time.monotonic() + timeout
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))


def exit_despite_hung_threads(code: int) -> None:
    """End this process now with ``code`` where a thread hangs, without what else is done at the end of a program.

    For programs, not for libraries: what is registered with `atexit` is left out, what is printed is not.
    """
    if not any(thread.is_alive() for thread in _started):
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, it is closed, there is none
            stream.flush()
    os._exit(code)


@atexit.register
def _join_at_exit() -> None:
    join_threads(list(_started), EXIT_TIMEOUT)
