"""Stopping in an orderly way on Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Which signal asked to stop, if any. ``flags`` go through `distributed.joint_losses` so that all ranks agree."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def flags(self) -> dict[str, int]:
        return {"interrupt": self.signal == signal.SIGINT, "terminate": self.signal == signal.SIGTERM}


def exit_code(flags: dict[str, int]) -> int:
    """The conventional exit code (128 + signal) of agreed flags; 0 = go on."""
    if flags["terminate"]:
        return 128 + signal.SIGTERM
    return 128 + signal.SIGINT if flags["interrupt"] else 0


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Note the first SIGTERM or Ctrl-C instead of dying of it; a second one ends the process at once.

    Processes that are forked meanwhile (loader workers) inherit the handlers: there, Ctrl-C is left to the parent, and
    SIGTERM ends the process.
    """
    state, owner = Interruption(), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        state.signal = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
