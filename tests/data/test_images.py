"""Reading image files: faults D1 to D4."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import data_trees
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from perception.files.images import ImageError, read_image
from perception.files.maps import read_map
from perception.types import DataError


def smooth(seed: int = 0) -> np.ndarray:
    return data_trees.noise_image(seed, (48, 64))


def jpeg(path: Path, image: np.ndarray | None = None, **options) -> Path:
    Image.fromarray(smooth() if image is None else image).save(path, "JPEG", quality=95, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), smooth())


def test_jpeg_is_close_and_contiguous(tmp_path):
    image = read_image(jpeg(tmp_path / "a.jpg"))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - smooth()).mean() < 3


@pytest.mark.fault("D1")
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg(tmp_path, keep, progressive):
    data = jpeg(tmp_path / "a.jpg", data_trees.noise_image(1, (96, 128)), progressive=progressive).read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.fault("D1")
def test_truncated_jpeg_with_an_end_marker(tmp_path):
    data = jpeg(tmp_path / "a.jpg", data_trees.noise_image(1, (96, 128))).read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.fault("D1")
def test_the_thumbnail_of_a_truncated_jpeg_is_not_its_end(tmp_path):
    thumbnail = jpeg(tmp_path / "t.jpg", data_trees.noise_image(2, (16, 16))).read_bytes()
    data = jpeg(tmp_path / "a.jpg", data_trees.noise_image(1, (96, 128))).read_bytes()
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + comment + data[2:]
    (tmp_path / "a.jpg").write_bytes(whole)
    read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(whole[:-200])
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.jpg")


@pytest.mark.fault("D1")
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"random"])
def test_a_lost_block_in_a_jpeg(tmp_path, fill, capfd):
    data = bytearray(jpeg(tmp_path / "a.jpg", data_trees.noise_image(1, (240, 320))).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 512] = np.random.default_rng(0).bytes(512) if fill == b"random" else fill * 512
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")
    assert capfd.readouterr().err == ""


@pytest.mark.fault("D1")
@pytest.mark.parametrize("seed", range(20))
def test_png_with_a_flipped_bit(tmp_path, seed):
    path = data_trees.write_image(tmp_path / "a.png", smooth())
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(8, len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(path)
    with pytest.raises(DataError, match=r"a\.png"):
        read_map(path)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".webp", ".tif"])
def test_truncated_other_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ImageError, match=r"truncated|damaged"):
        read_image(path)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_no_image_at_all(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg")


def test_the_runtime_reads_jpeg_and_png_without_torch_pydantic_and_pillow(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(smooth()[..., 0].astype(np.uint16)).save(tmp_path / "c.png", exif=exif)
    Image.fromarray(smooth()).save(tmp_path / "d.gif")
    code = (
        "import sys; sys.modules.update(torch=None, pydantic=None, PIL=None, albumentations=None)\n"
        "from pathlib import Path; from perception.files.images import read_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: print(read_image(path).shape)\n"
        "    except Exception as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout.splitlines()[:3] == ["(64, 48, 3)", "(48, 64, 3)", "(64, 48, 3)"]
    assert "needs the package pillow" in done.stdout.splitlines()[3]


@pytest.mark.fault("D2")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "png16"])
def test_exif_orientation_is_as_if_rotated_beforehand(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("a.jpg" if kind == "jpeg" else "a.png")
    if kind == "jpeg":
        stored = jpeg(path, exif=exif)
    elif kind == "png":
        Image.fromarray(smooth()).save(path, exif=exif)
        stored = path
    else:
        Image.fromarray(smooth()[..., 0].astype(np.uint16) * 257).save(path, exif=exif)
        stored = path
    marked = Image.new("L", (1, 1))
    marked.getexif()[0x0112] = orientation
    with Image.open(stored) as image:
        expected = np.asarray(ImageOps.exif_transpose(image.convert("RGB") if kind != "png16" else _gray8(image, exif)))
    found = read_image(stored)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (2 if kind == "jpeg" else 0)


def _gray8(image: Image.Image, exif: Image.Exif) -> Image.Image:
    gray = Image.fromarray(np.repeat((np.asarray(image) // 257).astype(np.uint8)[..., None], 3, 2))
    gray.getexif()[0x0112] = exif[0x0112]
    return gray


@pytest.mark.fault("D3")
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.fromarray(smooth()).convert(mode)
    image.save(path)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(path), expected)


@pytest.mark.fault("D3")
def test_cmyk_jpeg(tmp_path):
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(image.convert("RGB")))


@pytest.mark.fault("D3")
def test_gray_jpeg_and_gif(tmp_path):
    gray = smooth()[..., 0]
    found = read_image(jpeg(tmp_path / "a.jpg", gray))
    assert found.shape == (48, 64, 3)
    assert np.abs(found.astype(int) - gray[..., None]).mean() < 3
    frames = [Image.fromarray(smooth(i)).quantize(64) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "a.gif"), np.asarray(frames[0].convert("RGB")))


@pytest.mark.fault("D3")
def test_palette_with_transparency(tmp_path):
    Image.fromarray(smooth()).quantize(8).save(tmp_path / "a.png", transparency=bytes(range(8)))
    assert read_image(tmp_path / "a.png").shape == (48, 64, 3)


@pytest.mark.fault("D3")
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_rescaled_not_clipped(tmp_path, channels):
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    image = ramp if channels == 1 else np.stack([ramp, ramp // 2, ramp[::-1], ramp][:channels], 2)
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), image)
    found = read_image(path)
    expected = np.round((image if channels == 1 else image[..., 2]) / 257).astype(np.uint8)
    assert np.array_equal(found[..., 0], expected)
    if channels > 1:
        assert np.array_equal(found[..., 2], np.round(image[..., 0] / 257).astype(np.uint8))


@pytest.mark.fault("D3")
def test_sixteen_bit_tiff(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 1], np.round(ramp / 257).astype(np.uint8))


@pytest.mark.fault("D3")
def test_thirty_two_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="32 bits"):
        read_image(tmp_path / "a.tif")


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.fault("D4")
def test_an_image_over_100_mpx_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(png_header(20_000, 20_000))
    data = jpeg(tmp_path / "b.jpg").read_bytes()
    at = data.index(b"\xff\xc0") + 5
    (tmp_path / "b.jpg").write_bytes(data[:at] + struct.pack(">HH", 60_000, 60_000) + data[at + 4 :])
    bmp = io.BytesIO()
    Image.fromarray(smooth()).save(bmp, "BMP")
    for size, name in ((15_000, "c.bmp"), (10_000, "d.bmp"), (40_000, "e.bmp")):
        content = bytearray(bmp.getvalue())
        content[18:26] = struct.pack("<ii", size, 10_001)
        (tmp_path / name).write_bytes(content)
    for name in ("a.png", "b.jpg", "c.bmp", "d.bmp", "e.bmp"):
        with pytest.raises(DataError, match="Mpx") as caught:
            read_image(tmp_path / name)
        assert not isinstance(caught.value, ImageError)
    with pytest.raises(DataError, match="Mpx"):
        read_map(tmp_path / "a.png")


@pytest.mark.fault("D5")
def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"No image at .*nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")


def test_maps_keep_their_numbers(tmp_path):
    eight, sixteen = (
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        np.arange(256, dtype=np.uint16).reshape(16, 16) * 250,
    )
    assert np.array_equal(read_map(data_trees.write_image(tmp_path / "a.png", eight)), eight)
    assert np.array_equal(read_map(data_trees.write_image(tmp_path / "b.png", sixteen)), sixteen)
    palette = Image.fromarray(eight, "L").convert("P")
    palette.putpalette(np.random.default_rng(0).bytes(768))
    palette.save(tmp_path / "c.png")
    assert np.array_equal(read_map(tmp_path / "c.png"), eight)


@pytest.mark.fault("D15")
def test_rgb_map_is_refused_with_its_colors(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:2] = 128, 64, 128
    with pytest.raises(DataError, match=r"RGB PNG with colors \(0, 0, 0\): 75%, \(128, 64, 128\): 25%"):
        read_map(data_trees.write_image(tmp_path / "a.png", image))
    with pytest.raises(DataError, match="is a JPEG"):
        read_map(jpeg(tmp_path / "b.jpg"))
