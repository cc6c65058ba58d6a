"""Segmentation masks and quantities as PNG files."""

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
"""Metres per step of a 16-bit depth PNG where everything then fits into it (65.5 m), and where it does not (256 m)."""
MAX_UINT16 = 65535
ERROR_SCALE = 0.0001
"""Share of the depth per step of the 16-bit PNG of the error that it expects."""


class MapWriter:
    """Segmentation masks (8-bit PNG of class ids, 255 = unknown), quantities (16-bit PNG, 0 = not valid, steps of
    `step`) and,
    beside them, the relative errors that they expect (16-bit PNG, steps of `ERROR_SCALE`)."""

    def open(self, context: WriterContext) -> None:
        self._folder = context.folder

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
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
        pass


def map_scale(spec: TaskSpec) -> float:
    """Of a quantity's 16-bit PNG: the finest of those that people know in which its upper limit can be written."""
    if spec.limits is None:
        return COARSE_SCALE
    return next(
        (scale for scale in (FINE_SCALE, COARSE_SCALE) if spec.limits[1] <= MAX_UINT16 * scale),
        spec.limits[1] / MAX_UINT16,
    )


def encode_map(dense_map: DenseMap, spec: TaskSpec) -> NDArray:
    """A map as its PNG holds it: class ids uint8, 255 = unknown; a quantity uint16 in steps of `step`, 0 = unknown."""
    if spec.classes:
        return np.where(dense_map.valid, dense_map.values, IGNORE_INDEX).astype(np.uint8)
    steps = np.where(dense_map.valid, np.maximum(np.rint(dense_map.values / map_scale(spec)), 1), 0)
    return np.minimum(steps, MAX_UINT16).astype(np.uint16)
