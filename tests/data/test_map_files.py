"""Masks and depth maps as people have them: files of every kind, colors, values, names; faults D4, D15 and D16."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import depth_maps_tree, label_maps_tree, open_tree, write_image
from limited_memory import little_memory
from PIL import Image

from perception.data.formats.color_lists import voc_color
from perception.files.maps import read_map
from perception.files.palettes import MISMATCHED_PALETTES
from perception.types import ConfigError, DataError

COLORS = {"sky": (70, 130, 180), "road": (128, 64, 128), "car": (0, 0, 142)}
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:3] = list(COLORS.values())
IDS = np.zeros((48, 64), np.uint8)
IDS[:, 32:], IDS[40:, 56:], IDS[0] = 1, 2, 255
"""As `label_maps_tree` has them."""


def masks(root: Path, suffix: str, content: bytes | np.ndarray, count: int = 3) -> dict:
    """A tree of segmentation masks whose masks are these."""
    config = label_maps_tree(root, count)
    for i in range(count):
        path = root / f"maps/masks/{i:03d}.png"
        path.unlink()
        put(path.with_suffix(suffix), content)
    return config


def depths(root: Path, suffix: str, content: bytes | np.ndarray, **options: object) -> dict:
    config = depth_maps_tree(root)
    for path in list((root / "depth/depths").iterdir()):
        path.unlink()
        put(path.with_suffix(suffix), content)
    return {**{key: value for key, value in config.items() if key != "scale"}, **options}


def put(path: Path, content: bytes | np.ndarray) -> Path:
    if isinstance(content, np.ndarray):
        return write_image(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def encoded(values: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if format == "NPY":
        np.save(buffer, values)
    elif format == "NPZ":
        np.savez_compressed(buffer, **{"mask": values, **options})
    elif format.startswith("."):
        buffer.write(cv2.imencode(format, np.asarray(values))[1].tobytes())
    else:
        image = values if isinstance(values, Image.Image) else Image.fromarray(values)
        image.save(buffer, format, **options)
    return buffer.getvalue()


def labels(root: Path, config: dict, index: int = 0) -> np.ndarray:
    return open_tree(root, config).load_sample(index).annotations["segmentation"].values


WHOLE = {
    "16-bit png": (".png", encoded(IDS.astype(np.uint16), "PNG")),
    "tif": (".tif", encoded(IDS, "TIFF", compression="tiff_lzw")),
    "tiff": (".TIFF", encoded(IDS.astype(np.uint16), "TIFF")),
    "signed tiff": (".tif", encoded(IDS.astype(np.int32), "TIFF")),
    "bmp": (".bmp", encoded(IDS, "BMP")),
    "pgm": (".pgm", encoded(IDS, "PPM")),
    "pgm of 16 bits": (".pgm", encoded(IDS.astype(np.uint16), ".pgm")),
    "pgm of text": (".pgm", b"P2\n# made by hand\n64 48\n255\n" + " ".join(map(str, IDS.ravel())).encode()),
    "gif": (".gif", encoded(IDS, "GIF")),
    "npy": (".npy", encoded(IDS, "NPY")),
    "npy of int64 with a channel": (".npy", encoded(IDS.astype(">i8")[..., None], "NPY")),
    "npy of floats": (".npy", encoded(IDS.astype(np.float32), "NPY")),
    "npz": (".npz", encoded(IDS, "NPZ")),
}


@pytest.mark.parametrize("name", WHOLE)
def test_ids_are_read_from_every_file_that_keeps_them(name, tmp_path):
    assert np.array_equal(
        labels(tmp_path, masks(tmp_path, *WHOLE[name])), np.where(IDS == 0, 1, np.where(IDS == 1, 0, IDS))
    )


def test_gray_pnm_keeps_its_numbers_whatever_its_largest_may_be(tmp_path):
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    small = put(tmp_path / "a.pgm", b"P5\n4 3\n11\n" + ids.tobytes())
    large = put(tmp_path / "b.pgm", b"P5 4 3 1000\n" + (ids.astype(np.uint16) * 90).astype(">u2").tobytes())
    assert np.array_equal(read_map(small), ids)
    assert np.array_equal(read_map(large), ids.astype(np.uint16) * 90)


def test_an_array_of_several_is_named(tmp_path):
    config = masks(tmp_path, ".npz", encoded(IDS, "NPZ", depth=np.ones((48, 64))))
    with pytest.raises(DataError, match=r"holds 2 arrays: 'mask', 'depth'\. Choose one: array_name"):
        labels(tmp_path, config)
    with pytest.raises(DataError, match="no array 'masks'"):
        labels(tmp_path, {**config, "array_name": "masks"})
    assert labels(tmp_path, {**config, "array_name": "mask"})[10, 10] == 1


@pytest.mark.fault("D15")
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jpg", encoded(IDS, "JPEG")),
        (".webp", encoded(Image.fromarray(IDS).convert("RGB"), "WEBP")),
        (".tif", encoded(Image.fromarray(IDS).convert("RGB"), "TIFF", compression="jpeg")),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"class_file": None, "colors": {"sky": [0, 0, 0]}}], ids=["ids", "colors"])
def test_a_lossy_mask_is_refused_with_its_mend(suffix, content, keys, tmp_path):
    with pytest.raises(DataError, match=r"000\.\w+ is a JPEG or has lossy compression.*as a PNG"):
        labels(tmp_path, {**masks(tmp_path, suffix, content), **keys})


GIVEN = {
    "lists": {"sky": [70, 130, 180], "road": [[128, 64, 128], [1, 2, 3]], "car": [[0, 0, 142, 255]]},
    "hex": {"sky": "#4682b4", "road": ["#804080", "010203"], "car": "#00008EFF"},
}
COLORED = {
    "rgb png": (".png", encoded(PALETTE[IDS], "PNG")),
    "rgba png": (".png", encoded(np.dstack([PALETTE[IDS], np.full((48, 64), 90, np.uint8)]), "PNG")),
    "palette png": (".png", encoded(Image.fromarray(PALETTE[IDS]).quantize(8), "PNG")),
    "bmp": (".bmp", encoded(PALETTE[IDS], "BMP")),
    "tif": (".tif", encoded(PALETTE[IDS], "TIFF")),
    "ppm": (".ppm", encoded(PALETTE[IDS], "PPM")),
    "webp": (".webp", encoded(PALETTE[IDS], "WEBP", lossless=True, exact=True)),
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", COLORED)
def test_colors_are_classes(name, given, tmp_path):
    config = {
        **masks(tmp_path, *COLORED[name]),
        "class_file": None,
        "colors": GIVEN[given],
        "ignore_values": [[0, 0, 0]],
    }
    expected = labels(tmp_path / "ids", label_maps_tree(tmp_path / "ids"))
    assert np.array_equal(labels(tmp_path, config), expected)


LISTS = {
    "label_colors.txt": "70 130 180\tsky\n128 64 128\troad\n0 0 142\tcar\n0 0 0\tVoid\n",  # CamVid
    "class_dict.csv": "name, r, g, b\nsky, 70, 130, 180\nroad, 128, 64, 128\ncar, 0, 0, 142\nVoid,0,0,0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:70,130,180::\nroad:128,64,128::\ncar:0,0,142::\nVoid:0,0,0::",
    "hex.csv": "sky,#4682b4\nroad,#804080\ncar,#00008e\nVoid,#000000\n",
    "obj_class_to_machine_color.json": json.dumps({**COLORS, "Void": (0, 0, 0)}),  # Supervisely
    "meta.json": json.dumps({"classes": [{"title": k, "color": f"#{bytes(c).hex().upper()}"}
                                         for k, c in {**COLORS, "Void": (0, 0, 0)}.items()], "tags": []}),
    "british.json": json.dumps([{"name": k, "colour": c} for k, c in {**COLORS, "Void": (0, 0, 0)}.items()]),
    "config_v2.json": json.dumps({"labels": [{"name": f"a--{k}", "readable": k, "color": c, "instances": False}
                                             for k, c in {**COLORS, "Void": (0, 0, 0)}.items()]}),  # Mapillary
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_colors_of_the_tools(name, tmp_path):
    config = masks(tmp_path, *COLORED["rgb png"])
    (tmp_path / name).write_text(LISTS[name])
    config = {**config, "class_file": None, "colors": name, "ignore": ["Void"]}
    assert np.array_equal(labels(tmp_path, config), labels(tmp_path / "ids", label_maps_tree(tmp_path / "ids")))


@pytest.mark.parametrize(
    "text", ["", "road", "1 2 road", "300 0 0 road", "[]", '{"road": "blue"}', '{"classes": [{"title": "a"}]}', "a,1,2",
             "\0", ":" * 5000, "1 2 3 " + " " * 5000]
)  # fmt: skip
def test_a_list_of_colors_that_is_none(text, tmp_path):
    config = masks(tmp_path, *COLORED["rgb png"])
    for name in ("colors.txt", "colors.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=r"colors\.\w+"):
            labels(tmp_path, {**config, "class_file": None, "colors": name})


def test_the_palette_of_voc_in_the_order_of_the_names(tmp_path):
    palette = np.array([voc_color(i) for i in range(256)], np.uint8)
    assert palette[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]
    config = {
        **masks(tmp_path, ".png", encoded(palette[IDS], "PNG")),
        "colors": "voc",
        "ignore_values": [[224, 224, 192]],
    }
    assert np.array_equal(labels(tmp_path, config), labels(tmp_path / "ids", label_maps_tree(tmp_path / "ids")))


@pytest.mark.fault("D15")
def test_a_color_without_a_class_is_told_with_the_nearest(tmp_path):
    image = PALETTE[IDS].copy()
    image[5, :4] = 129, 66, 128
    config = {
        **masks(tmp_path, ".png", encoded(image, "PNG")),
        "class_file": None,
        "colors": COLORS,
        "ignore_values": ["#000000"],
    }
    with pytest.raises(
        DataError, match=r"000\.png contains 1 colors .* 0\.1% .*\(129, 66, 128\): 4 \(nearest road \(128, 64"
    ):
        labels(tmp_path, config)
    soft = cv2.GaussianBlur(PALETTE[IDS], (9, 9), 3)
    config = {
        **masks(tmp_path, ".png", encoded(soft, "PNG")),
        "class_file": None,
        "colors": COLORS,
        "ignore_values": ["#000000"],
    }
    with pytest.raises(DataError, match="soft edges, resized with interpolation or saved as a JPEG"):
        labels(tmp_path, config)
    with pytest.raises(DataError, match="is both 'sky' and 'road'"):
        labels(tmp_path, {**config, "colors": {"sky": "#000001", "road": "#000001", "car": "#000002"}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"class_file": None}, "none of class_file, values and colors"),
        ({"values": {0: "sky"}}, "class_file and values given"),
        ({"colors": {"sky": [0, 0, 0]}}, "class_file and colors given"),
        ({"class_file": None, "colors": "voc"}, "voc, without class_file"),
        ({"class_file": None, "colors": {"sky": [0, 0]}}, "gives 'sky'"),
        ({"class_file": None, "colors": {"sky": "#00"}}, "gives 'sky'"),
        ({"class_file": None, "colors": {"sky": "#000000"}, "ignore_values": [0]}, "ignore_values contains 0"),
        ({"ignore_values": ["#000000"]}, "Expected values, such as"),
        ({"ignore_values": [-1]}, "Expected 0 to 65535"),
        ({"mask": "mask.png"}, "mask is 'mask.png'. Expected a name with"),
        ({"image": "*_*.jpg", "mask": "*.png"}, "equally many"),
        ({"mask": "*.png", "suffix": "_L"}, "Keep one of them"),
    ],
)
def test_keys_that_contradict_each_other(keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        labels(tmp_path, {**label_maps_tree(tmp_path), **keys})


BINARY = np.where(IDS == 1, 255, 0).astype(np.uint8)


@pytest.mark.fault("D15")
def test_masks_of_0_and_255_are_an_error_that_names_its_mend(tmp_path):
    config = masks(tmp_path, ".png", BINARY, 5)
    with pytest.raises(DataError, match=r"5 segmentation masks .* only 0 and 255.*values: \{0: sky, 255: road\}"):
        open_tree(tmp_path, config)
    for values, expected in (({0: "sky", 255: "road"}, 0), ({0: "sky", 1: "road", 255: "void"}, 255)):
        found = labels(tmp_path, {**config, "class_file": None, "values": values})
        assert set(np.unique(found)) == {1, expected}
    write_image(tmp_path / "maps/masks/004.png", IDS)  # one that has another class
    assert set(np.unique(labels(tmp_path, config))) == {1, 255}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32, np.bool_])
def test_any_value_stands_for_the_class_that_it_is_given(kind, tmp_path):
    values = {0: "sky", 1: "road"} if kind == np.bool_ else {7: "sky", 200: "road"}
    if kind in (np.uint16, np.int32):
        values = {7: "sky", 26001: "road"}
    stored = np.where(IDS == 1, max(values), min(values)).astype(kind)
    config = {**masks(tmp_path, ".npy", encoded(stored, "NPY")), "class_file": None, "values": values}
    assert np.array_equal(labels(tmp_path, config), np.where(IDS == 1, 0, 1))
    if kind != np.bool_:
        stored[3, 3] = 9
        config = {**masks(tmp_path, ".npy", encoded(stored, "NPY")), "class_file": None, "values": values}
        with pytest.raises(DataError, match=r"Expected 7, \d+ or 255 \(ignored\), found .*9: 1"):
            labels(tmp_path, config)
        assert labels(tmp_path, {**config, "ignore_values": [9]})[3, 3] == 255


@pytest.mark.parametrize(("suffix", "format"), [(".png", "PNG"), (".tif", "TIFF"), (".bmp", "BMP")])
def test_one_bit_is_0_and_1_or_0_and_255_as_it_is_named(suffix, format, tmp_path):
    config = masks(tmp_path, suffix, encoded(Image.fromarray(IDS == 1), format))
    for value in (1, 255):
        keys = {"class_file": None, "values": {0: "sky", value: "road"}}
        assert np.array_equal(labels(tmp_path, {**config, **keys}), np.where(IDS == 1, 0, 1))
    assert np.array_equal(labels(tmp_path, config), np.where(IDS == 1, 0, 1))


def test_masks_in_equal_channels_are_read_where_their_values_are_given(tmp_path):
    for channels in (3, 4, 2):
        layers = [BINARY] * (channels - (channels != 3)) + [np.full_like(BINARY, 255)] * (channels != 3)
        mode = {2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        image = Image.merge(mode, [Image.fromarray(layer) for layer in layers])
        config = {
            **masks(tmp_path, ".png", encoded(image, "PNG")),
            "class_file": None,
            "values": {0: "sky", 255: "road"},
        }
        assert np.array_equal(labels(tmp_path, config), np.where(IDS == 1, 0, 1))
    config = {
        **masks(tmp_path, ".png", encoded(PALETTE[IDS], "PNG")),
        "class_file": None,
        "values": {0: "sky", 255: "road"},
    }
    with pytest.raises(DataError, match="3 channels that differ"):
        labels(tmp_path, config)


def test_ids_that_begin_with_1_and_the_lists_of_the_tools(tmp_path):
    config = masks(tmp_path, ".png", np.where(IDS == 255, 0, IDS + 1).astype(np.uint8))
    with pytest.raises(DataError, match="first_id: 1"):
        labels(tmp_path, config)
    expected = labels(tmp_path / "ids", label_maps_tree(tmp_path / "ids"))
    assert np.array_equal(labels(tmp_path, {**config, "first_id": 1, "ignore_values": [0]}), expected)
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n 0, nothing\n 1, sky\n 2, road\n 3, car\n")  # Roboflow
    assert np.array_equal(labels(tmp_path, {**config, "class_file": "_classes.csv", "ignore": ["nothing"]}), expected)
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"readable": name} for name in COLORS]}))
    assert np.array_equal(
        labels(tmp_path, {**config, "class_file": "config.json", "first_id": 1, "ignore_values": [0]}), expected
    )
    values = {0: "void", 1: "sky", 2: "road", 3: "car"}
    assert np.array_equal(labels(tmp_path, {**config, "class_file": None, "values": values}), expected)


def palette_of(path: Path, order: list[int]) -> None:
    """A segmentation mask as a palette in which id k, of the gray 10 + 10 k, is index ``order[k]``."""
    ids = np.array(Image.open(path))
    table, palette = np.full(256, 255, np.uint8), np.zeros((256, 3), np.uint8)
    table[: len(order)] = order
    palette[order] = 10 + 10 * np.arange(len(order))[:, None]
    palette[255] = order[0]  # nobody minds the color of void
    image = Image.fromarray(table[ids])
    image.putpalette(palette.ravel().tolist())
    image.save(path)


@pytest.mark.parametrize("format", ["segmentation_masks", "voc"])
@pytest.mark.parametrize(
    ("order", "told"), [([0, 1, 2], 0), ([2, 0, 1], 1), ([0, 1, 3], 0)], ids=["same", "another", "unused ones"]
)
def test_palettes_that_number_their_colors_anew_are_told(format, order, told, tmp_path):
    config = label_maps_tree(tmp_path)
    masks = sorted((tmp_path / "maps/masks").iterdir())
    for path in masks:
        palette_of(path, order if path == masks[1] else [0, 1, 2])
    if format == "voc":
        names = {"classes": ["road", "car", "tree"], "segmentation_rename": {"background": "sky"}}
        folders = {"root": "maps", "images": "images", "masks": "masks", "split": None, "detection_task": None}
        config = {"format": "voc", **folders, **names, "segmentation_ignore": "rest"}
    else:
        (tmp_path / "maps/classes.txt").write_text("sky\nroad\ncar\ntree\n")
        config["ignore"] = ["tree"]
    assert open_tree(tmp_path, config).problems == ({MISMATCHED_PALETTES: told} if told else {})


def moved(root: Path, rename: dict[str, str], config: dict) -> dict:
    """The images and masks of a tree under other names; "{}" is the number."""
    for kind, name in rename.items():
        for path in sorted((root / "maps" / kind).glob("*.*")):
            target = root / name.format(path.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return config


@pytest.mark.parametrize(
    ("images", "maps", "keys"),
    [
        ("all/{}_sat.jpg", "all/{}_mask.png", {"image": "*_sat.jpg", "mask": "*_mask.png"}),
        ("all/{}_sat.png", "all/{}_mask.png", {"image": "*_sat.png", "mask": "*_mask.png"}),
        ("all/{}.png", "all/{}_mask.png", {"suffix": "_mask"}),
        ("all/{}.png", "all/{}_mask.png", {"mask": "*_mask.png"}),
        ("all/{}_sat.jpg", "all/{}.png", {"image": "*_sat.jpg"}),
        ("all/{}.jpg", "all/{}.png", {}),
        ("all/x/{}.jpg", "all/x/{}_m.png", {"image": "*.jpg", "mask": "*_m.png"}),
        ("all/{}_json/img.png", "all/{}_json/label.png", {"image": "*_json/img.png", "mask": "*_json/label.png"}),
        ("all/s/{}/a.jpg", "all/s/{}/b.png", {"image": "*/*/a.jpg", "mask": "*/*/b.png"}),
        ("all/{}.jpg", "all/masks/{}.jpg.png", {"masks": "all/masks", "image": "*", "mask": "*.png"}),
        ("all/images/{}.jpg", "all/{}.png", {"images": "all/images"}),
        ("all/img_{}.jpg", "all/mask_{}.png", {"image": "img_*", "mask": "mask_*"}),
        ("all/img_{}.jpg", "all/m/{}.png", {"masks": "all/m", "image": "img_*"}),
    ],
)
def test_images_and_masks_are_paired_by_what_their_names_share(images, maps, keys, tmp_path):
    config = {**label_maps_tree(tmp_path), "images": "all", "masks": "all", **keys}
    source = open_tree(tmp_path, moved(tmp_path, {"images": images, "masks": maps}, config))
    assert len(source) == 3
    assert source.problems == {}
    assert source.load_sample(2).annotations["segmentation"].values[45, 60] == 2


def test_names_that_make_no_pairs_are_told(tmp_path):
    config = label_maps_tree(tmp_path)
    moved(tmp_path, {"images": "all/{}_a.png", "masks": "all/{}_b.png"}, config)
    with pytest.raises(DataError, match=r"their names do not differ\. Give patterns"):
        open_tree(tmp_path, {**config, "images": "all", "masks": "all"})
    with pytest.raises(DataError, match=r"image '\*_a\.png', mask '\*_c\.png'"):
        open_tree(tmp_path, {**config, "images": "all", "masks": "all", "image": "*_a.png", "mask": "*_c.png"})
    for end in (".mat", ".h5"):
        (tmp_path / f"other{end}").mkdir()
        (tmp_path / f"other{end}" / f"000{end}").write_bytes(b"MATLAB")
        with pytest.raises(DataError, match=rf"1 files there end in '\{end}', which is not supported: convert them"):
            open_tree(tmp_path, {**config, "images": "all", "masks": f"other{end}"})


METRES = np.tile(np.linspace(1, 3, 64, dtype=np.float32), (48, 1))
STEPS = (METRES * 50).astype(np.uint8)
DEPTHS = {
    "32-bit tif": (".tif", encoded(METRES, "TIFF"), {}),
    "compressed tif": (".tiff", encoded(METRES, ".tiff"), {}),
    "pfm": (".pfm", encoded(METRES, ".pfm"), {}),
    "npz": (".npz", encoded(METRES, "NPZ"), {}),
    "npz of several": (".npz", encoded(METRES, "NPZ", valid=METRES > 0), {"array_name": "mask"}),
    "big-endian npy with a channel": (".npy", encoded(METRES.astype(">f8")[..., None], "NPY"), {}),
    "16-bit tif": (".tif", encoded((METRES * 1000).astype(np.uint16), "TIFF"), {"scale": 0.001}),
    "16-bit pgm": (".pgm", encoded((METRES * 5000).astype(np.uint16), ".pgm"), {"scale": 0.0002}),
    "8-bit png": (".png", encoded(STEPS, "PNG"), {"scale": 0.02}),
    "8-bit png of three channels": (".png", encoded(np.dstack([STEPS] * 3), "PNG"), {"scale": 0.02}),
    "a scale for its kind": (".png", encoded(STEPS.astype(np.uint16), "PNG"), {"scale": {"png": 0.02, ".NPY": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPTHS)
def test_metres_are_read_from_every_file_that_keeps_them(name, tmp_path):
    suffix, content, keys = DEPTHS[name]
    depth = open_tree(tmp_path, depths(tmp_path, suffix, content, **keys)).load_sample(0).annotations["depth"]
    assert depth.values.dtype == np.float32
    assert np.abs(depth.values - METRES).max() <= (0.02 if "0.02" in str(keys) else 1e-3)
    assert depth.valid.all()


def test_files_of_two_kinds_have_two_scales(tmp_path):
    config = depths(tmp_path, ".npy", encoded(METRES, "NPY"), scale={"png": 0.001})
    (tmp_path / "depth/depths/001.npy").unlink()
    write_image(tmp_path / "depth/depths/001.png", np.full((48, 64), 2000, np.uint16))
    source = open_tree(tmp_path, config)
    assert [float(source.read_annotations(i)["depth"].values.max()) for i in range(3)] == [3, 2, 3]


EXR = b"\x76\x2f\x31\x01\2\0\0\0dataWindow\0box2i\0\x10\0\0\0"
CARLA = np.dstack([(METRES * 100).astype(np.uint8), np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)])


@pytest.mark.fault("D16")
@pytest.mark.parametrize(
    ("suffix", "content", "keys", "message"),
    [
        (".png", encoded(CARLA, "PNG"), {"scale": 0.001}, r"encoded in colors \(CARLA: 1000 m"),
        (".png", encoded(BINARY, "PNG"), {"scale": 0.001}, r"8 bits per pixel.*the largest distance would be 0\.255 m"),
        (".tif", encoded(METRES.astype(np.float64), ".tiff"), {}, "32-bit floats"),
        (".jpg", encoded(BINARY, "JPEG"), {"scale": 0.1}, "is a JPEG"),
        (".exr", EXR + np.array([0, 0, 63, 47], "<i4").tobytes(), {}, "is an EXR, which this OpenCV cannot read"),
        (".npz", encoded(np.array([{}], object), "NPZ"), {}, "pickled objects"),
        (".npz", b"PK\3\4nothing", {}, "cannot be read"),
    ],
)  # fmt: skip
def test_depth_that_cannot_be_read_is_told(suffix, content, keys, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_tree(tmp_path, depths(tmp_path, suffix, content, **keys)).load_sample(0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_whole_numbers_need_a_scale(suffix, tmp_path):
    content = encoded((METRES * 1000).astype(np.uint16), {".png": "PNG", ".tif": "TIFF"}[suffix])
    with pytest.raises(ConfigError, match=r"integers, and scale is not given"):
        open_tree(tmp_path, depths(tmp_path, suffix, content))
    with pytest.raises(ConfigError, match=r"integers, and scale is not given"):
        open_tree(tmp_path, depths(tmp_path, suffix, content, scale={"npy": 1}))


def sparse(path: Path, shape: tuple[int, ...], kind: str = "<f8") -> Path:
    """A .npy of a few bytes on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        end = file.tell()
    os.truncate(path, end + int(np.prod(shape)) * np.dtype(kind).itemsize)
    return path


def bomb(path: Path, shape: tuple[int, ...]) -> Path:
    """A .npz of a few megabytes that unpacks to one array of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(shape[0]):
            file.write(bytes(4 * shape[1]))
    return path


def large(name: str, root: Path) -> Path:
    """A small file that says it has 400 million pixels."""
    path = root / name
    tiff = encoded(Image.new("L", (8, 8)), "TIFF")
    side = np.array([20000], "<u4").tobytes()
    match path.suffix:
        case ".npy":
            return sparse(path, (20000, 20000))
        case ".npz":
            return bomb(path, (12000, 12000))
        case ".tif":
            at = [tiff.index(np.array([tag], "<u2").tobytes() + b"\4\0\1\0\0\0") for tag in (256, 257)]
            data = bytearray(tiff)
            for start in at:
                data[start + 8 : start + 12] = side
            return put(path, bytes(data))
        case ".bmp":
            data = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
            data[18:26] = side + side
            return put(path, bytes(data))
        case ".pgm":
            return put(path, b"P5 20000 20000 255\n" + bytes(100))
        case ".pfm":
            return put(path, b"Pf\n20000 20000\n-1.0\n" + bytes(100))
        case ".exr":
            return put(path, EXR + np.array([0, 0, 19999, 19999], "<i4").tobytes())
        case _:
            data = encoded(Image.new("1", (20000, 20000)), "PNG")
            return put(path, data)


@pytest.mark.fault("D4")
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tif", "a.bmp", "a.pgm", "a.pfm", "a.exr", "a.png"])
def test_the_size_is_known_before_anything_is_decoded(name, tmp_path):
    path = large(name, tmp_path)
    with little_memory(), pytest.raises(DataError, match=r"At most 100 Mpx"):
        read_map(path)


def test_an_image_that_is_no_map_is_shown_by_its_beginning(tmp_path):
    with pytest.raises(DataError, match="begins with b'hello'"):
        read_map(put(tmp_path / "a.tif", b"hello"))
    with pytest.raises(DataError, match=r"No image at .*b\.tif"):
        read_map(tmp_path / "b.tif")
