"""What the numbers or the colours of a label map stand for: from stored values to the recipe's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.data.formats.colour_lists import Colour
from perception.types import IGNORE_INDEX, DataError

UNKNOWN = 254
"""Stands for a value that has no meaning. Classes are below."""

_SHOWN = 12


def lookup_table(
    names: Mapping[int, str], class_map: ClassMap, void: Sequence[int] = (IGNORE_INDEX,)
) -> NDArray[np.uint8]:
    """uint8 [256 or more]: stored id -> the recipe's class (or the id in its ``space``), 255 = void, 254 = no id at
    all.

    Raises DataError where a class of the recipe is beyond what a label map of bytes can hold.
    """
    last = max(class_map.index.values(), default=0)
    if last >= UNKNOWN:
        raise DataError(f"The recipe has a class of number {last}. Label maps hold at most {UNKNOWN} classes.")
    table = np.full(max(255, *names, *void) + 1, UNKNOWN, np.uint8)
    table[list(void)] = IGNORE_INDEX
    for id, name in names.items():
        table[id] = class_map.index[name] if class_map.labels(name) else IGNORE_INDEX
    return table


@dataclass(frozen=True, slots=True)
class ColourLegend:
    """codes: int32 [N], R * 65536 + G * 256 + B, ascending. classes: uint8 [N], as in a `lookup_table`. names: [N]"""

    codes: NDArray[np.int32]
    classes: NDArray[np.uint8]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, colours: Mapping[str, Sequence[Colour]], class_map: ClassMap, void: Sequence[Colour], where: str
    ) -> ColourLegend:
        """Raises DataError that begins with ``where`` if two classes have one colour."""
        meaning: dict[int, tuple[int, str]] = {}
        for name, own in [*colours.items(), ("void", void)]:
            listed = name in class_map.index and own is not void
            value = class_map.index[name] if listed and class_map.labels(name) else IGNORE_INDEX
            for colour in own:
                code = colour[0] << 16 | colour[1] << 8 | colour[2]
                if meaning.setdefault(code, (value, name))[0] != value:
                    raise DataError(f"{where}: {colour} is both '{meaning[code][1]}' and '{name}'. Keep one of them.")
        codes = sorted(meaning)
        return cls(
            np.array(codes, np.int32),
            np.array([meaning[code][0] for code in codes], np.uint8),
            tuple(meaning[code][1] for code in codes),
        )

    def classes_of(self, image: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
        """The classes uint8 [H, W] of colours [H, W, 3]. Raises DataError with those that have no class."""
        red, green, blue = (image[..., k].astype(np.int32).ravel() for k in range(3))
        code = red << 16 | green << 8 | blue
        starts = np.flatnonzero(np.diff(code, prepend=-1))  # masks are of long runs of one colour
        runs = code[starts]
        places = np.minimum(np.searchsorted(self.codes, runs), len(self.codes) - 1)
        if (self.codes[places] != runs).any():
            raise DataError(self._strange(code, path))
        values = np.repeat(self.classes[places], np.diff(starts, append=code.size))
        return values.reshape(image.shape[:2])

    def _strange(self, code: NDArray[np.int32], path: Path) -> str:
        found, counts = np.unique(code, return_counts=True)
        known = np.isin(found, self.codes)
        order = np.argsort(-counts[~known], kind="stable")
        colours, pixels = found[~known][order], counts[~known][order]
        listed = [f"{_rgb(c)}: {n} (nearest {self._near(c)})" for c, n in zip(colours[:6], pixels[:6], strict=True)]
        share = pixels.sum() / code.size
        if len(colours) > _SHOWN and len(colours) > 4 * known.sum():
            why = (
                "So many colours are of a mask that was drawn with soft edges, resized with interpolation or once a "
                "JPEG: make it again from the originals, by nearest neighbour, as a PNG."
            )
        else:
            why = "Add them to colours, or to void, for example void: [[0, 0, 0]]."
        return (
            f"{path} holds {len(colours)} colours without a class, on {share:.1%} of the pixels. Found "
            f"{{colour: pixels}} {', '.join(listed)}{', ...' if len(colours) > 6 else ''}. {why}"
        )

    def _near(self, code: int) -> str:
        own = np.array([_rgb(c) for c in self.codes])
        nearest = int(np.square(own - np.array(_rgb(code))).sum(1).argmin())
        return f"{self.names[nearest][:60]} {_rgb(self.codes[nearest])}"


def _rgb(code: int | np.integer) -> Colour:
    return int(code) >> 16, int(code) >> 8 & 255, int(code) & 255
