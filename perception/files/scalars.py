"""Numbers and flags of label files by what they mean, whatever type a tool wrote them in."""

from __future__ import annotations

import math
import re
from typing import Any

from perception.files.strict_json import quote_value
from perception.types import DataError

_YES = frozenset(("true", "yes", "y", "t", "on"))
_NO = frozenset(("", "false", "no", "n", "f", "off", "none", "null", "unspecified"))
_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)


def parse_flag(value: Any, where: str, key: str) -> bool:
    """Whether a flag is set: true, 1, 1.0, "1", "yes", "True" ...; not where it is absent, null, 0, "0", "no" or "".

    A number over 1 is a degree of it (DOTA's difficult: 2), and set. Raises DataError at ``where`` for anything else.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and (word := value.strip().lower()) in _YES | _NO:
        return word in _YES
    number = parse_number(value)
    if number is not None and 0 <= number < math.inf:
        return number > 0
    raise DataError(f"{where}: {key} is {quote_value(value)}. Expected 0 or 1.")


def parse_integer(value: Any) -> int | None:
    """The whole number of 64 bits that a value stands for (7, 7.0, "7", "7.0"); None where it is none."""
    if type(value) is not int:
        number = parse_number(value)
        if number is None or not abs(number) <= 1 << 53 or number != int(number):
            return None
        value = int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(number)
    return value if -(1 << 63) <= value < 1 << 63 else None


def parse_number(value: Any) -> float | None:
    """The number that a value stands for (7, 7.5, "7.5"), those beyond 1e300 cut there; None where it is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if type(value) is float:
        return value
    return float(min(max(value, -1e300), 1e300)) if type(value) is int else None
