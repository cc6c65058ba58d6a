"""Strict JSON in UTF-8, or UTF-16 with a byte order mark: no NaN, no duplicate keys. Errors give the byte offset."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any

from perception.types import DataError

MAX_JSON_BYTES = 8 << 30
_PIECE_BYTES = 1 << 24
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|-?Infinity|NaN')


class _InvalidJson(Exception):
    pass


def read_json(path: Path) -> object:
    """Read a JSON file. Raises DataError with the byte offset if it is not valid.

    It may contain any JSON values, nested as deep as Python's stack permits. Quote them with `quote_value`.
    """
    text = ""
    try:
        data = _read_content(path)
        text = data.decode(detect_encoding(data))
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_check_unique_keys)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {error.encoding.upper()} at byte {error.start}: {error.reason}. Save it as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode())
        raise DataError(
            f"{path} is not valid JSON at byte {offset} of {len(error.doc.encode())} (line {error.lineno}): "
            f"{error.msg}. It may be truncated: fetch it again."
        ) from error
    except _InvalidJson as error:
        raise DataError(f"{path}: {error} at byte {_find_offset(text)}. Write the file again without it.") from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path}: {error}.") from error
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be annotations.") from None


def quote_value(value: object, length: int = 80) -> str:
    """Quote a value from a file for a message: short and on one line, whatever the value is."""
    quoter = reprlib.Repr()
    quoter.maxstring = quoter.maxlong = quoter.maxother = length
    quoter.maxlist = quoter.maxdict = quoter.maxtuple = 6
    text = quoter.repr(value)
    return text if len(text) <= 2 * length else f"{text[: 2 * length]}..."


def detect_encoding(data: bytes | bytearray) -> str:
    """Detect the encoding by the byte order mark: "utf-16", or "utf-8-sig", which is UTF-8 with or without a mark."""
    return "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _read_content(path: Path) -> bytearray:
    if not path.is_file():
        raise DataError(f"No JSON file at {path}. Restore it, or correct the path.")
    data = bytearray()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise DataError(f"{path} has {size} bytes. At most {MAX_JSON_BYTES} are read: split it.")
        while piece := file.read(_PIECE_BYTES):
            data += piece
            if b"\0" in piece and detect_encoding(data) != "utf-16":  # a full disk leaves a hole
                at = len(data) - len(piece) + piece.index(0)
                raise DataError(f"{path} is not valid JSON at byte {at} of {size}: it contains a NUL. Fetch it again.")
    return data


def _refuse_constant(name: str) -> None:
    raise _InvalidJson(f"{name} is not a JSON number")


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _InvalidJson(f"key {quote_value(key)} is given twice in one object")
            seen.add(key)
    return result


def _find_offset(text: str) -> int:
    """Byte offset of the first NaN, infinity or duplicate key."""
    stack: list[set[str] | None] = []
    key_next = False
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in ("NaN", "Infinity", "-Infinity"):
            break
        if word in "{[":
            stack.append(set() if word == "{" else None)
            key_next = word == "{"
        elif word in "}]":
            stack.pop()
            key_next = False
        elif word == ",":
            key_next = bool(stack) and stack[-1] is not None
        elif key_next and word != ":":
            keys, key = stack[-1], json.loads(word)
            if keys is not None and key in keys:
                break
            if keys is not None:
                keys.add(key)
            key_next = False
    else:
        return -1
    return len(text[: token.start()].encode())
