"""Unpacking archives: fault S6, and what the standard library unpacks."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from limited_memory import MIB, little_memory

from perception.files import archive_members, archives
from perception.files.archives import extract_archive
from perception.types import DataError

FILES = {"a/b/1.txt": b"one", "a/2.bin": bytes(range(256)) * 300, "ä.txt": b"", "c/d/e/f/g.txt": b"deep"}
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            archive.addfile(member(name, len(data)), io.BytesIO(data))
    return squeezed(kind, buffer.getvalue())


def zipped(data: bytes) -> bytes:
    """Without the time, which would differ between the processes of a test run."""
    return gzip.compress(data, 1, mtime=0)


def squeezed(kind: str, tar: bytes) -> bytes:
    by = {"tar": bytes, "tar.gz": zipped, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}
    return by[kind](tar)


def member(name: str, size: int = 0, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def tar_of(*members: tarfile.TarInfo, data: bytes = b"", end: bool = True) -> bytes:
    """Headers (in GNU's format) with ``data`` after the last; whatever they say."""
    headers = b"".join(info.tobuf(tarfile.GNU_FORMAT) for info in members)
    return headers + data + bytes(-len(data) % 512) + bytes(1024 * end)


def held(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(tmp_path: Path, data: bytes, words: str, **limits: float) -> None:
    """``data`` is refused within little memory, and nothing is left of it anywhere."""
    (tmp_path / "x").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with little_memory(), pytest.raises(DataError, match=words):
        extract_archive(tmp_path / "x", tmp_path / "deep/out", **limits)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_unpacked_is_what_the_standard_library_unpacks(kind, tmp_path):
    archive = tmp_path / f"x.{kind}"
    archive.write_bytes(packed(kind, FILES))
    seen = []
    with little_memory():
        assert extract_archive(archive, tmp_path / "new/out", progress=lambda done, of: seen.append((done, of))) == len(
            FILES
        )
    shutil.unpack_archive(archive, tmp_path / "expected")
    assert held(tmp_path / "new/out") == held(tmp_path / "expected") == FILES
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    assert all(0 <= done <= of == archive.stat().st_size for done, of in seen)
    assert seen


@pytest.mark.parametrize("kind", KINDS)
def test_an_existing_folder_is_added_to_and_never_overwritten(kind, tmp_path):
    archive, out = tmp_path / "x", tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a/mine.txt").write_text("mine")
    archive.write_bytes(packed(kind, FILES))
    extract_archive(archive, out)
    assert held(out) == {**FILES, "a/mine.txt": b"mine"}
    (out / "a/b/1.txt").write_text("changed")
    (out / "a/2.bin").unlink()
    before = held(out)
    with pytest.raises(DataError, match=r"a/b/1.txt' exists already in .*Files are not overwritten"):
        extract_archive(archive, out)
    assert held(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x"]


def test_a_file_that_comes_up_meanwhile_undoes_the_move(tmp_path):
    archive, out = tmp_path / "x", tmp_path / "out"
    out.mkdir()
    archive.write_bytes(packed("zip", {"a/1": b"1", "c": b"3", "b": b"2" * (3 * MIB)}))
    chunks = []

    def late(done: int, of: int) -> None:
        chunks.append(done)
        if len(chunks) == 5:
            (out / "b").touch()

    with pytest.raises(DataError, match=r"out/b exists already"):
        extract_archive(archive, out, progress=late)
    assert held(out) == {"b": b""}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    (tmp_path / "x").write_bytes(packed("tar.gz", FILES))

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_archive(tmp_path / "x", tmp_path / "deep/out", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_program_tar_and_folders(tmp_path):
    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in/empty").mkdir()
    assert os.system(f"tar -C {tmp_path}/in -cJf {tmp_path}/x .") == 0
    assert extract_archive(tmp_path / "x", tmp_path / "out") == len(FILES)
    assert held(tmp_path / "out") == FILES
    assert (tmp_path / "out/empty").is_dir()
    mode = stat.S_IMODE((tmp_path / "out/ä.txt").stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


NAMES = ["../x", "a/../../x", "/etc/x", "//x", "a\\..\\x", "C:\\x", "c:x", "..", "a/..", "a\nb", "a\x1b[0m", "a\x7f",
         "n" * 256, "/".join("a" * 70)]  # fmt: skip


@pytest.mark.fault("S6")
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.xz"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_or_mislead(kind, name, tmp_path):
    refused(tmp_path, packed(kind, {"good.txt": b"good", name: b"evil"}), "is refused|too long or too deep")


@pytest.mark.fault("S6")
@pytest.mark.parametrize("name", ["a\0b", "\xff\xfe"])
def test_names_that_are_no_text(name, tmp_path):
    raw = packed("tar", {"name": b"1"}).replace(b"name", name.encode("latin-1").ljust(4, b"\0"), 1)
    head = bytearray(raw[:512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "x").write_bytes(bytes(head) + raw[512:])
    if "\0" in name:  # a tar's names end there
        extract_archive(tmp_path / "x", tmp_path / "out")
        assert held(tmp_path / "out") == {"a": b"1"}
        data = packed("zip", {"a__b": b"1"}).replace(b"a__b", b"a\0_b")
        refused(tmp_path / "out", data, "NUL")
    else:
        refused(tmp_path, bytes(head) + raw[512:], "not UTF-8")


@pytest.mark.fault("S6")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "files", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a/b", "a//b")], ids=lambda names: "+".join(names)
)
def test_a_name_twice(kind, files, tmp_path):
    buffer = io.BytesIO()
    if kind == "zip":
        with (
            zipfile.ZipFile(buffer, "w") as archive,
            pytest.warns() if files == ("a", "a") else contextlib.nullcontext(),
        ):
            for name in files:
                archive.writestr(name, b"x")
        refused(tmp_path, buffer.getvalue(), "given twice")
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in files:
                archive.addfile(member(name, 1), io.BytesIO(b"x"))
        refused(tmp_path, squeezed(kind, buffer.getvalue()), "given twice")


@pytest.mark.fault("S6")
@pytest.mark.parametrize("target", ["good.txt", "/etc/passwd", "../../x", "."])
def test_links_of_any_kind(target, tmp_path):
    for kind, word in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link")):
        tar = tar_of(member("l", type=kind, linkname=target), member("l/x", 4), data=b"evil")
        refused(tmp_path, tar, word)
        refused(tmp_path, squeezed("tar.gz", tar), word)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.txt", b"good")
        info = zipfile.ZipInfo("l")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    refused(tmp_path, buffer.getvalue(), "is a link and is refused")


@pytest.mark.fault("S6")
@pytest.mark.parametrize(
    ("kind", "mode", "words"),
    [
        (tarfile.CHRTYPE, stat.S_IFCHR, "device|type b'3'"),
        (tarfile.BLKTYPE, stat.S_IFBLK, "device|type b'4'"),
        (tarfile.FIFOTYPE, stat.S_IFIFO, "pipe|type b'6'"),
        (tarfile.CONTTYPE, stat.S_IFSOCK, "socket|exists|type"),
        (tarfile.GNUTYPE_SPARSE, stat.S_IFLNK, "sparse|link"),
        (b"V", stat.S_IFCHR, "type b'V'|device"),
    ],
)
def test_devices_pipes_and_sparse_files(kind, mode, words, tmp_path):
    if kind != tarfile.CONTTYPE:
        refused(tmp_path, tar_of(member("d", type=kind)), words)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("d")
        info.external_attr = mode << 16
        archive.writestr(info, b"")
    refused(tmp_path, buffer.getvalue(), words)


@pytest.mark.fault("S6")
def test_sparse_files_of_a_terabyte(tmp_path):
    info = member("s", 512, type=tarfile.GNUTYPE_SPARSE)
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:482] = bytes(96)
    head[483:495] = b"%011o\0" % (1 << 32)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    refused(tmp_path, bytes(head) + bytes(512 + 1024), "sparse")
    pax = tarfile.TarInfo("s")
    pax.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
    refused(tmp_path, pax.tobuf(tarfile.PAX_FORMAT) + bytes(1024), "sparse")


@pytest.mark.fault("S6")
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_bombs(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_members, "_MIN_RATIO_BYTES", 4 * MIB)
    bomb = packed(kind, {"zeros": bytes(16 * MIB)})
    refused(tmp_path, bomb, "over 200 times its size. If you trust it, raise max_ratio")
    refused(tmp_path, bomb, "unpacks to more than 1048576 bytes.*raise max_bytes", max_bytes=MIB)
    (tmp_path / "x").write_bytes(bomb)
    with little_memory():
        extract_archive(tmp_path / "x", tmp_path / "out", max_ratio=1e9)
    assert (tmp_path / "out/zeros").stat().st_size == 16 * MIB


@pytest.mark.fault("S6")
@pytest.mark.parametrize("kind", KINDS)
def test_too_many_files(kind, tmp_path):
    data = packed(kind, {f"{i}": b"" for i in range(40)})
    refused(tmp_path, data, "more than 39 files.*raise max_files", max_files=39)
    (tmp_path / "x").write_bytes(data)
    assert extract_archive(tmp_path / "x", tmp_path / "out", max_files=40) == 40
    folders = tar_of(*(member(f"d{i}", type=tarfile.DIRTYPE) for i in range(40)), member("f"))
    refused(tmp_path, folders, "more than 39 files", max_files=39)


@pytest.mark.fault("S6")
def test_a_zip_of_one_file_listed_many_times(tmp_path):
    """The overlapping kind: a small file that unpacks to petabytes."""
    data = packed("zip", {"zeros": bytes(4 * MIB)})
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    entry, count = data[start:end], 60_000
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, start, 0)
    refused(tmp_path, data[:start] + entry * count + tail, "unpack to .* or more")


@pytest.mark.fault("S6")
def test_a_zip_that_lies_about_sizes(tmp_path):
    data = bytearray(packed("zip", {"zeros": bytes(MIB)}))
    at = data.index(b"PK\x01\x02")
    for place in (at + 24, data.index(b"PK\x03\x04") + 22):
        data[place : place + 4] = struct.pack("<I", 10)
    refused(tmp_path, bytes(data), "damaged or not an archive")
    data[at + 24 : at + 28] = struct.pack("<I", 2 * MIB)
    refused(tmp_path, bytes(data), "damaged or not an archive")
    (tmp_path / "x").unlink()
    end = data.rindex(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", 0xFFFFFFF0)
    with (tmp_path / "huge").open("wb") as file:
        file.write(data[:end])
        file.truncate(3 << 30)
        file.seek(0, 2)
        file.write(data[end:])
    with little_memory(), pytest.raises(DataError, match="more than 2000000 files"):
        extract_archive(tmp_path / "huge", tmp_path / "out")


@pytest.mark.fault("S6")
def test_more_than_the_disk_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    refused(tmp_path, packed("zip", {"a": b"123456"}), "6 bytes, but .* has 5 free")


@pytest.mark.fault("S6")
@pytest.mark.parametrize(
    ("method", "words"), [(zipfile.ZIP_LZMA, "method 14"), (zipfile.ZIP_BZIP2, "method 12"), (99, "method 99")]
)
def test_methods_that_cannot_be_bounded(method, words, tmp_path):
    data = bytearray(packed("zip", {"a": b"x"}))
    data[data.index(b"PK\x01\x02") + 10] = method
    refused(tmp_path, bytes(data), words)


def test_an_encrypted_zip(tmp_path):
    data = bytearray(packed("zip", {"a": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(tmp_path, bytes(data), "encrypted")


@pytest.mark.fault("S6")
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SOLARIS_XHDTYPE])
def test_headers_of_gigabytes(kind, tmp_path):
    for size in (1 << 40, 200 * MIB):
        refused(tmp_path, tar_of(member("h", size, type=kind)), "damaged or not an archive: it has a header of")
    tar = tar_of(member("h", 80 * MIB, type=kind), data=bytes(80 * MIB))
    refused(tmp_path, squeezed("tar.gz", tar), "damaged or not an archive: it has a header of")


@pytest.mark.fault("S6")
def test_headers_that_nest_or_lead_back(tmp_path):
    pax = b"".join(
        member("h", 12, type=tarfile.XHDTYPE).tobuf() + b"12 path=abc\n".ljust(512, b"\0") for _ in range(3000)
    )
    refused(tmp_path, pax + tar_of(member("a")), "damaged or not an archive")
    for size in (-1, -512, -1024, -(1 << 30)):
        refused(tmp_path, tar_of(member("a"), member("b", size), member("c")), "damaged or not an archive|twice")
        refused(tmp_path, tar_of(member("a", size)), "damaged or not an archive")


@pytest.mark.fault("S6")
def test_an_xz_that_wants_gigabytes_of_memory(tmp_path):
    data = bytearray(packed("tar.xz", FILES))
    size = (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = 40  # a dictionary of 4 GiB
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    refused(tmp_path, bytes(data), "Memory usage limit")


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_changed_archives_give_an_error_never_a_part(kind, tmp_path):
    good = packed(kind, FILES)
    whole = len(good.rstrip(b"\0")) if kind == "tar" else len(good)
    for end in (0, 1, 8, whole // 3, whole // 2, whole - 20, whole - 1):
        refused(tmp_path, good[:end], "damaged or not an archive|not an archive that|truncated|contains no file")
    random_ = random.Random(0)
    for _ in range(25):
        bad = bytearray(good)
        for _ in range(random_.choice((1, 1, 4, 40))):
            bad[random_.randrange(len(bad))] = random_.choice((0, 255, random_.randrange(256)))
        (tmp_path / "x").write_bytes(bad)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with little_memory(), contextlib.suppress(DataError):
            extract_archive(tmp_path / "x", tmp_path / "out")
            assert kind == "tar" or all(FILES.get(name, data) == data for name, data in held(tmp_path / "out").items())
        assert {p.name for p in tmp_path.iterdir()} <= {"x", "out"}


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x1f\x8b", b"BZh9", b"<html>",
                                  b"\xfd7zXZ\0", bytes(2000), b"Rar!\x1a\x07\0", zipped(b"no tar " * 200),
                                  tar_of(), tar_of(member("a", type=tarfile.DIRTYPE))])  # fmt: skip
def test_what_is_no_archive(data, tmp_path):
    refused(tmp_path, data, "not an archive|truncated|contains no file")


def test_where_it_cannot_be_unpacked_to(tmp_path):
    (tmp_path / "x").write_bytes(packed("tar", FILES))
    (tmp_path / "file").touch()
    for target in ("file", "file/out"):
        with pytest.raises(DataError, match=r"is not a folder|cannot be unpacked"):
            extract_archive(tmp_path / "x", tmp_path / target)
    for archive in ("missing", "."):
        with pytest.raises(DataError, match="No archive at"):
            extract_archive(tmp_path / archive, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x"]


def test_a_full_disk_is_named_as_such(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_move_into_place", full)
    refused(tmp_path, packed("tar", FILES), "cannot be unpacked into .*No space left")
