"""From a run to an ONNX file: the network, the images that prove it, and the data that judge a reduced precision."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perception import recipe as recipes
from perception import runs
from perception.data.dataset import DataSource
from perception.export.export import ExportReport, Target
from perception.export.export import export as write
from perception.export.onnx_model import OnnxModel
from perception.export.precision_gate import PrecisionSettings
from perception.model import MultiTaskModel
from perception.ops.image import compute_letterbox, warp_image
from perception.recipe import Recipe
from perception.runtime.manifest import Precision, PreprocessPlacement
from perception.runtime.session import ModelRunner
from perception.types import ConfigError, PerceptionError

Size = tuple[int, int] | Literal["dynamic"]


def export(
    run: Path,
    out: Path | None = None,
    *,
    tasks: Collection[str] | None = None,
    precision: Precision = "fp32",
    size: Size | None = None,
    preprocess: PreprocessPlacement = "external",
    budget: float = 0.01,
    calibration_images: int = 64,
    validation_images: int = 500,
    target: Target = "onnxruntime",
    overrides: Sequence[str] = (),
) -> ExportReport:
    """Export a run folder or checkpoint to ``out`` (its own folder's ``model.onnx`` by default).

    tasks:       None = all but auxiliary ones
    size:        the only (height, width) that the network takes, or "dynamic". None = dynamic, or where the graph
        letterboxes inside, the recipe's
    budget:      what each task's metric may lose by fp16 or int8, absolutely: 0.01 is a point
    calibration_images: training images (validation where there are none at hand) that int8 takes its ranges from
    validation_images:    at most so many validation images judge fp16 and int8
    target:      "tensorrt": what its parser would refuse is not written, int8 is symmetric as it wants it, and the
        speed of int8 on this processor decides nothing
    overrides:   of the run's recipe, ``data.root=...`` where its data was moved

    Raises PerceptionError as `perception.export.export.export` does.
    """
    if preprocess == "embedded" and size == "dynamic":
        raise ConfigError(
            "--size dynamic with --preprocess embedded: the graph letterboxes to one size. Give it as HxW."
        )
    if not 0 <= budget < float("inf"):
        raise ConfigError(f"--budget {budget:g}: expected 0 or more, of a metric: 0.01 is a point.")
    out = out or (run if run.is_dir() else run.parent) / "model.onnx"
    if out.suffix != ".onnx" or out.is_dir():
        raise ConfigError(f"--out {out}: expected a file whose name ends in .onnx; its manifest lies beside it.")
    recipe, model = runs.open_inference_model(run, tasks, overrides)
    fixed = recipe.data.size if size is None or size == "dynamic" else size
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, size=fixed))
    reduction = None
    if precision != "fp32":
        reduction = _build_precision_settings(
            recipe, model, precision, budget, calibration_images, validation_images, target
        )
    return write(
        model,
        out,
        size=fixed,
        dynamic=size == "dynamic" or (size is None and preprocess == "external"),
        preprocess=preprocess,
        reduction=reduction,
        parity_images=runs.sample_validation_images(recipe),
        target=target,
    )


def _build_precision_settings(
    recipe: Recipe,
    model: MultiTaskModel,
    precision: Literal["fp16", "int8"],
    budget: float,
    calibration_images: int,
    validation_images: int,
    target: Target,
) -> PrecisionSettings:
    """How the recipe's data judge a reduced precision, at the recipe's size.

    Raises PerceptionError where there are none at hand.
    """
    held_out = recipes.open_validation_sources(recipe)
    chosen = recipes.subsample_sources(held_out, validation_images)

    def evaluate(run: ModelRunner) -> Mapping[str, float]:
        network: Any = OnnxModel(model, run)
        return runs.evaluate_model(network, recipe, chosen, batch_size=1).metrics

    try:
        sources = recipes.open_training_sources(recipe) if recipe.data.train else held_out
    except PerceptionError:
        sources = held_out
    return PrecisionSettings(
        precision,
        load_letterboxed(sources, calibration_images if precision == "int8" else 1, recipe.data.size),
        evaluate,
        budget,
        min_speedup=1.0 if precision == "int8" and target == "onnxruntime" else None,
        symmetric=target == "tensorrt",
        report_progress=lambda text: print(text, file=sys.stderr),  # noqa: T201
    )


def load_letterboxed(sources: Sequence[DataSource], count: int, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """``count`` images, from all sources in turns and spread over each: uint8 RGB [1, 3, H, W]."""
    found = []
    for i in range(count):
        source = sources[i % len(sources)]
        place = (i // len(sources)) * len(source) // max(1, -(-count // len(sources)))
        image = source.load_sample(place % len(source)).image
        frame = compute_letterbox((image.shape[0], image.shape[1]), size)
        found.append(np.ascontiguousarray(warp_image(image, frame).transpose(2, 0, 1))[None])
    return found
