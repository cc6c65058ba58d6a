"""Videos to predict on, and what `perception predict` leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def write_noise_video(path: Path, count: int, fps: float) -> Path:
    """``count`` frames of 96x160, each another."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (160, 96))
    generator = np.random.default_rng(0)
    for _ in range(count):
        writer.write(generator.integers(0, 256, (96, 160, 3), np.uint8))
    writer.release()
    return path


def read_records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]


def read_summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text("utf-8"))
