"""JPEGs: the pixels of other decoders to the last bit, and fault D1: damage is an error at every scale."""

import io
import struct

import cv2
import numpy as np
import pytest
from data_trees import noise_image
from PIL import Image

from perception.files.images import ImageError, decode_image, open_image

SCAN, END = b"\xff\xda", b"\xff\xd9"
KINDS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "gray": {},
}


def encode(kind: str = "4:2:0", size: tuple[int, int] = (240, 320)) -> bytes:
    buffer, image = io.BytesIO(), Image.fromarray(noise_image(1, (240, 320))).resize(size[::-1])
    image = image.convert("L") if kind == "gray" else image
    image.save(buffer, "JPEG", quality=90, **KINDS[kind])
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(240, 320), (97, 131), (1, 1), (1, 300), (17, 33)])
def test_pixels_are_those_of_opencv_and_pillow_to_the_last_bit(tmp_path, kind, size):
    data = encode(kind, size)
    found = decode_image(data, "x")
    assert np.array_equal(found, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(found, np.asarray(image.convert("RGB")))
    (tmp_path / "a.jpg").write_bytes(data)
    for factor in (2, 4, 8):
        smaller = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | 8 * factor)[..., ::-1]
        assert np.array_equal(open_image(tmp_path / "a.jpg").decode(factor), smaller)


def scan_parameters(data: bytes) -> int:
    """Where those of the first scan begin."""
    at = data.index(SCAN)
    return at + 5 + 2 * data[at + 4]


def harmless() -> dict[str, bytes]:
    """Files whose pixels are whole though libjpeg warns of them."""
    data = encode()
    at = scan_parameters(data)
    profile = b"ICC_PROFILE\0\5\1" + bytes(16)
    return {
        "JFIF of an unknown version": data.replace(b"JFIF\0\1", b"JFIF\0\x21", 1),
        "Adobe of an unknown kind": data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x63" + data[20:],
        "a damaged color profile": data[:2] + b"\xff\xe2" + struct.pack(">H", len(profile) + 2) + profile + data[2:],
        "parameters of a progressive scan": data[:at] + bytes(3) + data[at + 3 :],
        "zeros before the end": data[:-2] + bytes(700) + END,
        "fill bytes before the end": data[:-2] + b"\xff" * 7 + END,
        "a second image behind it": data + bytes(5) + encode("gray"),
        "a camera's notes behind it": data + b"notes" * 1000,
    }


@pytest.mark.fault("D1")
@pytest.mark.parametrize("what", harmless())
def test_what_changes_no_pixel_is_read(what):
    assert np.array_equal(decode_image(harmless()[what], "x"), decode_image(encode(), "x"))


def damaged(kind: str) -> dict[str, bytes]:
    data = encode(kind)
    middle = (data.index(SCAN) + len(data)) // 2
    return {
        "cut": data[:middle],
        "cut, with an end": data[:middle] + END,
        "without its end": data[:-2],
        "filled with zeros": data[:middle] + bytes(len(data) - middle),
        "filled with zeros, with an end": data[:middle] + bytes(len(data)) + END,
        "forty zeros": data[:middle] + bytes(40) + data[middle + 40 :],
        "a lost block": data[:middle] + data[middle + 900 :],
        "another's end": data[:middle] + encode("gray", (48, 64)),
        "damage behind a harmless warning": (data[:middle] + END).replace(b"JFIF\0\1", b"JFIF\0\x21", 1),
        "fewer rows in its header": taller(data, -64),
        "more rows in its header": taller(data, 64),
    }


def taller(data: bytes, rows: int) -> bytes:
    at = next(data.index(marker) for marker in (b"\xff\xc0\0", b"\xff\xc2\0") if marker in data) + 5
    return data[:at] + struct.pack(">H", struct.unpack_from(">H", data, at)[0] + rows) + data[at + 2 :]


@pytest.mark.fault("D1")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", damaged("4:2:0"))
def test_damage_is_an_error_and_no_word_on_the_error_stream(kind, what, capfd):
    with pytest.raises(ImageError, match=r"^x "):
        decode_image(damaged(kind)[what], "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.fault("D1")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_component_without_its_scan_is_no_gray_image(count):
    """Three scans, one for each component, of an image of 4:4:4."""
    gray = encode("gray")
    frame, scan = gray.index(b"\xff\xc0"), gray.index(SCAN)
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    head = gray[:frame] + b"\xff\xc0\0\x11" + gray[frame + 4 : frame + 9] + b"\3" + components + gray[frame + 13 : scan]
    scans = [gray[scan : scan + 5] + bytes((number,)) + gray[scan + 6 : -2] for number in (1, 2, 3)]
    assert decode_image(head + b"".join(scans) + END, "x").shape == (240, 320, 3)
    with pytest.raises(ImageError, match=f"{3 - count} of its 3 components are in none of its" if count else "x is"):
        decode_image(head + b"".join(scans[:count]) + END, "x")


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("value", [0, 255])
def test_a_black_image_is_no_damage(optimize, value):
    """With tables of its own a flat image is all zeros."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((480, 640, 3), value, np.uint8)).save(buffer, "JPEG", optimize=optimize, subsampling=0)
    assert np.unique(decode_image(buffer.getvalue(), "x")).tolist() == [value]
