"""Results of any source as a ROS 2 bag (``--save mcap``), for RViz and Foxglove."""

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
    """Writes a bag ``<name>-bag/`` for each video, and one for all images.

    Stamps are seconds from the start of the video; images are one second apart. The first frame is at one second,
    because ROS treats a stamp of zero as "no stamp".
    """

    _bag: BagWriter | None = None

    def open(self, context: WriterContext) -> None:
        """Create the bag of a source."""
        self._bag, self._count = BagWriter(context.folder / f"{context.name or 'images'}-bag"), 0

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Record an image and its results."""
        assert self._bag is not None
        seconds = 1 + (self._count if frame.time is None else frame.time)
        self._count += 1
        stamp = MessageHeader(round(seconds * 1e9), FRAME_ID)
        self._bag.write("/camera/image_raw", make_image(frame.image, "rgb8", stamp), stamp.nanoseconds)
        self._bag.write_result("/camera/perception", result, stamp, stamp.nanoseconds, POINT_STRIDE)

    def close(self) -> None:
        """Complete the bag."""
        bag, self._bag = self._bag, None
        if bag is not None:
            bag.close()
