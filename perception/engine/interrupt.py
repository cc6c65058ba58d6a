"""Stopping in an orderly way on Ctrl-C, SIGTERM, and what schedulers and closed terminals send."""

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
"""Those that ask to stop, in the order of what counts where several came."""
REPEAT_SECONDS = 2.0
"""Seconds in which a signal that comes again is taken for the same one: a scheduler sends it to every process, and the
launcher passes it on once more."""


class SignalInterrupt(BaseException):
    """A signal came where what is being done may be left half done. No Exception: nothing on the way may take it."""


class StopRequest:
    """Which signal asked to stop, if any. ``flags`` go through `distributed.joint_losses` so that all ranks agree."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._abort_depth = 0

    @property
    def flags(self) -> dict[str, int]:
        return {number.name: int(self.signal_number == number) for number in STOP_SIGNALS}

    @contextmanager
    def abort_on_signal(self) -> Iterator[None]:
        """What is done in it may be left at any moment: there, a signal raises `Stopped` at once."""
        self._abort_depth += 1
        try:
            if self.signal_number:
                raise SignalInterrupt
            yield
        finally:
            self._abort_depth -= 1

    def record_signal(self, signal_number: int) -> None:
        """Take a signal. Raises Stopped in what may be abandoned, for the first one."""
        first, self.signal_number = not self.signal_number, self.signal_number or signal_number
        if first and self._abort_depth:
            raise SignalInterrupt


_active_request: StopRequest | None = None


def is_signal_received() -> bool:
    """Whether a signal was noted by the innermost `catch_stop_signals` around."""
    return _active_request is not None and bool(_active_request.signal_number)


@contextmanager
def abort_on_signal() -> Iterator[None]:
    """`StopRequest.abort_on_signal` of the innermost `catch_stop_signals` around, if there is one."""
    with _active_request.abort_on_signal() if _active_request is not None else nullcontext():
        yield


def exit_code(flags: dict[str, int]) -> int:
    """The conventional exit code (128 + signal) of agreed flags; 0 = go on."""
    return next((128 + number for number in STOP_SIGNALS if flags.get(number.name)), 0)


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Note the first signal that asks to stop instead of dying of it; a later one ends the process at once.

    Processes that are forked meanwhile (loader workers) inherit the handlers: there, Ctrl-C is left to the parent, and
    the others end the process. What is ignored (by ``nohup``) stays ignored.
    """
    global _active_request  # noqa: PLW0603 - as the handlers, of which a process has one set
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
