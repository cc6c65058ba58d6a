"""Records of `perception label`: one line per image, so that a killed process loses only the current image.

The folder ``.records`` of the labels holds ``settings.json``, which all processes share, and one file of lines for each
started process: ``{"begun": NAME}``, then ``{"done": NAME, ...}`` or ``{"failed": NAME, "reason": ...}``. Each process
writes only to its own file, so any number of processes and machines can label into one folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from perception.files.safe_write import append_line, convert_write_errors, make_folder, write_atomic
from perception.types import PerceptionError

RECORDS_FOLDER, SETTINGS, CRASH_SUFFIX = ".records", "settings.json", ".crash"
MAX_TRIES = 3
"""Unexplained kills of the process during an image, after which the image counts as the cause."""


@dataclass
class LabelingHistory:
    """Results of all processes so far, by image name.

    Attributes:
        done: image -> its labels.
        failed: image -> reason.
        tries: image -> number of kills while it was being labeled.
    """

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)

    def remaining(self, names: Sequence[str]) -> list[str]:
        """Return the images still to label, untried images first: an image that crashes the process then comes last."""
        rest = [name for name in names if name not in self.done and name not in self.failed]
        return sorted(rest, key=self.tries.__getitem__)


def ensure_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or compare them with existing ones.

    Raises:
        PerceptionError: the folder has other settings.
    """
    path = out / RECORDS_FOLDER / SETTINGS
    if not path.exists():
        write_atomic(path, f"{json.dumps(settings, indent=1)}\n".encode())
    before, now = read_settings(out), json.loads(json.dumps(settings))
    if wrong := [key for key in now if before.get(key) != now[key]]:
        said = "; ".join(f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now[key])}" for key in wrong)
        raise PerceptionError(
            f"{out} was started with other settings: {said[:600]}. Give the same settings, or another --out."
        )


def read_settings(out: Path) -> dict[str, Any]:
    """Read the settings of a folder of labels.

    Raises:
        PerceptionError: the settings are missing or damaged.
    """
    path = out / RECORDS_FOLDER / SETTINGS
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PerceptionError(f"{path} cannot be read: {error}. Label into another --out.") from error
    if not isinstance(found, dict):
        raise PerceptionError(f"{path} contains no settings. Label into another --out.")
    return found


def load_history(out: Path, images: Path) -> LabelingHistory:
    """Load all records. A failed image that has changed since then is tried again."""
    past, why = LabelingHistory(), {}
    for path in sorted((out / RECORDS_FOLDER).glob("*.jsonl")):
        begun: dict[str, Any] = {}
        for line in _read_lines(path):
            if (name := line.get("begun")) is not None:
                begun[name] = line["stamp"]
            elif (name := line.get("done")) is not None:
                begun.pop(name, None)
                past.done[name] = line
            elif (name := line.get("failed")) is not None:
                begun.pop(name, None)
                if line["stamp"] == file_stamp(images / name):
                    past.failed[name] = line["reason"]
        crash = path.with_suffix(CRASH_SUFFIX)
        crashed = crash.exists() and crash.stat().st_size > 0
        for name, was in begun.items():
            if was == file_stamp(images / name):
                past.tries[name] += 1
                if crashed:
                    why[name] = f"it crashed the process ({crash.read_text('utf-8', 'replace').splitlines()[0]})"
    for name, tries in past.tries.items():
        if tries >= MAX_TRIES:
            why.setdefault(name, f"the process was killed {tries} times during this image")
    for name, reason in why.items():
        past.failed.setdefault(name, f"{reason}. It is tried again after the file changes")
    for name in past.done:
        past.failed.pop(name, None)
    return past


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file. A killed process may leave a partial last line."""
    for text in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line


def file_stamp(path: Path) -> list[int]:
    """Return size and modification time of a file, to detect changes; [] if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


class LabelingLog:
    """The records of this process, as a context manager.

    A crash outside Python (for example a damaged image in a decoder) is recorded in a separate file.
    """

    def __init__(self, out: Path, images: Path) -> None:
        self._images = images
        name = f"{time.time_ns()}-{platform.node()}-{os.getpid()}"
        self._path = out / RECORDS_FOLDER / f"{name}.jsonl"
        self._crash: TextIO | None = None

    def __enter__(self) -> LabelingLog:
        make_folder(self._path.parent)
        with convert_write_errors(self._path):
            self._file = self._path.open("ab", buffering=0)
            if not faulthandler.is_enabled():
                self._crash = self._path.with_suffix(CRASH_SUFFIX).open("w", encoding="utf-8")
                faulthandler.enable(self._crash)
        return self

    def __exit__(self, *_: object) -> None:
        if self._crash is not None:
            faulthandler.disable()
            self._crash.close()
            self._path.with_suffix(CRASH_SUFFIX).unlink(missing_ok=True)
        self._file.close()

    def begin(self, name: str) -> None:
        """Record the start of an image."""
        self._append({"begun": name, "stamp": file_stamp(self._images / name)})

    def fail(self, name: str, reason: str) -> None:
        """Record the failure of an image."""
        self._append({"failed": name, "reason": reason, "stamp": file_stamp(self._images / name)})

    def finish(self, name: str, size: tuple[int, int], labels: dict[str, Any]) -> None:
        """Record a labeled image. ``size`` is (height, width); ``labels`` maps task -> result of `write_label`."""
        self._append({"done": name, "size": size, "labels": labels})

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self._file, self._path, json.dumps(line))
