"""Images made to harm or badly made, beyond `test_data_images`: faults D1 to D4."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import coco_content, coco_tree, noise_image, open_tree, write_image
from mutations import mutated
from PIL import Image, ImageOps

from perception.data.transforms import prepare_for_evaluation
from perception.files.image_headers import ImageError
from perception.files.images import decode_image, read_image, read_image_size
from perception.files.maps import read_map
from perception.types import DataError


def jpeg(image: np.ndarray, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG with right check sums around whatever ``rows`` (compressed) holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.fault("D1")
def test_no_flipped_bit_makes_an_image_gray_or_a_crash(tmp_path):
    """JPEG has no check sum: about one flipped bit in five is noticed, half of them change nothing to be seen."""
    whole = jpeg(cv2.resize(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8), (320, 240)))
    good, path, noticed = read_image(write_bytes(tmp_path / "a.jpg", whole)).astype(int), tmp_path / "b.jpg", 0
    for seed in range(150):
        data, chance = bytearray(whole), random.Random(seed)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            image = read_image(write_bytes(path, data)).astype(int)
        except ImageError:
            noticed += 1
            continue
        gray = (np.abs(image - 128).max(2) <= 1).mean()
        assert image.shape != good.shape or gray < 0.05, f"seed {seed}: {gray:.0%} of the pixels are gray"
    assert noticed >= 30


def write_bytes(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.fault("D1")
@pytest.mark.parametrize("kind", ["revision", "Adobe"])
def test_damage_behind_a_harmless_warning(tmp_path, kind):
    """libjpeg prints only its first warning: one about the header hides the one about missing data."""
    data = jpeg(noise_image(1, (96, 128)))
    if kind == "revision":
        at = data.index(b"JFIF\0") + 5
        data = data[:at] + b"\x21" + data[at + 1 :]
    else:
        data = data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x63" + data[2:]
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(write_bytes(tmp_path / "a.jpg", data[: len(data) * 2 // 3] + b"\xff\xd9"))


@pytest.mark.fault("D1")
@pytest.mark.parametrize("fault", ["truncated", "lost block"])
def test_damaged_cmyk_jpeg(tmp_path, fault):
    data = bytearray(jpeg(noise_image(1, (240, 320)), "CMYK"))
    if fault == "truncated":
        data = data[: len(data) // 2] + b"\xff\xd9"
    else:
        data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(write_bytes(tmp_path / "a.jpg", data))


ROWS = b"".join(bytes([0, *([i] * 64)]) for i in range(48))
BROKEN = {
    "half": zlib.compress(ROWS)[:30],
    "without its sum": zlib.compress(ROWS)[:-4],
    "wrong sum": zlib.compress(ROWS)[:-4] + b"abcd",
    "rows missing": zlib.compress(ROWS[: len(ROWS) // 2]),
    "wrong filter": zlib.compress(b"\x09" + ROWS[1:]),
    "nothing": zlib.compress(b""),
    "no stream": b"",
}


@pytest.mark.fault("D1")
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize(("depth", "colour", "width"), [(8, 0, 64), (8, 3, 64), (1, 0, 512), (4, 3, 128), (16, 0, 32)])
def test_png_whose_content_is_broken_though_its_sums_are_right(tmp_path, kind, depth, colour, width):
    path = write_bytes(tmp_path / "a.png", png(width, 48, depth, colour, BROKEN[kind]))
    with pytest.raises(DataError, match=r"a\.png"):
        read_map(path)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_image(path)


EXIFS = {
    "nothing": b"",
    "no TIFF": b"W\x91\xd1\x06W\xc5c\xfa",
    "no directory": b"II*\0",
    "directory beyond the end": b"II*\0\xff\xff\0\0",
    "entries beyond the end": b"MM\0*\0\0\0\x08\xff\xff",
    "orientation as text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    "orientation beyond the end": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\0\0\0\xff\xff\0\0\0\0\0\0",
}


@pytest.mark.fault("D2")
@pytest.mark.parametrize("exif", EXIFS)
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_of_a_png_that_is_none(tmp_path, exif, depth):
    """The image upright, or an error that names it; the same for pixels and size, and no words of Pillow's."""
    rows = zlib.compress(b"".join(b"\0" + bytes(8 * depth // 8) for _ in range(6)))
    path = write_bytes(tmp_path / "a.png", png(8, 6, depth, 0, rows, chunk(b"eXIf", EXIFS[exif])))
    try:
        shape = read_image(path).shape
    except ImageError as error:
        assert "a.png" in str(error)  # noqa: PT017
        with pytest.raises(ImageError):
            read_image_size(path)
    else:
        assert shape in ((6, 8, 3), (8, 6, 3))
        assert read_image_size(path) == shape[:2]


@pytest.mark.fault("D1")
@pytest.mark.parametrize("seed", range(30))
def test_tiff_with_damaged_tags(tmp_path, seed):
    buffer = io.BytesIO()
    Image.fromarray(noise_image(0)).save(buffer, "TIFF", compression="tiff_lzw")
    data, chance = bytearray(buffer.getvalue()), random.Random(seed)
    begin = int.from_bytes(data[4:8], "little")
    for _ in range(3):
        data[begin + chance.randrange(min(150, len(data) - begin))] = chance.randrange(256)
    path = write_bytes(tmp_path / "a.tif", data)
    for read in (read_image, read_image_size):
        try:
            read(path)
        except DataError as error:
            assert "a.tif" in str(error)  # noqa: PT017


@pytest.mark.fault("D4")
def test_a_row_longer_than_pillow_can_hold(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:22] = struct.pack("<i", 1 + (1 << 26))
    with pytest.raises(DataError, match=r"a\.bmp"):
        read_image(write_bytes(tmp_path / "a.bmp", data))


@pytest.mark.fault("D2")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "png 16", "tiff 16"])
def test_size_and_pixels_of_a_turned_image(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = kind.endswith("16")
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21 if deep else noise_image(0)
    path = tmp_path / f"a.{kind.split()[0]}"
    Image.fromarray(values).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    plain = np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, 2) if deep else values
    marked = Image.fromarray(plain)
    marked.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(marked))
    found = read_image(path)
    assert found.shape == expected.shape
    assert read_image_size(path) == expected.shape[:2]
    assert np.abs(found.astype(int) - expected).mean() < (6 if kind == "jpeg" else 0.01)


@pytest.mark.fault("D2")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_orientation_in_xmp_alone_is_taken_by_all_or_by_none(tmp_path, suffix):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        Image.fromarray(noise_image(0)).save(path, pnginfo=text)
    else:
        Image.fromarray(noise_image(0)).save(path, xmp=xmp)
    assert read_image_size(path) == read_image(path).shape[:2]


@pytest.mark.fault("D2")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_as_if_the_file_were_rotated_beforehand(tmp_path, orientation):
    """The same sample, in its own pixels and letterboxed, from a turned JPEG and from a PNG of its upright pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(noise_image(3), exif=exif)
    upright = read_image(write_bytes(tmp_path / "a.jpg", data))
    samples = []
    for name, size in (("000.jpg", upright.shape[:2]), ("000.png", upright.shape[:2])):
        content = coco_content(2, size)
        content["images"] = [{**content["images"][0], "file_name": name}]
        root = tmp_path / name[-3:]
        config = coco_tree(root, 1, content)
        (root / "coco/images/000.jpg").unlink()
        if name.endswith("jpg"):
            write_bytes(root / "coco/images" / name, data)
        else:
            write_image(root / "coco/images" / name, upright)
        samples.append(open_tree(root, config).load_sample(0))
    for turned, beforehand in (samples, [prepare_for_evaluation(sample, (64, 96)) for sample in samples]):
        assert np.array_equal(turned.image, beforehand.image)
        first, second = turned.annotations["detection"], beforehand.annotations["detection"]
        assert len(first.boxes) == 2
        assert np.array_equal(first.boxes, second.boxes)
        assert np.array_equal(first.labels, second.labels)
        assert turned.transform == beforehand.transform


@pytest.mark.fault("D3")
@pytest.mark.parametrize("kind", ["P5", "P6", "P3"])
def test_sixteen_bit_portable_maps_are_rescaled_not_clipped(tmp_path, kind):
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    values = ramp if kind == "P5" else np.stack([ramp, ramp[::-1], ramp // 2], 2)
    body = values.astype(">u2").tobytes() if kind != "P3" else " ".join(map(str, values.ravel().tolist())).encode()
    path = write_bytes(tmp_path / "a.ppm", f"{kind}\n64 48\n65535\n".encode() + body)
    expected = np.round((values if values.ndim == 3 else np.repeat(values[..., None], 3, 2)) / 257)
    assert np.abs(read_image(path) - expected).max() <= 1


def first_of(kind: str, frames: list[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


@pytest.mark.fault("D3")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_of_animations_and_pages_the_first_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (64, 48), colour) for colour in ((250, 10, 20), (0, 255, 0), (0, 0, 255))]
    image = read_image(write_bytes(tmp_path / f"a.{kind.lower()}", first_of(kind, frames)))
    assert image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - (250, 10, 20)).max() <= 1


@pytest.mark.fault("D3")
@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 2)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_tiny_and_thin_images_are_read_and_prepared(tmp_path, size, suffix):
    content = coco_content(2, size)
    content["images"] = [{**content["images"][0], "file_name": f"a{suffix}"}]
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["bbox"] = [0, 0, size[1], size[0]]
    config = coco_tree(tmp_path, 1, content)
    write_image(tmp_path / f"coco/images/a{suffix}", np.full((*size, 3), 200, np.uint8))
    sample = open_tree(tmp_path, config).load_sample(0)
    assert sample.image.shape == (*size, 3)
    assert sample.annotations["detection"].boxes.tolist() == [[0, 0, size[1], size[0]]]
    assert prepare_for_evaluation(sample, (64, 96)).image.shape == (64, 96, 3)


@pytest.mark.fault("D3")
def test_whatever_is_appended_to_a_jpeg_or_said_before_its_size_is_passed_over(tmp_path):
    """Phones append a video, editors put megabytes of notes before the image."""
    data = jpeg(noise_image(0))
    video = np.random.default_rng(0).bytes(20_000_000)
    notes = (b"\xff\xed\xff\xff" + bytes(65533)) * 40
    for changed in (data + video, data[:2] + notes + data[2:]):
        path = write_bytes(tmp_path / "a.jpg", changed)
        assert np.array_equal(read_image(path), read_image(write_bytes(tmp_path / "b.jpg", data)))
        assert read_image_size(path) == (48, 64)


OTHERS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "raw image": b"II*\0\x10\0\0\0CR\2\0",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "Photoshop": b"8BPS\0\1",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "DICOM": bytes(128) + b"DICM",
    "PDF": b"%PDF-1.7",
    "SVG": b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "web page": b"<!DOCTYPE html><html>",
}


@pytest.mark.fault("D3")
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_read_is_told_by_its_name_and_the_mend(tmp_path, kind):
    with pytest.raises(ImageError, match=rf"a\.jpg is an? .*{kind}.*(Convert|Fetch)"):
        read_image(write_bytes(tmp_path / "a.jpg", OTHERS[kind] + bytes(100)))


@pytest.mark.fault("D3")
def test_the_preview_of_a_raw_image_is_not_taken_for_it(tmp_path):
    """DNG, NEF and ARW are TIFFs whose first image is small, and the camera's own in a directory below."""
    Image.fromarray(noise_image(0)).save(tmp_path / "a.tif", tiffinfo={254: 1, 330: 8})
    with pytest.raises(ImageError, match=r"raw image, of which only the preview"):
        read_image(tmp_path / "a.tif")
    Image.fromarray(noise_image(0)).save(tmp_path / "a.nef", "TIFF")
    with pytest.raises(ImageError, match=r"raw image, which is not supported"):
        read_image(tmp_path / "a.nef")


@pytest.mark.fault("D3")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF"])
def test_content_counts_and_not_the_name(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise_image(0)).save(buffer, kind)
    named, other = (write_bytes(tmp_path / name, buffer.getvalue()) for name in (f"a.{kind.lower()}", "a.dat"))
    assert np.array_equal(read_image(named), read_image(other))
    assert read_image_size(other) == (48, 64)


def hidden_size() -> bytes:
    """A JPEG of 30000 x 30000 pixels that says 8 x 8 to a reader who takes a length where libjpeg takes none."""
    small = jpeg(np.zeros((8, 8, 3), np.uint8), "L")
    frame = lambda side: b"\xff\xc0\0\x0b\x08" + struct.pack(">HH", side, side) + b"\x01\x01\x11\0"  # noqa: E731
    tables = small[2 : small.index(b"\xff\xc0")] + small[small.index(b"\xff\xc4") : small.index(b"\xff\xda")]
    huge = b"\xff\xd0\0\x10" + frame(30_000) + b"\0"  # with a length: a segment of 16 bytes, the frame in it
    comment = b"\xff\xd1\0\x04\xff\xfe"  # with a length: a segment that holds the name of the next one, a comment ...
    within = (
        b"\xff\xc0\xff\xc0" + frame(8)[4:]
    )  # ... of length 0xffc0, which is here the name of a frame, of that length
    filler = bytes(0xFFC0 - len(within)) + bytes(2)
    return b"\xff\xd8" + huge + comment + within + filler + tables + small[small.index(b"\xff\xda") :]


BOMBS = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from perception.files.images import read_image, read_image_size
from perception.files.maps import read_map
from perception.types import DataError
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (read_image, read_image_size, read_map):
        begun = time.monotonic()
        try:
            said = f"read {read(path) if read is read_image_size else read(path).shape}"
        except DataError as error:
            said = f"DataError {error}"
        except BaseException as error:
            said = f"ESCAPED {error!r}"
        print(path.name, read.__name__, f"{time.monotonic() - begun:.1f}", said.replace("\\n", " ")[:300], sep="|")
# Not ru_maxrss: that of the process which began this one outlives exec.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", int(peak) // 1024, sep="|")
"""


def bombs(folder: Path) -> None:
    """Files that are small, or sparse, and claim or become something huge."""
    small = noise_image(0)
    write_bytes(folder / "whole.png", png(12_000, 12_000, 8, 0, zlib.compress(bytes(12_001) * 12_000, 1)))
    write_bytes(folder / "deep.png", png(65_000, 65_000, 16, 6, zlib.compress(bytes(100))))
    squeezed = zlib.compress(bytes(100_000_000), 1)
    for name in (b"zTXt", b"iCCP", b"iTXt"):
        data = b"a\0" + (b"\x01\0a\0a\0" if name == b"iTXt" else b"\0") + squeezed
        rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in small))
        write_bytes(folder / f"{name.decode()}.png", png(64, 48, 8, 2, rows, chunk(name, data)))
    data = jpeg(small)
    at = data.index(b"\xff\xc0") + 5
    write_bytes(folder / "claims.jpg", data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])
    for kind, width_at, code in (("BMP", 18, "<ii"), ("GIF", 6, "<HH")):
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, kind)
        content = bytearray(buffer.getvalue())
        content[width_at : width_at + struct.calcsize(code)] = struct.pack(code, 60_000, 60_000)
        write_bytes(folder / f"claims.{kind.lower()}", content)
        if kind == "BMP":
            content[18:26] = struct.pack("<ii", (1 << 26) + 1, 1)
            write_bytes(folder / "one_row.bmp", content)
    write_bytes(folder / "claims.ppm", b"P6\n60000 60000\n255\n" + bytes(100))
    write_bytes(folder / "digits.ppm", b"P6\n" + b"9" * 5000 + b" 1\n255\n" + bytes(100))
    tags = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (278, 4, 1, 60_000), (279, 4, 1, 100)]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    write_bytes(folder / "claims.tif", b"II*\0\x08\0\0\0" + table)
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_000).to_bytes(3, "little") + (16_000).to_bytes(3, "little")
    write_bytes(folder / "claims.webp", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
    write_bytes(folder / "hidden.jpg", hidden_size())
    for suffix, head in ((".jpg", data[:200]), (".png", b"\x89PNG\r\n\x1a\n"), (".bmp", b"BM")):
        with (folder / f"sparse{suffix}").open("wb") as file:
            file.write(head)
            file.truncate(3 << 30)
    write_bytes(folder / "filled.jpg", b"\xff\xd8" + b"\xff" * 30_000_000)
    write_bytes(folder / "segments.jpg", b"\xff\xd8" + b"\xff\xe0\0\x02" * 5_000_000)
    write_bytes(folder / "chunks.png", b"\x89PNG\r\n\x1a\n" + chunk(b"aaAa", b"") * 2_000_000)
    write_bytes(folder / "scans.jpg", scans(8000, 2000))
    colors = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    assert cv2.imwrite(str(folder / "colors.png"), colors, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG that goes over all its pixels ``count`` times, with no data in any."""
    data = jpeg(np.zeros((16, 16, 3), np.uint8), "L", progressive=True)
    at = data.index(b"\xff\xc2") + 5
    data = data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]
    begin = data.index(b"\xff\xda")
    end = data.index(b"\xff", begin + 10)
    return data[:end] + data[begin:end] * count + b"\xff\xd9"


@pytest.mark.fault("D4")
def test_bombs_are_refused_in_little_memory_and_time(tmp_path):
    bombs(tmp_path)
    command = [sys.executable, "-W", "error", "-c", BOMBS, str(tmp_path)]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *lines, (_, peak) = [line.split("|", 3) for line in done.stdout.splitlines()]
    fine = {"iCCP.png", "zTXt.png", "iTXt.png", "colors.png"}  # small images: what hides in them is not looked at
    wrong = [
        (name, read, seconds, said)
        for name, read, seconds, said in lines
        if (
            not (said.startswith("DataError") and name in said)
            and not (
                said.startswith("read ") and (read == "read_image_size" or (read == "read_image" and name in fine))
            )
        )
        or float(seconds) > 5
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert int(peak) < 1500, f"{peak} MB"
    assert time.monotonic() - begun < 120


FORMATS = {
    "jpeg": {"quality": 90},
    "jpeg progressive": {"progressive": True},
    "jpeg restarts": {"restart_marker_blocks": 4},
    "png": {},
    "webp": {},
    "avif": {},
    "gif": {},
    "tiff": {"compression": "tiff_lzw"},
    "bmp": {},
    "ppm": {},
}


def survive(kind: str, seeds: range) -> None:
    """Each mutated image is an image, or an error that names it; no word to the error stream, no wait."""
    buffer, what = io.BytesIO(), kind.split()[0]
    Image.fromarray(noise_image(1, (96, 128))).save(buffer, what, **FORMATS[kind])
    begun = time.monotonic()
    for seed in seeds:
        data = mutated(buffer.getvalue(), random.Random(f"{kind} {seed}"))
        try:
            image = decode_image(data, "here")
        except DataError as error:
            assert "here" in str(error), f"{kind} {seed}"  # noqa: PT017
            continue
        assert image.dtype == np.uint8, f"{kind} {seed}"
        assert image.ndim == 3, f"{kind} {seed}"
    assert time.monotonic() - begun < 0.1 * len(seeds)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("kind", FORMATS)
def test_no_mutation_leads_to_a_traceback_or_a_word(kind, capfd):
    survive(kind, range(150))
    if kind != "tiff":  # libtiff says what it finds wrong, before Pillow does
        assert capfd.readouterr() == ("", "")


@pytest.mark.fault("D1")
@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_nor_do_three_thousand(kind):
    survive(kind, range(3000))
