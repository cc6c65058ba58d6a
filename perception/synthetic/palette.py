"""Colors of objects."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.mesh import Slot

RgbColor = tuple[float, float, float]
Palette = NDArray[np.float64]


def _parse_colors(text: str) -> tuple[RgbColor, ...]:
    """Colors from hexadecimal RRGGBB, components in 0-1."""
    rows = [bytes.fromhex(word) for word in text.split()]
    return tuple((red / 255, green / 255, blue / 255) for red, green, blue in rows)


DEFAULT_COLORS = np.array(_parse_colors(
    "999999 808080 1a1f26 0f0f11 858a8f e0e6eb 8c0a0d d19e80 261a12 "
    "ededeb 12389e 804c33 d10f12 fabf0d 1acc59 33404f e6e6d9"
))  # fmt: skip
"""Default color of each `Slot`."""

GLOW_COLORS = np.array(_parse_colors(
    "000000 000000 000000 000000 000000 fff7e0 ff211a 000000 000000 "
    "000000 000000 000000 ff2921 ffb81f 40ff8c facc7a ffe6a8"
))  # fmt: skip
"""Color of each `Slot` when it glows."""

PAINTS = _parse_colors("ebebe8 ebebe8 a8adb2 66696e 121214 121214 1f336b 8c0f12 4c1417 294c33 9e8f73 33598c bf7314")
CLOTHES = _parse_colors("1a1a1f 262e4c 801a1f bfb8a8 40543d d98c1f 4c4c54 33669e 9e4c6b d9d9db")
TROUSERS = _parse_colors("1a1a1f 212b47 3d4557 594c3d 333333 807561")
WALLS = _parse_colors("b8a88c 9e5945 804738 c7bdab 999999 ccb880 736b66 ad876b 8f99a1 d1ccc2 b28c80")
ROOFS = _parse_colors("803829 4c4a4c 664033 3d3d45")
LEAVES = _parse_colors("33571f 426124 29471f 576626 735c1f 3d5233")
AWNINGS = _parse_colors("991f1f 1a4c40 263366 b29959 404040")
SKINS = _parse_colors("deab8c c78f6e 80543d 543626")
HAIR = _parse_colors("140f0d 332114 735933 808080")
CARGO = _parse_colors("ededed ededed bfc2c7 1f4c99 cc731a a61a1a 336b47")
NEEDLES = _parse_colors("29471f 1f3d24 334d29")
(BARK,) = _parse_colors("4d3d30")
METALS = _parse_colors("80858a 4c5254 384740")
BOARDS = _parse_colors("12389e 0d5933 1a47b2")


def make_palette(**colors: RgbColor) -> Palette:
    """Return the palette [slots, 3] of an object; argument names are those of `Slot` in lower case."""
    result = DEFAULT_COLORS.copy()
    for name, colour in colors.items():
        result[Slot[name.upper()]] = colour
    return result


def perturb_color(color: RgbColor, rng: Random, amount: float = 0.08) -> RgbColor:
    """Return a similar color: brightness differs by up to ``amount``, hue by a third of it."""
    light = 1 + rng.uniform(-amount, amount)
    red, green, blue = (min(1.0, part * light * (1 + rng.uniform(-amount, amount) / 3)) for part in color)
    return red, green, blue
