"""Reads ROS 2 SQLite bags, also with the write-ahead log of a killed recorder. It writes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from perception.robots.recorded_messages import Channel, DamageError, RecordedMessage, to_ros2_type

MAGIC = b"SQLite format 3\0"
DAMAGE_ERRORS = (sqlite3.Error, ValueError, TypeError, OverflowError)
"""Errors caused by damage, including names that are not UTF-8 and invalid numbers."""


class SqliteFile:
    """Reader of an SQLite bag (`RecordingFile`). Raises DamageError if nothing can be read.

    ``display_path`` is the file name in messages; ``path`` may be an unpacked copy.
    """

    def __init__(self, path: Path, display_path: Path) -> None:
        self._path = display_path
        self.damage: list[str] = []
        self._database = _connect(path)
        try:
            self.channels = self._read_channels()
        except DAMAGE_ERRORS as error:
            self.close()
            raise DamageError(str(error)) from error

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _read_channels(self) -> dict[int, Channel]:
        tables = {
            str(name) for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if not {"topics", "messages"} <= tables:
            raise ValueError("it is an SQLite file without the bag tables 'topics' and 'messages'")
        counts = dict(self._database.execute("SELECT topic_id, count(*) FROM messages GROUP BY topic_id"))
        rows = self._database.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        return {
            int(number): Channel(str(name), to_ros2_type(str(kind)), str(format), counts.get(number, 0))
            for number, name, kind, format in rows
        }

    def read_messages(self, channel_ids: set[int]) -> Iterator[RecordedMessage]:
        """Yield the messages of these channels by time. They are read one by one, because some may be damaged."""
        numbers = ",".join(str(int(number)) for number in channel_ids)
        order = f"SELECT id, topic_id, timestamp FROM messages WHERE topic_id IN ({numbers}) ORDER BY timestamp, id"
        try:
            for row, number, time in self._database.execute(order):
                data = self._read_data(row)
                if isinstance(data, bytes) and isinstance(time, int):
                    yield max(time, 0), number, data
                else:
                    self.damage.append(f"{self._path}: messages are damaged")
        except DAMAGE_ERRORS as error:
            self.damage.append(
                f"{self._path} is damaged: {error}. The rest is lost (`sqlite3 FILE .recover` may find more)"
            )

    def _read_data(self, row: int) -> object:
        try:
            found = self._database.execute("SELECT data FROM messages WHERE id = ?", (row,)).fetchone()
        except DAMAGE_ERRORS:
            return None
        return found and found[0]


def _connect(path: Path) -> sqlite3.Connection:
    """Open read-only, with the write-ahead log if present, without writing SQLite's lock and index files."""
    where = quote(str(path.absolute()), safe="/")
    for options in ("mode=ro&vfs=unix-none", "mode=ro", "immutable=1"):
        base = None
        try:
            base = sqlite3.connect(f"file:{where}?{options}", uri=True, check_same_thread=False)
            base.text_factory = lambda data: data.decode(errors="replace")
            base.execute("PRAGMA trusted_schema = OFF")
            base.execute("PRAGMA locking_mode = EXCLUSIVE")
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return base
        except DAMAGE_ERRORS as error:
            last = error
            if base is not None:
                base.close()
    raise DamageError(str(last))
