"""The ONNX file as a container: what it refers to, and its metadata. Reads the wire format; needs no onnx package.

An ONNX file is a protobuf message. A few of its fields decide whether it is safe to hand to a runtime: tensors may name
other files, nodes may want a library of custom operators. Both are looked for before a session is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from perception.types import PerceptionError

MAX_BYTES = (1 << 31) - 1
"""A protobuf message cannot be longer."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that every build of ONNX Runtime carries."""

GRAPH, OPERATOR_SET, METADATA, FUNCTION = 7, 8, 14, 25  # fields of ModelProto

GRAPH_NODE, GRAPH_TENSOR, GRAPH_OUTPUT, GRAPH_VALUE = 1, 5, 12, 13  # fields of GraphProto

Field = tuple[int, int, int, int]
"""Field number, start of the field (its tag), start of its content, end."""

CHILD_MESSAGES: dict[str, dict[int, str]] = {
    "model": {GRAPH: "graph", OPERATOR_SET: "operator set", FUNCTION: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 9: "operator set", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
"""Message -> field -> message: the places where tensors, nodes and operator sets can be."""

DOMAIN_FIELDS = {"operator set": 1, "node": 7, "function": 10}
EXTERNAL_FIELDS = (13, 14)  # of a tensor: external_data, data_location
MAX_DEPTH = 32


def read_model(path: str | Path) -> bytes:
    """The bytes of an ONNX file that refers to nothing outside itself.

    Raises PerceptionError where it is missing, empty, too large, truncated, keeps tensors in other files (through any
    path or link) or needs custom operators.
    """
    path = Path(path)
    if not path.is_file():
        raise PerceptionError(f"No file at {path}. Give the path of an .onnx file written by `perception export`.")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise PerceptionError(f"{path} has {size} bytes. An ONNX file has between 1 and {MAX_BYTES}. Export it again.")
    data = path.read_bytes()
    try:
        check_model(data)
    except PerceptionError as error:
        raise PerceptionError(f"{path}: {error}") from error.__cause__
    return data


def check_model(data: bytes) -> None:
    """Raise PerceptionError unless ``data`` is one whole model that needs neither other files nor custom operators."""
    try:
        present = {field[0] for field in _read_fields(data, 0, len(data))}
        if GRAPH not in present or OPERATOR_SET not in present:
            raise ValueError("no graph")
        _check_message(data, 0, len(data), "model", 0)
    except (ValueError, IndexError) as error:
        problem = f"not a whole ONNX model ({error}). It is truncated or damaged. Copy or export it again."
        raise PerceptionError(problem) from error


def _check_message(data: bytes, start: int, end: int, message: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    children, domain_field = CHILD_MESSAGES.get(message, {}), DOMAIN_FIELDS.get(message)
    for number, _, first, last in _read_fields(data, start, end):
        if number == domain_field:
            domain = data[first:last].decode("utf-8", "replace")
            if domain not in DOMAINS:
                raise PerceptionError(
                    f"needs the operators of '{domain[:80]}', which would load a library of native code. "
                    f"Expected only {', '.join(sorted(DOMAINS - {''}))}. Export it with `perception export`."
                )
        elif message == "tensor" and number in EXTERNAL_FIELDS and (number == 13 or data[first:last] != b"\0"):
            raise PerceptionError(
                "keeps weights in another file (external data). Expected one file that holds everything. "
                "Export it with `perception export`."
            )
        elif number in children:
            _check_message(data, first, last, children[number], depth + 1)


def _read_fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``. ValueError where it does not parse to its last byte."""
    position = start
    while position < end:
        begin = position
        tag, position = _read_varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        content = position
        if kind == 0:
            _, position = _read_varint(data, position, end)
        elif kind == 1:
            position += 8
        elif kind == 2:
            length, content = _read_varint(data, position, end)
            position = content + length
        elif kind == 5:
            position += 4
        else:
            raise ValueError(f"unknown kind of field at byte {begin}")
        if position > end or not number:
            raise ValueError(f"ends within the field at byte {begin}")
        yield number, begin, content, position


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ValueError(f"ends within a number at byte {position}")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def read_metadata(data: bytes) -> dict[str, str]:
    """The key-value pairs in the model's metadata."""
    pairs = {}
    for number, _, first, last in _read_fields(data, 0, len(data)):
        if number == METADATA:
            pair = {n: data[a:b].decode("utf-8", "replace") for n, _, a, b in _read_fields(data, first, last)}
            pairs[pair.get(1, "")] = pair.get(2, "")
    return pairs


def read_output_names(data: bytes) -> list[str]:
    """The names of what the graph gives."""
    return [
        name
        for number, _, start, end in _read_fields(data, 0, len(data))
        if number == GRAPH
        for field, _, first, last in _read_fields(data, start, end)
        if field == GRAPH_OUTPUT
        for name in _read_strings(data, first, last, 1)
    ]


def prune_to_outputs(data: bytes, names: Collection[str]) -> bytes:
    """The model without the outputs that are not in ``names``, and without the nodes and tensors that only they need.

    ONNX Runtime runs every node of a graph, whichever outputs it is asked for.
    """
    parts = []
    for number, begin, first, last in _read_fields(data, 0, len(data)):
        parts.append(
            _encode_field(GRAPH, _prune_graph(data, first, last, set(names))) if number == GRAPH else data[begin:last]
        )
    return b"".join(parts)


def _prune_graph(data: bytes, start: int, end: int, names: set[str]) -> bytes:
    """A graph's bytes without what ``names`` do not need. Its nodes are in an order in which they can be run."""
    needed, kept = set(names), []
    for number, begin, first, last in reversed(list(_read_fields(data, start, end))):
        if number == GRAPH_NODE:
            inputs, outputs = _read_node_ends(data, first, last)
            if not outputs & needed:
                continue
            needed |= inputs
        kept.append((number, begin, first, last))
    name_fields = {GRAPH_TENSOR: 8, GRAPH_OUTPUT: 1, GRAPH_VALUE: 1}
    parts = []
    for number, begin, first, last in reversed(kept):
        wanted = names if number == GRAPH_OUTPUT else needed
        if number in name_fields and not set(_read_strings(data, first, last, name_fields[number])) & wanted:
            continue
        parts.append(data[begin:last])
    return b"".join(parts)


def _read_node_ends(data: bytes, start: int, end: int) -> tuple[set[str], set[str]]:
    """What a node reads, within the graphs of its attributes too, and what it writes."""
    inputs = set(_read_strings(data, start, end, 1))
    for number, _, first, last in _read_fields(data, start, end):
        if number == 5:
            for field, _, begin, stop in _read_fields(data, first, last):
                if field in (6, 11):
                    inputs |= _read_subgraph_inputs(data, begin, stop)
    return inputs, set(_read_strings(data, start, end, 2))


def _read_subgraph_inputs(data: bytes, start: int, end: int) -> set[str]:
    names: set[str] = set()
    for number, _, first, last in _read_fields(data, start, end):
        if number == GRAPH_NODE:
            names |= _read_node_ends(data, first, last)[0]
        elif number == GRAPH_OUTPUT:
            names |= set(_read_strings(data, first, last, 1))
    return names


def _read_strings(data: bytes, start: int, end: int, field: int) -> list[str]:
    """The strings in ``field`` of a message."""
    return [
        data[a:b].decode("utf-8", "replace") for number, _, a, b in _read_fields(data, start, end) if number == field
    ]


def strip_metadata(data: bytes) -> bytes:
    """The model without its key-value pairs."""
    kept = [data[begin:last] for number, begin, _, last in _read_fields(data, 0, len(data)) if number != METADATA]
    return b"".join(kept)


def replace_metadata(data: bytes, pairs: dict[str, str]) -> bytes:
    """The model with ``pairs`` in place of the key-value pairs it had."""
    entries = []
    for key, value in pairs.items():
        pair = _encode_field(1, key.encode()) + _encode_field(2, value.encode())
        entries.append(_encode_field(METADATA, pair))
    return strip_metadata(data) + b"".join(entries)


def _encode_field(number: int, content: bytes) -> bytes:
    head = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def hash_graph(data: bytes) -> str:
    """SHA-256 of the model without its metadata."""
    return hashlib.sha256(strip_metadata(data)).hexdigest()
