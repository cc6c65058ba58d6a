"""`perception calibrate`: what good pictures look like to a network, as the measure of its doubt."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from perception.runtime.sources import Shot, find, read_picture
from perception.types import Camera, PerceptionError
from perception.video.image_monitor import Monitor
from perception.video.ood import Calibration, Collect, fit
from perception.video.ood_features import feature_names
from perception.video.pipeline import Network, results
from perception.video.stage_times import Timings
from perception.video.stream import Video


def calibrate(
    network: Network, source: str | Path, camera: Camera | None = None, model: str = "", most: int = 5000
) -> Calibration:
    """Calibrate on pictures and videos as they are where the network will work, at most ``most`` of their frames.

    Frames on which no one should act (black, covered, ...) are left out. Raises PerceptionError where too few are left.
    """
    collect = Collect(network.specs)
    for item in find(source):
        if item.kind == "live":
            raise PerceptionError(f"{item.shown} is live. Calibrate on files: record it first.")
        shots = _one(read_picture(item)) if item.kind == "picture" else iter(Video(item))
        with closing(results(network, shots, [Monitor(), collect], Timings(), camera=camera)) as found:
            for _ in found:
                if len(collect.values) >= most:
                    break
        if len(collect.values) >= most:
            break
    return fit(np.array(collect.values), feature_names(network.specs), model)


def _one(shot: Shot) -> Generator[Shot]:
    yield shot
