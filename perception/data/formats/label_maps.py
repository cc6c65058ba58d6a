"""A folder of label maps: a class for every pixel, as an id, a value of a list, or a colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.class_names import Coarse, Names, map_pixels
from perception.data.dataset import check_size
from perception.data.formats.colour_lists import Colour, parse_colour, read_class_list, read_colour_list, voc_colour
from perception.data.formats.legend import UNKNOWN, ColourLegend, lookup_table
from perception.files.folders import existing_file
from perception.files.maps import read_colours, read_map
from perception.files.pairs import Names as PairNames
from perception.files.pairs import pair
from perception.files.palettes import UNLIKE, unlike_palettes
from perception.types import IGNORE_INDEX, Camera, ConfigError, DataError, DenseMap, LabelSpace

LOOKED_AT = 200
"""So many maps are looked through for an id that is neither 0 nor 255, where there might be none."""

GivenColour = str | tuple[int, ...]
"""[R, G, B] (a fourth number, transparency, counts for nothing) or "#RRGGBB"."""


@configuration
class LabelMapsConfig:
    """images, masks: folders, relative to the data root; a mask has its picture's name, plus ``suffix``.

    image, mask: patterns instead, where names differ otherwise: "*_sat.jpg" and "*_mask.png"; "*" is what is equal.
                 Without "/" they are of the file's name. One folder may hold both
    classes:     text file, one name per line; the line's number from 0 is the id. Or a CSV of "id, name", or a JSON
                 with a list of labels. 255 = void
    first_id:    id of the first line
    values:      stored value -> name, instead of classes: {0: other, 255: lane}; any number up to 65535
    colours:     name -> its colour or colours, instead of classes: {road: [128, 64, 128], car: ["#00008e", "#0000e6"]};
                 or a file of them (label_colors.txt, labelmap.txt, class_dict.csv, obj_class_to_machine_color.json);
                 or "voc": VOC's palette, in the order of classes
    void:        further values, or colours, that are void: [0], [[0, 0, 0]]
    array:       name of the array in a .npz that holds several
    rename:      name -> class of the recipe; several may become one
    ignore:      names whose pixels become void; ``rest`` = all that are not in the recipe
    labels_only: classes of the recipe that this source labels; a pixel of another name is any class but these
    coarse:      name -> the classes of the recipe that its pixels may be: a super-class (``vehicle: [car, truck]``),
                 or ``rest``: any that no other name of the source stands for
    """

    images: str
    masks: str
    classes: str | None = None
    format: Literal["label_maps"] = "label_maps"
    task: str = "segmentation"
    suffix: str = ""
    image: str | None = None
    mask: str | None = None
    first_id: int = 0
    values: dict[int, str] | None = None
    colours: dict[str, GivenColour | tuple[GivenColour, ...]] | str | None = None
    void: tuple[int | GivenColour, ...] = ()
    array: str | None = None
    rename: dict[str, str] | None = None
    ignore: Names = ()
    labels_only: tuple[str, ...] | None = None
    coarse: Coarse | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    @property
    def names(self) -> PairNames:
        """How pictures and masks are called."""
        return PairNames(self.images, self.masks, self.suffix, self.image, self.mask, "mask", "label map")

    def __post_init__(self) -> None:
        self.names.check("label_maps")
        by_palette = self.colours == "voc" and self.classes is not None
        given = [key for key in ("classes", "values", "colours") if getattr(self, key) is not None]
        if len(given) != 1 and not (by_palette and self.values is None):
            raise ConfigError(
                f"label_maps: {' and '.join(given) or 'none of classes, values and colours'} given. Expected one of "
                "classes (a file of names), values: {0: other, 255: lane}, and colours: {road: [128, 64, 128]}."
            )
        if self.colours == "voc" and not by_palette:
            raise ConfigError("label_maps: colours is voc, without classes. Give the file of names, in their order.")
        ids = [*(self.values or ()), *(v for v in self.void if isinstance(v, int)), self.first_id]
        if not all(0 <= id <= 65535 for id in ids):
            raise ConfigError(f"label_maps: {min(ids)} to {max(ids)} are given as stored values. Expected 0 to 65535.")
        for value in self.void:
            if isinstance(value, int) == (self.colours is not None):
                expected = "colours, such as [[0, 0, 0]]" if self.colours is not None else "values, such as [0]"
                raise ConfigError(f"label_maps: void names {value}. Expected {expected}.")


class LabelMapsReader:
    """Pictures that have a mask. Attribute ``class_map``: name -> the recipe's class."""

    Config = LabelMapsConfig

    def __init__(self, config: LabelMapsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        colours, where = _colours(config, root), f"label_maps, {config.masks}"
        if isinstance(config.colours, str) and config.colours != "voc":
            where = str(root / config.colours)
        if config.classes is not None:
            where = str(existing_file(root, config.classes, "class names"))
            listed = read_class_list(Path(where))
            self.names = {config.first_id + id: name for id, name in listed.items()}
        else:
            self.names = dict(config.values or {})
        if not 0 < len(set(self.names.values()) or colours or ()) < UNKNOWN or max(self.names, default=0) > 65535:
            raise DataError(f"{where}: {len(self.names)} names. Expected 1 to {UNKNOWN - 1}.")
        if config.colours == "voc":
            colours = {name: [voc_colour(id)] for id, name in self.names.items() if id < 256}
        names = dict.fromkeys(self.names.values() if colours is None else colours)
        unnamed = "void" in names and "void" not in {*classes[config.task], *(config.rename or {}), *config.ignore}
        if unnamed:  # the word means itself, but where it is given another meaning
            names.pop("void")
        self.class_map = map_pixels(
            names, classes[config.task], where, config.rename, config.ignore, config.labels_only, config.coarse
        )
        self.class_maps = {config.task: self.class_map}
        self._legend = self._table = None
        if colours is not None:
            self._legend = ColourLegend.of(colours, self.class_map, _void_colours(config), where)
        else:
            void = {id for id in config.void if isinstance(id, int)} | {IGNORE_INDEX} - set(self.names)
            void |= {id for id, name in self.names.items() if unnamed and name == "void"}
            self.names = {id: name for id, name in self.names.items() if id not in void}
            self._table = lookup_table(self.names, self.class_map, sorted(void))
        self._pairs = pair(root, config.names, self.problems)
        self.images = list(self._pairs)
        if config.classes is not None and self._legend is None and len(self.names) > 1:
            self._check_values()
        if self._legend is None and (unlike := unlike_palettes(list(self._pairs.values()), self.names)):
            self.problems[UNLIKE] += unlike

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, DenseMap]:
        """values uint8 [H, W], the recipe's classes or sets of them.

        Raises DataError where an id or a colour has no name.
        """
        picture = self.images[index]
        path = self._pairs[picture]
        if self._legend is not None:
            values = self._legend.classes_of(read_colours(path), path)
            label_map = DenseMap(values, values != IGNORE_INDEX, classes=self.class_map.space)
        else:
            assert self._table is not None
            stored = read_map(path, self.config.array, merge=self.config.values is not None)
            if stored.dtype == np.bool_ and 1 not in self.names and 255 in self.names:
                stored = stored.astype(np.uint8) * 255  # as every viewer shows one bit
            label_map = to_label_map(stored, path, self._table, self.names, space=self.class_map.space)
        check_size(str(path), label_map.values.shape, picture, size)
        return {self.config.task: label_map}

    def camera(self, index: int) -> Camera | None:
        return None

    def _check_values(self) -> None:
        """Raise DataError where maps hold 0 and 255 alone: then 255 is no void, but the class that is looked for."""
        maps = list(self._pairs.values())
        chosen = maps[:: -(-len(maps) // LOOKED_AT)]
        seen: set[int] = set()
        for path in chosen:
            try:
                stored = read_map(path, self.config.array)
            except DataError:  # told where the map is used
                return
            seen |= {int(stored.min()), int(stored.max())}
            if not seen <= {0, 255} or ((stored != 0) & (stored != 255)).any():
                return
        if seen == {0, 255}:
            first = self.names.get(0, next(iter(self.names.values())))
            other = next(name for name in self.names.values() if name != first)
            raise DataError(
                f"{maps[0].parent}: the {len(chosen)} label maps that were looked at hold only 0 and 255. 255 is void, "
                f"so that '{first}' would be the only class. Say what the values are instead of classes: values: "
                f"{{0: {first}, 255: {other}}}; where 255 is void, values: {{0: {first}, 1: {other}, 255: void}}."
            )


def _colours(config: LabelMapsConfig, root: Path) -> dict[str, list[Colour]] | None:
    if isinstance(config.colours, str):
        if config.colours == "voc":
            return None
        return read_colour_list(existing_file(root, config.colours, "colours"))
    if config.colours is None:
        return None
    found: dict[str, list[Colour]] = {}
    for name, given in config.colours.items():
        one = parse_colour(given)
        several = [one] if one is not None else [parse_colour(each) for each in given]
        if not several or any(colour is None for colour in several):
            raise ConfigError(
                f"label_maps: colours gives '{name}' {given!r:.80}. Expected [R, G, B], '#RRGGBB', or a list of these."
            )
        found[name] = [colour for colour in several if colour is not None]
    return found


def _void_colours(config: LabelMapsConfig) -> list[Colour]:
    found = [parse_colour(given) for given in config.void]
    if any(colour is None for colour in found):
        raise ConfigError(f"label_maps: void is {config.void}. Expected colours, such as [[0, 0, 0]].")
    return [colour for colour in found if colour is not None]


def read_label_map(
    path: Path, table: NDArray[np.uint8], names: Mapping[int, str], hint: str = "", space: LabelSpace | None = None
) -> DenseMap:
    """A stored label map through a `lookup_table`. Raises DataError with the histogram where an id has no meaning."""
    return to_label_map(read_map(path), path, table, names, hint, space)


def to_label_map(
    stored: NDArray,
    path: Path,
    table: NDArray[np.uint8],
    names: Mapping[int, str],
    hint: str = "",
    space: LabelSpace | None = None,
) -> DenseMap:
    """Stored ids [H, W], of any kind of number, through a `lookup_table`. Raises as `read_label_map`."""
    if stored.dtype == np.uint8:
        values = cv2.LUT(np.ascontiguousarray(stored), table[:256])
    else:
        known = (stored >= 0) & (stored < len(table))
        with np.errstate(invalid="ignore"):
            ids = np.where(known, stored, 0).astype(np.int64)
            values = np.where(known & (ids == stored), table[ids], np.uint8(UNKNOWN))
    if (values == UNKNOWN).any():
        ids, counts = np.unique(stored, return_counts=True)
        pairs = list(zip(ids.tolist(), counts.tolist(), strict=True))
        histogram = ", ".join(f"{int(i) if i == i // 1 else i}: {n}" for i, n in pairs[:40])
        void = sorted(np.flatnonzero(table == IGNORE_INDEX).tolist())
        words = f" or {IGNORE_INDEX} (void)" if IGNORE_INDEX in void and IGNORE_INDEX not in names else ""
        raise DataError(
            f"{path} holds ids without a name. Expected {_ranges(sorted(names))}{words}, found "
            f"{{id: pixels}} {{{histogram}}}. {hint or _hint(ids, names)}"
        )
    return DenseMap(values, values != IGNORE_INDEX, classes=space)


def _hint(ids: NDArray, names: Mapping[int, str]) -> str:
    if len(ids) > max(40, 3 * len(names)):
        return (
            "So many ids are of a mask that was drawn with soft edges, resized with interpolation or once a JPEG, or "
            "of a picture. Make it again from the originals, by nearest neighbour."
        )
    known = ids[ids != IGNORE_INDEX]
    if list(names) == list(range(len(names))) and known.size and known.min() >= 0 and known.max() == len(names):
        return "If the first name is 1, give the reader first_id: 1 (and void: [0], where 0 is no class)."
    return (
        "Say what the values are, instead of classes: values: {0: ..., 255: ...}; add what is void: void: [...]; or "
        "correct the list of classes."
    )


def _ranges(ids: list[int]) -> str:
    contiguous = ids == list(range(ids[0], ids[-1] + 1))
    return f"{ids[0]} to {ids[-1]}" if contiguous else ", ".join(map(str, ids))
