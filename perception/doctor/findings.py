"""What the doctor says: findings in plain sentences, the gravest first, and troubles with pictures counted by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""error: must be mended. warning: suspicious, somebody should look. note: good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
LONGEST = 700
"""Characters of a sentence that quotes a file."""
_EXAMPLES, _GROUPS = 5, 40


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd.

    kind:     stable name, for scripts ("damaged_picture")
    where:    "train/<source>", "data", "recipe", "environment"
    what:     what is wrong, in sentences; mend: what to do about it
    count:    how many pictures, records or classes it concerns
    examples: files or messages, the first few
    pictures: (source, picture) positions worth a look, the first few
    """

    severity: Severity
    kind: str
    where: str
    what: str
    mend: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()
    pictures: tuple[tuple[int, int], ...] = ()


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; within them what concerns whole sources before single pictures."""
    return sorted(
        findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind in TROUBLES, -f.count, f.where, f.kind, f.what)
    )


def percent(part: float, whole: float) -> str:
    """A share in words: "12 %", "<1 %"."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 0.95 or not share else "<1 %"


def number(value: float) -> str:
    """Three digits, more for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain(text: object, longest: int = LONGEST) -> str:
    """Text that can be printed on one line, whatever a file or its name holds; shortened in the middle."""
    whole = str(text)
    if len(whole) > 2 * longest:
        whole = f"{whole[:longest]} ... {whole[-longest:]}"
    line = "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode() for c in whole)
    line = re.sub(r"  +", " ", line)
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 2 :]}"


class Trouble(NamedTuple):
    """Something about one picture. kind: a key of `TROUBLES`."""

    kind: str
    text: str


class _Kind(NamedTuple):
    severity: Severity
    what: str
    mend: str


TROUBLES: dict[str, _Kind] = {
    "missing_picture": _Kind(
        "error", "cannot be found", "Restore the files, or take their records out of the annotations."
    ),
    "damaged_picture": _Kind(
        "error", "cannot be decoded", "Fetch these files again, or remove them together with their labels."
    ),
    "refused_picture": _Kind(
        "error", "would be refused", "Replace these files by ordinary pictures of at most 100 Mpx, or remove them."
    ),
    "size_mismatch": _Kind(
        "error",
        "came in another size than the labels say",
        "Make the labels for the picture as it is stored (upright, after its EXIF rotation), or restore the original.",
    ),
    "wrong_labels": _Kind(
        "error", "came with labels that are wrong", "Mend the files named, or remove these pictures."
    ),
    "two_labels": _Kind(
        "error",
        "got two labels for one task, from two readers",
        "Keep one of the two readers for these pictures, or make two sources.",
    ),
    "wrong_camera": _Kind("error", "came with a camera that cannot be read", "Mend the camera files named."),
    "odd_camera": _Kind(
        "warning",
        "came with odd intrinsics",
        "Check that they are in pixels of these very pictures, not of another resolution or crop.",
    ),
    "crashed": _Kind(
        "error",
        "killed the process that read them",
        "These files break a decoder or fill the memory: remove them or fetch them again.",
    ),
    "too_slow": _Kind(
        "error",
        "took too long to read",
        "Copy the data to a fast local disk; where that does not help, remove these files.",
    ),
    "out_of_memory": _Kind("error", "took more memory than there is", "Scale or tile these pictures, or remove them."),
    "internal_error": _Kind(
        "error", "made perception itself fail", "Please report this with the text below: it is our fault."
    ),
    "blank_picture": _Kind("warning", "had one single colour", "Look at them; remove those that show nothing."),
    "half_grey_picture": _Kind(
        "warning",
        "ended in plain grey, as decoders fill in what is cut off",
        "Compare them with the originals: they were probably truncated and saved again.",
    ),
    "no_label": _Kind("warning", "had no label for any task of the recipe", "Remove them, or add their labels."),
    "void_map": _Kind(
        "warning",
        "had a label map that is void everywhere",
        "Label them or remove them: they teach nothing. Was 255 meant as a class?",
    ),
    "empty_depth": _Kind("warning", "had a depth map without a valid pixel", "Remove them, or correct scale and max."),
    "constant_depth": _Kind(
        "warning", "had the same distance at every pixel", "Look at the depth maps: a sensor that failed?"
    ),
    "repeated_boxes": _Kind(
        "warning", "had the same box of the same class twice", "Remove the copies: each counts as an object."
    ),
}
"""Kind of a trouble -> how grave it is, the sentence after "3 of 90 pictures", and the mend."""


@dataclass(slots=True)
class _Group:
    count: int = 0
    texts: list[str] = field(default_factory=list)
    pictures: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Troubles:
    """Troubles of one source in bounded memory: exact counts, the first few examples.

    Messages that differ only in names and numbers are one group: examples come from every group in turn.
    """

    groups: dict[tuple[str, str], _Group] = field(default_factory=dict)

    def add(self, trouble: Trouble, picture: tuple[int, int]) -> None:
        """Count a trouble with the picture at (source, picture)."""
        key = trouble.kind, _signature(trouble.text)
        if key not in self.groups and len(self.groups) >= _GROUPS:
            key = trouble.kind, ""
        group = self.groups.setdefault(key, _Group())
        group.count += 1
        if len(group.texts) < _EXAMPLES:
            group.texts.append(plain(trouble.text))
            group.pictures.append(picture)

    def count(self, *kinds: str) -> int:
        """How many troubles of these kinds."""
        return sum(group.count for (kind, _), group in self.groups.items() if kind in kinds)

    def findings(self, where: str, total: int) -> list[Finding]:
        """A finding for every kind. total: pictures looked at."""
        found = []
        for kind in dict.fromkeys(kind for kind, _ in self.groups):
            groups = [group for (other, _), group in self.groups.items() if other == kind]
            groups.sort(key=lambda group: -group.count)
            count, (severity, what, mend) = self.count(kind), TROUBLES[kind]
            subject = f"{count:,} of {total:,} pictures" if total > 1 else "The picture"
            examples = [text for k in range(_EXAMPLES) for group in groups for text in group.texts[k : k + 1]]
            pictures = [place for k in range(_EXAMPLES) for group in groups for place in group.pictures[k : k + 1]]
            found.append(
                Finding(
                    severity, kind, where, f"{subject} {what}.", mend, count,
                    tuple(examples[: 2 * _EXAMPLES]), tuple(pictures[: 2 * _EXAMPLES]),
                )
            )  # fmt: skip
        return found


def _signature(text: str) -> str:
    """A message without what differs from file to file: paths, numbers, quotations."""
    kept = re.sub(r"\{[^{}]*\}|'[^']*'", "#", text[:1000]).split()
    return " ".join("#" if _VARYING.search(word) else word for word in kept)[:200]


_VARYING = re.compile(r"[\d/\\]")
