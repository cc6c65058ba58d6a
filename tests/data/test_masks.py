"""Masks: pycocotools' own drawing and decoding as the oracle, and fault D9 in a process of limited memory."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as library
from trees_coco import encode_compressed_runs, encode_runs, rectangle

from perception.data.formats.rle_masks import (
    MASK_FAULTS,
    MaskTable,
    decode_run_lengths,
    draw_masks,
    encode_box_rle,
    encode_rle,
    encode_run_lengths,
    find_rle_bounds,
)
from perception.types import DataError

coordinates = st.one_of(
    st.floats(-80, 160, allow_nan=False), st.floats(0, 60).map(lambda x: round(x, 1)), st.integers(-20, 120)
)
polygons = st.lists(st.lists(coordinates, min_size=6, max_size=24).filter(lambda p: len(p) % 2 == 0), min_size=1)
binary = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def decoded(rle: dict) -> np.ndarray:
    """uint8 [H, W] by pycocotools, which numpy warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return library.decode(rle)


def pixels(text: bytes, height: int, width: int) -> np.ndarray:
    return draw_masks([(text, 1)], height, width, 0)


@settings(deadline=None, max_examples=120)
@given(polygons, st.integers(1, 60), st.integers(1, 90))
def test_polygons_are_drawn_as_pycocotools_draws_them(polygons, height, width):
    text, area, fault = encode_rle(polygons, height, width)
    rle = library.merge(library.frPyObjects(polygons, height, width))
    expected = decoded(rle)
    if fault:
        assert MASK_FAULTS[fault] == "no pixel"
        assert not expected.any()
    else:
        assert (pixels(text, height, width) == expected).all()
        assert area == library.area(rle) == expected.sum()
        assert find_rle_bounds(text, height) == tuple(library.toBbox(rle))


@settings(deadline=None)
@given(binary)
def test_run_lengths_compressed_or_not_are_the_mask(mask):
    for segmentation in (encode_compressed_runs(mask), encode_runs(mask)):
        text, area, fault = encode_rle(segmentation, *mask.shape)
        assert MASK_FAULTS[fault] == ("" if mask.any() else "no pixel")
        if not fault:
            assert (pixels(text, *mask.shape) == mask).all()
            assert area == mask.sum()
            assert decode_run_lengths(text).tolist() == encode_runs(mask)["counts"]
            assert find_rle_bounds(text, mask.shape[0]) == tuple(
                library.toBbox(library.encode(np.asfortranarray(mask)))
            )


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 40), min_size=1, max_size=40))
def test_any_run_lengths_are_read_as_they_were_written(counts):
    assert decode_run_lengths(encode_run_lengths(np.array(counts))).tolist() == counts


@given(st.lists(st.integers(0, 2**24 - 1) | st.integers(0, 40), min_size=1, max_size=40))
def test_run_lengths_are_compressed_as_pycocotools_compresses_them(counts):
    """Longer ones it would write beyond its memory."""
    assert library.frPyObjects({"size": [1, 1], "counts": counts}, 1, 1)["counts"] == encode_run_lengths(
        np.array(counts)
    )


@pytest.mark.fault("D9")
def test_long_runs_do_not_reach_pycocotools():
    """Four runs of 2**24 pixels or more need 25 bytes of its 24."""
    counts = [1 << 24, 1 << 24, 1 << 24, (1 << 25) + 1024]
    size = [sum(counts) // 1024, 1024]
    text, area, fault = encode_rle({"size": size, "counts": counts}, *size)
    assert (area, fault) == (counts[1] + counts[3], 0)
    assert decode_run_lengths(text).tolist() == counts
    assert MASK_FAULTS[encode_rle([rectangle(1, 1, 9, 9)], *size)[2]] == "polygons in an image of more than 50 Mpx"
    assert encode_rle([rectangle(1, 1, 9, 9)], 5000, 10_000)[1:] == (81, 0)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_runs_of_nothing_change_nothing(counts, data):
    place = data.draw(st.integers(0, len(counts)))
    longer = [*counts[:place], 0, 0, *counts[place:]]
    size = [sum(counts), 1]
    plain, odd = (encode_rle({"size": size, "counts": c}, *size) for c in (counts, longer))
    assert odd[1:] == plain[1:]
    assert (pixels(plain[0], *size) == pixels(odd[0], *size)).all()
    assert find_rle_bounds(plain[0], size[0]) == find_rle_bounds(odd[0], size[0])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_box_is_its_pixels(height, width, data):
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    expected = np.zeros((height, width), np.uint8)
    expected[y1:y2, x1:x2] = 1
    assert (pixels(encode_box_rle(x1, y1, x2, y2, height, width), height, width) == expected).all()


def test_a_box_of_endless_width_takes_whole_columns():
    text = encode_box_rle(1000, 1, 49_000_000, 2, 2, 50_000_000)
    assert decode_run_lengths(text).tolist() == [2000, 2 * (49_000_000 - 1000), 2_000_000]


def test_the_last_mask_is_on_top_and_the_rest_is_filled():
    large, small = (encode_rle([rectangle(*box)], 10, 12)[0] for box in ((0, 0, 8, 8), (2, 2, 3, 3)))
    label_map = draw_masks([(large, 7), (small, 255)], 10, 12, 4)
    expected = np.full((10, 12), 4)
    expected[:8, :8], expected[2:5, 2:5] = 7, 255
    assert (label_map == expected).all()
    assert label_map.flags.c_contiguous


def test_a_table_draws_each_image_and_leaves_out_what_is_empty():
    texts = [encode_rle([rectangle(0, 0, 2, 2)], 4, 4)[0], b"", encode_rle([rectangle(1, 1, 3, 3)], 4, 4)[0]]
    offsets = np.cumsum([0, *map(len, texts)])
    table = MaskTable(
        np.frombuffer(b"".join(texts), np.uint8), offsets, np.array([0, 2, 2, 3]), np.array([1, 2, 3], np.uint8)
    )
    assert [table.draw_mask(i, (4, 4), 0).sum() for i in range(3)] == [4, 0, 27]
    assert table.draw_mask(1, (5, 7), 9).tolist() == [[9] * 7] * 5


SIZE = {"size": [8, 8]}
FAULTY = {
    "no mask": [None, []],
    "neither polygons nor run lengths": [
        "garbage", 3, True, [None], ["aa"], [{}], {**SIZE, "counts": 5}, {**SIZE}, {**SIZE, "counts": {}},
    ],
    "a polygon of fewer than 6 numbers, or of an odd number of them": [
        [[]], [3, 4], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [rectangle(1, 1, 3, 3), [1, 2, 3]],
    ],
    "a polygon with invalid coordinates": [
        [[1, 2, 3, 4, 5, "six"]], [[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, [6]]], [[1, 2, 3, 4, 5, 10**400]],
        [[1, 2, 3, 4, 5, float("nan")]], [[1, 2, 3, 4, 5, float("inf")]], [[1, 2, 3, 4, 5, 1e9]],
        [[0, 0, 1, 1, 2, -(2**31)]], [[1, 2, 3, 4, 5, 2**63]], [["x" * 10**6] + [1] * 99_999],
    ],
    "an outline that is too long": [
        [[0, 0, 1e5, 1e5] * 200], [rectangle(0, 0, 9e4, 9e4)] * 9, {**SIZE, "counts": [0] * 2_000_000},
    ],
    "run lengths for an image of another size": [
        {}, {"size": [8, 9], "counts": [72]}, {"size": [10**9, 10**9], "counts": [10**18]}, {"counts": [64]},
        {"size": None, "counts": [64]}, {"size": "88", "counts": [64]}, {"size": [8, 8, 1], "counts": [64]},
    ],
    "damaged run lengths": [
        {**SIZE, "counts": counts} for counts in (
            "", "a", "0`", "\x01\x02", "é", "\0", " ", "~", "o" * 8 + "0", "0o", [], [64.5], ["x"], [None], [-1, 65],
            [2**63], [1 << 31, 4],
        )
    ],
    "run lengths that do not add up to the image size": [
        {**SIZE, "counts": counts} for counts in ([63], [0, 63], [1, 2, 3], "0", "01", [32, 33])
    ],
    "no pixel": [
        {**SIZE, "counts": [64]}, {**SIZE, "counts": [64, 0]}, [rectangle(20, 20, 3, 3)], [[1, 1] * 3],
    ],
}  # fmt: skip


@pytest.mark.fault("D9")
@pytest.mark.parametrize(("fault", "segmentation"), [(f, s) for f, many in FAULTY.items() for s in many])
def test_a_faulty_mask_is_told_by_its_fault(fault, segmentation):
    text, area, number = encode_rle(segmentation, 8, 8)
    assert MASK_FAULTS[number] == fault
    assert (text, area) == (b"", 0)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["0o", "04l0", "o"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.fixed_dictionaries({"size": st.just([8, 8]) | inner, "counts": inner | st.text("0123`oPO", max_size=12)})
    ),
    max_leaves=20,
)


@pytest.mark.fault("D9")
@settings(deadline=None, max_examples=200)
@given(anything | st.lists(st.lists(st.floats(-1e6, 1e6) | st.integers(), min_size=5, max_size=9), max_size=3))
def test_whatever_it_holds_it_is_a_mask_or_a_fault(segmentation):
    text, area, fault = encode_rle(segmentation, 8, 8)
    assert bool(fault) == (text == b"") == (area == 0)
    if not fault:
        assert pixels(text, 8, 8).sum() == area
        assert decode_run_lengths(text).sum() == 64


@pytest.mark.fault("D9")
@pytest.mark.parametrize("text", [b"", b"o", b"\x00", b"\xff", b"0" + b"o" * 9 + b"0"])
def test_a_text_that_is_no_run_lengths_is_an_error(text):
    with pytest.raises(DataError, match="damaged"):
        decode_run_lengths(text)


@pytest.mark.fault("D9")
def test_masks_that_would_take_all_memory_or_time_are_dropped_in_a_process_of_little_memory():
    """In a process of its own: pycocotools would end it."""
    script = """
import json, resource, sys, time
from pycocotools import mask
from perception.data.formats.rle_masks import MASK_FAULTS, draw_masks, encode_rle
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (300 << 20), now + (300 << 20)))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for segmentation in json.load(sys.stdin):
    assert encode_rle(segmentation, 8, 8)[2], str(segmentation)[:80]
faulty = [
    {"size": [480, 640], "counts": "o" * 30_000_000},
    {"size": [480, 640], "counts": [1] * 5_000_000},
    {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": [480, 640], "counts": [-1, 307201]},
    [[0.0, 0.0, 1e5, 1e5] * 100_000],
    [[0.5, 1.5] * 3_000_000],
    [["9" * 10_000_000] + [1] * 10_001],
    [[float("nan")] * 8], [[float("inf")] * 8], [[1e308, -1e308] * 4],
]
for segmentation in faulty:
    assert encode_rle(segmentation, 480, 640)[2], str(segmentation)[:80]
many = [[x % 600, x % 400, x % 600 + 3, x % 400, x % 600, x % 400 + 3] for x in range(20_000)]
text, area, fault = encode_rle(many, 480, 640)
assert not fault
assert draw_masks([(text, 1)], 480, 640, 0).sum() == area
print("alive")
"""
    faulty = [s for many in FAULTY.values() for s in many if s is None or len(str(s)) < 10**5]
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(faulty), capture_output=True, text=True, check=False
    )
    assert done.stdout == "alive\n", done.stderr
