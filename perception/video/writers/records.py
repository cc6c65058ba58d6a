"""Predictions as JSON lines: one line of ``predictions.jsonl`` per frame."""

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
    """Appends one line to ``predictions.jsonl`` per frame, immediately and atomically."""

    _file: FileIO | None = None

    def open(self, context: WriterContext) -> None:
        """Open the file for appending."""
        self._path = context.folder / RECORDS
        self._file = self._path.open("ab", buffering=0)

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Append ``record`` as one line."""
        assert self._file is not None
        append_line(self._file, self._path, json.dumps(record, ensure_ascii=False, allow_nan=False))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
