"""What the doctor says: findings in plain sentences, the gravest first, and troubles with images counted by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""error: must be mended. warning: suspicious, somebody should look. note: good to know."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_TEXT_LENGTH = 700
"""Characters of a sentence that quotes a file."""
_EXAMPLES, _GROUPS = 5, 40


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd.

    code:     stable name, for scripts ("damaged_image")
    where:    "train/<source>", "data", "recipe", "environment"
    message:     what is wrong, in sentences; fix: what to do about it
    count:    how many images, records or classes it concerns
    examples: files or messages, the first few
    images: (source, image) positions worth a look, the first few
    """

    severity: Severity
    code: str
    where: str
    message: str
    fix: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()
    images: tuple[tuple[int, int], ...] = ()


def sort_by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; within them what concerns whole sources before single images."""
    return sorted(
        findings,
        key=lambda f: (SEVERITIES.index(f.severity), f.code in ISSUE_KINDS, -f.count, f.where, f.code, f.message),
    )


def format_percent(part: float, whole: float) -> str:
    """A share in words: "12 %", "<1 %"."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 0.95 or not share else "<1 %"


def format_quantity(value: float) -> str:
    """Three digits, more for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def sanitize_text(text: object, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Text that can be printed on one line, whatever a file or its name holds; shortened in the middle."""
    whole = str(text)
    if len(whole) > 2 * max_length:
        whole = f"{whole[:max_length]} ... {whole[-max_length:]}"
    line = "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode() for c in whole)
    line = re.sub(r"  +", " ", line)
    return line if len(line) <= max_length else f"{line[: max_length // 2]} ... {line[-max_length // 2 :]}"


class Issue(NamedTuple):
    """Something about one image. code: a key of `ISSUE_KINDS`."""

    code: str
    text: str


class _IssueKind(NamedTuple):
    severity: Severity
    message: str
    fix: str


ISSUE_KINDS: dict[str, _IssueKind] = {
    "missing_image": _IssueKind(
        "error", "cannot be found", "Restore the files, or take their records out of the annotations."
    ),
    "damaged_image": _IssueKind(
        "error", "cannot be decoded", "Fetch these files again, or remove them together with their labels."
    ),
    "refused_image": _IssueKind(
        "error", "would be refused", "Replace these files by ordinary images of at most 100 Mpx, or remove them."
    ),
    "size_mismatch": _IssueKind(
        "error",
        "came in another size than the labels say",
        "Make the labels for the image as it is stored (upright, after its EXIF rotation), or restore the original.",
    ),
    "invalid_labels": _IssueKind(
        "error", "came with labels that are wrong", "Mend the files named, or remove these images."
    ),
    "conflicting_labels": _IssueKind(
        "error",
        "got two labels for one task, from two readers",
        "Keep one of the two readers for these images, or make two sources.",
    ),
    "invalid_camera": _IssueKind("error", "came with a camera that cannot be read", "Mend the camera files named."),
    "implausible_camera": _IssueKind(
        "warning",
        "came with odd intrinsics",
        "Check that they are in pixels of these very images, not of another resolution or crop.",
    ),
    "crashed": _IssueKind(
        "error",
        "killed the process that read them",
        "These files break a decoder or fill the memory: remove them or fetch them again.",
    ),
    "timeout": _IssueKind(
        "error",
        "took too long to read",
        "Copy the data to a fast local disk; where that does not help, remove these files.",
    ),
    "out_of_memory": _IssueKind(
        "error", "took more memory than there is", "Scale or tile these images, or remove them."
    ),
    "internal_error": _IssueKind(
        "error", "made perception itself fail", "Please report this with the text below: it is our fault."
    ),
    "blank_image": _IssueKind("warning", "had one single color", "Look at them; remove those that show nothing."),
    "half_gray_image": _IssueKind(
        "warning",
        "ended in plain gray, as decoders fill in what is cut off",
        "Compare them with the originals: they were probably truncated and saved again.",
    ),
    "unlabeled_image": _IssueKind(
        "warning", "had no label for any task of the recipe", "Remove them, or add their labels."
    ),
    "empty_mask": _IssueKind(
        "warning",
        "had a segmentation mask that is void everywhere",
        "Label them or remove them: they teach nothing. Was 255 meant as a class?",
    ),
    "empty_depth": _IssueKind(
        "warning", "had a depth map without a valid pixel", "Remove them, or correct scale and max."
    ),
    "constant_depth": _IssueKind(
        "warning", "had the same distance at every pixel", "Look at the depth maps: a sensor that failed?"
    ),
    "duplicate_boxes": _IssueKind(
        "warning", "had the same box of the same class twice", "Remove the copies: each counts as an object."
    ),
}
"""Kind of a trouble -> how grave it is, the sentence after "3 of 90 images", and the mend."""


@dataclass(slots=True)
class _IssueGroup:
    count: int = 0
    texts: list[str] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class IssueCounter:
    """Troubles of one source in bounded memory: exact counts, the first few examples.

    Messages that differ only in names and numbers are one group: examples come from every group in turn.
    """

    groups: dict[tuple[str, str], _IssueGroup] = field(default_factory=dict)

    def add(self, issue: Issue, image: tuple[int, int]) -> None:
        """Count a trouble with the image at (source, image)."""
        key = issue.code, _message_signature(issue.text)
        if key not in self.groups and len(self.groups) >= _GROUPS:
            key = issue.code, ""
        group = self.groups.setdefault(key, _IssueGroup())
        group.count += 1
        if len(group.texts) < _EXAMPLES:
            group.texts.append(sanitize_text(issue.text))
            group.images.append(image)

    def count(self, *kinds: str) -> int:
        """How many troubles of these kinds."""
        return sum(group.count for (kind, _), group in self.groups.items() if kind in kinds)

    def to_findings(self, where: str, total: int) -> list[Finding]:
        """A finding for every kind. total: images looked at."""
        found = []
        for kind in dict.fromkeys(kind for kind, _ in self.groups):
            groups = [group for (other, _), group in self.groups.items() if other == kind]
            groups.sort(key=lambda group: -group.count)
            count, (severity, what, mend) = self.count(kind), ISSUE_KINDS[kind]
            subject = f"{count:,} of {total:,} images" if total > 1 else "The image"
            examples = [text for k in range(_EXAMPLES) for group in groups for text in group.texts[k : k + 1]]
            pictures = [place for k in range(_EXAMPLES) for group in groups for place in group.images[k : k + 1]]
            found.append(
                Finding(
                    severity, kind, where, f"{subject} {what}.", mend, count,
                    tuple(examples[: 2 * _EXAMPLES]), tuple(pictures[: 2 * _EXAMPLES]),
                )
            )  # fmt: skip
        return found


def _message_signature(text: str) -> str:
    """A message without what differs from file to file: paths, numbers, quotations."""
    kept = re.sub(r"\{[^{}]*\}|'[^']*'", "#", text[:1000]).split()
    return " ".join("#" if _VARYING.search(word) else word for word in kept)[:200]


_VARYING = re.compile(r"[\d/\\]")
