"""Clean stop of a run by Ctrl-C, SIGTERM, or a closed terminal or window: all open files are completed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopRequested(KeyboardInterrupt):
    """A request to stop the run. ``signal`` is the number of the signal; 0 = not caused by a signal."""

    def __init__(self, signal: int = 0) -> None:
        super().__init__()
        self.signal = signal


class _State:
    installed = False
    deferral_depth = 0
    pending_signal: int | None = None


@contextmanager
def handle_stop_signals() -> Iterator[None]:
    """Turn the first signal of `SIGNALS` into StopRequested in the main thread; within `defer_stop`, on `check_stop`.

    Later signals are ignored while the files are being closed. Signals that the process already ignores (``nohup``,
    background jobs) stay ignored.
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
    except Exception:  # an import in C code turns a StopRequested into an ImportError
        check_stop()
        raise
    finally:
        _State.installed = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def defer_stop() -> Iterator[None]:
    """Do not raise StopRequested in the middle of a statement, which may close a file or release a lock.

    Code inside this block calls `check_stop` between frames and while it waits.
    """
    _State.deferral_depth += 1
    try:
        yield
    finally:
        _State.deferral_depth -= 1


def is_stop_pending() -> bool:
    """Return whether a stop signal has arrived. Works in any thread."""
    return _State.installed and _State.pending_signal is not None


def check_stop() -> None:
    """Raise StopRequested if a stop signal has arrived."""
    if _State.installed and _State.pending_signal is not None:
        raise StopRequested(_State.pending_signal)
