"""Clean stop on Ctrl-C, SIGTERM, and the signals that schedulers and closed terminals send."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name)
)
"""Signals that request a stop, by priority if several arrive."""
REPEAT_SECONDS = 2.0
"""A repeated signal within this time counts as the same one: a scheduler signals every process, and the launcher
forwards the signal again."""


class SignalInterrupt(BaseException):
    """A stop signal during abortable work. A BaseException, so `except Exception` does not catch it."""


class StopRequest:
    """The stop signal received, if any. ``flags`` are summed by `distributed.reduce_losses`, so all ranks agree."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._abort_depth = 0

    @property
    def flags(self) -> dict[str, int]:
        """Signal name -> 1 if it was received, else 0."""
        return {number.name: int(self.signal_number == number) for number in STOP_SIGNALS}

    @contextmanager
    def abort_on_signal(self) -> Iterator[None]:
        """Context in which a stop signal raises `SignalInterrupt` at once."""
        self._abort_depth += 1
        try:
            if self.signal_number:
                raise SignalInterrupt
            yield
        finally:
            self._abort_depth -= 1

    def record_signal(self, signal_number: int) -> None:
        """Record a signal. The first one raises SignalInterrupt inside `abort_on_signal`."""
        first, self.signal_number = not self.signal_number, self.signal_number or signal_number
        if first and self._abort_depth:
            raise SignalInterrupt


_active_request: StopRequest | None = None


def is_signal_received() -> bool:
    """Whether the innermost `catch_stop_signals` has received a signal."""
    return _active_request is not None and bool(_active_request.signal_number)


@contextmanager
def abort_on_signal() -> Iterator[None]:
    """Enter `StopRequest.abort_on_signal` of the innermost `catch_stop_signals`, if there is one."""
    with _active_request.abort_on_signal() if _active_request is not None else nullcontext():
        yield


def exit_code(flags: dict[str, int]) -> int:
    """The conventional exit code (128 + signal) of agreed flags; 0: no signal."""
    return next((128 + number for number in STOP_SIGNALS if flags.get(number.name)), 0)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Record the first stop signal instead of exiting; a later one ends the process at once.

    Forked processes (loader workers) inherit the handlers. They leave Ctrl-C to the parent and exit on the other
    signals. Signals that are ignored (by ``nohup``) stay ignored.
    """
    global _active_request  # noqa: PLW0603 - signal handlers are global to the process, too
    state, owner, first = StopRequest(), os.getpid(), {}
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    before = {
        number: handler
        for number, handler in found.items()
        if number in (signal.SIGTERM, signal.SIGINT) or handler == signal.SIG_DFL
    }

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if now - first.setdefault(number, now) > REPEAT_SECONDS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        state.record_signal(number)

    outer, _active_request = _active_request, state
    for number in before:
        signal.signal(number, note)
    try:
        yield state
    finally:
        _active_request = outer
        for number, handler in before.items():
            signal.signal(number, handler)
