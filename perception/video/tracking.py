"""Objects that keep their identity through a video, by ByteTrack (Zhang et al. 2022) of the package `trackers`.

`trackers` and its `supervision` ask for opencv-python, which overwrites the headless OpenCV of this package: they are
installed without what they ask for (`MISSING` says how).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.runtime.sources import Shot
from perception.types import Instances, PerceptionError, Prediction, TaskSpec
from perception.video.consistency import kinds_of
from perception.video.time_to_contact import Approach

MISSING = (
    "Tracking needs the packages trackers and supervision. They ask for an OpenCV that would overwrite the headless "
    "one installed here, so install them without what they ask for: pip install 'dense-perception[tracking]' && "
    "pip install --no-deps trackers supervision"
)
LEAST = 0.1
"""Score over which a box may keep a track alive, though it is not shown."""
MEMORY = 1.0
"""Seconds for which a track is remembered that is not seen."""
BORDER = 2
"""Pixels from the picture's edge within which a box is cut off: its height says nothing."""


class Tracker:
    """A step of a pipeline: tracks of the first "instances" task, and how their objects come nearer.

    The distances of tracked boxes become those of their filters. Raises PerceptionError where `trackers` is not
    installed.
    """

    def __init__(self, specs: Mapping[str, TaskSpec], fps: float) -> None:
        try:
            import supervision  # pyright: ignore[reportMissingImports]
            from trackers import ByteTrackTracker  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise PerceptionError(MISSING) from error
        self._supervision, self._tracker, self._fps = supervision, ByteTrackTracker, fps
        self._specs = specs
        self._by_kind: dict[Any, Any] = {}
        self._numbers: dict[tuple[Any, int], int] = {}
        self._count = 0
        self._approaches: dict[int, Approach] = {}

    def __call__(self, shot: Shot, prediction: Prediction) -> Prediction:
        name = next((name for name, a in prediction.annotations.items() if isinstance(a, Instances)), None)
        found = prediction.annotations[name] if name else None
        if name is None or not isinstance(found, Instances) or not prediction.valid or shot.time is None:
            return prediction
        tracks = self._follow(found, self._specs[name], shot.time)
        measured = prediction.distances
        if measured is None:
            measured = np.full(len(tracks), np.nan, np.float32)
        distances, speeds, times = self._approach(found.boxes, tracks, measured, shot.time, prediction.size)
        return dataclasses.replace(
            prediction,
            annotations={**prediction.annotations, name: dataclasses.replace(found, tracks=tracks)},
            distances=None if prediction.distances is None else distances,
            closing_speeds=None if prediction.distances is None else speeds,
            contact_times=times,
        )

    def _follow(self, found: Instances, spec: TaskSpec, time: float) -> NDArray[np.int64]:
        """[N] tracks, -1 = none. Classes of one kind (car, truck) share tracks: networks waver between them."""
        scores = np.ones(len(found.boxes), np.float32) if found.scores is None else np.asarray(found.scores)
        labels = np.asarray(found.labels)
        kinds = [kinds_of(name) or name for name in spec.classes]
        tracks = np.full(len(scores), -1, np.int64)
        for kind in dict.fromkeys(kinds):
            of_kind = np.array([other == kind for other in kinds], np.bool_)
            chosen = np.flatnonzero((scores >= LEAST) & of_kind[labels]) if len(labels) else np.zeros(0, np.int64)
            if kind not in self._by_kind:
                if not len(chosen):
                    continue
                self._by_kind[kind] = self._new(spec.threshold)
            detections = self._supervision.Detections(
                xyxy=np.asarray(found.boxes)[chosen].reshape(-1, 4).astype(np.float64),
                confidence=scores[chosen],
                class_id=labels[chosen],
                data={"index": chosen},
            )
            after = self._by_kind[kind].update(detections, timestamp=time)
            if len(after):
                for index, track in zip(after.data["index"], after.tracker_id, strict=True):
                    tracks[index] = self._number(kind, int(track))
        return tracks

    def _new(self, threshold: float) -> Any:
        return self._tracker(
            lost_track_buffer=round(30 * MEMORY),
            frame_rate=self._fps,
            track_activation_threshold=threshold,
            high_conf_det_threshold=threshold,
            minimum_consecutive_frames=2,
            minimum_iou_threshold=0.1,
        )

    def _number(self, kind: Any, track: int) -> int:
        """Numbers in the order in which objects are first seen, whatever their kind."""
        if track < 0:
            return -1
        if (kind, track) not in self._numbers:
            self._numbers[kind, track] = self._count
            self._count += 1
        return self._numbers[kind, track]

    def _approach(
        self,
        boxes: NDArray[np.float32],
        tracks: NDArray[np.int64],
        measured: NDArray[np.float32],
        time: float,
        size: tuple[int, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """[N] distances, closing speeds and times to contact."""
        distances = np.array(measured, np.float32)
        speeds, times = (np.full(len(tracks), np.nan, np.float32) for _ in range(2))
        for i, track in enumerate(tracks.tolist()):
            if track < 0:
                continue
            cut = boxes[i, 1] < BORDER or boxes[i, 3] > size[0] - BORDER
            height = math.nan if cut else float(boxes[i, 3] - boxes[i, 1])
            filtered = self._approaches.get(track)
            if filtered is not None:
                filtered.update(time, float(measured[i]), height)
            elif measured[i] > 0:
                filtered = self._approaches[track] = Approach(time, float(measured[i]), height)
            else:
                continue
            distances[i], speeds[i], times[i] = filtered.distance, filtered.closing_speed, filtered.contact_time
        self._forget(time)
        return distances, speeds, times

    def _forget(self, time: float) -> None:
        """What was not seen for twice the memory will not come back under its number."""
        for track in [track for track, found in self._approaches.items() if time - found.time > 2 * MEMORY]:
            del self._approaches[track]
        if len(self._numbers) > 10_000:
            known = set(self._approaches)
            self._numbers = {key: number for key, number in self._numbers.items() if number in known}
