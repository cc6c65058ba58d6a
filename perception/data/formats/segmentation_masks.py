"""A folder of segmentation masks. Each pixel stores its class as an id, as a listed value, or as a color."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import ClassNames, Superclasses, map_pixel_classes
from perception.data.dataset import check_label_size
from perception.data.formats.color_lists import Color, parse_color, read_class_list, read_color_list, voc_color
from perception.data.formats.legend import UNKNOWN_VALUE, ColorLegend, build_lookup_table
from perception.files.folders import require_file
from perception.files.maps import read_colors, read_map
from perception.files.pairs import PairPatterns as PairNames
from perception.files.pairs import pair_files
from perception.files.palettes import MISMATCHED_PALETTES, count_mismatched_palettes
from perception.types import IGNORE_INDEX, Camera, ConfigError, DataError, DenseMap, LabelSpace

MAX_INSPECTED_MASKS = 200
"""Number of masks that are searched for an id other than 0 and 255."""

ColorValue = str | tuple[int, ...]
"""[R, G, B] or "#RRGGBB". A fourth number (transparency) is ignored."""


@config_dataclass
class SegmentationMasksConfig:
    """Configuration of the reader for a folder of segmentation masks.

    Attributes:
        images: folder of the images, relative to the data root.
        masks: folder of the masks, relative to the data root. A mask has its image's name, plus ``suffix``.
        class_file: text file with one name per line. The line number, counted from 0, is the id. Or a CSV of
            "id, name", or a JSON with a list of labels. Value 255 is ignored.
        format: name of this reader.
        task: segmentation task of the recipe.
        suffix: text after the image's name in the name of its mask.
        image: pattern for other names, such as "*_sat.jpg"; "*" is the common part. A pattern without "/" matches the
            file name. One folder may contain both kinds of files.
        mask: pattern of the masks, such as "*_mask.png"; see ``image``.
        first_id: id of the first line of ``class_file``.
        values: stored value (up to 65535) -> name, instead of ``class_file``: {0: other, 255: lane}.
        colors: name -> one or more colors, instead of ``class_file``: {road: [128, 64, 128], car: ["#00008e",
            "#0000e6"]}; or a file with colors (label_colors.txt, labelmap.txt, class_dict.csv,
            obj_class_to_machine_color.json); or "voc": VOC's palette, in the order of ``class_file``.
        ignore_values: additional values or colors that are ignored: [0], [[0, 0, 0]].
        array_name: name of the array in a .npz with several arrays.
        rename: name -> class of the recipe. Several names may become one class.
        ignore: names whose pixels are ignored; ``rest`` = all names that are not in the recipe.
        labels_only: classes of the recipe that this source labels. A pixel with another name may be any other class.
        superclasses: name -> the classes of the recipe that its pixels may be (``vehicle: [car, truck]``), or
            ``rest``: all classes that no other name of the source stands for.
    """

    images: str
    masks: str
    class_file: str | None = None
    format: Literal["segmentation_masks"] = "segmentation_masks"
    task: str = "segmentation"
    suffix: str = ""
    image: str | None = None
    mask: str | None = None
    first_id: int = 0
    values: dict[int, str] | None = None
    colors: dict[str, ColorValue | tuple[ColorValue, ...]] | str | None = None
    ignore_values: tuple[int | ColorValue, ...] = ()
    array_name: str | None = None
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    superclasses: Superclasses | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)

    @property
    def pairing(self) -> PairNames:
        """Name patterns that pair images with masks."""
        return PairNames(self.images, self.masks, self.suffix, self.image, self.mask, "mask", "segmentation mask")

    def __post_init__(self) -> None:
        self.pairing.check("segmentation_masks")
        by_palette = self.colors == "voc" and self.class_file is not None
        given = [key for key in ("class_file", "values", "colors") if getattr(self, key) is not None]
        if len(given) != 1 and not (by_palette and self.values is None):
            raise ConfigError(
                f"segmentation_masks: {' and '.join(given) or 'none of class_file, values and colors'} given. Expected "
                "one of class_file, values: {0: other, 255: lane}, and colors: {road: [128, 64, 128]}."
            )
        if self.colors == "voc" and not by_palette:
            raise ConfigError(
                "segmentation_masks: colors is voc, without class_file. Give a file with the names in VOC's order."
            )
        ids = [*(self.values or ()), *(v for v in self.ignore_values if isinstance(v, int)), self.first_id]
        if not all(0 <= id <= 65535 for id in ids):
            raise ConfigError(
                f"segmentation_masks: the stored values range from {min(ids)} to {max(ids)}. Expected 0 to 65535."
            )
        for value in self.ignore_values:
            if isinstance(value, int) == (self.colors is not None):
                expected = "colors, such as [[0, 0, 0]]" if self.colors is not None else "values, such as [0]"
                raise ConfigError(f"segmentation_masks: ignore_values contains {value}. Expected {expected}.")


class SegmentationMasksReader:
    """Reader of images that have a mask. Additional attribute: ``class_map`` (name -> the recipe's class)."""

    Config = SegmentationMasksConfig

    def __init__(self, config: SegmentationMasksConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        colours, where = _read_colors(config, root), f"segmentation_masks, {config.masks}"
        if isinstance(config.colors, str) and config.colors != "voc":
            where = str(root / config.colors)
        if config.class_file is not None:
            where = str(require_file(root, config.class_file, "class names"))
            listed = read_class_list(Path(where))
            self.names = {config.first_id + id: name for id, name in listed.items()}
        else:
            self.names = dict(config.values or {})
        if not 0 < len(set(self.names.values()) or colours or ()) < UNKNOWN_VALUE or max(self.names, default=0) > 65535:
            raise DataError(f"{where}: {len(self.names)} names. Expected 1 to {UNKNOWN_VALUE - 1}.")
        if config.colors == "voc":
            colours = {name: [voc_color(id)] for id, name in self.names.items() if id < 256}
        names = dict.fromkeys(self.names.values() if colours is None else colours)
        unnamed = "void" in names and "void" not in {*classes[config.task], *(config.rename or {}), *config.ignore}
        if unnamed:  # by default, "void" means ignored
            names.pop("void")
        self.class_map = map_pixel_classes(
            names, classes[config.task], where, config.rename, config.ignore, config.labels_only, config.superclasses
        )
        self.class_maps = {config.task: self.class_map}
        self._legend = self._table = None
        if colours is not None:
            self._legend = ColorLegend.from_colors(colours, self.class_map, _parse_ignore_colors(config), where)
        else:
            void = {id for id in config.ignore_values if isinstance(id, int)} | {IGNORE_INDEX} - set(self.names)
            void |= {id for id, name in self.names.items() if unnamed and name == "void"}
            self.names = {id: name for id, name in self.names.items() if id not in void}
            self._table = build_lookup_table(self.names, self.class_map, sorted(void))
        self._pairs = pair_files(root, config.pairing, self.problems)
        self.images = list(self._pairs)
        if config.class_file is not None and self._legend is None and len(self.names) > 1:
            self._check_values()
        if self._legend is None and (unlike := count_mismatched_palettes(list(self._pairs.values()), self.names)):
            self.problems[MISMATCHED_PALETTES] += unlike

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """Read the mask of an image: uint8 [H, W], classes of the recipe or sets of them.

        Raises DataError if an id or a color has no name.
        """
        picture = self.images[index]
        path = self._pairs[picture]
        if self._legend is not None:
            values = self._legend.map_colors(read_colors(path), path)
            label_map = DenseMap(values, values != IGNORE_INDEX, label_space=self.class_map.label_space)
        else:
            assert self._table is not None
            stored = read_map(path, self.config.array_name, merge_channels=self.config.values is not None)
            if stored.dtype == np.bool_ and 1 not in self.names and 255 in self.names:
                stored = stored.astype(np.uint8) * 255  # viewers show a one-bit mask as 0 and 255
            label_map = to_segmentation_mask(
                stored, path, self._table, self.names, label_space=self.class_map.label_space
            )
        check_label_size(str(path), label_map.values.shape, picture, size)
        return {self.config.task: label_map}

    def camera(self, index: int) -> Camera | None:
        """Return None: the intrinsics are unknown."""
        return None

    def _check_values(self) -> None:
        """Raise DataError if the masks contain only 0 and 255: then 255 is probably a class, not ignored pixels."""
        maps = list(self._pairs.values())
        chosen = maps[:: -(-len(maps) // MAX_INSPECTED_MASKS)]
        seen: set[int] = set()
        for path in chosen:
            try:
                stored = read_map(path, self.config.array_name)
            except DataError:  # reported when the mask is read
                return
            seen |= {int(stored.min()), int(stored.max())}
            if not seen <= {0, 255} or ((stored != 0) & (stored != 255)).any():
                return
        if seen == {0, 255}:
            first = self.names.get(0, next(iter(self.names.values())))
            other = next(name for name in self.names.values() if name != first)
            raise DataError(
                f"{maps[0].parent}: the {len(chosen)} segmentation masks that were checked contain only 0 and 255. 255 "
                f"is ignored, therefore '{first}' would be the only class. Give values instead of class_file: values: "
                f"{{0: {first}, 255: {other}}}. If 255 is ignored, values: {{0: {first}, 1: {other}, 255: void}}."
            )


def _read_colors(config: SegmentationMasksConfig, root: Path) -> dict[str, list[Color]] | None:
    if isinstance(config.colors, str):
        if config.colors == "voc":
            return None
        return read_color_list(require_file(root, config.colors, "colors"))
    if config.colors is None:
        return None
    found: dict[str, list[Color]] = {}
    for name, given in config.colors.items():
        one = parse_color(given)
        several = [one] if one is not None else [parse_color(each) for each in given]
        if not several or any(color is None for color in several):
            raise ConfigError(
                f"segmentation_masks: colors gives '{name}' the value {given!r:.80}. Expected [R, G, B], '#RRGGBB', "
                "or a list of these."
            )
        found[name] = [color for color in several if color is not None]
    return found


def _parse_ignore_colors(config: SegmentationMasksConfig) -> list[Color]:
    found = [parse_color(given) for given in config.ignore_values]
    if any(color is None for color in found):
        raise ConfigError(
            f"segmentation_masks: ignore_values is {config.ignore_values}. Expected colors, such as [[0, 0, 0]]."
        )
    return [color for color in found if color is not None]


def read_segmentation_mask(
    path: Path,
    table: NDArray[np.uint8],
    names: Mapping[int, str],
    hint: str = "",
    label_space: LabelSpace | None = None,
) -> DenseMap:
    """Read a segmentation mask and map its ids to classes.

    Args:
        path: file of the mask.
        table: lookup table from `build_lookup_table`.
        names: id -> name, for the error message.
        hint: suggested fix for the error message; default: derived from the ids.
        label_space: label space of the result.

    Returns:
        Classes uint8 [H, W].

    Raises:
        DataError: an id has no meaning. The message contains the histogram of the ids.
    """
    return to_segmentation_mask(read_map(path), path, table, names, hint, label_space)


def to_segmentation_mask(
    stored: NDArray,
    path: Path,
    table: NDArray[np.uint8],
    names: Mapping[int, str],
    hint: str = "",
    label_space: LabelSpace | None = None,
) -> DenseMap:
    """Map stored ids [H, W] of any number type to classes. Arguments and errors as in `read_segmentation_mask`."""
    if stored.dtype == np.uint8:
        values = cv2.LUT(np.ascontiguousarray(stored), table[:256])
    else:
        known = (stored >= 0) & (stored < len(table))
        with np.errstate(invalid="ignore"):
            ids = np.where(known, stored, 0).astype(np.int64)
            values = np.where(known & (ids == stored), table[ids], np.uint8(UNKNOWN_VALUE))
    if (values == UNKNOWN_VALUE).any():
        ids, counts = np.unique(stored, return_counts=True)
        pairs = list(zip(ids.tolist(), counts.tolist(), strict=True))
        histogram = ", ".join(f"{int(i) if i == i // 1 else i}: {n}" for i, n in pairs[:40])
        void = sorted(np.flatnonzero(table == IGNORE_INDEX).tolist())
        words = f" or {IGNORE_INDEX} (ignored)" if IGNORE_INDEX in void and IGNORE_INDEX not in names else ""
        raise DataError(
            f"{path} contains ids without a name. Expected {_format_ranges(sorted(names))}{words}, found "
            f"{{id: pixels}} {{{histogram}}}. {hint or _suggest_fix(ids, names)}"
        )
    return DenseMap(values, values != IGNORE_INDEX, label_space=label_space)


def _suggest_fix(ids: NDArray, names: Mapping[int, str]) -> str:
    if len(ids) > max(40, 3 * len(names)):
        return (
            "So many ids mean that the mask was drawn with soft edges, resized with interpolation or saved as a JPEG, "
            "or that it is a photo. Recreate it from the originals with nearest-neighbor interpolation."
        )
    known = ids[ids != IGNORE_INDEX]
    if list(names) == list(range(len(names))) and known.size and known.min() >= 0 and known.max() == len(names):
        return "If the first name has id 1, give the reader first_id: 1 (and ignore_values: [0] if 0 is not a class)."
    return (
        "Give the meaning of the values instead of class_file: values: {0: ..., 255: ...}; list the ignored values: "
        "ignore_values: [...]; or correct the list of classes."
    )


def _format_ranges(ids: list[int]) -> str:
    contiguous = ids == list(range(ids[0], ids[-1] + 1))
    return f"{ids[0]} to {ids[-1]}" if contiguous else ", ".join(map(str, ids))
