"""From the class names of a source to the class list of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.files.strict_json import shown
from perception.types import IGNORE_INDEX, DataError, LabelSpace

Names = tuple[str, ...] | Literal["rest"]
"""Class names of a source, or "rest": all that are neither in the recipe nor named otherwise."""

Coarse = dict[str, tuple[str, ...] | Literal["rest"]]
"""Name of a source -> the recipe's classes that its pixels may be, or "rest": all that the source does not label."""

IGNORED = -1
BACKGROUND = -2

OUTSIDE = "(outside of all masks)"
"""The pixels without a mask, as a class of the source."""

_COMPARED, _LETTERS = 2000, 60
"""So many names, and so many letters of each, are looked through for near ones."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """index: name in the source -> index in the recipe's classes (in ``space`` where there is one), or `IGNORED`, or
        `BACKGROUND`.

    classes: bool [C], which of the recipe's classes the source labels, alone or in a super-class; None = all
    space:   of label maps: what the values stand for, where they are not the recipe's classes one by one
    stated:  whether the recipe says which classes the source labels
    """

    index: dict[str, int]
    classes: NDArray[np.bool_] | None
    space: LabelSpace | None = None
    stated: bool = False

    def labels(self, name: str) -> bool:
        """Whether the source name stands for a class, or a set of them, that this source labels."""
        index = self.index[name]
        return index >= 0 and (self.space is not None or self.classes is None or bool(self.classes[index]))

    def sets(self, classes: int) -> NDArray[np.bool_]:
        """Of label maps: for each id the recipe's classes that its pixels may be, bool [K, C]."""
        if self.space is None:
            return np.eye(classes, dtype=bool)[slice(None) if self.classes is None else self.classes]
        rows = np.zeros((len(self.space.sets), classes), bool)
        for k, each in enumerate(self.space.sets):
            rows[k, list(each)] = True
        return rows


def by_exclusion(maps: Iterable[ClassMap], classes: int) -> NDArray[np.bool_]:
    """Classes that some label maps' ids hold and that all of them together tell from every other class: bool [C].

    So a class can be learned that no source names: what one source labels as anything but a car, and another as
    anything but a truck, is neither.
    """
    columns = np.concatenate([np.zeros((1, classes), bool), *(found.sets(classes) for found in maps)]).T
    _, which, counts = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
    return (counts[which.reshape(-1)] == 1) & columns.any(1)


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
    names = list(names)
    only = _only(labels_only, recipe, where)
    index = _index(names, recipe, where, rename or {}, ignore, background)
    labelled = np.zeros(len(recipe), bool)
    labelled[[k for k in index.values() if k >= 0]] = True
    labelled &= only
    _check_any(labelled, names, recipe, where)
    return ClassMap(index, None if labelled.all() else labelled, stated=labels_only is not None)


def map_pixels(
    names: Iterable[str],
    recipe: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None = None,
    ignore: Names = (),
    labels_only: Sequence[str] | None = None,
    coarse: Mapping[str, Sequence[str]] | None = None,
) -> ClassMap:
    """`map_classes` for label maps, whose pixels may stand for sets of the recipe's classes.

    A name in ``coarse`` is the set given there. With ``labels_only``, a pixel of another name is no class that the
    source labels, and any other: its negatives count. Void pixels and ignored names stay void. Raises DataError as
    `map_classes`, and where a set is empty.
    """
    names, coarse = list(names), dict(coarse or {})
    if not coarse and labels_only is None:
        return map_classes(names, recipe, where, rename, ignore)
    _check_coarse(coarse, names, recipe, where, rename or {}, ignore)
    only = _only(labels_only, recipe, where)
    index = _index([name for name in names if name not in coarse], recipe, where, rename or {}, ignore, ())
    sets = {name: tuple(sorted({recipe.index(k) for k in given})) for name, given in coarse.items() if given != "rest"}
    sets |= {name: (k,) for name, k in index.items() if k >= 0 and only[k]}
    labelled = np.zeros(len(recipe), bool)
    labelled[[k for classes in sets.values() for k in classes]] = True
    _check_any(labelled, names, recipe, where)
    rest = tuple(np.flatnonzero(~labelled).tolist())
    for name in names:
        if rest and name not in sets and index.get(name, 0) >= 0:
            sets[name] = rest
        elif name not in sets and name in coarse:
            raise DataError(f"{where}: coarse gives {shown(name)} the rest, but the other names take all classes.")
    sets = {name: sets[name] for name in names if name in sets}
    called: dict[tuple[int, ...], str] = {}
    for name, classes in sets.items():
        own = recipe[index[name]] if index.get(name, IGNORED) >= 0 else name
        called.setdefault(classes, "" if classes == rest else own)
    mask = None if labelled.all() else labelled
    if all(len(classes) == 1 and classes != rest for classes in called):
        return ClassMap({name: sets[name][0] if name in sets else IGNORED for name in names}, mask, stated=True)
    places = {classes: place for place, classes in enumerate(called)}
    values = {name: places[sets[name]] if name in sets else IGNORED for name in names}
    return ClassMap(values, mask, LabelSpace(tuple(called.values()), tuple(called)), stated=True)


def map_masks(
    names: Iterable[str],
    outside: str | None,
    recipe: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None,
    ignore: Names,
    labels_only: Sequence[str] | None,
    coarse: Mapping[str, Sequence[str]] | None,
) -> ClassMap:
    """`map_pixels` of a source that outlines its things: ``outside`` names the class of the recipe of all other pixels.

    They are the source's class `OUTSIDE`, which is in the map where ``outside`` is given. "rest": any class that the
    source does not label; None: they are void
    """
    rename, coarse = dict(rename or {}), dict(coarse or {})
    if outside == "rest" and "rest" not in recipe:
        coarse[OUTSIDE] = "rest"
    elif outside is not None:
        if outside not in recipe:
            raise DataError(
                f"{where}: outside names '{outside}', which is no class of the recipe.{near(outside, recipe)}"
            )
        rename[OUTSIDE] = outside
    names = names if outside is None else [*names, OUTSIDE]
    return map_pixels(names, recipe, where, rename, ignore, labels_only, coarse)


def map_value(class_map: ClassMap, name: str) -> int:
    """The value of a source's class in a label map; 255 (void) for one that it does not label, or does not have."""
    return class_map.index[name] if name in class_map.index and class_map.labels(name) else IGNORE_INDEX


def _only(labels_only: Sequence[str] | None, recipe: Sequence[str], where: str) -> NDArray[np.bool_]:
    """Which of the recipe's classes ``labels_only`` names; all where it is None."""
    for name in labels_only or ():
        if name not in recipe:
            raise DataError(
                f"{where}: labels_only names '{name}', which is no class of the recipe.{near(name, recipe)}"
            )
    return np.array([labels_only is None or name in labels_only for name in recipe], bool)


def _check_coarse(
    coarse: Mapping[str, Sequence[str]], names: Sequence[str], recipe: Sequence[str], where: str,
    rename: Mapping[str, str], ignore: Names,
) -> None:  # fmt: skip
    for name, given in coarse.items():
        if name not in names:
            raise DataError(
                f"{where}: coarse names {shown(name)}, which is no class of this source.{near(name, names)}"
            )
        if name in rename or (ignore != "rest" and name in ignore):
            raise DataError(f"{where}: both coarse and rename or ignore name {shown(name)}. Keep it in one of them.")
        if not given:
            raise DataError(f"{where}: coarse gives {shown(name)} no class. Expected some of {', '.join(recipe)}.")
        for one in () if given == "rest" else given:
            if one not in recipe:
                raise DataError(
                    f"{where}: coarse gives {shown(name)} the class '{one}', which is none of the recipe."
                    f"{near(one, recipe)}"
                )


def _check_any(labelled: NDArray[np.bool_], names: Sequence[str], recipe: Sequence[str], where: str) -> None:
    if not labelled.any():
        raise DataError(
            f"{where}: none of its classes is in the recipe. Found {', '.join(map(shown, names[:20]))}; "
            f"the recipe has {', '.join(recipe)}."
        )


def _index(
    names: Sequence[str],
    recipe: Sequence[str],
    where: str,
    rename: Mapping[str, str],
    ignore: Names,
    background: Names,
) -> dict[str, int]:
    """Name -> index in the recipe's classes, or `IGNORED`, or `BACKGROUND`."""
    known, places = set(names), {name: index for index, name in reversed(list(enumerate(recipe)))}
    for option, given in (("rename", rename), ("ignore", ignore), ("background", background)):
        for name in () if given == "rest" else given:
            if name not in known:
                raise DataError(
                    f"{where}: {option} names {shown(name)}, which is no class of this source.{near(name, names)}"
                )
    for name in rename.values():
        if name not in places:
            raise DataError(f"{where}: rename names '{name}', which is no class of the recipe.{near(name, recipe)}")
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
    return index


def near(name: str, known: Sequence[str]) -> str:
    """ " Did you mean ...?" or " Known: ...", for a message."""
    lower = {k[:_LETTERS].lower(): k for k in known[:_COMPARED]}
    close = difflib.get_close_matches(name[:_LETTERS].lower(), lower, n=3)
    if close:
        return f" Did you mean {' or '.join(shown(lower[c]) for c in close)}?"
    return f" Known: {', '.join(shown(k)[1:-1] for k in known[:30])}{', ...' if len(known) > 30 else ''}."
