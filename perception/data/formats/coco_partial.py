"""Labels that are complete for some classes of each image only, as LVIS has them (Gupta et al. 2019).

An image names the categories that it is known not to show (``neg_category_ids``), and those of which not all objects
are annotated (``not_exhaustive_category_ids``). Of a category that is neither named nor annotated, nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.class_names import ClassMap
from perception.files.scalars import parse_integer
from perception.files.strict_json import quote_value
from perception.types import DataError

_KEYS = {"negatives": "neg_category_ids", "open": "not_exhaustive_category_ids"}


def read_partial_labels(
    images: Sequence[dict[str, Any]], categories: Mapping[int, int], path: Path
) -> dict[str, NDArray]:
    """negatives, open: int64 [K, 2], positions of image and category; empty where no image names any.

    categories: id -> position. Raises DataError where a list is none or names an unknown category.
    """
    if not any(key in image for image in images for key in _KEYS.values()):
        return {}
    found: dict[str, NDArray] = {}
    for name, key in _KEYS.items():
        pairs = []
        for row, image in enumerate(images):
            given = image.get(key)
            ids = [parse_integer(id) for id in given] if isinstance(given, list) else [] if given is None else [None]
            if not all(id in categories for id in ids):
                raise DataError(
                    f"{path}, image {quote_value(image.get('id'))}: {key} is "
                    f"{quote_value(given)}. Expected a list of category ids."
                )
            pairs += [(row, categories[id]) for id in ids if id is not None]
        found[name] = np.array(pairs, np.int64).reshape(-1, 2)
    return found


def find_labeled_classes(
    index: Mapping[str, NDArray], names: Sequence[str], class_map: ClassMap, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 [K, 2] and [L, 2], image and class of the recipe's ``num_classes``: what each image labels; what of it in
    part.

    A class of several categories is labeled whole where all of these are, and in part where one has an annotation.
    """
    label_of = np.array(
        [class_map.indices[n] if n in class_map.indices and class_map.is_labeled(n) else -1 for n in names]
    )
    parts = np.bincount(label_of[label_of >= 0], minlength=num_classes)
    width = len(names)
    annotated = np.unique(index["image_of"] * width + index["category_of"])
    negatives, open = (index[key][:, 0] * width + index[key][:, 1] for key in ("negatives", "open"))
    whole = np.setdiff1d(np.union1d(annotated, negatives), open)

    def of_classes(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Image and class in one number, each once; how many of the class's categories are among the pairs."""
        images, labels = pairs // width, label_of[pairs % width]
        return np.unique((images * num_classes + labels)[labels >= 0], return_counts=True)

    complete, categories = of_classes(whole)
    complete = complete[categories == parts[complete % num_classes]]
    seen, _ = of_classes(annotated)
    known, partly = np.union1d(complete, seen), np.setdiff1d(seen, complete)
    return np.stack(np.divmod(known, num_classes), 1), np.stack(np.divmod(partly, num_classes), 1)
