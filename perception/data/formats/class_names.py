"""From the class names of a source to the class list of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.data.files.strict_json import shown
from perception.types import DataError

Names = tuple[str, ...] | Literal["rest"]
"""Class names of a source, or "rest": all that are neither in the recipe nor named otherwise."""

IGNORED = -1
BACKGROUND = -2

_COMPARED, _LETTERS = 2000, 60
"""So many names, and so many letters of each, are looked through for near ones."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """index: name in the source -> index in the recipe's classes, or `IGNORED`, or `BACKGROUND`.

    classes: bool [C], which of the recipe's classes the source labels; None = all
    """

    index: dict[str, int]
    classes: NDArray[np.bool_] | None

    def labels(self, name: str) -> bool:
        """Whether the source name stands for a class that this source labels."""
        index = self.index[name]
        return index >= 0 and (self.classes is None or bool(self.classes[index]))


def map_classes(
    names: Iterable[str],
    recipe: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None = None,
    ignore: Names = (),
    background: Names = (),
    labels_only: Sequence[str] | None = None,
) -> ClassMap:
    """Map the class names of a source to the recipe's by name, after ``rename``.

    ``labels_only`` (recipe's names) restricts the classes that count as labelled. Raises DataError where a name of the
    source has no place in the recipe, with the nearest ones, and where an option names what is not there.
    """
    names, rename = list(names), dict(rename or {})
    known, places = set(names), {name: index for index, name in reversed(list(enumerate(recipe)))}
    for option, given in (("rename", rename), ("ignore", ignore), ("background", background)):
        for name in () if given == "rest" else given:
            if name not in known:
                raise DataError(
                    f"{where}: {option} names {shown(name)}, which is no class of this source.{near(name, names)}"
                )
    for option, given in (("rename", rename.values()), ("labels_only", labels_only or ())):
        for name in given:
            if name not in places:
                raise DataError(
                    f"{where}: {option} names '{name}', which is no class of the recipe.{near(name, recipe)}"
                )
    both = [] if "rest" in (ignore, background) else [name for name in ignore if name in background]
    if both:
        raise DataError(f"{where}: both ignore and background name {shown(both[0])}. Keep it in one of them.")
    index = {}
    for name in names:
        target = rename.get(name, name)
        if ignore != "rest" and name in ignore:
            index[name] = IGNORED
        elif background != "rest" and name in background:
            index[name] = BACKGROUND
        elif target in places:
            index[name] = places[target]
        elif "rest" in (ignore, background):
            index[name] = IGNORED if ignore == "rest" else BACKGROUND
        else:
            raise DataError(
                f"{where}: class {shown(name)} is not in the recipe.{near(name, recipe)} Add it to the task's classes, "
                f"or give this reader rename: {{{shown(name)}: ...}}, ignore: [{shown(name)}] or ignore: rest."
            )
    labelled = np.zeros(len(recipe), bool)
    labelled[[i for i in index.values() if i >= 0]] = True
    if labels_only is not None:
        labelled &= np.isin(np.array(recipe), np.array(labels_only))
    if not labelled.any():
        raise DataError(
            f"{where}: none of its classes is in the recipe. Found {', '.join(map(shown, names[:20]))}; "
            f"the recipe has {', '.join(recipe)}."
        )
    return ClassMap(index, None if labelled.all() else labelled)


def near(name: str, known: Sequence[str]) -> str:
    """ " Did you mean ...?" or " Known: ...", for a message."""
    lower = {k[:_LETTERS].lower(): k for k in known[:_COMPARED]}
    close = difflib.get_close_matches(name[:_LETTERS].lower(), lower, n=3)
    if close:
        return f" Did you mean {' or '.join(shown(lower[c]) for c in close)}?"
    return f" Known: {', '.join(shown(k)[1:-1] for k in known[:30])}{', ...' if len(known) > 30 else ''}."
