"""Label maps and quantities as PNG files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_names import check_file_name
from perception.runtime.result import Result
from perception.runtime.sources import Shot
from perception.types import IGNORE_INDEX, DenseMap, TaskSpec
from perception.video.writer import Recording
from perception.video.writers.images import save

FINE, COARSE = 0.001, 1 / 256
"""Metres per step of a 16-bit depth PNG where everything then fits into it (65.5 m), and where it does not (256 m)."""
STEPS = 65535
ERROR_SCALE = 0.0001
"""Share of the depth per step of the 16-bit PNG of the error that it expects."""


class MapWriter:
    """Label maps (8-bit PNG of class ids, 255 = unknown), quantities (16-bit PNG, 0 = not valid, steps of `step`) and,
    beside them, the relative errors that they expect (16-bit PNG, steps of `ERROR_SCALE`)."""

    def open(self, recording: Recording) -> None:
        self._folder = recording.folder

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        for name, annotation in result.annotations.items():
            if not isinstance(annotation, DenseMap):
                continue
            file = self._folder / "maps" / f"{shot.place}.{check_file_name(name, 'a task')}.png"
            save(file, stored(annotation, result.specs[name]))
            record[name] = {"file": file.relative_to(self._folder).as_posix()}
            if not result.specs[name].classes:
                record[name] |= {"scale": step(result.specs[name]), "unit": result.specs[name].unit}
                if annotation.error is not None:
                    beside = file.with_name(f"{file.stem}_error.png")
                    save(beside, np.clip(np.rint(annotation.error / ERROR_SCALE), 0, STEPS).astype(np.uint16))
                    record[name] |= {
                        "error": {"file": beside.relative_to(self._folder).as_posix(), "scale": ERROR_SCALE}
                    }

    def close(self) -> None:
        pass


def step(spec: TaskSpec) -> float:
    """Of a quantity's 16-bit PNG: the finest of those that people know in which its upper limit can be written."""
    if spec.limits is None:
        return COARSE
    return next((scale for scale in (FINE, COARSE) if spec.limits[1] <= STEPS * scale), spec.limits[1] / STEPS)


def stored(map: DenseMap, spec: TaskSpec) -> NDArray:
    """A map as its PNG holds it: class ids uint8, 255 = unknown; a quantity uint16 in steps of `step`, 0 = unknown."""
    if spec.classes:
        return np.where(map.valid, map.values, IGNORE_INDEX).astype(np.uint8)
    steps = np.where(map.valid, np.maximum(np.rint(map.values / step(spec)), 1), 0)
    return np.minimum(steps, STEPS).astype(np.uint16)
