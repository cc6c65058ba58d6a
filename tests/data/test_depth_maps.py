"""Depth in .npy, its units and intrinsics: fault D16, and numpy's own reading."""

import contextlib
import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from data_trees import depth_maps_tree, open_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limited_memory import little_memory
from trees_kitti import write_text

from perception.config import validate_config
from perception.data import DepthMapsConfig
from perception.data.formats.depth_maps import MAX_DISTANCE, read_intrinsics, to_depth_map
from perception.files.arrays import read_array
from perception.types import Camera, ConfigError, DataError

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npy_tree(root: Path, *arrays: np.ndarray | bytes) -> dict:
    """A tree whose depth maps are the given .npy files, without a scale."""
    config = depth_maps_tree(root, len(arrays))
    for i, array in enumerate(arrays):
        (root / f"depth/depths/{i:03d}.png").unlink()
        path = root / f"depth/depths/{i:03d}.npy"
        if isinstance(array, bytes):
            path.write_bytes(array)
        else:
            np.save(path, array)
    return {key: value for key, value in config.items() if key != "scale"}


def ramp(kind: str) -> np.ndarray:
    return np.linspace(1, 100, 48 * 64).reshape(48, 64).astype(kind)


@pytest.mark.parametrize(
    "kind", ["<f2", "<f4", "<f8", ">f4", ">f8", "<f16", "<u1", "<u2", ">u2", "<i2", "<i4", "<i8", "<u8"]
)
def test_metres_of_every_kind_of_number_are_what_numpy_reads(kind, tmp_path):
    arrays = ramp(kind), np.asfortranarray(ramp(kind)), ramp(kind)[..., None], ramp(kind)[None]
    source = open_tree(tmp_path, npy_tree(tmp_path, *arrays))
    for i in range(4):
        depth = source.load_sample(i).annotations["depth"]
        expected = np.load(tmp_path / f"depth/depths/{i:03d}.npy").reshape(48, 64).astype(np.float32)
        assert depth.values.dtype == np.float32
        assert np.array_equal(depth.values, expected)
        assert depth.valid.all()
        assert depth.values.flags.c_contiguous
    scaled = open_tree(tmp_path, {**npy_tree(tmp_path, *arrays), "scale": 0.001}).read_annotations(0)["depth"]
    assert np.allclose(scaled.values, ramp(kind).astype(np.float32) / 1000)


@pytest.mark.fault("D16")
def test_what_is_no_distance_is_invalid(tmp_path):
    values = np.full((48, 64), 2.0)
    values[0, :9] = np.nan, np.inf, -np.inf, -1, 0, -0.0, 1e300, -1e300, MAX_DISTANCE
    for kind, invalid in ((np.float64, 9), (np.float32, 9), (np.float16, 9)):
        with np.errstate(over="ignore"):
            stored = values.astype(kind)
        depth = open_tree(tmp_path, npy_tree(tmp_path, stored)).load_sample(0).annotations["depth"]
        assert depth.valid.sum() == 48 * 64 - invalid
        assert not depth.values[~depth.valid].any()
        assert np.isfinite(depth.values).all()
    whole = np.full((48, 64), 7, np.int64)
    whole[0, :4] = 0, -5, 2**62, -(2**62)
    depth = open_tree(tmp_path, npy_tree(tmp_path, whole)).load_sample(0).annotations["depth"]
    assert depth.valid.sum() == 48 * 64 - 4
    near = open_tree(tmp_path, {**npy_tree(tmp_path, ramp("<f4")), "max_depth": 50}).load_sample(0).annotations["depth"]
    assert near.values.max() <= 50
    assert near.valid.sum() == (ramp("<f4") <= 50).sum()
    assert (
        not open_tree(tmp_path, {**npy_tree(tmp_path, ramp("<f4")), "scale": 1e38})
        .load_sample(0)
        .annotations["depth"]
        .valid.any()
    )


@pytest.mark.fault("D16")
@given(
    st.lists(st.floats(width=64, allow_nan=True, allow_infinity=True), min_size=1, max_size=20), st.floats(1e-6, 1e6)
)
def test_metres_never_gives_what_is_no_distance(values, scale):
    depth = to_depth_map(np.array([values]), None, scale)
    assert depth.values.dtype == np.float32
    assert np.isfinite(depth.values).all()
    assert (depth.values[depth.valid] > 0).all()
    assert (depth.values < MAX_DISTANCE).all()
    assert not depth.values[~depth.valid].any()


def test_a_png_needs_a_scale_and_says_so(tmp_path):
    config = depth_maps_tree(tmp_path)
    del config["scale"]
    with pytest.raises(ConfigError, match=r"000\.png is a PNG .* scale is not given. Add scale"):
        open_tree(tmp_path, config)
    for change in ({"scale": float("inf")}, {"max_depth": 0}, {"max_depth": -1.0}, {"max_depth": float("nan")}):
        with pytest.raises(ConfigError, match="depth_maps"):
            validate_config(DepthMapsConfig, {"images": "a", "depths": "b", **change})


def header(shape: str, kind: str = "'<f4'", order: str = "False", version: bytes = b"\x01\0") -> bytes:
    line = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(line).to_bytes(2 if version == b"\x01\0" else 4, "little") + line


def saved(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-never-run",)


WRONG = {
    "empty": b"",
    "no magic": b"hello",
    "a pickle": pickle.dumps(Harm()),
    "a pickle in an array": saved(np.array([Harm()], object)),
    "a zip": b"PK\x03\x04" + bytes(100),
    "one axis": saved(np.ones(48 * 64)),
    "no axis": saved(np.float32(3)),
    "three channels": saved(np.ones((48, 64, 3), np.float32)),
    "channels first": saved(np.ones((3, 48, 64), np.float32)),
    "four axes": saved(np.ones((1, 48, 64, 1), np.float32)),
    "no pixels": saved(np.ones((0, 64), np.float32)),
    "truth values": saved(np.ones((48, 64), bool)),
    "complex": saved(np.ones((48, 64), complex)),
    "text": saved(np.full((48, 64), "a")),
    "dates": saved(np.zeros((48, 64), "M8[s]")),
    "records": saved(np.zeros((48, 64), [("a", "<f4")])),
    "1e12 elements": header("(1000000, 1000000)"),
    "1e60 elements": header(f"({10**30}, {10**30})"),
    "a side of 5000 digits": header(f"(1{'0' * 5000}, 2)"),
    "negative": header("(-48, -64)") + bytes(48 * 64 * 4),
    "a side that is none": header("(48, 'a')"),
    "true sides": header("(True, 64)") + bytes(63 * 4),
    "not a tuple": header("48"),
    "no such kind": header("(48, 64)", "'<f5'"),
    "a kind with code": header("(48, 64)", "__import__('os').system('true')"),
    "nested": header("(" * 500 + ")" * 500),
    "an order that is none": header("(48, 64)", order="2"),
    "truncated": header("(48, 64)") + bytes(48 * 64 * 4 - 1),
    "too long": header("(48, 64)") + bytes(48 * 64 * 4 + 1),
    "version 3": header("(48, 64)", version=b"\x03\0") + bytes(48 * 64 * 4),
    "version 9": header("(48, 64)", version=b"\x09\0"),
    "a header of 4 GiB": b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b" " * 1000,
    "an unfinished header": header("(48, 64)")[:30],
}


@pytest.mark.fault("D16")
@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_no_depth_map(name, tmp_path):
    source = open_tree(tmp_path, npy_tree(tmp_path, WRONG[name]))
    with little_memory(), pytest.raises(DataError, match=r"000\.npy .*Expected|000\.npy.*is damaged"):
        source.load_sample(0)
    assert not Path("/tmp/this-must-never-run").exists()


@pytest.mark.fault("D16")
def test_not_a_file_or_of_another_size(tmp_path):
    config = npy_tree(tmp_path, np.ones((48, 60), np.float32), np.ones((48, 64)))
    source = open_tree(tmp_path, config)
    with pytest.raises(DataError, match=r"000\.npy is for 60 x 48 pixels, but .*64 x 48"):
        source.load_sample(0)
    (tmp_path / "depth/depths/001.npy").unlink()
    with pytest.raises(DataError, match=r"No array at .*001\.npy"):
        source.load_sample(1)
    (tmp_path / "depth/depths/001.npy").mkdir()
    with pytest.raises(DataError, match=r"No array at .*001\.npy"):
        source.load_sample(1)
    os.mkfifo(tmp_path / "depth/depths/fifo.npy")
    with pytest.raises(DataError, match="No array at"):
        read_array(tmp_path / "depth/depths/fifo.npy")


@pytest.mark.fault("D16")
@pytest.mark.parametrize("seed", range(3))
def test_changed_files_give_an_array_or_an_error(seed, tmp_path):
    good = saved(ramp("<f4")[:4, :5])
    random_ = random.Random(seed)
    path = tmp_path / "x.npy"
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(random_.choice((1, 2, 8))):
            bad[random_.randrange(138)] = random_.choice((*b"0123456789(),'{}<>|fiuOVMSb \n", random_.randrange(256)))
        path.write_bytes(bad)
        with contextlib.suppress(DataError):
            assert read_array(path).dtype.kind in "fiu"


def test_cameras_of_single_images(tmp_path):
    config = {**depth_maps_tree(tmp_path), "cameras": "cameras"}
    write_text(tmp_path / "cameras/000.txt", "61 62\n31 23\n")
    write_text(tmp_path / "cameras/001.txt", "6.1e1, 0, 30.5\n0, 62, 23\n0 0 1\n")
    source = open_tree(tmp_path, config)
    assert [source.camera(i) for i in range(3)] == [
        Camera(61, 62, 31, 23), Camera(61, 62, 30.5, 23), Camera(60, 60, 32, 24)
    ]  # fmt: skip
    assert source.problems == {"images without intrinsics": 1}
    write_text(tmp_path / "cameras/001.txt", "61 0 31 0\n0 62 23 0\n0 0 1 0\n0 0 0 1\n")
    assert open_tree(tmp_path, config).camera(1) == Camera(61, 62, 31, 23)
    pickle.loads(pickle.dumps(source))
    write_text(tmp_path / "cameras/001.txt", "61 0 31")
    with pytest.raises(DataError, match=r"001\.txt holds 3 numbers. Expected fx fy cx cy"):
        open_tree(tmp_path, config)
    for path in (tmp_path / "cameras").iterdir():
        path.rename(path.with_suffix(".text"))
    with pytest.raises(DataError, match=r"No image has intrinsics .* Expected 000\.txt"):
        open_tree(tmp_path, config)
    with pytest.raises(DataError, match="No folder of intrinsics"):
        open_tree(tmp_path, {**config, "cameras": "missing"})


@pytest.mark.parametrize(
    "content", [b"", b"1 2 3", b"a b c d", b"0 60 1 1", b"-5 5 1 1", b"nan 5 1 1", b"inf 5 1 1", b"5 5 inf 1",
                b"1_0 5 1 1", b"\xff\xfe\x001", b"1\0 1 1 1", b"1 2 3 4 5 6 7 8 9", b"60 0 1 1 60 1 0 0 1",
                b"0x10 5 5 5"]
)  # fmt: skip
def test_intrinsics_that_are_none(content, tmp_path):
    with pytest.raises(DataError, match=r"k\.txt"):
        read_intrinsics(write_text(tmp_path / "k.txt", content))


NUMBERS = st.lists(st.floats(), max_size=17).map(lambda values: " ".join(map(repr, values)).encode())


@SLOW
@given(st.one_of(st.binary(max_size=60), NUMBERS))
def test_any_bytes_are_intrinsics_or_an_error(tmp_path, content):
    with contextlib.suppress(DataError):
        camera = read_intrinsics(write_text(tmp_path / "k.txt", content))
        assert camera.fx > 0
        assert camera.fy > 0
