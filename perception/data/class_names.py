"""From the class names of a source to the class list of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.files.strict_json import quote_value
from perception.types import IGNORE_INDEX, DataError, LabelSpace

ClassNames = tuple[str, ...] | Literal["rest"]
"""Class names of a source, or "rest": all that are neither in the recipe nor named otherwise."""

Superclasses = dict[str, tuple[str, ...] | Literal["rest"]]
"""Name of a source -> the recipe's classes that its pixels may be, or "rest": all that the source does not label."""

IGNORED = -1
BACKGROUND = -2

UNMASKED = "(outside of all masks)"
"""The pixels without a mask, as a class of the source."""

_MAX_COMPARED_NAMES, _MAX_COMPARED_LETTERS = 2000, 60
"""So many names, and so many letters of each, are looked through for near ones."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """index: name in the source -> index in the recipe's classes (in ``label_space`` where there is one), or
    `IGNORED`, or
        `BACKGROUND`.

    labeled_classes: bool [C], which of the recipe's classes the source labels, alone or in a super-class; None = all
    label_space:   of segmentation masks: what the values stand for, where they are not the recipe's classes one by one
    is_explicit:  whether the recipe says which classes the source labels
    """

    indices: dict[str, int]
    labeled_classes: NDArray[np.bool_] | None
    label_space: LabelSpace | None = None
    is_explicit: bool = False

    def is_labeled(self, name: str) -> bool:
        """Whether the source name stands for a class, or a set of them, that this source labels."""
        index = self.indices[name]
        return index >= 0 and (
            self.label_space is not None or self.labeled_classes is None or bool(self.labeled_classes[index])
        )

    def class_sets(self, num_classes: int) -> NDArray[np.bool_]:
        """Of segmentation masks: for each id the recipe's classes that its pixels may be, bool [K, C]."""
        if self.label_space is None:
            return np.eye(num_classes, dtype=bool)[
                slice(None) if self.labeled_classes is None else self.labeled_classes
            ]
        rows = np.zeros((len(self.label_space.class_sets), num_classes), bool)
        for k, each in enumerate(self.label_space.class_sets):
            rows[k, list(each)] = True
        return rows


def find_classes_by_exclusion(class_maps: Iterable[ClassMap], num_classes: int) -> NDArray[np.bool_]:
    """Classes that some segmentation masks' ids hold and that all of them together tell from every other class: bool
    [C].

    So a class can be learned that no source names: what one source labels as anything but a car, and another as
    anything but a truck, is neither.
    """
    columns = np.concatenate(
        [np.zeros((1, num_classes), bool), *(found.class_sets(num_classes) for found in class_maps)]
    ).T
    _, which, counts = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
    return (counts[which.reshape(-1)] == 1) & columns.any(1)


def map_classes(
    names: Iterable[str],
    recipe_classes: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None = None,
    ignore: ClassNames = (),
    background: ClassNames = (),
    labels_only: Sequence[str] | None = None,
) -> ClassMap:
    """Map the class names of a source to the recipe's by name, after ``rename``.

    ``labels_only`` (recipe's names) restricts the classes that count as labeled. Raises DataError where a name of the
    source has no place in the recipe, with the nearest ones, and where an option names what is not there.
    """
    names = list(names)
    only = _select_labeled(labels_only, recipe_classes, where)
    index = _index_names(names, recipe_classes, where, rename or {}, ignore, background)
    labelled = np.zeros(len(recipe_classes), bool)
    labelled[[k for k in index.values() if k >= 0]] = True
    labelled &= only
    _check_any_labeled(labelled, names, recipe_classes, where)
    return ClassMap(index, None if labelled.all() else labelled, is_explicit=labels_only is not None)


def map_pixel_classes(
    names: Iterable[str],
    recipe_classes: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None = None,
    ignore: ClassNames = (),
    labels_only: Sequence[str] | None = None,
    superclasses: Mapping[str, Sequence[str]] | None = None,
) -> ClassMap:
    """`map_classes` for segmentation masks, whose pixels may stand for sets of the recipe's classes.

    A name in ``superclasses`` is the set given there. With ``labels_only``, a pixel of another name is no class that
    the
    source labels, and any other: its negatives count. Void pixels and ignored names stay void. Raises DataError as
    `map_classes`, and where a set is empty.
    """
    names, superclasses = list(names), dict(superclasses or {})
    if not superclasses and labels_only is None:
        return map_classes(names, recipe_classes, where, rename, ignore)
    _check_superclasses(superclasses, names, recipe_classes, where, rename or {}, ignore)
    only = _select_labeled(labels_only, recipe_classes, where)
    index = _index_names(
        [name for name in names if name not in superclasses], recipe_classes, where, rename or {}, ignore, ()
    )
    sets = {
        name: tuple(sorted({recipe_classes.index(k) for k in given}))
        for name, given in superclasses.items()
        if given != "rest"
    }
    sets |= {name: (k,) for name, k in index.items() if k >= 0 and only[k]}
    labelled = np.zeros(len(recipe_classes), bool)
    labelled[[k for classes in sets.values() for k in classes]] = True
    _check_any_labeled(labelled, names, recipe_classes, where)
    rest = tuple(np.flatnonzero(~labelled).tolist())
    for name in names:
        if rest and name not in sets and index.get(name, 0) >= 0:
            sets[name] = rest
        elif name not in sets and name in superclasses:
            raise DataError(
                f"{where}: coarse gives {quote_value(name)} the rest, but the other names take all classes."
            )
    sets = {name: sets[name] for name in names if name in sets}
    called: dict[tuple[int, ...], str] = {}
    for name, classes in sets.items():
        own = recipe_classes[index[name]] if index.get(name, IGNORED) >= 0 else name
        called.setdefault(classes, "" if classes == rest else own)
    mask = None if labelled.all() else labelled
    if all(len(classes) == 1 and classes != rest for classes in called):
        return ClassMap({name: sets[name][0] if name in sets else IGNORED for name in names}, mask, is_explicit=True)
    places = {classes: place for place, classes in enumerate(called)}
    values = {name: places[sets[name]] if name in sets else IGNORED for name in names}
    return ClassMap(values, mask, LabelSpace(tuple(called.values()), tuple(called)), is_explicit=True)


def map_mask_classes(
    names: Iterable[str],
    unmasked_class: str | None,
    recipe_classes: Sequence[str],
    where: str,
    rename: Mapping[str, str] | None,
    ignore: ClassNames,
    labels_only: Sequence[str] | None,
    superclasses: Mapping[str, Sequence[str]] | None,
) -> ClassMap:
    """`map_pixel_classes` of a source that outlines its things: ``unmasked_class`` names the class of the recipe of
    all other pixels.

    They are the source's class `UNMASKED`, which is in the map where ``unmasked_class`` is given. "rest": any class
    that the
    source does not label; None: they are void
    """
    rename, superclasses = dict(rename or {}), dict(superclasses or {})
    if unmasked_class == "rest" and "rest" not in recipe_classes:
        superclasses[UNMASKED] = "rest"
    elif unmasked_class is not None:
        if unmasked_class not in recipe_classes:
            raise DataError(
                f"{where}: outside names '{unmasked_class}', which is no class of the "
                f"recipe.{suggest_class_name(unmasked_class, recipe_classes)}"
            )
        rename[UNMASKED] = unmasked_class
    names = names if unmasked_class is None else [*names, UNMASKED]
    return map_pixel_classes(names, recipe_classes, where, rename, ignore, labels_only, superclasses)


def mask_value(class_map: ClassMap, name: str) -> int:
    """The value of a source's class in a segmentation mask; 255 (void) for one that it does not label, or does not
    have."""
    return class_map.indices[name] if name in class_map.indices and class_map.is_labeled(name) else IGNORE_INDEX


def _select_labeled(labels_only: Sequence[str] | None, recipe_classes: Sequence[str], where: str) -> NDArray[np.bool_]:
    """Which of the recipe's classes ``labels_only`` names; all where it is None."""
    for name in labels_only or ():
        if name not in recipe_classes:
            raise DataError(
                f"{where}: labels_only names '{name}', which is no class of the "
                f"recipe.{suggest_class_name(name, recipe_classes)}"
            )
    return np.array([labels_only is None or name in labels_only for name in recipe_classes], bool)


def _check_superclasses(
    superclasses: Mapping[str, Sequence[str]], names: Sequence[str], recipe_classes: Sequence[str], where: str,
    rename: Mapping[str, str], ignore: ClassNames,
) -> None:  # fmt: skip
    for name, given in superclasses.items():
        if name not in names:
            raise DataError(
                f"{where}: coarse names {quote_value(name)}, which is no class of "
                f"this source.{suggest_class_name(name, names)}"
            )
        if name in rename or (ignore != "rest" and name in ignore):
            raise DataError(
                f"{where}: both coarse and rename or ignore name {quote_value(name)}. Keep it in one of them."
            )
        if not given:
            raise DataError(
                f"{where}: coarse gives {quote_value(name)} no class. Expected some of {', '.join(recipe_classes)}."
            )
        for one in () if given == "rest" else given:
            if one not in recipe_classes:
                raise DataError(
                    f"{where}: coarse gives {quote_value(name)} the class '{one}', which is none of the recipe."
                    f"{suggest_class_name(one, recipe_classes)}"
                )


def _check_any_labeled(
    labeled: NDArray[np.bool_], names: Sequence[str], recipe_classes: Sequence[str], where: str
) -> None:
    if not labeled.any():
        raise DataError(
            f"{where}: none of its classes is in the recipe. Found {', '.join(map(quote_value, names[:20]))}; "
            f"the recipe has {', '.join(recipe_classes)}."
        )


def _index_names(
    names: Sequence[str],
    recipe_classes: Sequence[str],
    where: str,
    rename: Mapping[str, str],
    ignore: ClassNames,
    background: ClassNames,
) -> dict[str, int]:
    """Name -> index in the recipe's classes, or `IGNORED`, or `BACKGROUND`."""
    known, places = set(names), {name: index for index, name in reversed(list(enumerate(recipe_classes)))}
    for option, given in (("rename", rename), ("ignore", ignore), ("background", background)):
        for name in () if given == "rest" else given:
            if name not in known:
                raise DataError(
                    f"{where}: {option} names {quote_value(name)}, which is no class of "
                    f"this source.{suggest_class_name(name, names)}"
                )
    for name in rename.values():
        if name not in places:
            raise DataError(
                f"{where}: rename names '{name}', which is no class of the "
                f"recipe.{suggest_class_name(name, recipe_classes)}"
            )
    both = [] if "rest" in (ignore, background) else [name for name in ignore if name in background]
    if both:
        raise DataError(f"{where}: both ignore and background name {quote_value(both[0])}. Keep it in one of them.")
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
                f"{where}: class {quote_value(name)} is not in the "
                f"recipe.{suggest_class_name(name, recipe_classes)} Add it to the task's classes, "
                f"or give this reader rename: {{{quote_value(name)}: ...}}, ignore: "
                f"[{quote_value(name)}] or ignore: rest."
            )
    return index


def suggest_class_name(name: str, known_names: Sequence[str]) -> str:
    """ " Did you mean ...?" or " Known: ...", for a message."""
    lower = {k[:_MAX_COMPARED_LETTERS].lower(): k for k in known_names[:_MAX_COMPARED_NAMES]}
    close = difflib.get_close_matches(name[:_MAX_COMPARED_LETTERS].lower(), lower, n=3)
    if close:
        return f" Did you mean {' or '.join(quote_value(lower[c]) for c in close)}?"
    return (
        " Known: "
        f"{', '.join(quote_value(k)[1:-1] for k in known_names[:30])}{', ...' if len(known_names) > 30 else ''}."
    )
