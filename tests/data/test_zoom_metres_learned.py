"""A network that is told the camera says the same metres of the same scene at two zooms."""

from __future__ import annotations

import numpy as np
import pytest

from perception import config, runs
from perception import recipe as recipes
from perception.synthetic import write_dataset
from perception.torch_predictor import TorchPredictor
from perception.types import ImageTransform

SIZE = (96, 192)
SCENES = 24
STEPS = 400


@pytest.mark.slow
def test_the_same_scene_at_two_zooms_has_the_same_metres(tmp_path):
    """The image, and its middle enlarged twice: told the camera, metres agree; untold, they cannot."""
    height, width = SIZE
    write_dataset(tmp_path / "street", SCENES, seed=0, size=SIZE, validation_fraction=0.0)
    plain = {
        "data": {
            "root": str(tmp_path / "street"),
            "size": SIZE,
            "workers": 0,
            "augment": {"scale": [0.8, 2.3], "flip": 0.5, "color": 0.0, "degrade": 0.0},
            "train": [{"name": "street", "labels": [{"format": "cityscapes", "root": "."}]}],
        },
        "tasks": {"depth": {"limits": [1.0, 80.0], "canonical_focal": 200, "default_focal": 0.85}},
        "train": {"steps": STEPS, "batch_size": 4, "ema_decay": 0.98, "warmup_steps": 30, "tensorboard": False},
    }
    recipe = config.validate_config(recipes.Recipe, plain)
    runs.train(recipe, tmp_path / "run")
    _, model = runs.open_run(tmp_path / "run")
    see = TorchPredictor(model, SIZE)
    middle = ImageTransform(SIZE, (height // 2, width // 2), (width // 4, height // 4, width // 2, height // 2),
                   (0, 0, width // 2, height // 2))  # fmt: skip
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    found: dict[str, list[tuple[float, float]]] = {"told": [], "untold": []}
    (source,) = recipes.open_training_sources(recipe)
    for index in range(len(source)):
        sample = source.load_sample(index)
        depth = sample.annotations["depth"]
        known = depth.valid[rows, columns] & (depth.values[rows, columns] > 2) & (depth.values[rows, columns] < 60)
        cut = np.ascontiguousarray(sample.image[rows, columns])
        cameras = {"told": (sample.camera, sample.camera.to_input(middle)), "untold": (None, None)}
        for kind, (whole, near) in cameras.items():
            far = see(sample.image, whole).annotations["depth"].values[rows, columns][known]
            close = see(cut, near).annotations["depth"].values[known]
            truth = depth.values[rows, columns][known]
            found[kind].append((float(np.median(close / far)), float(np.median(np.abs(close / truth - 1)))))
    ratio, error = np.median(found["told"], axis=0)
    blind, _ = np.median(found["untold"], axis=0)
    print(f"enlarged / whole: told {ratio:.3f}, untold {blind:.3f}; error of the enlarged one, told: {error:.3f}")
    assert 0.9 < ratio < 1.1
    assert error < 0.15
    assert abs(blind - 1) > 0.3  # without intrinsics an image enlarged twice looks half as far
