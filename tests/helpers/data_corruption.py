# ruff: noqa: E501
"""Ways to spoil a tree of data, chosen by a seeded generator: what a full disk, a careless or a malicious hand does."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class CaseTimeout(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def limit_resources(seconds: float, memory: int) -> Iterator[None]:
    """`CaseTimeout` after so many seconds, MemoryError beyond so many bytes more than now."""

    def stop(number: int, frame: object) -> None:
        raise CaseTimeout(f"no end after {seconds} s")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, 1e-320, "", " ", "NaN", "nan", "inf", "1",
    "-1", "1e400", "\ud800", "a\0b", "a\nb", "..", "../a.jpg", "/etc/passwd", "..\\a", "x" * 5000, "é", "e\u0301", "\u202e", [], {},
    [[]], [None], [1, 2], [1, 2, 3, 4], [[1, 2, 3, 4]], [0] * 1000, {"a": 1}, {"": []}, ["a", "b"], [1e308] * 4, [-1e308] * 4,
    [float(2**53)] * 6, [[["a"]]],
)  # fmt: skip
RAW_VALUES = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 5000,
    "[" * 5000,
    '{"a":1,"a":2}',
    "01",
    "'a'",
    "",
    "//",
)
HOSTILE_WORDS = (
    "", "nan", "NaN", "inf", "-inf", "1e400", "-1", "0", "1e-320", "0x10", "1_0", "９", "1,5", "٣", "9" * 400, "9" * 5000, "x" * 5000,
    "None", "true", "\0", "\ud7ff", "../a.jpg", "/etc/passwd", "\\", '"', "'", "<", ">", "&", "&amp;", "&lol;", "<!DOCTYPE a>", "]]>",
    "<a>", "\t", "\r", "\n", "\x0b", "\x1c", "\x85", "\u2028", "\ufeff", "#", ";", ":", ",", "[", "{", "- ", "!!python/object", "*a", "&a",
)  # fmt: skip
HOSTILE_NAMES = (
    "._000.jpg", ".DS_Store", "Thumbs.db", "x y.jpg", "a\nb.jpg", "é.jpg", "e\u0301.jpg", b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"),
    "CON.jpg", "a.jpg.jpg", "a.JPG", "-rf.jpg", "a.txt", "a.xml", "a.json", "a.png", "a.npy", "x" * 240 + ".png", "*.png", "[a].png",
)  # fmt: skip

Corruption = Callable[[Path, random.Random], str | None]
"""Spoils one regular file, never through a link. Returns what it did, None where it does not apply."""


def corrupt_tree(root: Path, rng: random.Random) -> str:
    """Do one to three things to files under ``root``. Returns a description."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 1 << 24)
        texts = [p for p in files if p.suffix not in (".jpg", ".png")]
        if not files:
            break
        path = rng.choice(texts if texts and rng.random() < 0.5 else files)
        by_kind = {
            ".json": JSON_CORRUPTIONS,
            ".png": MAP_CORRUPTIONS,
            ".npy": ARRAY_CORRUPTIONS,
            ".jpg": IMAGE_CORRUPTIONS,
        }
        special = by_kind.get(path.suffix, TEXT_CORRUPTIONS)
        deeds = special if rng.random() < 0.6 else CORRUPTIONS
        said = rng.choice(deeds)(path, rng)
        done.append(f"{path.relative_to(root)!s}: {said}")
    return "; ".join(done)


def flip_bits(path: Path, rng: random.Random) -> str | None:
    data = bytearray(path.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 3, 30)))] if data else []
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"flip {places}"


def truncate(path: Path, rng: random.Random) -> str | None:
    data = path.read_bytes()
    keep = rng.choice((0, 1, 2, 8, rng.randrange(len(data) + 1), max(0, len(data) - 1), max(0, len(data) - 5)))
    path.write_bytes(data[:keep])
    return f"keep {keep} bytes"


def insert_bytes(path: Path, rng: random.Random) -> str | None:
    data = path.read_bytes()
    place = rng.randrange(len(data) + 1)
    junk = rng.choice((b"\0", b"\xff\xfe", b"\n", b'"', b"\xc3", b"\xed\xa0\x80", b"\0" * 300, rng.randbytes(40)))
    path.write_bytes(data[:place] + junk + data[place:])
    return f"insert {junk[:9]!r} at {place}"


def overwrite_bytes(path: Path, rng: random.Random) -> str | None:
    content = rng.choice(
        (b"", b"\0" * 4096, b"<!DOCTYPE html><html></html>", rng.randbytes(500), b"\xff\xfea\0b\0", b"{}", b"[]",
         b"null", b"[" * 100_000, b"{\"a\":" * 50_000, b"\n" * 1000, b"\xef\xbb\xbf", b"a,b\n\"c", b"<a>" * 50_000,
         b"x" * 100_000, b"1 " * 50_000, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    )  # fmt: skip
    path.write_bytes(content)
    return f"content {content[:12]!r}"


def delete(path: Path, rng: random.Random) -> str | None:
    path.unlink()
    return "deleted"


def rename(path: Path, rng: random.Random) -> str | None:
    name = rng.choice((path.name.upper(), path.name + "~", "0" + path.name, path.stem, *HOSTILE_NAMES))
    if path.with_name(name).is_dir():
        return None
    path.rename(path.with_name(name))
    return f"renamed {name!r}"


def add_stray_file(path: Path, rng: random.Random) -> str | None:
    name = rng.choice((path.stem + ".png", path.stem + ".jpeg", path.stem + ".npy", *HOSTILE_NAMES))
    other = path.with_name(name)
    if os.path.lexists(other):
        return None
    other.write_bytes(path.read_bytes() if rng.random() < 0.5 else b"\0" * 30)
    return f"beside it {name!r}"


def replace_by_folder(path: Path, rng: random.Random) -> str | None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.3:
        (path / path.name).write_bytes(b"")
    return "a folder"


def replace_by_pipe(path: Path, rng: random.Random) -> str | None:
    path.unlink()
    os.mkfifo(path)
    return "a FIFO"


def replace_by_link(path: Path, rng: random.Random) -> str | None:
    others = [p for p in path.parent.iterdir() if p != path] or [path.parent]
    target = rng.choice((path, Path("/dev/zero"), Path("nowhere"), Path(__file__), Path(".."), rng.choice(others)))
    path.unlink()
    path.symlink_to(target)
    return f"a link to {target}"


def replace_by_sparse_file(path: Path, rng: random.Random) -> str | None:
    size = rng.choice((1 << 26, 1 << 40))
    os.truncate(path, size)
    return f"sparse, {size} bytes"


def swap_with_another(path: Path, rng: random.Random) -> str | None:
    others = [
        p
        for p in sorted(path.parents[1].rglob("*"))
        if p.is_file() and not p.is_symlink() and p != path and p.stat().st_size < 1 << 24
    ]
    if not others:
        return None
    other = rng.choice(others)
    path.write_bytes(other.read_bytes())
    return f"content of {other.name}"


def remove_folder(path: Path, rng: random.Random) -> str | None:
    shutil.rmtree(path.parent)
    return "its folder deleted"


def change_json(path: Path, rng: random.Random) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return flip_bits(path, rng)
    said = []
    for _ in range(rng.choice((1, 1, 2, 4)) if isinstance(content, (dict, list)) else 0):
        spots = list(_json_nodes(content))
        if not spots:
            break
        holder, key = rng.choice(spots)
        what = rng.random()
        if what < 0.15:
            said.append(f"del {key!r}")
            del holder[key]
        elif what < 0.3 and isinstance(holder, list):
            said.append(f"twice [{key!r}]")
            holder.insert(key, holder[key])
        elif what < 0.4:
            raw = rng.choice(RAW_VALUES)
            said.append(f"{key!r} = {raw[:20]}")
            holder[key] = f"RAW{RAW_VALUES.index(raw)}WAR"
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
            said.append(f"{key!r} = {ascii(holder[key])[:40]}")
    text = re.sub(r'"RAW(\d+)WAR"', lambda match: RAW_VALUES[int(match[1])], json.dumps(content))
    path.write_text(text)
    return "JSON " + ", ".join(said)


def _json_nodes(content: Any):
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(pairs):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _json_nodes(value)


def change_words(path: Path, rng: random.Random) -> str | None:
    text = path.read_bytes().decode("utf-8", "replace")
    words = list(re.finditer(r"[^\s,;:<>\"'=/\[\]{}]+", text))
    if not words:
        return None
    said = []
    for word in sorted(rng.sample(words, min(len(words), rng.choice((1, 1, 2, 5)))), key=lambda w: -w.start()):
        new = rng.choice(HOSTILE_WORDS)
        text = text[: word.start()] + new + text[word.end() :]
        said.append(f"{word.group()[:20]!r} -> {new[:20]!r}")
    path.write_bytes(text.encode())
    return "words " + ", ".join(said)


def change_lines(path: Path, rng: random.Random) -> str | None:
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return None
    at = rng.randrange(len(lines))
    what = rng.randrange(5)
    if what == 0:
        lines.insert(at, lines[at])
    elif what == 1:
        del lines[at]
    elif what == 2:
        lines.insert(
            at, rng.choice((b"\n", b"   \n", b"#\n", b"garbage\n", b"1 2 3\n", b"\0\n", b",,,,,,\n", b"<b/>\n"))
        )
    elif what == 3:
        lines[at] = lines[at].rstrip() * 2 + b"\n"
    else:
        rng.shuffle(lines)
    path.write_bytes(b"".join(lines))
    return f"line {at}, way {what}"


def change_map(path: Path, rng: random.Random) -> str | None:
    shape = rng.choice(((48, 64), (48, 64), (64, 48), (1, 1), (480, 640), (1, 5000)))
    kind = rng.choice(("L", "I;16", "RGB", "RGBA", "LA", "P", "1", "JPEG", "I;16 full", "L full", "WEBP", "TIFF"))
    numbers = np.random.default_rng(rng.randrange(2**32)).integers(0, 65536 if "full" in kind else 3, shape)
    mode = kind.split()[0]
    if mode in ("JPEG", "WEBP", "TIFF"):
        image = Image.fromarray(numbers.astype(np.uint8))
        image.save(path, mode)
    elif mode == "I;16":
        Image.fromarray(numbers.astype(np.uint16)).save(path, "PNG")
    else:
        Image.fromarray(numbers.astype(np.uint8)).convert(mode).save(path, "PNG")
    return f"{kind} {shape}"


def change_image(path: Path, rng: random.Random) -> str | None:
    size = rng.choice(((64, 48), (64, 48), (48, 64), (1, 1), (5000, 1), (1, 3000), (640, 480)))
    mode = rng.choice(("RGB", "L", "CMYK", "RGBA", "P", "1", "I;16", "F", "LA"))
    format = rng.choice(("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "PDF", "ICO"))
    image = Image.new("RGB", size, (10, 200, 30)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 5, 6, 8, 0, 9, 65535))
    frames = {"save_all": True, "append_images": [image] * 2} if format in ("GIF", "WEBP", "TIFF", "PNG") else {}
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(np.zeros(size[::-1], np.uint16)) if mode == "I;16" else image.convert(mode)
        image.save(buffer, format, exif=exif, **(frames if rng.random() < 0.5 else {}))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # this format has no such mode or turn
        return None
    path.write_bytes(buffer.getvalue())
    return f"{format} {mode} {size} exif {exif[0x0112]} {len(frames)}"


def change_array(path: Path, rng: random.Random) -> str | None:
    array: Any = rng.choice(
        (np.array([{"a": 1}], object), np.zeros((48, 64), np.complex64), np.full((48, 64), np.nan), np.zeros(0),
         np.full((48, 64), 1e300), np.zeros((48, 64, 3)), np.zeros((64, 48)), np.array("a"), np.zeros((2, 2), "i4,i4"),
         np.full((48, 64), -(2**63), np.int64), np.full((48, 64), 2**63, np.uint64), np.zeros((48, 64), bool),
         np.zeros((48, 64), "M8[s]"), np.asfortranarray(np.ones((48, 64))), np.ones((48, 64), ">f8"))
    )  # fmt: skip
    what = rng.randrange(3)
    with path.open("wb") as file:
        if what == 0:
            np.savez(file, a=array)
        elif what == 1:
            np.save(file, array)
        else:
            shape = rng.choice(((10**9, 10**9), (40_000, 40_000), (-1, 4), (2**62, 4), (0, 10**12)))
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(64))
            return f"npy header {shape}"
    return f"{'npz' if what == 0 else 'npy'} {array.dtype} {array.shape}"


CORRUPTIONS: tuple[Corruption, ...] = (
    flip_bits, truncate, insert_bytes, overwrite_bytes, delete, rename, add_stray_file, replace_by_folder, replace_by_pipe, replace_by_link, replace_by_sparse_file,
    swap_with_another, remove_folder,
)  # fmt: skip
JSON_CORRUPTIONS: tuple[Corruption, ...] = (
    change_json,
    change_json,
    change_json,
    change_json,
    change_words,
    flip_bits,
    insert_bytes,
    truncate,
)
TEXT_CORRUPTIONS: tuple[Corruption, ...] = (
    change_words,
    change_words,
    change_words,
    change_lines,
    change_lines,
    flip_bits,
    insert_bytes,
    truncate,
)
MAP_CORRUPTIONS: tuple[Corruption, ...] = (change_map, change_map, flip_bits, truncate)
IMAGE_CORRUPTIONS: tuple[Corruption, ...] = (change_image, change_image, flip_bits, truncate)
ARRAY_CORRUPTIONS: tuple[Corruption, ...] = (change_array,)
