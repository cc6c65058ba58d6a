"""Results of any source as a ROS 2 bag (``--save mcap``): what RViz and Foxglove show."""

from __future__ import annotations

from typing import Any

from perception.robots.bag_writer import BagWriter
from perception.robots.messages import Stamp, image
from perception.runtime.result import Result
from perception.runtime.sources import Shot
from perception.video.writer import Recording

FRAME_ID = "camera_optical"
POINT_STEP = 4


class BagSaver:
    """A bag, ``<name>-bag/``, for each video, ``pictures-bag/`` for pictures.

    Stamps count from the start of the video; pictures are a second apart. The first frame stands at one second,
    for ROS takes a stamp of zero to mean that there is none.
    """

    _bag: BagWriter | None = None

    def open(self, recording: Recording) -> None:
        self._bag, self._count = BagWriter(recording.folder / f"{recording.name or 'pictures'}-bag"), 0

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        assert self._bag is not None
        seconds = 1 + (self._count if shot.time is None else shot.time)
        self._count += 1
        stamp = Stamp(round(seconds * 1e9), FRAME_ID)
        self._bag.write("/camera/image_raw", image(shot.image, "rgb8", stamp), stamp.nanoseconds)
        self._bag.write_result("/camera/perception", result, stamp, stamp.nanoseconds, POINT_STEP)

    def close(self) -> None:
        bag, self._bag = self._bag, None
        if bag is not None:
            bag.close()
