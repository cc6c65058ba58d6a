"""Several processes watch each other: one that is silent is named, and nobody waits for it for ever.

Every rank tells by a thread of its own, through the store that brought the ranks together, that it lives and what it
does. A collective operation that waits for a rank that was killed, stopped or cut off does not end by itself (NCCL), or
only after half an hour (gloo); then the thread says which rank it is and ends the process.
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
"""Environment variable: seconds without a sign of life after which a rank counts as lost."""
DEFAULT_TIMEOUT = 60.0
MAX_MISSED_BEATS = 2.5
"""Beats that a rank may miss before it is taken for the one because of which the others end."""
PATIENCE = 8
"""Beats for which a rank that lost the others listens for who it was; on a busy machine beats come late."""
JOIN_TIMEOUT_FACTOR = 3
"""Ranks may take so many times as long to come: some still import what others have."""


def read_timeout() -> float:
    """The seconds that `TIMEOUT` says. Raises ConfigError where it says none."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"{TIMEOUT_VARIABLE} is '{text}'. Expected seconds from 1 on, for example 120.")
    return seconds


class RankMonitor:
    """One rank's view of the others, from `start` to `stop`.

    store: of the process group; every thread uses a copy of its own
    doing: what this rank does, in words
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
        """Wait for every rank. Raises PerceptionError naming those that do not come."""
        self._store.set(f"beat/{self._rank}", f"0|{self.activity}")  # who is lost before the next one was heard of, too
        self._store.set(f"host/{self._rank}", socket.gethostname())
        deadline = time.monotonic() + JOIN_TIMEOUT_FACTOR * self._timeout
        missing = list(range(self._world_size))
        while missing := [rank for rank in missing if not self._store.check([f"host/{rank}"])]:
            if time.monotonic() > deadline:
                raise PerceptionError(
                    f"Rank {', '.join(map(str, missing))} of {self._world_size} did not come within "
                    f"{JOIN_TIMEOUT_FACTOR * self._timeout:g} s. Look at what it says on "
                    f"its machine; {TIMEOUT_VARIABLE} gives more time."
                )
            time.sleep(0.05)
        self._hosts = {rank: self._store.get(f"host/{rank}").decode() for rank in range(self._world_size)}

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, reason: str) -> None:
        """This rank ends. reason: what went wrong, "" where nothing did."""
        with suppress(RuntimeError):  # the others may be gone
            self._store.set(f"end/{self._rank}", reason or _DONE)
            if reason and self._rank == 0:
                self._wait_for_others()
        self._stopping.set()
        for thread in self._threads:  # Python aborts where it ends while a thread is inside the store
            thread.join(2 * self._interval)

    def _wait_for_others(self) -> None:
        """Wait for the others, who ask the store that is in this process why they end; not for those that are lost."""
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
        """Tell the other ranks that a signal came."""
        self._store.set("stop", "1")

    def is_stop_requested(self) -> bool:
        return self._store.check(["stop"])

    def explain_failure(self, error: RuntimeError) -> PerceptionError | None:
        """What a failed collective operation was about: the ranks that failed, or are silent now. None where the error
        is of another kind."""
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
            return PerceptionError(f"Rank {self._rank} lost the others ({doing}): {text.splitlines()[0]} {_ADVICE}")
        return PerceptionError(f"{' '.join(self._describe_lost_rank(rank) for rank in lost)} {_ADVICE}")

    def _read_end_reasons(self) -> dict[int, str]:
        """Why the other ranks have ended, of those that have: asked now, for the next beat may come too late."""
        with suppress(RuntimeError):  # the store may be gone
            for rank in range(self._world_size):
                if rank != self._rank and rank not in self._end_reasons and self._store.check([f"end/{rank}"]):
                    self._end_reasons[rank] = self._store.get(f"end/{rank}").decode()
        return {rank: reason for rank, reason in self._end_reasons.items() if rank != self._rank}

    def _describe_lost_rank(self, rank: int) -> str:
        """A sentence about a rank that is gone."""
        reason, doing = self._end_reasons.get(rank, ""), self._last_messages[rank].partition("|")[2]
        last = f"was last heard of {self._silent_seconds[rank]:.0f} s ago, {doing}." if doing else "was never heard of."
        return f"Rank {rank} on {self._hosts.get(rank, '?')} " + (f"ended: {reason}" if reason else last)

    def _send_heartbeats(self) -> None:
        """Thread: tell the others, and listen to them. Time in which this process itself stood still does not count."""
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
                continue  # `_judge` counts the time
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
        """Thread: end the process where a rank, or the store, is silent for too long."""
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
                    f"Rank {self._rank} on {socket.gethostname()} has heard nothing from {where}, where all ranks "
                    f"meet, for {self._store_silent_seconds:.0f} s."
                )
                self._abort_process(" ".join([*map(self._describe_lost_rank, before_that), nothing]))
            if lost := [rank for rank, silent in self._silent_seconds.items() if silent > self._timeout]:
                self._abort_process(" ".join(self._describe_lost_rank(rank) for rank in lost))

    def _abort_process(self, sentence: str) -> None:
        """The main thread waits for what never comes and cannot be woken."""
        print(f"perception: {sentence} {_ADVICE}", file=sys.stderr, flush=True)  # noqa: T201
        if self._rank == 0:  # with it goes the store, by which the others come to the same conclusion
            time.sleep(MAX_MISSED_BEATS * self._interval)
        os._exit(1)


_ADVICE = (
    "Look at what it says on its machine, then go on with --resume on all of them. "
    f"{TIMEOUT_VARIABLE} gives more time (seconds; {DEFAULT_TIMEOUT:g} by default)."
)
_DONE = "done"


def _clone_store(store: dist.Store) -> dist.Store:
    """The same store, for another thread."""
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue] - of every store; torch's stubs lack it


_monitor: RankMonitor | None = None


def start_monitor(store: dist.Store, rank: int, world_size: int) -> RankMonitor:
    """Begin to watch: waits until every rank is there."""
    global _monitor  # noqa: PLW0603 - as torch's default process group, of which it is a part
    _monitor = RankMonitor(store, rank, world_size, read_timeout())
    _monitor.wait_for_ranks()
    _monitor.start()
    return _monitor


def stop_monitor(monitor: RankMonitor, reason: str) -> None:
    """The counterpart of `watch`; ``reason`` as in `Watch.stop`."""
    global _monitor  # noqa: PLW0603
    monitor.stop(reason)
    _monitor = None


def set_activity(text: str) -> None:
    """Tell the other ranks, at the next beat, what this one does."""
    if _monitor is not None:
        _monitor.activity = text


def active_monitor() -> RankMonitor | None:
    return _monitor
