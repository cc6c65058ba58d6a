"""`perception ood fit`: fits the feature statistics of good images for the out-of-distribution score."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from perception.runtime.sources import Frame, find_sources, read_image_frame
from perception.types import Camera, PerceptionError
from perception.video.image_monitor import ImageMonitor
from perception.video.ood import FeatureCollector, OodModel, fit_features
from perception.video.ood_features import feature_names
from perception.video.pipeline import PredictorLike, run_pipeline
from perception.video.stage_times import Timings
from perception.video.stream import VideoStream


def fit_ood_model(
    predictor: PredictorLike,
    source: str | Path,
    camera: Camera | None = None,
    network_sha256: str = "",
    max_frames: int = 5000,
) -> OodModel:
    """Fit on images and videos from the deployment environment, using at most ``max_frames`` frames.

    Frames that are not valid (black, covered, ...) are skipped. Raises PerceptionError if too few are left.
    """
    collect = FeatureCollector(predictor.specs)
    for item in find_sources(source):
        if item.kind == "live":
            raise PerceptionError(f"{item.display_name} is a live source. The fit needs files: record it first.")
        frames = _yield_frame(read_image_frame(item)) if item.kind == "image" else iter(VideoStream(item))
        with closing(run_pipeline(predictor, frames, [ImageMonitor(), collect], Timings(), camera=camera)) as found:
            for _ in found:
                if len(collect.values) >= max_frames:
                    break
        if len(collect.values) >= max_frames:
            break
    return fit_features(np.array(collect.values), feature_names(predictor.specs), network_sha256)


def _yield_frame(frame: Frame) -> Generator[Frame]:
    yield frame
