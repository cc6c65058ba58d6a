"""Heartbeats between ranks: a lost rank is reported, and the other ranks stop instead of waiting forever.

A thread on every rank sends heartbeats and the current activity through the store of the process group. A collective
operation that waits for a killed, stopped or disconnected rank never returns (NCCL) or returns after half an hour
(gloo). The thread then reports the rank and ends the process.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist

from perception.types import ConfigError, PerceptionError

TIMEOUT_VARIABLE = "PERCEPTION_RANK_TIMEOUT"
"""Environment variable: seconds without a heartbeat after which a rank counts as lost."""
DEFAULT_TIMEOUT = 60.0
MAX_MISSED_BEATS = 2.5
"""Missed heartbeats after which a rank is reported as the cause of a failure."""
PATIENCE = 8
"""Heartbeats to wait for the cause of a failure; on a busy machine heartbeats arrive late."""
JOIN_TIMEOUT_FACTOR = 3
"""Factor on the timeout for joining: some ranks are still importing when others are ready."""


def read_timeout() -> float:
    """The seconds in `TIMEOUT_VARIABLE`. Raises ConfigError if it is not a valid number."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE} is '{text}'. Expected seconds >= 1, for example 120.")
    return seconds


class RankMonitor:
    """One rank's view of the others, from `start` to `stop`.

    Args:
        store: store of the process group; every thread uses its own copy.
        rank: number of this process.
        world_size: number of processes.
        timeout: seconds without a heartbeat after which a rank counts as lost.

    Attributes:
        activity: what this rank is doing, in words.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: float) -> None:
        prefix = f"perception/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = dist.PrefixStore(prefix, _clone_store(store))
        self._heartbeats = dist.PrefixStore(prefix, _clone_store(store))
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._interval = min(2.0, timeout / 5)
        self.activity = "starting"
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=f, name=f.__name__, daemon=True)
            for f in (self._send_heartbeats, self._check_silence)
        ]
        self._hosts: dict[int, str] = {}
        self._end_reasons: dict[int, str] = {}
        self._silent_seconds = dict.fromkeys(range(world_size), 0.0)
        self._last_messages = dict.fromkeys(range(world_size), "")
        self._store_silent_seconds = 0.0

    def wait_for_ranks(self) -> None:
        """Wait for every rank. Raises PerceptionError that names the ranks that do not join in time."""
        self._store.set(f"beat/{self._rank}", f"0|{self.activity}")  # so that an early loss is noticed, too
        self._store.set(f"host/{self._rank}", socket.gethostname())
        deadline = time.monotonic() + JOIN_TIMEOUT_FACTOR * self._timeout
        missing = list(range(self._world_size))
        while missing := [rank for rank in missing if not self._store.check([f"host/{rank}"])]:
            if time.monotonic() > deadline:
                raise PerceptionError(
                    f"Rank {', '.join(map(str, missing))} of {self._world_size} did not join within "
                    f"{JOIN_TIMEOUT_FACTOR * self._timeout:g} s. Check the output on its machine. "
                    f"{TIMEOUT_VARIABLE} sets a longer timeout."
                )
            time.sleep(0.05)
        self._hosts = {rank: self._store.get(f"host/{rank}").decode() for rank in range(self._world_size)}

    def start(self) -> None:
        """Start the heartbeat threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, reason: str) -> None:
        """Stop monitoring and announce why this rank ends; "" means success."""
        with suppress(RuntimeError):  # the other ranks may have ended
            self._store.set(f"end/{self._rank}", reason or _DONE)
            if reason and self._rank == 0:
                self._wait_for_others()
        self._stopping.set()
        for thread in self._threads:  # Python aborts if it exits while a thread is inside the store
            thread.join(2 * self._interval)

    def _wait_for_others(self) -> None:
        """Wait for the live ranks, because they read the reason from the store, which lives in this process."""
        deadline = time.monotonic() + (PATIENCE + 2) * self._interval
        while time.monotonic() < deadline:
            here = (
                rank
                for rank in range(1, self._world_size)
                if self._silent_seconds[rank] <= MAX_MISSED_BEATS * self._interval
            )
            if all(self._store.check([f"end/{rank}"]) for rank in here):
                return
            time.sleep(self._interval / 20)

    def request_stop(self) -> None:
        """Tell the other ranks that a stop signal came."""
        self._store.set("stop", "1")

    def is_stop_requested(self) -> bool:
        """Whether any rank called `request_stop`."""
        return self._store.check(["stop"])

    def explain_failure(self, error: RuntimeError) -> PerceptionError | None:
        """Explain a failed collective operation: names the ranks that failed or are silent; None for other errors."""
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "Connection closed")):
            return None
        deadline, lost = time.monotonic() + PATIENCE * self._interval, []
        while not lost and time.monotonic() < deadline:
            lost = [rank for rank, reason in self._read_end_reasons().items() if reason != _DONE]
            lost += [
                rank
                for rank, silent in self._silent_seconds.items()
                if rank not in lost and silent > MAX_MISSED_BEATS * self._interval
            ]
            time.sleep(0 if lost else self._interval / 4)
        if not lost:
            doing = "; ".join(
                f"rank {rank}: {said.partition('|')[2] or '?'}" for rank, said in self._last_messages.items()
            )
            return PerceptionError(
                f"Rank {self._rank} lost the other ranks ({doing}): {text.splitlines()[0]} {_ADVICE}"
            )
        return PerceptionError(f"{' '.join(self._describe_lost_rank(rank) for rank in lost)} {_ADVICE}")

    def _read_end_reasons(self) -> dict[int, str]:
        """End reasons of the other ranks; read now, because the next heartbeat may come too late."""
        with suppress(RuntimeError):  # the store may be closed
            for rank in range(self._world_size):
                if rank != self._rank and rank not in self._end_reasons and self._store.check([f"end/{rank}"]):
                    self._end_reasons[rank] = self._store.get(f"end/{rank}").decode()
        return {rank: reason for rank, reason in self._end_reasons.items() if rank != self._rank}

    def _describe_lost_rank(self, rank: int) -> str:
        """A sentence about a lost rank."""
        reason, doing = self._end_reasons.get(rank, ""), self._last_messages[rank].partition("|")[2]
        silent = f"sent its last heartbeat {self._silent_seconds[rank]:.0f} s ago, {doing}."
        last = silent if doing else "never sent a heartbeat."
        return f"Rank {rank} on {self._hosts.get(rank, '?')} " + (f"ended: {reason}" if reason else last)

    def _send_heartbeats(self) -> None:
        """Thread: send and receive heartbeats. Time in which this process itself was suspended does not count."""
        count, before = 0, time.monotonic()
        while not self._stopping.wait(self._interval):
            count += 1
            passed, before = min(time.monotonic() - before, 2 * self._interval), time.monotonic()
            try:
                self._heartbeats.set(f"beat/{self._rank}", f"{count}|{self.activity}")
                there = [rank for rank in range(self._world_size) if self._heartbeats.check([f"beat/{rank}"])]
                heard = self._heartbeats.multi_get([f"beat/{rank}" for rank in there])
                ends = [
                    r
                    for r in range(self._world_size)
                    if r not in self._end_reasons and self._heartbeats.check([f"end/{r}"])
                ]
                self._end_reasons |= {r: self._heartbeats.get(f"end/{r}").decode() for r in ends}
            except RuntimeError:
                continue  # `_check_silence` counts the time
            said = dict(zip(there, (value.decode() for value in heard), strict=True))
            for rank in range(self._world_size):
                new = said.get(rank, "")
                if rank in self._end_reasons or new.partition("|")[0] != self._last_messages[rank].partition("|")[0]:
                    self._silent_seconds[rank] = 0.0
                else:
                    self._silent_seconds[rank] += passed
                self._last_messages[rank] = new
            self._store_silent_seconds = 0.0

    def _check_silence(self) -> None:
        """Thread: end the process if a rank or the store is silent for too long."""
        before = time.monotonic()
        while not self._stopping.wait(self._interval):
            self._store_silent_seconds += min(time.monotonic() - before, 2 * self._interval)
            before = time.monotonic()
            if self._store_silent_seconds > self._timeout:
                where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                before_that = [
                    rank for rank, silent in self._silent_seconds.items() if silent > MAX_MISSED_BEATS * self._interval
                ]
                nothing = (
                    f"Rank {self._rank} on {socket.gethostname()} has had no contact to the store at {where} "
                    f"for {self._store_silent_seconds:.0f} s."
                )
                self._abort_process(" ".join([*map(self._describe_lost_rank, before_that), nothing]))
            if lost := [rank for rank, silent in self._silent_seconds.items() if silent > self._timeout]:
                self._abort_process(" ".join(self._describe_lost_rank(rank) for rank in lost))

    def _abort_process(self, sentence: str) -> None:
        """End the process, because the main thread is blocked in a collective operation and cannot be woken."""
        print(f"perception: {sentence} {_ADVICE}", file=sys.stderr, flush=True)  # noqa: T201
        if self._rank == 0:  # the store ends with this process, and the others still need it to find the cause
            time.sleep(MAX_MISSED_BEATS * self._interval)
        os._exit(1)


_ADVICE = (
    "Check the output on its machine, then restart all ranks with --resume. "
    f"{TIMEOUT_VARIABLE} sets the timeout (seconds; {DEFAULT_TIMEOUT:g} by default)."
)
_DONE = "done"


def _clone_store(store: dist.Store) -> dist.Store:
    """A second client of the same store, for another thread."""
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue] - missing in torch's stubs


_monitor: RankMonitor | None = None


def start_monitor(store: dist.Store, rank: int, world_size: int) -> RankMonitor:
    """Start the monitor of this process, after waiting for every rank."""
    global _monitor  # noqa: PLW0603 - global, like torch's default process group
    _monitor = RankMonitor(store, rank, world_size, read_timeout())
    _monitor.wait_for_ranks()
    _monitor.start()
    return _monitor


def stop_monitor(monitor: RankMonitor, reason: str) -> None:
    """Stop the monitor of this process; ``reason`` as in `RankMonitor.stop`."""
    global _monitor  # noqa: PLW0603
    monitor.stop(reason)
    _monitor = None


def set_activity(text: str) -> None:
    """Set what this rank is doing; the other ranks receive it with the next heartbeat."""
    if _monitor is not None:
        _monitor.activity = text


def active_monitor() -> RankMonitor | None:
    """The monitor of this process; None in a single process."""
    return _monitor
