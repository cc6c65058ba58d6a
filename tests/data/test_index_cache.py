"""The cache of indexes: found by content, and never an error, whatever happens to its files."""

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.files import index_cache
from perception.files.index_cache import (
    MIN_CACHED_BYTES,
    MappedBytes,
    load_or_build,
    pack_bytes,
    pack_texts,
    unpack_texts,
)
from perception.types import DataError

ARRAYS = {
    "ids": np.arange(50, dtype=np.int64),
    "boxes": np.random.default_rng(0).random((20, 4)),
    "crowds": np.zeros(0, bool),
    "text": np.frombuffer(b"abc", np.uint8),
    "blob": np.random.default_rng(1).integers(0, 256, 2 * MIN_CACHED_BYTES, np.uint8),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Of the cache; it does not exist yet."""
    monkeypatch.setenv("PERCEPTION_CACHE", str(tmp_path / "cache"))
    index_cache._warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes(b"a" * MIN_CACHED_BYTES)
    return path


class Build:
    """Counts how often it is asked."""

    def __init__(self, arrays=ARRAYS):
        self.calls, self.arrays = 0, arrays

    def __call__(self):
        self.calls += 1
        return self.arrays


def check(found):
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def test_what_was_built_once_is_found_again(file, folder):
    build = Build()
    for _ in range(3):
        check(load_or_build("kind 1", [file], build))
    assert build.calls == 1
    assert len(entries(folder)) == 1
    assert [path.suffix for path in folder.iterdir()] == [".npz"]
    assert set(np.load(entries(folder)[0], allow_pickle=False)) > set(ARRAYS)


def test_large_bytes_stay_in_the_file_from_the_first_time_on(file):
    for _ in range(2):
        found = load_or_build("kind 1", [file], Build())
        assert isinstance(found["blob"], np.memmap)
        assert not isinstance(found["ids"], np.memmap)
        assert not isinstance(found["text"], np.memmap)


def test_the_key_is_content_order_and_kind_not_the_name(file, tmp_path):
    build = Build()
    load_or_build("kind 1", [file], build)
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes(file.read_bytes())
    load_or_build("kind 1", [copy], build)
    assert build.calls == 1
    load_or_build("kind 2", [file], build)
    assert build.calls == 2
    copy.write_bytes(b"b" * MIN_CACHED_BYTES)
    load_or_build("kind 1", [copy], build)
    assert build.calls == 3
    load_or_build("kind 1", [copy, file], build)
    load_or_build("kind 1", [file, copy], build)
    assert build.calls == 5
    file.write_bytes(file.read_bytes() + b"c")
    load_or_build("kind 1", [file], build)
    assert build.calls == 6


def test_small_files_and_an_empty_variable_leave_no_trace(file, tmp_path, folder, monkeypatch):
    small, build = tmp_path / "small.json", Build()
    small.write_bytes(b"a" * (MIN_CACHED_BYTES - 1))
    load_or_build("kind 1", [small], build)
    monkeypatch.setenv("PERCEPTION_CACHE", "")
    assert load_or_build("kind 1", [file], build) is ARRAYS
    assert build.calls == 2
    assert not folder.exists()
    monkeypatch.delenv("PERCEPTION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_or_build("kind 1", [file], build)
    assert len(entries(tmp_path / "xdg/perception")) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_or_build("kind 1", [file], build)
    assert len(entries(tmp_path / "home/.cache/perception")) == 1


def test_faults_are_raised_every_time(file, folder):
    def build():
        raise DataError("wrong")

    for _ in range(2):
        with pytest.raises(DataError, match="wrong"):
            load_or_build("kind 1", [file], build)
    assert not folder.exists()
    with pytest.raises(DataError, match="wrong"):
        load_or_build("kind 1", [file.with_name("missing")], build)


def test_a_damaged_entry_is_built_anew_with_one_warning(file, folder, caplog):
    load_or_build("kind 1", [file], Build())
    (path,) = entries(folder)
    whole = path.read_bytes()
    generator = np.random.default_rng(2)
    places = [*range(0, 200, 13), *generator.integers(0, len(whole), 15), *range(len(whole) - 900, len(whole), 29)]
    spoiled = [
        whole[:place] + bytes([whole[place] ^ 1 << int(generator.integers(8))]) + whole[place + 1 :] for place in places
    ]
    spoiled += [b"", b"PK", whole[:1000], whole[:-1], whole[: len(whole) // 2], whole[1000:], b"\0" * 5000]
    for data in spoiled:
        path.write_bytes(data)
        caplog.clear()
        index_cache._warn_once.cache_clear()
        build = Build()
        check(load_or_build("kind 1", [file], build))
        assert len(caplog.records) <= build.calls <= 1  # some bits of a zip mean nothing
        check(load_or_build("kind 1", [file], build))
        assert build.calls <= 1


def test_an_entry_that_lacks_an_array_or_holds_objects_is_no_entry(file, folder):
    load_or_build("kind 1", [file], Build())
    (path,) = entries(folder)
    content = dict(np.load(path))
    without = {name: array for name, array in content.items() if name != "boxes"}
    for arrays in (without, {**content, "more": np.zeros(3)}, {**content, "boxes": np.array([print, None])}):
        np.savez(path, **arrays)
        build = Build()
        check(load_or_build("kind 1", [file], build))
        assert build.calls == 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.npy", b"")
    check(load_or_build("kind 1", [file], Build()))


@pytest.mark.parametrize("place", ["file", "file/cache", "/proc/perception", "x" * 5000])
def test_a_folder_that_cannot_be_used_is_one_warning(place, file, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERCEPTION_CACHE", str(tmp_path / place))
    build = Build()
    for _ in range(3):
        check(load_or_build("kind 1", [file], build))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert build.calls == 3


def test_a_read_only_file_system_still_serves(file, folder, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    load_or_build("kind 1", [file], Build())
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr("os.utime", refuse)
    build = Build()
    check(load_or_build("kind 1", [file], build))
    assert (build.calls, len(caplog.records)) == (0, 0)
    check(load_or_build("kind 2", [file], build))
    assert (build.calls, len(caplog.records)) == (1, 1)


def test_a_full_disk_leaves_no_file_behind(file, folder):
    script = f"""
import resource, signal
import numpy as np
from pathlib import Path
from perception.files.index_cache import load_or_build
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
found = load_or_build("kind 1", [Path({str(file)!r})], lambda: {{"blob": np.zeros(1 << 20, np.uint8)}})
print(found["blob"].nbytes)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == f"{1 << 20}\n", done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert list(folder.iterdir()) == []


def test_files_that_change_meanwhile_are_not_kept(file, folder):
    def build():
        file.write_bytes(b"z" * MIN_CACHED_BYTES)
        return ARRAYS

    check(load_or_build("kind 1", [file], build))
    assert not folder.exists()


def write_often(file: str, seed: int) -> None:
    for i in range(6):
        found = load_or_build(f"kind {(i + seed) % 3}", [Path(file)], lambda: ARRAYS)
        assert np.array_equal(found["blob"], ARRAYS["blob"])
        if i % 4 == 3:
            for path in Path(os.environ["PERCEPTION_CACHE"]).glob("*.npz"):
                path.unlink(missing_ok=True)


def test_writers_and_readers_at_once(file, folder):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=write_often, args=(str(file), seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(folder.glob("*.part"))


def test_the_size_is_bounded_and_the_longest_unused_go_first(file, folder, monkeypatch):
    monkeypatch.setattr(index_cache, "MAX_CACHE_BYTES", 7_000_000)
    builds = [Build() for _ in range(5)]
    for i in range(3):
        load_or_build(f"kind {i}", [file], builds[i])
        for path in entries(folder):
            os.utime(path, (time.time() - 100 + 10 * i,) * 2) if path.stat().st_mtime > time.time() - 50 else None
    load_or_build("kind 0", [file], builds[0])  # used now
    load_or_build("kind 3", [file], builds[3])
    assert len(entries(folder)) == 3
    for i in (0, 2, 3):
        load_or_build(f"kind {i}", [file], builds[i])
        assert builds[i].calls == 1
    load_or_build("kind 1", [file], builds[1])
    assert builds[1].calls == 2
    monkeypatch.setattr(index_cache, "MAX_CACHE_BYTES", 1000)
    check(load_or_build("kind 4", [file], builds[4]))
    assert len(entries(folder)) == 3  # what is larger than the cache is not kept


def test_what_a_killed_writer_left_is_removed_a_day_later(file, folder):
    folder.mkdir()
    old, new, other = folder / "a.part", folder / "b.part", folder / "notes.txt"
    for path in (old, new, other):
        path.write_text("")
    os.utime(old, (1e9, 1e9))
    os.utime(other, (1e9, 1e9))
    load_or_build("kind 1", [file], Build())
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_only_numbers_are_kept(file):
    with pytest.raises(AssertionError, match="numbers only"):
        load_or_build("kind 1", [file], Build({"names": np.array(["a"], object)}))


def test_bytes_of_the_cache_pickle_as_their_path_and_outlive_it(file, folder):
    blob = MappedBytes(load_or_build("kind 1", [file], Build())["blob"])
    expected = ARRAYS["blob"].tobytes()
    state = pickle.dumps(blob)
    assert len(state) < 1000
    other = pickle.loads(state)
    (path,) = entries(folder)
    path.unlink()
    for held in (blob, other):
        assert len(held) == len(expected)
        assert held.read(0, len(expected)) == expected
        assert held.read(100, 2000) == expected[100:2000]
        assert held.read(5, 5) == b""
    lost = pickle.loads(state)
    with pytest.raises(DataError, match="can no longer be read"):
        lost.read(0, 1)
    check(load_or_build("kind 1", [file], Build()))
    assert lost.read(100, 2000) == expected[100:2000]


def test_bytes_of_memory_pickle_as_they_are():
    blob = pickle.loads(pickle.dumps(MappedBytes(ARRAYS["text"])))
    assert blob.read(1, 3) == b"bc"
    assert len(blob) == 3


def test_bytes_of_a_file_that_was_cut_are_an_error(file, folder):
    blob = MappedBytes(load_or_build("kind 1", [file], Build())["blob"])
    (path,) = entries(folder)
    with path.open("r+b") as entry:
        entry.truncate(10_000)
    with pytest.raises(DataError, match="truncated"):
        blob.read(0, 2 * MIN_CACHED_BYTES)


@given(st.lists(st.text() | st.just("\ud800")))
def test_texts_come_back(texts):
    assert unpack_texts(*pack_texts(texts)) == texts


@given(st.lists(st.binary(max_size=9)))
def test_parts_are_where_the_offsets_say(parts):
    blob, offsets = pack_bytes(parts)
    assert [bytes(blob[a:b]) for a, b in pairwise(offsets)] == parts
