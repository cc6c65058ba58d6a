"""Object tracking in videos by ByteTrack (Zhang et al. 2022), from the package `trackers`.

`trackers` and its dependency `supervision` require opencv-python, which would overwrite the headless OpenCV of this
package. They are installed without dependencies (see `INSTALL_HINT`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.runtime.sources import Frame
from perception.types import Instances, PerceptionError, Prediction, TaskSpec
from perception.video.consistency import class_groups
from perception.video.time_to_contact import TimeToContactFilter

INSTALL_HINT = (
    "Tracking needs the packages trackers and supervision. They require an OpenCV that would overwrite the headless "
    "one installed here. Install them without dependencies: pip install 'dense-perception[tracking]' && "
    "pip install --no-deps trackers supervision"
)
MIN_SCORE = 0.1
"""Minimum score of a box that may continue a track, even if the box is not shown."""
TRACK_MEMORY = 1.0
"""Seconds for which a lost track is kept."""
BORDER_PIXELS = 2
"""A box closer to the image border (pixels) is treated as cut off, and its height is not used."""


class Tracker:
    """A post-processor: tracks the objects of the first "instances" task, with closing speed and time to contact.

    The distances of tracked boxes are replaced by filtered distances. Raises PerceptionError if `trackers` is not
    installed.
    """

    def __init__(self, specs: Mapping[str, TaskSpec], fps: float) -> None:
        try:
            import supervision  # pyright: ignore[reportMissingImports]
            from trackers import ByteTrackTracker  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise PerceptionError(INSTALL_HINT) from error
        self._supervision, self._tracker_class, self._fps = supervision, ByteTrackTracker, fps
        self._specs = specs
        self._trackers: dict[Any, Any] = {}
        self._track_ids: dict[tuple[Any, int], int] = {}
        self._num_tracks = 0
        self._filters: dict[int, TimeToContactFilter] = {}

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Return the prediction with track ids, distances, closing speeds and times to contact."""
        name = next((name for name, a in prediction.annotations.items() if isinstance(a, Instances)), None)
        found = prediction.annotations[name] if name else None
        if name is None or not isinstance(found, Instances) or not prediction.valid or frame.time is None:
            return prediction
        tracks = self._assign_tracks(found, self._specs[name], frame.time)
        measured = prediction.distances
        if measured is None:
            measured = np.full(len(tracks), np.nan, np.float32)
        distances, speeds, times = self._update_filters(found.boxes, tracks, measured, frame.time, prediction.size)
        return dataclasses.replace(
            prediction,
            annotations={**prediction.annotations, name: dataclasses.replace(found, track_ids=tracks)},
            distances=None if prediction.distances is None else distances,
            closing_speeds=None if prediction.distances is None else speeds,
            times_to_contact=times,
        )

    def _assign_tracks(self, found: Instances, spec: TaskSpec, time: float) -> NDArray[np.int64]:
        """[N] track ids, -1 = none. Classes of one group (car, truck) share tracks: networks often switch them."""
        scores = np.ones(len(found.boxes), np.float32) if found.scores is None else np.asarray(found.scores)
        labels = np.asarray(found.labels)
        kinds = [class_groups(name) or name for name in spec.classes]
        tracks = np.full(len(scores), -1, np.int64)
        for kind in dict.fromkeys(kinds):
            of_kind = np.array([other == kind for other in kinds], np.bool_)
            chosen = np.flatnonzero((scores >= MIN_SCORE) & of_kind[labels]) if len(labels) else np.zeros(0, np.int64)
            if kind not in self._trackers:
                if not len(chosen):
                    continue
                self._trackers[kind] = self._make_tracker(spec.score_threshold)
            detections = self._supervision.Detections(
                xyxy=np.asarray(found.boxes)[chosen].reshape(-1, 4).astype(np.float64),
                confidence=scores[chosen],
                class_id=labels[chosen],
                data={"index": chosen},
            )
            after = self._trackers[kind].update(detections, timestamp=time)
            if len(after):
                for index, track in zip(after.data["index"], after.tracker_id, strict=True):
                    tracks[index] = self._get_track_id(kind, int(track))
        return tracks

    def _make_tracker(self, threshold: float) -> object:
        return self._tracker_class(
            lost_track_buffer=round(30 * TRACK_MEMORY),
            frame_rate=self._fps,
            track_activation_threshold=threshold,
            high_conf_det_threshold=threshold,
            minimum_consecutive_frames=2,
            minimum_iou_threshold=0.1,
        )

    def _get_track_id(self, kind: object, track: int) -> int:
        """A number in the order of first appearance, across all class groups."""
        if track < 0:
            return -1
        if (kind, track) not in self._track_ids:
            self._track_ids[kind, track] = self._num_tracks
            self._num_tracks += 1
        return self._track_ids[kind, track]

    def _update_filters(
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
            cut = boxes[i, 1] < BORDER_PIXELS or boxes[i, 3] > size[0] - BORDER_PIXELS
            height = math.nan if cut else float(boxes[i, 3] - boxes[i, 1])
            filtered = self._filters.get(track)
            if filtered is not None:
                filtered.update(time, float(measured[i]), height)
            elif measured[i] > 0:
                filtered = self._filters[track] = TimeToContactFilter(time, float(measured[i]), height)
            else:
                continue
            distances[i], speeds[i], times[i] = filtered.distance, filtered.closing_speed, filtered.time_to_contact
        self._drop_stale(time)
        return distances, speeds, times

    def _drop_stale(self, time: float) -> None:
        """Remove the filters of objects that were not seen for twice the track memory."""
        for track in [track for track, found in self._filters.items() if time - found.time > 2 * TRACK_MEMORY]:
            del self._filters[track]
        if len(self._track_ids) > 10_000:
            known = set(self._filters)
            self._track_ids = {key: number for key, number in self._track_ids.items() if number in known}
