"""Live display in a window."""

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
    """Shows the annotated frames in a window (``--show``); Q or Esc stops the run."""

    TITLE = "perception"
    _is_open = False

    def open(self, context: WriterContext) -> None:
        """Open the window. Raises PerceptionError if OpenCV has no window support, as in opencv-python-headless."""
        try:
            cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise PerceptionError(
                "This OpenCV has no window support (opencv-python-headless, for robots and servers). Remove --show "
                "and watch the mp4, or use --save rrd and open the file with `rerun`."
            ) from error
        self._is_open = True

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Show a frame. Raises StopRequested if Q or Esc was pressed."""
        cv2.imshow(self.TITLE, np.ascontiguousarray(result.plot("image")[:, :, ::-1]))
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            raise StopRequested

    def close(self) -> None:
        """Close the window."""
        if self._is_open:
            self._is_open = False
            cv2.destroyAllWindows()
