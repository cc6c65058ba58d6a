"""Mapping of the class names of a source to the class list of the recipe."""

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
"""Class names of a source, or "rest": all names that are not in the recipe and not in another option."""

Superclasses = dict[str, tuple[str, ...] | Literal["rest"]]
"""Name of a source -> classes of the recipe that its pixels may have. "rest": all that the source does not label."""

IGNORED = -1
BACKGROUND = -2

UNMASKED = "(outside of all masks)"
"""Name for the pixels without a mask, used as a class of the source."""

_MAX_COMPARED_NAMES, _MAX_COMPARED_LETTERS = 2000, 60
"""Limits of the search for similar names: number of names, letters of each name."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """Mapping from the class names of a source to class indices.

    Attributes:
        indices: name in the source -> index in the recipe's classes (in ``label_space`` if set), `IGNORED` or
            `BACKGROUND`.
        labeled_classes: bool [C], classes of the recipe that the source labels, alone or in a superclass; None = all.
        label_space: meaning of the mask values, if a value is not simply the index of one class of the recipe.
        is_explicit: whether the recipe states which classes the source labels.
    """

    indices: dict[str, int]
    labeled_classes: NDArray[np.bool_] | None
    label_space: LabelSpace | None = None
    is_explicit: bool = False

    def is_labeled(self, name: str) -> bool:
        """Return whether ``name`` maps to a class, or a set of classes, that this source labels."""
        index = self.indices[name]
        return index >= 0 and (
            self.label_space is not None or self.labeled_classes is None or bool(self.labeled_classes[index])
        )

    def class_sets(self, num_classes: int) -> NDArray[np.bool_]:
        """Return, for each id of the segmentation masks, the recipe's classes that its pixels may have, bool [K, C]."""
        if self.label_space is None:
            return np.eye(num_classes, dtype=bool)[
                slice(None) if self.labeled_classes is None else self.labeled_classes
            ]
        rows = np.zeros((len(self.label_space.class_sets), num_classes), bool)
        for k, each in enumerate(self.label_space.class_sets):
            rows[k, list(each)] = True
        return rows


def find_classes_by_exclusion(class_maps: Iterable[ClassMap], num_classes: int) -> NDArray[np.bool_]:
    """Find the classes that the ids of all segmentation masks together separate from every other class.

    Such a class can be learned although no source names it. Example: with the classes car, truck and bus, pixels
    that are "not car" in one source and "not truck" in another are evidence for bus.

    Args:
        class_maps: the maps of all segmentation masks of one task.
        num_classes: number of classes of the task.

    Returns:
        bool [C].
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
    """Map the class names of a source to the recipe's classes by name, after ``rename``.

    Args:
        names: class names of the source.
        recipe_classes: class list of the task.
        where: file or source, for messages.
        rename: name in the source -> name in the recipe.
        ignore: names of the source that are ignored.
        background: names of the source that are background.
        labels_only: the recipe's names that count as labeled; None = all.

    Raises:
        DataError: a name of the source is not in the recipe, or an option gives an unknown name. The message lists
            similar names.
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
    """Map class names like `map_classes`, for segmentation masks, whose pixels may have sets of the recipe's classes.

    With ``labels_only``, a pixel of any other name may have every class that the source does not label. It counts as a
    negative for the labeled classes. Ignored pixels and ignored names stay ignored.

    Args:
        names: class names of the source.
        recipe_classes: class list of the task.
        where: file or source, for messages.
        rename: name in the source -> name in the recipe.
        ignore: names of the source that are ignored.
        labels_only: the recipe's names that count as labeled; None = all.
        superclasses: name in the source -> set of the recipe's classes that it may mean, or "rest".

    Raises:
        DataError: as in `map_classes`, or a set is empty.
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
                f"{where}: superclasses gives {quote_value(name)} the rest, but the other names use all classes."
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
    """Map class names like `map_pixel_classes`, for a source with one mask per object.

    Args:
        names: class names of the source.
        unmasked_class: the recipe's class of the pixels without a mask. "rest" = any class that the source does not
            label; None = ignored. If it is given, the map contains the class `UNMASKED`.
        recipe_classes: class list of the task.
        where: file or source, for messages.
        rename: name in the source -> name in the recipe.
        ignore: names of the source that are ignored.
        labels_only: the recipe's names that count as labeled; None = all.
        superclasses: name in the source -> set of the recipe's classes that it may mean, or "rest".

    Raises:
        DataError: as in `map_pixel_classes`, or ``unmasked_class`` is not in the recipe.
    """
    rename, superclasses = dict(rename or {}), dict(superclasses or {})
    if unmasked_class == "rest" and "rest" not in recipe_classes:
        superclasses[UNMASKED] = "rest"
    elif unmasked_class is not None:
        if unmasked_class not in recipe_classes:
            raise DataError(
                f"{where}: unmasked_class is '{unmasked_class}', which is not a class of the "
                f"recipe.{suggest_class_name(unmasked_class, recipe_classes)}"
            )
        rename[UNMASKED] = unmasked_class
    names = names if unmasked_class is None else [*names, UNMASKED]
    return map_pixel_classes(names, recipe_classes, where, rename, ignore, labels_only, superclasses)


def mask_value(class_map: ClassMap, name: str) -> int:
    """Return the mask value of a source's class; 255 (ignored) if the source does not label or have it."""
    return class_map.indices[name] if name in class_map.indices and class_map.is_labeled(name) else IGNORE_INDEX


def _select_labeled(labels_only: Sequence[str] | None, recipe_classes: Sequence[str], where: str) -> NDArray[np.bool_]:
    """Mask [C] of the recipe's classes in ``labels_only``; all if it is None."""
    for name in labels_only or ():
        if name not in recipe_classes:
            raise DataError(
                f"{where}: labels_only names '{name}', which is not a class of the "
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
                f"{where}: superclasses names {quote_value(name)}, which is not a class of "
                f"this source.{suggest_class_name(name, names)}"
            )
        if name in rename or (ignore != "rest" and name in ignore):
            raise DataError(
                f"{where}: both superclasses and rename or ignore name {quote_value(name)}. Keep it in one of them."
            )
        if not given:
            raise DataError(
                f"{where}: superclasses gives {quote_value(name)} no class. Expected some of "
                f"{', '.join(recipe_classes)}."
            )
        for one in () if given == "rest" else given:
            if one not in recipe_classes:
                raise DataError(
                    f"{where}: superclasses gives {quote_value(name)} the class '{one}', which is not in the recipe."
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
    """Name -> index in the recipe's classes, `IGNORED` or `BACKGROUND`."""
    known, places = set(names), {name: index for index, name in reversed(list(enumerate(recipe_classes)))}
    for option, given in (("rename", rename), ("ignore", ignore), ("background", background)):
        for name in () if given == "rest" else given:
            if name not in known:
                raise DataError(
                    f"{where}: {option} names {quote_value(name)}, which is not a class of "
                    f"this source.{suggest_class_name(name, names)}"
                )
    for name in rename.values():
        if name not in places:
            raise DataError(
                f"{where}: rename names '{name}', which is not a class of the "
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
    """Return "Did you mean ...?" or "Known: ..." with a leading space, for a message."""
    lower = {k[:_MAX_COMPARED_LETTERS].lower(): k for k in known_names[:_MAX_COMPARED_NAMES]}
    close = difflib.get_close_matches(name[:_MAX_COMPARED_LETTERS].lower(), lower, n=3)
    if close:
        return f" Did you mean {' or '.join(quote_value(lower[c]) for c in close)}?"
    return (
        " Known: "
        f"{', '.join(quote_value(k)[1:-1] for k in known_names[:30])}{', ...' if len(known_names) > 30 else ''}."
    )
