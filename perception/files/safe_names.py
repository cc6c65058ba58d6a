"""Names that come from files: checked before they become part of a path, escaped before they reach a terminal."""

from __future__ import annotations

import re

from perception.types import PerceptionError

TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""What a task may be called: in a recipe, and in an exported network, where it becomes the name of a folder."""
_MAX_NAME_BYTES = 120
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10))}


def is_file_name(name: object) -> bool:
    """Whether ``name`` is one plain component of a path on every system: no separator, no ``..``, nothing hidden."""
    if not isinstance(name, str) or not name or escape_unprintable(name) != name:
        return False
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES or name[0] in ".-~ " or name[-1] in ". ":
        return False
    return not set(name) & set('/\\:*?"<>|') and name.partition(".")[0].lower() not in _RESERVED


def check_file_name(name: object, what: str) -> str:
    """``name`` where it may become a file or folder. Raises PerceptionError that begins with ``what`` elsewhere."""
    if not isinstance(name, str) or not is_file_name(name):
        raise PerceptionError(
            f"{what}: {escape_unprintable(repr(name))[:_MAX_NAME_BYTES]} cannot be "
            "the name of a file. Expected letters, digits, "
            f"'_', '-' or '.', at most {_MAX_NAME_BYTES} bytes, not beginning "
            "with '.' or '-', without '/', '\\' and ':'."
        )
    return name


def escape_unprintable(text: str) -> str:
    """``text`` on one line, with what would move a cursor, turn the writing round or not encode shown as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
