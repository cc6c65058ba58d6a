"""Ending a run from outside so that all it wrote is closed: Ctrl-C, SIGTERM, a terminal or a window that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Someone wants the run to end. signal: its number; 0 = there was none."""

    def __init__(self, signal: int = 0) -> None:
        super().__init__()
        self.signal = signal


class _State:
    installed = False
    held = 0
    asked: int | None = None


@contextmanager
def terminable() -> Iterator[None]:
    """The first of `SIGNALS` raises Stopped in the main thread, or waits for `check` within `held`.

    Those that follow are not heard: what was written is being closed. A signal that the process ignores (``nohup``, a
    job in the background) stays ignored.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        if _State.asked is None:
            _State.asked = number
            if not _State.held:
                raise Stopped(number)

    kept = (signal.SIG_IGN, None)
    _State.installed, _State.asked = True, None
    before = {number: signal.signal(number, stop) for number in SIGNALS if signal.getsignal(number) not in kept}
    try:
        yield
    except Exception:  # an import in C turns what is raised in it into an ImportError
        check()
        raise
    finally:
        _State.installed = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Within it nothing is raised in the midst of a statement, which might be one that closes a file or frees a lock:
    who waits or goes on to the next frame calls `check`."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1


def asked() -> bool:
    """Whether a signal has come, in any thread."""
    return _State.installed and _State.asked is not None


def check() -> None:
    """Raise Stopped where a signal has come."""
    if _State.installed and _State.asked is not None:
        raise Stopped(_State.asked)
