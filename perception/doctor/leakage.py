"""Duplicate images, and leakage: validation images that are identical or nearly identical to training images.

Images are compared by difference hashes and by an 8 x 8 thumbnail. A difference hash holds the signs of the brightness
differences between neighbors of a 16 x 16 thumbnail, to the right and down: 512 bits. Measured distances: different
photographs 150 bits and more, frames of a static camera 0 to 20, of a moving camera at the same place 30 to 70, other
places of the same road 80 and more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.doctor.accumulators import SourceState
from perception.doctor.findings import Finding, format_percent

MAX_HASH_DISTANCE = 64
"""Maximum distance of near duplicates, bits of 512."""
MAX_THUMBNAIL_DIFFERENCE = 6.0
"""Maximum mean difference of the thumbnails of near duplicates, of 255."""
NEAR_DUPLICATE_ERROR_RATIO = 0.5
"""Minimum share of duplicates and near duplicates in a validation source for an error: its metrics are meaningless."""
EXACT_DUPLICATE_ERROR_RATIO = 0.01
"""Minimum share of a validation source that is byte-identical in training for an error."""
_MAX_COMPARISONS = 40_000_000_000

ImageKey = tuple[int, int]
"""(position of the source, index of the image)."""


class DuplicatePair(NamedTuple):
    """A validation image and the most similar training image.

    Attributes:
        validation: key of the validation image.
        training: key of the training image.
        hash_distance: differing bits of 512.
        is_same_file: the two files are byte-identical.
    """

    validation: ImageKey
    training: ImageKey
    hash_distance: int
    is_same_file: bool


class LeakageReport(NamedTuple):
    """The result of the comparison.

    Attributes:
        pairs: duplicate pairs, the closest first.
        counts: position of a validation source -> (identical files, near duplicates).
        findings: findings about duplicates and leakage.
    """

    pairs: list[DuplicatePair]
    counts: dict[int, tuple[int, int]]
    findings: list[Finding]


def find_leakage(
    states: Sequence[SourceState], report_progress: Callable[[int, int], None] = lambda done, total: None
) -> LeakageReport:
    """Find duplicates within each split, and validation images that are also in training.

    Args:
        states: the opened sources.
        report_progress: called as ``report_progress(done, total)``.

    Returns:
        Duplicate pairs, counts and findings.
    """
    training = [s for s in range(len(states)) if states[s].split == "train"]
    validation = [s for s in range(len(states)) if states[s].split != "train"]
    findings = _find_copies(states, training) + _find_copies(states, validation)
    train, held_out = _HashIndex(states, training), _HashIndex(states, validation)
    if not len(train.rows) or not len(held_out.rows):
        return LeakageReport([], {}, findings)
    same = _match_files(train, held_out)
    order, note = _sample_validation(len(train.rows), len(held_out.rows))
    near = _match_hashes(train, held_out, order, report_progress)
    twins = [DuplicatePair(held_out.get_key(v), train.get_key(t), 0, True) for v, t in same.items()]
    twins += [
        DuplicatePair(held_out.get_key(v), train.get_key(t), bits, False)
        for v, (t, bits) in near.items()
        if v not in same
    ]
    twins.sort(key=lambda pair: (not pair.is_same_file, pair.hash_distance, pair.validation))
    counts: dict[int, tuple[int, int]] = {}
    for s in validation:
        mine = [pair for pair in twins if pair.validation[0] == s]
        counts[s] = sum(pair.is_same_file for pair in mine), sum(not pair.is_same_file for pair in mine)
        findings += _make_leak_findings(states, s, mine, counts[s])
    return LeakageReport(twins, counts, findings + note)


class _HashIndex:
    """Concatenated hashes of the images of several sources."""

    def __init__(self, states: Sequence[SourceState], positions: Sequence[int]) -> None:
        parts = [(s, np.flatnonzero(states[s].readable)) for s in positions]
        self.states = states
        self.source_indices = np.concatenate([np.full(len(rows), s) for s, rows in parts] or [np.zeros(0, int)])
        self.rows = np.concatenate([rows for _, rows in parts] or [np.zeros(0, int)])

        def gathered(name: str, width: int, kind: type) -> NDArray:
            chosen = [getattr(states[s], name)[rows] for s, rows in parts]
            return np.concatenate(chosen) if chosen else np.zeros((0, width), kind)

        self.digests = gathered("digests", 2, np.uint64)
        self.hash_bits = np.ascontiguousarray(gathered("hash_bits", 8, np.uint64).T)
        self.thumbnails = gathered("thumbnails", 64, np.uint8)
        self.textureless = np.concatenate([states[s].textureless[rows] for s, rows in parts] or [np.zeros(0, bool)])

    def get_key(self, number: int) -> ImageKey:
        state = self.states[self.source_indices[number]]
        return int(self.source_indices[number]), state.selected_indices[int(self.rows[number])]


def _match_files(train: _HashIndex, held_out: _HashIndex) -> dict[int, int]:
    """Validation image -> a byte-identical training image."""
    wanted: dict[bytes, list[int]] = {}
    for number, digest in enumerate(held_out.digests):
        wanted.setdefault(digest.tobytes(), []).append(number)
    found: dict[int, int] = {}
    for other, digest in enumerate(train.digests):
        for number in wanted.pop(digest.tobytes(), ()):
            found[number] = other
    return found


def _sample_validation(train: int, held_out: int) -> tuple[NDArray[np.int64], list[Finding]]:
    """The validation images to compare: all of them, unless this would take hours."""
    most = max(1000, _MAX_COMPARISONS // max(1, train))
    if held_out <= most:
        return np.arange(held_out), []
    what = (
        f"Only {most:,} of the {held_out:,} validation images, evenly spread, were compared with the {train:,} "
        "training images."
    )
    return np.arange(most) * held_out // most, [Finding("note", "leakage_sampled", "data", what)]


def _match_hashes(
    train: _HashIndex, held_out: _HashIndex, order: NDArray[np.int64], report_progress: Callable[[int, int], None]
) -> dict[int, tuple[int, int]]:
    """Validation image -> (nearest near-duplicate training image, differing bits), if there is one."""
    found = {}
    for done, number in enumerate(order.tolist()):
        if done % 64 == 0:
            report_progress(done, len(order))
        if held_out.textureless[number]:
            continue
        bits = held_out.hash_bits[:, number]
        differing = np.bitwise_count(train.hash_bits[0] ^ bits[0]).astype(np.uint16)
        for k in range(1, 8):
            differing += np.bitwise_count(train.hash_bits[k] ^ bits[k])
        close = np.flatnonzero((differing <= MAX_HASH_DISTANCE) & ~train.textureless)
        if not len(close):
            continue
        miniatures = train.thumbnails[close].astype(np.float32)
        alike = np.abs(miniatures - held_out.thumbnails[number]).mean(1) <= MAX_THUMBNAIL_DIFFERENCE
        if alike.any():
            best = close[alike][differing[close[alike]].argmin()]
            found[number] = int(best), int(differing[best])
    report_progress(len(order), len(order))
    return found


def _make_leak_findings(
    states: Sequence[SourceState], s: int, pairs: Sequence[DuplicatePair], counts: tuple[int, int]
) -> list[Finding]:
    where, looked = states[s].where, int(states[s].readable.sum())
    findings = []
    same, near = counts
    for number, is_same in ((same, True), (near, False)):
        if not number:
            continue
        mine = [pair for pair in pairs if pair.is_same_file == is_same]
        sources = sorted({states[pair.training[0]].where for pair in mine})
        what = f"{number:,} of {looked:,} validation images ({format_percent(number, looked)}) "
        if is_same:
            what += f"are byte-identical to training images ({', '.join(sources)})."
        else:
            what += (
                f"are nearly identical to training images ({', '.join(sources)}): neighboring frames of a video, or "
                "copies. Metrics on them measure memorization, not generalization."
            )
        grave = (
            number >= EXACT_DUPLICATE_ERROR_RATIO * looked
            if is_same
            else number + same >= NEAR_DUPLICATE_ERROR_RATIO * looked
        )
        findings.append(
            Finding(
                "error" if grave else "warning", "leaked_images" if is_same else "leaked_near_duplicates", where, what,
                "Remove them from one of the two splits. Split recordings by sequence, place or time, never at random.",
                number, tuple(_format_pair(states, pair) for pair in mine[:5]),
            )
        )  # fmt: skip
    return findings


def _format_pair(states: Sequence[SourceState], pair: DuplicatePair) -> str:
    (v, picture), (t, other) = pair.validation, pair.training
    ending = "" if pair.is_same_file else f" ({pair.hash_distance} of 512 bits differ)"
    return f"{states[v].image_name(picture)} = {states[t].image_name(other)}{ending}"


def _find_copies(states: Sequence[SourceState], positions: Sequence[int]) -> list[Finding]:
    """Find byte-identical files within one split, within a source and across sources."""
    looks = _HashIndex(states, positions)
    if len(looks.rows) < 2:
        return []
    order = np.lexsort(looks.digests.T)
    equal = (looks.digests[order][1:] == looks.digests[order][:-1]).all(1)
    groups: dict[tuple[int, int, bool], list[str]] = {}
    counts: Counter[tuple[int, int, bool]] = Counter()
    for k in np.flatnonzero(equal).tolist():
        (s, i), (t, j) = sorted((looks.get_key(int(order[k])), looks.get_key(int(order[k + 1]))))
        key = s, t, _get_path(states, s, i) == _get_path(states, t, j)
        counts[key] += 1
        names = groups.setdefault(key, [])
        if len(names) < 5:
            names.append(
                states[s].image_name(i) if key[2] else f"{states[s].image_name(i)} = {states[t].image_name(j)}"
            )
    for (s, t, _), number in counts.items():
        if s == t:
            states[s].num_duplicates += number
    return [_make_copy_finding(states, key, number, groups[key]) for key, number in counts.items()]


def _make_copy_finding(
    states: Sequence[SourceState], key: tuple[int, int, bool], number: int, names: list[str]
) -> Finding:
    s, t, shared = key
    where = states[s].where if s == t else f"{states[s].where} and {states[t].where}"
    if shared:
        return Finding(
            "warning", "shared_images", where, f"{number:,} images are in both sources.",
            "Put both readers into one source. Then each image trains all its labeled tasks at once.", number,
            tuple(names),
        )  # fmt: skip
    what = f"{number:,} {'image is a copy' if number == 1 else 'images are copies'} of others, byte for byte."
    return Finding(
        "warning", "duplicate_images", where, what,
        "Keep one of each. Copies count twice, and their labels may contradict each other.", number, tuple(names),
    )  # fmt: skip


def _get_path(states: Sequence[SourceState], s: int, index: int) -> Path | None:
    source = states[s].source
    return None if source is None else source.records[index].path
