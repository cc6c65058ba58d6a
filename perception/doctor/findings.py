"""Findings of the doctor, and issues with single images counted by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""error: must be fixed. warning: suspicious, should be checked. note: for information."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
MAX_TEXT_LENGTH = 700
"""Maximum characters of a message that quotes a file."""
_EXAMPLES, _GROUPS = 5, 40


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or one unusual property.

    Attributes:
        severity: "error", "warning" or "note".
        code: stable name for scripts, for example "damaged_image".
        where: "train/<source>", "data", "recipe" or "environment".
        message: what is wrong, in sentences.
        fix: what to do about it.
        count: number of images, records or classes concerned.
        examples: the first few files or messages.
        images: (source, image) positions of the first few images.
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
    """Sort errors first, then warnings, then notes. Within each, whole sources come before single images."""
    return sorted(
        findings,
        key=lambda f: (SEVERITIES.index(f.severity), f.code in ISSUE_KINDS, -f.count, f.where, f.code, f.message),
    )


def format_percent(part: float, whole: float) -> str:
    """Format a share: "12 %", "<1 %"."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 0.95 or not share else "<1 %"


def format_quantity(value: float) -> str:
    """Format a number with three significant digits, more for large numbers."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def sanitize_text(text: object, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Return printable text on one line, shortened in the middle. The input may come from hostile files or names."""
    whole = str(text)
    if len(whole) > 2 * max_length:
        whole = f"{whole[:max_length]} ... {whole[-max_length:]}"
    line = "".join(c if c.isprintable() else " " if c in "\n\t" else c.encode("unicode_escape").decode() for c in whole)
    line = re.sub(r"  +", " ", line)
    return line if len(line) <= max_length else f"{line[: max_length // 2]} ... {line[-max_length // 2 :]}"


class Issue(NamedTuple):
    """An issue with one image. ``code`` is a key of `ISSUE_KINDS`."""

    code: str
    text: str


class _IssueKind(NamedTuple):
    severity: Severity
    message: str
    fix: str


ISSUE_KINDS: dict[str, _IssueKind] = {
    "missing_image": _IssueKind(
        "error", "cannot be found", "Restore the files, or remove their records from the annotations."
    ),
    "damaged_image": _IssueKind(
        "error", "cannot be decoded", "Download these files again, or remove them together with their labels."
    ),
    "refused_image": _IssueKind(
        "error", "would be rejected", "Replace these files with regular images of at most 100 Mpx, or remove them."
    ),
    "size_mismatch": _IssueKind(
        "error",
        "had a different size than their labels",
        "Make the labels match the stored image (upright, after EXIF rotation), or restore the original image.",
    ),
    "invalid_labels": _IssueKind("error", "had invalid labels", "Fix the files named below, or remove these images."),
    "conflicting_labels": _IssueKind(
        "error",
        "had labels for one task from two readers",
        "Keep one of the two readers for these images, or split the source in two.",
    ),
    "invalid_camera": _IssueKind("error", "had an unreadable camera", "Fix the camera files named below."),
    "implausible_camera": _IssueKind(
        "warning",
        "had implausible intrinsics",
        "Check that they are in pixels of these images, not of another resolution or crop.",
    ),
    "crashed": _IssueKind(
        "error",
        "crashed the process that read them",
        "These files crash a decoder or exhaust the memory. Remove them or download them again.",
    ),
    "timeout": _IssueKind(
        "error",
        "took too long to read",
        "Copy the data to a fast local disk. If this does not help, remove these files.",
    ),
    "out_of_memory": _IssueKind(
        "error", "needed more memory than available", "Downscale or tile these images, or remove them."
    ),
    "internal_error": _IssueKind(
        "error", "caused an internal error", "This is a bug in perception. Please report it with the text below."
    ),
    "blank_image": _IssueKind("warning", "had a single color", "Check them, and remove those without content."),
    "half_gray_image": _IssueKind(
        "warning",
        "ended in plain gray, as decoders fill truncated files",
        "Compare them with the originals. They were probably truncated and saved again.",
    ),
    "unlabeled_image": _IssueKind(
        "warning", "had no label for any task of the recipe", "Remove them, or add their labels."
    ),
    "empty_mask": _IssueKind(
        "warning",
        "had a segmentation mask with only ignored pixels",
        "Label or remove them: they do not train anything. If 255 encodes a class, map it to another id.",
    ),
    "empty_depth": _IssueKind(
        "warning", "had a depth map without valid pixels", "Remove them, or correct scale and max."
    ),
    "constant_depth": _IssueKind(
        "warning", "had the same depth at every pixel", "Check the depth maps. The sensor may have failed."
    ),
    "duplicate_boxes": _IssueKind(
        "warning", "had the same box of the same class twice", "Remove the copies. Each counts as an object."
    ),
}
"""Issue code -> severity, the words after "3 of 90 images", and the fix."""


@dataclass(slots=True)
class _IssueGroup:
    count: int = 0
    texts: list[str] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class IssueCounter:
    """Issues of one source in bounded memory: exact counts, the first few examples.

    Messages that differ only in names and numbers form one group. Examples come from every group in turn.

    Attributes:
        groups: (issue code, message signature) -> group.
    """

    groups: dict[tuple[str, str], _IssueGroup] = field(default_factory=dict)

    def add(self, issue: Issue, image: tuple[int, int]) -> None:
        """Count an issue with the image at (source, image)."""
        key = issue.code, _message_signature(issue.text)
        if key not in self.groups and len(self.groups) >= _GROUPS:
            key = issue.code, ""
        group = self.groups.setdefault(key, _IssueGroup())
        group.count += 1
        if len(group.texts) < _EXAMPLES:
            group.texts.append(sanitize_text(issue.text))
            group.images.append(image)

    def count(self, *kinds: str) -> int:
        """Return the number of issues of these kinds."""
        return sum(group.count for (kind, _), group in self.groups.items() if kind in kinds)

    def to_findings(self, where: str, total: int) -> list[Finding]:
        """Return one finding per kind. ``total`` is the number of examined images."""
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
    """A message without the parts that vary per file: paths, numbers, quotations."""
    kept = re.sub(r"\{[^{}]*\}|'[^']*'", "#", text[:1000]).split()
    return " ".join("#" if _VARYING.search(word) else word for word in kept)[:200]


_VARYING = re.compile(r"[\d/\\]")
