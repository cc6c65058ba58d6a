"""Labels that are complete only for some classes of each image, as in LVIS (Gupta et al. 2019).

An image lists the categories that are verified as absent (``neg_category_ids``) and those of which not all objects
are annotated (``not_exhaustive_category_ids``). A category that is neither listed nor annotated is not labeled.
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
    """Read the lists of absent and of not exhaustively annotated categories.

    Args:
        images: image records of the JSON.
        categories: category id -> position.
        path: the JSON file, for messages.

    Returns:
        "negatives" and "open": int64 [K, 2], positions of image and category; empty dict if no image has such a list.

    Raises:
        DataError: a list is invalid or contains an unknown category.
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
    """Find the classes that each image labels.

    A class of several categories is labeled completely if all of them are, and partially if one has an annotation.

    Args:
        index: arrays of the JSON (`read_instance_index`).
        names: category names, by position.
        class_map: category name -> the recipe's class.
        num_classes: number of the recipe's classes.

    Returns:
        int64 [K, 2] and [L, 2], pairs of image and class: labeled ones, and those that are labeled only partially.
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
        """Unique image-class codes, and how many categories of the class are among the pairs."""
        images, labels = pairs // width, label_of[pairs % width]
        return np.unique((images * num_classes + labels)[labels >= 0], return_counts=True)

    complete, categories = of_classes(whole)
    complete = complete[categories == parts[complete % num_classes]]
    seen, _ = of_classes(annotated)
    known, partly = np.union1d(complete, seen), np.setdiff1d(seen, complete)
    return np.stack(np.divmod(known, num_classes), 1), np.stack(np.divmod(partly, num_classes), 1)
