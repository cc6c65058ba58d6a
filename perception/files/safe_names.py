"""Names from files: checks before they are used in a path, escapes before they are printed."""

from __future__ import annotations

import re

from perception.types import PerceptionError

TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""Pattern of the names of tasks in a recipe and in an exported network, where they are names of folders."""
_MAX_NAME_BYTES = 120
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10))}


def is_file_name(name: object) -> bool:
    """Return whether ``name`` is a plain file name on every system: no separator, no ``..``, not hidden."""
    if not isinstance(name, str) or not name or escape_unprintable(name) != name:
        return False
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES or name[0] in ".-~ " or name[-1] in ". ":
        return False
    return not set(name) & set('/\\:*?"<>|') and name.partition(".")[0].lower() not in _RESERVED


def check_file_name(name: object, what: str) -> str:
    """Return ``name`` if it is a plain file name, else raise PerceptionError with ``what`` at its start."""
    if not isinstance(name, str) or not is_file_name(name):
        raise PerceptionError(
            f"{what}: {escape_unprintable(repr(name))[:_MAX_NAME_BYTES]} cannot be the name of a file. "
            f"Expected letters, digits, '_', '-' or '.', at most {_MAX_NAME_BYTES} bytes, not beginning "
            "with '.' or '-', without '/', '\\' and ':'."
        )
    return name


def escape_unprintable(text: str) -> str:
    """Return ``text`` with escapes for line breaks, control characters and characters that cannot be encoded."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
