"""Unsupported images, drawings and documents, detected by their first bytes, so that errors explain the conversion."""

from __future__ import annotations

import re
from pathlib import Path

_CONVERT = "magick IN OUT.png"
_CAMERA_RAW = "a camera's raw image", "darktable-cli IN OUT.jpg, or take the JPEG that the camera wrote beside it"
_UNSUPPORTED_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC image", "heif-convert IN OUT.jpg, or " + _CONVERT),
    (rb"....ftypcrx ", *_CAMERA_RAW),
    (rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb", *_CAMERA_RAW),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", "djxl IN OUT.png"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "a JPEG 2000 image", _CONVERT),
    (rb"8BPS", "a Photoshop document", _CONVERT),
    (rb"v/1\x01", "an OpenEXR image", _CONVERT),
    (rb"#\?R(ADIANC|GB)E", "a Radiance HDR image", _CONVERT),
    (rb".{128}DICM", "a DICOM image", "dcm2img IN OUT.png"),
    (rb"SIMPLE  =", "a FITS image", _CONVERT),
    (rb"\0\0[\1\2]\0[^\0]\0", "an icon", _CONVERT),
    (rb"\x93NUMPY", "a numpy array", "cv2.imwrite"),
    (rb"%PDF", "a PDF", "pdftoppm -png IN OUT"),
    (rb"(?i)\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*(<!doctype svg[^>]*>\s*)?<svg", "a drawing (SVG)", _CONVERT),
)
_WEB_PAGE_PATTERN = re.compile(
    rb"(?i)(\xef\xbb\xbf)?\s*(<!--(?:(?!-->).)*-->\s*)*<(!doctype html|html|head|body|\?xml)", re.DOTALL
)
_PATTERNS = [(re.compile(pattern, re.DOTALL), what, mend) for pattern, what, mend in _UNSUPPORTED_FORMATS]
_RAW_SUFFIXES = frozenset(
    (
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef",
        ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f",
    )
)  # fmt: skip
UNSUPPORTED_SUFFIXES = _RAW_SUFFIXES | {".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".psb"}
"""Suffixes of unsupported photographs."""


def describe_unsupported(head: bytes, path: Path | str = "") -> str | None:
    """Describe an unsupported file and how to convert it; None if it is supported or unknown.

    ``head`` has the first bytes of the file.
    """
    if Path(path).suffix.lower() in _RAW_SUFFIXES:
        found: tuple[str, str] | None = _CAMERA_RAW
    else:
        found = next(((what, mend) for pattern, what, mend in _PATTERNS if pattern.match(head)), None)
    if found:
        return f"is {found[0]}, which is not supported. Convert it first: {found[1]}"
    if _WEB_PAGE_PATTERN.match(head):
        return "is a web page, not an image or video. Fetch the file itself"
    return None


def is_raw_preview(tags: dict[int, object]) -> bool:
    """Return whether the first directory of a TIFF is the preview of a raw camera image (DNG, NEF, ARW ...)."""
    small = tags.get(254, 0)
    return 0xC612 in tags or (isinstance(small, int) and bool(small & 1) and 330 in tags)


RAW_PREVIEW_MESSAGE = f"is {_CAMERA_RAW[0]}, of which only the preview can be read. Convert it first: {_CAMERA_RAW[1]}"
