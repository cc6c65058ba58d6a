"""Several distributions provide the module onnxruntime. Only one of them may be installed. No torch."""

from __future__ import annotations

import functools
from importlib import metadata

from perception.types import PerceptionError

DISTRIBUTIONS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn",
    "onnxruntime-training", "onnxruntime-migraphx", "onnxruntime-rocm", "ort-nightly", "ort-nightly-gpu",
)  # fmt: skip


@functools.cache
def check_single_onnxruntime() -> None:
    """Raise PerceptionError where two distributions wrote into the same folder: which one answers is then chance.

    A distribution that only hides one of another folder (a virtual environment over the system's) is no conflict.
    """
    folders: dict[str, list[str]] = {}
    for name in DISTRIBUTIONS:
        try:
            folders.setdefault(str(metadata.distribution(name).locate_file("")), []).append(name)
        except metadata.PackageNotFoundError:
            continue
    for folder, names in folders.items():
        if len(names) > 1:
            raise PerceptionError(
                f"{' and '.join(names)} are both installed in {folder}, and overwrite each other's files. Remove "
                f"all and install one: pip uninstall -y {' '.join(names)} && pip install {names[-1]}"
            )
