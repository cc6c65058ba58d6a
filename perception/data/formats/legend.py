"""Mapping from the stored ids or colors of a segmentation mask to the recipe's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.data.formats.color_lists import Color
from perception.types import IGNORE_INDEX, DataError

UNKNOWN_VALUE = 254
"""Marks a stored value without a class. Class indices are smaller."""

_MAX_LISTED_COLORS = 12


def build_lookup_table(
    names: Mapping[int, str], class_map: ClassMap, ignore_values: Sequence[int] = (IGNORE_INDEX,)
) -> NDArray[np.uint8]:
    """Return a lookup table from stored ids to the recipe's classes.

    Args:
        names: stored id -> class name in the source.
        class_map: mapping from these names to the recipe's classes (or to the ids in its ``label_space``).
        ignore_values: stored ids that are ignored.

    Returns:
        uint8 [256 or more], 255 = ignored, 254 = unknown id.

    Raises:
        DataError: the recipe has more classes than a segmentation mask of bytes can hold.
    """
    last = max(class_map.indices.values(), default=0)
    if last >= UNKNOWN_VALUE:
        raise DataError(
            f"The recipe has a class with index {last}. A segmentation mask can hold at most {UNKNOWN_VALUE} classes."
        )
    table = np.full(max(255, *names, *ignore_values) + 1, UNKNOWN_VALUE, np.uint8)
    table[list(ignore_values)] = IGNORE_INDEX
    for id, name in names.items():
        table[id] = class_map.indices[name] if class_map.is_labeled(name) else IGNORE_INDEX
    return table


@dataclass(frozen=True, slots=True)
class ColorLegend:
    """Lookup table from colors to the recipe's classes.

    Attributes:
        codes: int32 [N], R * 65536 + G * 256 + B, ascending.
        classes: uint8 [N], values as in `build_lookup_table`.
        names: [N], class names in the source.
    """

    codes: NDArray[np.int32]
    classes: NDArray[np.uint8]
    names: tuple[str, ...]

    @classmethod
    def from_colors(
        cls, colors: Mapping[str, Sequence[Color]], class_map: ClassMap, ignore_colors: Sequence[Color], where: str
    ) -> ColorLegend:
        """Build the legend. Raises DataError that starts with ``where`` if two classes have the same color."""
        meaning: dict[int, tuple[int, str]] = {}
        for name, own in [*colors.items(), ("ignore_values", ignore_colors)]:
            listed = name in class_map.indices and own is not ignore_colors
            value = class_map.indices[name] if listed and class_map.is_labeled(name) else IGNORE_INDEX
            for color in own:
                code = color[0] << 16 | color[1] << 8 | color[2]
                if meaning.setdefault(code, (value, name))[0] != value:
                    raise DataError(f"{where}: {color} is both '{meaning[code][1]}' and '{name}'. Keep one of them.")
        codes = sorted(meaning)
        return cls(
            np.array(codes, np.int32),
            np.array([meaning[code][0] for code in codes], np.uint8),
            tuple(meaning[code][1] for code in codes),
        )

    def map_colors(self, image: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """Map colors [H, W, 3] to classes uint8 [H, W]. Raises DataError that lists colors without a class."""
        red, green, blue = (image[..., k].astype(np.int32).ravel() for k in range(3))
        code = red << 16 | green << 8 | blue
        starts = np.flatnonzero(np.diff(code, prepend=-1))  # masks have long runs of one color
        runs = code[starts]
        places = np.minimum(np.searchsorted(self.codes, runs), len(self.codes) - 1)
        if (self.codes[places] != runs).any():
            raise DataError(self._describe_unknown_colors(code, path))
        values = np.repeat(self.classes[places], np.diff(starts, append=code.size))
        return values.reshape(image.shape[:2])

    def _describe_unknown_colors(self, code: NDArray[np.int32], path: Path) -> str:
        found, counts = np.unique(code, return_counts=True)
        known = np.isin(found, self.codes)
        order = np.argsort(-counts[~known], kind="stable")
        colours, pixels = found[~known][order], counts[~known][order]
        listed = [
            f"{_unpack_rgb(c)}: {n} (nearest {self._find_nearest_class(c)})"
            for c, n in zip(colours[:6], pixels[:6], strict=True)
        ]
        share = pixels.sum() / code.size
        if len(colours) > _MAX_LISTED_COLORS and len(colours) > 4 * known.sum():
            why = (
                "So many colors mean that the mask was drawn with soft edges, resized with interpolation or saved as "
                "a JPEG. Create it again from the originals, with nearest neighbor, as a PNG."
            )
        else:
            why = "Add them to colors, or to ignore_values, for example ignore_values: [[0, 0, 0]]."
        return (
            f"{path} contains {len(colours)} colors without a class, on {share:.1%} of the pixels. Found "
            f"{{color: pixels}} {', '.join(listed)}{', ...' if len(colours) > 6 else ''}. {why}"
        )

    def _find_nearest_class(self, code: int) -> str:
        own = np.array([_unpack_rgb(c) for c in self.codes])
        nearest = int(np.square(own - np.array(_unpack_rgb(code))).sum(1).argmin())
        return f"{self.names[nearest][:60]} {_unpack_rgb(self.codes[nearest])}"


def _unpack_rgb(code: int | np.integer) -> Color:
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255
