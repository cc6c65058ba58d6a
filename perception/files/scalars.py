"""Parsing of numbers and flags in label files, which tools write with different types."""

from __future__ import annotations

import math
import re

from perception.files.strict_json import quote_value
from perception.types import DataError

_YES = frozenset(("true", "yes", "y", "t", "on"))
_NO = frozenset(("", "false", "no", "n", "f", "off", "none", "null", "unspecified"))
_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)


def parse_flag(value: object, where: str, key: str) -> bool:
    """Return whether a flag is set: true, 1, 1.0, "1", "yes", "True" ...; not for None, 0, "0", "no" or "".

    A number over 1 is a degree (DOTA's difficult: 2) and counts as set. Raises DataError for other values.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and (word := value.strip().lower()) in _YES | _NO:
        return word in _YES
    number = parse_number(value)
    if number is not None and 0 <= number < math.inf:
        return number > 0
    raise DataError(f"{where}: {key} is {quote_value(value)}. Expected 0 or 1.")


def parse_integer(value: object) -> int | None:
    """Convert a value (7, 7.0, "7", "7.0") to a 64-bit integer; None if it is not one."""
    if type(value) is not int:
        number = parse_number(value)
        if number is None or not abs(number) <= 1 << 53 or number != int(number):
            return None
        value = int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(number)
    return value if -(1 << 63) <= value < 1 << 63 else None


def parse_number(value: object) -> float | None:
    """Convert a value (7, 7.5, "7.5") to a number; None if it is not one. Integers are clipped to 1e300."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if type(value) is float:
        return value
    return float(min(max(value, -1e300), 1e300)) if type(value) is int else None
