"""Segmentation masks and depth (or other quantities) as PNG files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_names import check_file_name
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.types import IGNORE_INDEX, DenseMap, TaskSpec
from perception.video.writer import WriterContext
from perception.video.writers.images import write_image

FINE_SCALE, COARSE_SCALE = 0.001, 1 / 256
"""Metres per step of a 16-bit depth PNG: fine if the task's range fits (65.5 m), else coarse (256 m)."""
MAX_UINT16 = 65535
ERROR_SCALE = 0.0001
"""Relative depth error per step of the 16-bit PNG of the predicted error."""


class MapWriter:
    """Writes each dense task as a PNG file.

    Segmentation masks: 8 bits, class ids, 255 = unknown. Quantities: 16 bits, steps of `map_scale`, 0 = not valid.
    Their predicted relative errors, if any: a second file, 16 bits, steps of `ERROR_SCALE`.
    """

    def open(self, context: WriterContext) -> None:
        """Start a source."""
        self._folder = context.folder

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Write the maps of a frame and add their file names to ``record``."""
        for name, annotation in result.annotations.items():
            if not isinstance(annotation, DenseMap):
                continue
            file = self._folder / "maps" / f"{frame.output_stem}.{check_file_name(name, 'a task')}.png"
            write_image(file, encode_map(annotation, result.specs[name]))
            record[name] = {"file": file.relative_to(self._folder).as_posix()}
            if not result.specs[name].classes:
                record[name] |= {"scale": map_scale(result.specs[name]), "unit": result.specs[name].unit}
                if annotation.relative_error is not None:
                    beside = file.with_name(f"{file.stem}_error.png")
                    write_image(
                        beside,
                        np.clip(np.rint(annotation.relative_error / ERROR_SCALE), 0, MAX_UINT16).astype(np.uint16),
                    )
                    record[name] |= {
                        "error": {"file": beside.relative_to(self._folder).as_posix(), "scale": ERROR_SCALE}
                    }

    def close(self) -> None:
        """Do nothing: every file is already complete."""


def map_scale(spec: TaskSpec) -> float:
    """Return the step of a quantity's 16-bit PNG: the finest common scale that can store its upper limit."""
    if spec.limits is None:
        return COARSE_SCALE
    return next(
        (scale for scale in (FINE_SCALE, COARSE_SCALE) if spec.limits[1] <= MAX_UINT16 * scale),
        spec.limits[1] / MAX_UINT16,
    )


def encode_map(dense_map: DenseMap, spec: TaskSpec) -> NDArray:
    """Encode a map for its PNG: uint8 class ids, 255 = unknown; or uint16 in steps of `map_scale`, 0 = unknown."""
    if spec.classes:
        return np.where(dense_map.valid, dense_map.values, IGNORE_INDEX).astype(np.uint8)
    steps = np.where(dense_map.valid, np.maximum(np.rint(dense_map.values / map_scale(spec)), 1), 0)
    return np.minimum(steps, MAX_UINT16).astype(np.uint16)
