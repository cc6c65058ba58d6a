"""Checksums of a checkpoint's files: manifest.json. It has its own checksum, which detects a damaged manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.files.safe_write import hash_file
from perception.types import CheckpointError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2
"""Format 2 has its own checksum. Format 1, of older versions, has none and is still readable."""
_STEP = re.compile(r"step_(\d+)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """Content of a manifest.

    Attributes:
        step: number of optimizer steps.
        best: whether the checkpoint was the best when it was written.
        checksums: file name -> its SHA-256.
        version: perception version that wrote it; "" if unknown.
    """

    step: int
    best: bool
    checksums: dict[str, str]
    version: str


def write(folder: Path, step: int, best: bool, versions: dict[str, str], files: Collection[str]) -> None:
    """Write the manifest of a checkpoint's ``files``, which must exist."""
    content = {
        "format": FORMAT_VERSION,
        "step": step,
        "best": best,
        "versions": versions,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in sorted(files)
        },
    }
    (folder / MANIFEST_NAME).write_text(_to_json({**content, "checksum": _compute_checksum(content)}), "utf-8")


def read(folder: Path, files: Collection[str]) -> CheckpointManifest:
    """Read the manifest of a checkpoint that consists of ``files``. Raises CheckpointError if missing or damaged."""
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is not a checkpoint: {MANIFEST_NAME} cannot be read ({error}).") from error
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not int or found not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"{path} is not a manifest of format {FORMAT_VERSION}: damaged, or from another version of perception."
        )
    if found == FORMAT_VERSION:
        expected = content.pop("checksum", None)
        if expected != _compute_checksum(content) or text != _to_json({**content, "checksum": expected}):
            raise CheckpointError(f"{path} is damaged: its content does not match its checksum.")
    step, best, listed = (content.get(key) for key in ("step", "best", "files"))
    called = _STEP.fullmatch(folder.name)
    if type(step) is not int or step < 0 or (called and int(called[1]) != step):
        raise CheckpointError(f"{path} is damaged: its step is {step!r:.40}, but the folder is {folder.name}.")
    if type(best) is not bool:
        raise CheckpointError(f"{path} is damaged: expected true or false for best, found {best!r:.40}.")
    if not isinstance(listed, dict) or set(listed) != set(files):
        raise CheckpointError(
            f"{path} is damaged: expected the files {', '.join(sorted(files))}, found {listed!r:.90}."
        )
    sums: dict[str, str] = {}
    for name, entry in listed.items():
        value = entry.get("sha256") if isinstance(entry, dict) else entry
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise CheckpointError(f"{path} is damaged: expected the SHA-256 of {name}, found {value!r:.90}.")
        sums[name] = value
    versions = content.get("versions")
    version = versions.get("perception") if isinstance(versions, dict) else None
    return CheckpointManifest(step, best, sums, version if isinstance(version, str) else "")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    return hash_file(path).hex()


def _to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _compute_checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_to_json(content).encode()).hexdigest()
