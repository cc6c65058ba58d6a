"""Results of any source as a ROS 2 bag (``--save mcap``): what RViz and Foxglove show."""

from __future__ import annotations

from typing import Any

from perception.robots.bag_writer import BagWriter
from perception.robots.messages import MessageHeader, make_image
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.video.writer import WriterContext

FRAME_ID = "camera_optical"
POINT_STRIDE = 4


class McapWriter:
    """A bag, ``<name>-bag/``, for each video, ``images-bag/`` for images.

    Stamps count from the start of the video; images are a second apart. The first frame stands at one second,
    for ROS takes a stamp of zero to mean that there is none.
    """

    _bag: BagWriter | None = None

    def open(self, context: WriterContext) -> None:
        self._bag, self._count = BagWriter(context.folder / f"{context.name or 'images'}-bag"), 0

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        assert self._bag is not None
        seconds = 1 + (self._count if frame.time is None else frame.time)
        self._count += 1
        stamp = MessageHeader(round(seconds * 1e9), FRAME_ID)
        self._bag.write("/camera/image_raw", make_image(frame.image, "rgb8", stamp), stamp.nanoseconds)
        self._bag.write_result("/camera/perception", result, stamp, stamp.nanoseconds, POINT_STRIDE)

    def close(self) -> None:
        bag, self._bag = self._bag, None
        if bag is not None:
            bag.close()
