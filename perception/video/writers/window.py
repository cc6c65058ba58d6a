"""A window on the screen."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.types import PerceptionError
from perception.video.interrupt import StopRequested
from perception.video.writer import WriterContext


class WindowWriter:
    """What is drawn, on the screen. Raises PerceptionError where OpenCV was built without windows, as ours is."""

    TITLE = "perception"
    _is_open = False

    def open(self, context: WriterContext) -> None:
        try:
            cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise PerceptionError(
                "This OpenCV has no windows (opencv-python-headless, which robots and servers want). Leave out --show, "
                "and watch the mp4, or --save rrd and open it with `rerun`."
            ) from error
        self._is_open = True

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        cv2.imshow(self.TITLE, np.ascontiguousarray(result.plot("image")[:, :, ::-1]))
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            raise StopRequested

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            cv2.destroyAllWindows()
