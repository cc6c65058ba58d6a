"""Properties of an image file without its labels: content hash, perceptual hash, unusual traits."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.doctor.findings import Issue
from perception.files.images import ImageError, read_image
from perception.files.safe_write import hash_file
from perception.types import DataError

MAX_BYTES = 1 << 30
"""Maximum bytes of a file. An image of at most 100 Mpx is smaller."""

_MAGIC = {
    b"\xff\xd8\xff": ("JPEG", (".jpg", ".jpeg")),
    b"\x89PNG": ("PNG", (".png",)),
    b"GIF8": ("GIF", (".gif",)),
    b"RIFF": ("WebP", (".webp",)),
    b"BM": ("BMP", (".bmp",)),
    b"II*\0": ("TIFF", (".tif", ".tiff")),
    b"MM\0*": ("TIFF", (".tif", ".tiff")),
}


class PerceptualHash(NamedTuple):
    """Perceptual hash of an image: signs of the brightness differences to the right and down, and a thumbnail.

    Attributes:
        hash_bits: uint64 [8], 512 bits.
        thumbnail: uint8 [64], gray 8 x 8.
        textureless: the image has too little texture for the bits to be meaningful.
    """

    hash_bits: NDArray[np.uint64]
    thumbnail: NDArray[np.uint8]
    textureless: bool


@dataclass(slots=True)
class ImageProperties:
    """Properties of an image file.

    Attributes:
        size: (height, width), pixels.
        traits: "gray", "16 bit", "rotated by EXIF", "PNG named .jpg".
        digest: 16 bytes, hash of the file's bytes.
        perceptual_hash: hash of what the image looks like.
    """

    size: tuple[int, int]
    traits: tuple[str, ...]
    digest: bytes
    perceptual_hash: PerceptualHash


def read_image_file(path: Path) -> tuple[NDArray[np.uint8], bytes, bytes] | Issue:
    """Read an image file.

    Args:
        path: file of the image.

    Returns:
        (uint8 RGB [H, W, 3], first bytes of the file, digest of the file), or the issue if it cannot be read.
    """
    try:
        state = os.stat(path)  # noqa: PTH116 - the path may hold surrogates
        if not stat.S_ISREG(state.st_mode):
            return Issue("refused_image", f"{path} is not a regular file. Put an image there.")
        if state.st_size > MAX_BYTES:
            return Issue("refused_image", f"{path} has {state.st_size:,} bytes. Expected at most {MAX_BYTES:,}.")
        with path.open("rb") as file:
            start = file.read(1 << 16)
        return read_image(path), start, hash_file(path)[:16]
    except FileNotFoundError:
        return Issue("missing_image", f"No image at {path}.")
    except ImageError as error:
        return Issue("damaged_image", str(error))
    except DataError as error:
        return Issue("refused_image", str(error))
    except (OSError, ValueError) as error:
        return Issue("damaged_image", f"{path} cannot be read: {error}")


def collect_properties(path: Path, image: NDArray[np.uint8], file_header: bytes, digest: bytes) -> ImageProperties:
    """Collect the properties of an image (uint8 RGB [H, W, 3]) and its file."""
    return ImageProperties(image.shape[:2], _find_traits(path, image, file_header), digest, compute_hash(image))


def _find_traits(path: Path, image: NDArray[np.uint8], file_header: bytes) -> tuple[str, ...]:
    traits = []
    some = image[:: max(1, image.shape[0] // 64), :: max(1, image.shape[1] // 64)]
    if (some == some[..., :1]).all() and (image == image[..., :1]).all():
        traits.append("gray")
    if b"Exif\0\0" in file_header and _read_exif_orientation(path) not in (0, 1):
        traits.append("rotated by EXIF")
    if file_header.startswith(b"\x89PNG") and file_header[24:25] == b"\x10":
        traits.append("16 bit")
    for magic, (name, suffixes) in _MAGIC.items():
        if file_header.startswith(magic) and path.suffix.lower() not in suffixes:
            traits.append(f"{name} named {path.suffix.lower()}")
    return tuple(traits)


def _read_exif_orientation(path: Path) -> int:
    """The EXIF orientation of an image; 1 if it has none."""
    try:
        from PIL import Image

        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")
            found = opened.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def compute_hash(image: NDArray[np.uint8]) -> PerceptualHash:
    """Compute the perceptual hash of an RGB image (uint8 [H, W, 3])."""
    across, down, miniature = (
        cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.int16)
        for size in ((17, 16), (16, 17), (8, 8))
    )
    steps = np.concatenate([np.diff(across, axis=1).ravel(), np.diff(down, axis=0).ravel()])
    bits = np.packbits(steps > 0).view(np.uint64)
    return PerceptualHash(bits, miniature.astype(np.uint8).ravel(), bool((np.abs(steps) >= 2).sum() < 64))


def find_image_issues(path: Path, image: NDArray[np.uint8]) -> list[Issue]:
    """Find issues with the content of an image (uint8 RGB [H, W, 3])."""
    low, high = (int(image[::7, ::7].min()), int(image[::7, ::7].max())) if image.size else (0, 0)
    if high - low <= 255 and (image == image[0, 0]).all():
        return [Issue("blank_image", f"{path} has the single color {tuple(image[0, 0].tolist())}.")]
    cut = len(image) - max(2, len(image) // 10)
    if cut > 0 and (abs(image[cut:].astype(np.int16) - 128) <= 2).all():
        return [Issue("half_gray_image", f"{path} is plain gray from row {cut} of {len(image)} or earlier.")]
    return []
