"""Strict XML of elements and text only: no document types or entities, limited size. Errors give the line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from perception.files.strict_json import quote_value
from perception.types import DataError

MAX_XML_BYTES = 8_000_000
MAX_ELEMENTS = 200_000
MAX_DEPTH = 50
ENCODINGS = ("utf-8", "us-ascii", "utf-16", "iso-8859-1", "windows-1252")


@dataclass(slots=True)
class XmlElement:
    """An XML element, without attributes.

    Attributes:
        tag: its name.
        line: line where it starts.
        text: its text, stripped.
        children: the elements in it.
    """

    tag: str
    line: int
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def find_all(self, tag: str) -> list[XmlElement]:
        """Return the children with the name ``tag``."""
        return [child for child in self.children if child.tag == tag]

    def find_first(self, tag: str) -> XmlElement | None:
        """Return the first child with the name ``tag``, or None."""
        return next((child for child in self.children if child.tag == tag), None)


class _InvalidXml(Exception):
    pass


def check_xml_file(path: Path) -> None:
    """Raise DataError if the file is missing or larger than `MAX_XML_BYTES`."""
    try:
        if not path.is_file():
            raise DataError(f"No file at {path}. Restore it, or correct the path.")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    if size > MAX_XML_BYTES:
        raise DataError(
            f"{path} has {size} bytes. Expected the annotations of an image, at most {MAX_XML_BYTES}: fetch it again."
        )


def read_xml(path: Path) -> XmlElement:
    """Read an XML file and return its root element. Raises DataError with the line if it is not valid."""
    check_xml_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_XML_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    builder = _TreeBuilder()
    try:
        builder.parser.Parse(data, True)
    except ExpatError as error:
        raise DataError(
            f"{path} is not valid XML at {error}. It may be truncated: fetch it again, or correct it."
        ) from error
    except _InvalidXml as error:
        raise DataError(f"{path}, line {builder.parser.CurrentLineNumber}: {error}.") from None
    except (ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML: {error}. Save it as UTF-8.") from error
    return builder.root.children[0]


class _TreeBuilder:
    def __init__(self) -> None:
        self.root = XmlElement("", 0)
        self._open = [self.root]
        self._texts: list[list[str]] = [[]]
        self._count = 0
        self.parser = parser = ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._on_declaration
        parser.StartDoctypeDeclHandler = self._on_doctype
        parser.StartElementHandler = self._on_start
        parser.EndElementHandler = self._on_end
        parser.CharacterDataHandler = self._on_text

    def _on_declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ENCODINGS:
            raise _InvalidXml(
                f"the encoding {quote_value(encoding)} is not one of {', '.join(ENCODINGS)}. Save it as UTF-8"
            )

    def _on_doctype(self, *_: Any) -> None:
        raise _InvalidXml("a document type (DOCTYPE, entities) is refused. Write the file again without it")

    def _on_start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._open) > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise _InvalidXml(
                f"more than {MAX_ELEMENTS} elements, or a depth over {MAX_DEPTH}, cannot be annotations of an image. "
                "Fetch the file again"
            )
        element = XmlElement(tag, self.parser.CurrentLineNumber)
        self._open[-1].children.append(element)
        self._open.append(element)
        self._texts.append([])

    def _on_end(self, tag: str) -> None:
        self._open.pop().text = "".join(self._texts.pop()).strip()

    def _on_text(self, text: str) -> None:
        self._texts[-1].append(text)
