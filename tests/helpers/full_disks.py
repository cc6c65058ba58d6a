"""Disks that are full and folders that are closed, for tests of them, which are skipped where that is not allowed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "4m") -> Iterator[Path]:
    """``folder`` as a disk of its own."""
    folder.mkdir()
    if not run_mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        pytest.skip("mounting is not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_disk(folder: Path) -> Path:
    """Take what is left of the disk of ``folder``. Returns the file that does."""
    balloon = folder / "balloon"
    with balloon.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return balloon


@contextmanager
def read_only_folder(folder: Path) -> Iterator[Path]:
    """``folder``, where nothing can be written, whoever asks."""
    mounted = run_mount("--bind", folder, folder) and run_mount("-o", "remount,ro,bind", folder)
    if not mounted and os.geteuid() == 0:
        pytest.skip("mounting is not allowed, and nothing is closed to root")
    folder.chmod(0o555) if not mounted else None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True) if mounted else folder.chmod(0o755)


def run_mount(*arguments: object) -> bool:
    return not subprocess.run(["mount", *map(str, arguments)], check=False, stderr=subprocess.DEVNULL).returncode
