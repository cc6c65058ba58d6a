"""Ending a run from outside so that all it wrote is closed: Ctrl-C, SIGTERM, a terminal or a window that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequested(KeyboardInterrupt):
    """Someone wants the run to end. signal: its number; 0 = there was none."""

    def __init__(self, signal: int = 0) -> None:
        super().__init__()
        self.signal = signal


class _State:
    installed = False
    deferral_depth = 0
    pending_signal: int | None = None


@contextmanager
def handle_stop_signals() -> Iterator[None]:
    """The first of `SIGNALS` raises Stopped in the main thread, or waits for `check` within `held`.

    Those that follow are not heard: what was written is being closed. A signal that the process ignores (``nohup``, a
    job in the background) stays ignored.
    """
    if _State.installed or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        if _State.pending_signal is None:
            _State.pending_signal = number
            if not _State.deferral_depth:
                raise StopRequested(number)

    kept = (signal.SIG_IGN, None)
    _State.installed, _State.pending_signal = True, None
    before = {number: signal.signal(number, stop) for number in SIGNALS if signal.getsignal(number) not in kept}
    try:
        yield
    except Exception:  # an import in C turns what is raised in it into an ImportError
        check_stop()
        raise
    finally:
        _State.installed = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_stop() -> Iterator[None]:
    """Within it nothing is raised in the midst of a statement, which might be one that closes a file or frees a lock:
    who waits or goes on to the next frame calls `check`."""
    _State.deferral_depth += 1
    try:
        yield
    finally:
        _State.deferral_depth -= 1


def is_stop_pending() -> bool:
    """Whether a signal has come, in any thread."""
    return _State.installed and _State.pending_signal is not None


def check_stop() -> None:
    """Raise Stopped where a signal has come."""
    if _State.installed and _State.pending_signal is not None:
        raise StopRequested(_State.pending_signal)
