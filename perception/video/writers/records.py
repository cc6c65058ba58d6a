"""A line of ``predictions.jsonl`` for each frame."""

from __future__ import annotations

import json
from io import FileIO
from typing import Any

from perception.files.safe_write import append_line
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.video.writer import WriterContext

RECORDS = "predictions.jsonl"


class JsonlWriter:
    """A line of ``predictions.jsonl`` for each frame, on disk at once and whole, or not at all."""

    _file: FileIO | None = None

    def open(self, context: WriterContext) -> None:
        self._path = context.folder / RECORDS
        self._file = self._path.open("ab", buffering=0)

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        assert self._file is not None
        append_line(self._file, self._path, json.dumps(record, ensure_ascii=False, allow_nan=False))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
