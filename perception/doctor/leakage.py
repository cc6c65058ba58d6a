"""Pictures that come twice: as the same file, or looking the same in training and in validation (leakage).

Looks are compared by difference hashes (the sign of the brightness steps between neighbours of a 16 x 16 miniature, to
the right and downwards: 512 bits) and by an 8 x 8 miniature. Different photographs differ in 150 bits and more,
frames of a standing camera in 0 to 20, of a moving one at the same place in 30 to 70, other places of the same road in
80 and more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.doctor.accumulators import SourceState
from perception.doctor.findings import Finding, percent

NEAR = 64
"""Bits of 512 in which two pictures may differ and still be the same but for a moment."""
ALIKE = 6.0
"""Mean difference of their miniatures, of 255, up to which they are."""
HALF = 0.5
"""Share of a validation source with such twins in training from which on its numbers mean nothing."""
FEW = 0.01
"""Share of a validation source that is in training as the same file, from which on it must be mended."""
_MOST_COMPARISONS = 40_000_000_000

Place = tuple[int, int]
"""(position of the state, index of the picture)."""


class Twins(NamedTuple):
    """A validation picture and the training picture that looks most like it. bits: that differ. same: one file."""

    validation: Place
    training: Place
    bits: int
    same: bool


class Leakage(NamedTuple):
    """twins: the closest first, for the page. counts: position of a validation state -> (same files, near ones)."""

    twins: list[Twins]
    counts: dict[int, tuple[int, int]]
    findings: list[Finding]


def find(states: Sequence[SourceState], tell: Callable[[int, int], None] = lambda done, total: None) -> Leakage:
    """Duplicates within each part, and what validation shares with training. ``tell(done, total)`` reports progress."""
    training = [s for s in range(len(states)) if states[s].part == "train"]
    validation = [s for s in range(len(states)) if states[s].part != "train"]
    findings = _copies(states, training) + _copies(states, validation)
    train, held_out = _Looks(states, training), _Looks(states, validation)
    if not len(train.rows) or not len(held_out.rows):
        return Leakage([], {}, findings)
    same = _same_files(train, held_out)
    order, note = _sampled(len(train.rows), len(held_out.rows))
    near = _nearest(train, held_out, order, tell)
    twins = [Twins(held_out.place(v), train.place(t), 0, True) for v, t in same.items()]
    twins += [Twins(held_out.place(v), train.place(t), bits, False) for v, (t, bits) in near.items() if v not in same]
    twins.sort(key=lambda pair: (not pair.same, pair.bits, pair.validation))
    counts: dict[int, tuple[int, int]] = {}
    for s in validation:
        mine = [pair for pair in twins if pair.validation[0] == s]
        counts[s] = sum(pair.same for pair in mine), sum(not pair.same for pair in mine)
        findings += _judged(states, s, mine, counts[s])
    return Leakage(twins, counts, findings + note)


class _Looks:
    """The looks of the pictures of some states, one after the other."""

    def __init__(self, states: Sequence[SourceState], positions: Sequence[int]) -> None:
        parts = [(s, np.flatnonzero(states[s].known)) for s in positions]
        self.states = states
        self.owners = np.concatenate([np.full(len(rows), s) for s, rows in parts] or [np.zeros(0, int)])
        self.rows = np.concatenate([rows for _, rows in parts] or [np.zeros(0, int)])

        def gathered(name: str, width: int, kind: type) -> NDArray:
            chosen = [getattr(states[s], name)[rows] for s, rows in parts]
            return np.concatenate(chosen) if chosen else np.zeros((0, width), kind)

        self.digests = gathered("digests", 2, np.uint64)
        self.bits = np.ascontiguousarray(gathered("bits", 8, np.uint64).T)
        self.miniatures = gathered("miniatures", 64, np.uint8)
        self.flat = np.concatenate([states[s].flat[rows] for s, rows in parts] or [np.zeros(0, bool)])

    def place(self, number: int) -> Place:
        state = self.states[self.owners[number]]
        return int(self.owners[number]), state.chosen[int(self.rows[number])]


def _same_files(train: _Looks, held_out: _Looks) -> dict[int, int]:
    """Validation picture -> a training picture of the very same bytes."""
    wanted: dict[bytes, list[int]] = {}
    for number, digest in enumerate(held_out.digests):
        wanted.setdefault(digest.tobytes(), []).append(number)
    found: dict[int, int] = {}
    for other, digest in enumerate(train.digests):
        for number in wanted.pop(digest.tobytes(), ()):
            found[number] = other
    return found


def _sampled(train: int, held_out: int) -> tuple[NDArray[np.int64], list[Finding]]:
    """Which validation pictures are compared: all of them, unless that would take hours."""
    most = max(1000, _MOST_COMPARISONS // max(1, train))
    if held_out <= most:
        return np.arange(held_out), []
    what = (
        f"Only {most:,} of the {held_out:,} validation pictures, evenly spread, were compared with the {train:,} "
        "training pictures."
    )
    return np.arange(most) * held_out // most, [Finding("note", "leakage_sampled", "data", what)]


def _nearest(
    train: _Looks, held_out: _Looks, order: NDArray[np.int64], tell: Callable[[int, int], None]
) -> dict[int, tuple[int, int]]:
    """Validation picture -> (the training picture that looks the same, bits that differ), where there is one."""
    found = {}
    for done, number in enumerate(order.tolist()):
        if done % 64 == 0:
            tell(done, len(order))
        if held_out.flat[number]:
            continue
        bits = held_out.bits[:, number]
        differing = np.bitwise_count(train.bits[0] ^ bits[0]).astype(np.uint16)
        for k in range(1, 8):
            differing += np.bitwise_count(train.bits[k] ^ bits[k])
        close = np.flatnonzero((differing <= NEAR) & ~train.flat)
        if not len(close):
            continue
        miniatures = train.miniatures[close].astype(np.float32)
        alike = np.abs(miniatures - held_out.miniatures[number]).mean(1) <= ALIKE
        if alike.any():
            best = close[alike][differing[close[alike]].argmin()]
            found[number] = int(best), int(differing[best])
    tell(len(order), len(order))
    return found


def _judged(states: Sequence[SourceState], s: int, twins: Sequence[Twins], counts: tuple[int, int]) -> list[Finding]:
    where, looked = states[s].where, int(states[s].known.sum())
    findings = []
    same, near = counts
    for number, is_same in ((same, True), (near, False)):
        if not number:
            continue
        mine = [pair for pair in twins if pair.same == is_same]
        sources = sorted({states[pair.training[0]].where for pair in mine})
        what = f"{number:,} of {looked:,} validation pictures ({percent(number, looked)}) "
        if is_same:
            what += f"are, byte for byte, training pictures too ({', '.join(sources)})."
        else:
            what += (
                f"look the same as a training picture ({', '.join(sources)}): neighbouring frames of a recording, or "
                "copies. What is measured on them is memory, not skill."
            )
        grave = number >= FEW * looked if is_same else number + same >= HALF * looked
        findings.append(
            Finding(
                "error" if grave else "warning", "leaked_pictures" if is_same else "leaked_looks", where, what,
                "Take them out of one of the two. Split recordings by sequence, place or time, never at random.",
                number, tuple(_pair_name(states, pair) for pair in mine[:5]),
            )
        )  # fmt: skip
    return findings


def _pair_name(states: Sequence[SourceState], pair: Twins) -> str:
    (v, picture), (t, other) = pair.validation, pair.training
    ending = "" if pair.same else f" ({pair.bits} of 512 bits differ)"
    return f"{states[v].name(picture)} = {states[t].name(other)}{ending}"


def _copies(states: Sequence[SourceState], positions: Sequence[int]) -> list[Finding]:
    """Files of the same content within one part of the recipe, within a source and across."""
    looks = _Looks(states, positions)
    if len(looks.rows) < 2:
        return []
    order = np.lexsort(looks.digests.T)
    equal = (looks.digests[order][1:] == looks.digests[order][:-1]).all(1)
    groups: dict[tuple[int, int, bool], list[str]] = {}
    counts: Counter[tuple[int, int, bool]] = Counter()
    for k in np.flatnonzero(equal).tolist():
        (s, i), (t, j) = sorted((looks.place(int(order[k])), looks.place(int(order[k + 1]))))
        key = s, t, _path(states, s, i) == _path(states, t, j)
        counts[key] += 1
        names = groups.setdefault(key, [])
        if len(names) < 5:
            names.append(states[s].name(i) if key[2] else f"{states[s].name(i)} = {states[t].name(j)}")
    for (s, t, _), number in counts.items():
        if s == t:
            states[s].duplicates += number
    return [_copied(states, key, number, groups[key]) for key, number in counts.items()]


def _copied(states: Sequence[SourceState], key: tuple[int, int, bool], number: int, names: list[str]) -> Finding:
    s, t, shared = key
    where = states[s].where if s == t else f"{states[s].where} and {states[t].where}"
    if shared:
        return Finding(
            "warning", "shared_pictures", where, f"{number:,} pictures are in both sources.",
            "Give one source both readers: then each picture teaches all that is labelled in it at once.", number,
            tuple(names),
        )  # fmt: skip
    what = f"{number:,} {'picture is a copy' if number == 1 else 'pictures are copies'} of others, byte for byte."
    return Finding(
        "warning", "duplicate_pictures", where, what,
        "Keep one of each: copies count double, and their labels may contradict each other.", number, tuple(names),
    )  # fmt: skip


def _path(states: Sequence[SourceState], s: int, index: int) -> Path | None:
    source = states[s].source
    return None if source is None else source.pictures[index].path
