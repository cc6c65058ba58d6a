"""An exported file on labeled images: the same metrics as its run's, of what is shipped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from perception import config, runs
from perception.data import DataConfig, open_sources
from perception.data.collate import collate
from perception.data.dataset import DataSource
from perception.data.loader import make_evaluation_loader
from perception.data.transforms import prepare_for_evaluation
from perception.engine.evaluate import Evaluation
from perception.engine.evaluate import evaluate as measure
from perception.engine.log import progress_bar, write_metrics
from perception.export.onnx_model import OnnxModel
from perception.files.safe_write import convert_write_errors, make_folder
from perception.metrics.classification import ClassificationMetric
from perception.metrics.depth import DepthMetric
from perception.metrics.detection import DetectionMetric
from perception.metrics.segmentation import SegmentationMetric
from perception.report import ReportExample, write_report
from perception.runtime.manifest import Manifest, manifest_to_json
from perception.runtime.predictor import Predictor
from perception.tasks.classification import ClassificationTask
from perception.tasks.depth import DepthTask
from perception.tasks.detection import DetectionTask
from perception.tasks.segmentation import SegmentationTask
from perception.types import Batch, ConfigError, TaskSpec


def evaluate(
    path: Path,
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    tasks: Collection[str] | None = None,
    size: tuple[int, int] | None = None,
    out: Path | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Metrics of an exported file over ``data.validation`` of a YAML file; to ``out`` metrics.json and report.html.

    data: a recipe, or its ``data`` section; None = the recipe of the run folder that the file lies in
    overrides: of that YAML file, ``data.root=...`` for one
    size: (height, width) that the network sees, where the file takes any; None = that of its manifest

    Segmentation masks whose source knows only some classes are judged as the file gives them; a run is judged within
    those
    classes. Raises PerceptionError where the file, the data or their classes do not fit.
    """
    perceiver = Predictor(path, tasks=list(tasks) if tasks is not None else None)
    placed = perceiver.letterbox_size(size)
    settings = _load_data_config(path, data, overrides, perceiver.specs)
    sources = open_sources(settings.validation, settings.root, {k: spec.classes for k, spec in perceiver.specs.items()})
    judged: dict[str, Any] = {name: _build_task(spec) for name, spec in perceiver.specs.items()}
    if placed is None:
        count, batches = sum(map(len, sources)), _full_size_batches(sources, tuple(judged))
        run = lambda images: perceiver.run(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))  # noqa: E731
    else:
        found = make_evaluation_loader(
            sources, tuple(judged), placed, batch_size, 0, 1, settings.workers, settings.timeout
        )
        count, batches, run = len(found), found, perceiver.run
    nowhere = nn.Parameter(torch.empty(0))
    model = SimpleNamespace(tasks=judged, specs=perceiver.specs, parameters=lambda: iter([nowhere]))
    network: Any = OnnxModel(model, run)
    with progress_bar("evaluate", count) as advance_to:
        evaluation = measure(network, runs.report_progress(batches, advance_to), num_examples=runs.NUM_EXAMPLES)
    if out is not None:
        make_folder(out)
        _write_report(out, path, perceiver.manifest, judged, evaluation)
    return evaluation


def _load_data_config(
    path: Path, data: Path | None, overrides: Sequence[str], specs: Mapping[str, TaskSpec]
) -> DataConfig:
    """The data section, checked against the classes of the file."""
    if data is None:
        data = path.parent / "recipe.yaml"
        if not data.is_file():
            raise ConfigError(
                f"{path} lies in no run folder, so no recipe names labeled images. Give --data FILE: a recipe, or "
                "its data section, with data.validation."
            )
    mapping = config.load_yaml(data)
    mapping = config.apply_overrides(mapping if "data" in mapping else {"data": mapping}, overrides)
    section = mapping["data"]
    if not isinstance(section, dict) or not section.get("validation"):
        raise ConfigError(f"{data} names no validation source. Give data.validation: a list of sources as in a recipe.")
    found = mapping.get("tasks")
    theirs: dict[str, Any] = found if isinstance(found, dict) else {}
    for name, spec in specs.items():
        classes = theirs[name].get("classes") if isinstance(theirs.get(name), dict) else None
        if classes is not None and list(classes) != list(spec.classes):
            raise ConfigError(
                f"{data}: tasks.{name}.classes are {', '.join(map(str, classes))}, and {path} was exported with "
                f"{', '.join(spec.classes)}. Give data of the same classes, or leave --tasks {name} out."
            )
    kept = {key: value for key, value in section.items() if key not in ("train", "size")}
    return config.validate_config(DataConfig, kept, where=str(data), path="data")


def _full_size_batches(sources: Sequence[DataSource], tasks: Sequence[str]) -> Iterator[Batch]:
    """Every image alone, as it is: the graph letterboxes."""
    for source in sources:
        for index in range(len(source)):
            sample = source.load_sample(index)
            yield collate([prepare_for_evaluation(sample, (sample.image.shape[0], sample.image.shape[1]))], tasks)


def _build_task(spec: TaskSpec) -> object:
    """What the evaluation asks of a task, by its spec alone."""
    if spec.annotation_type == "instances":
        kind, metric = DetectionTask, partial(DetectionMetric, spec.classes, spec.score_threshold)
    elif spec.annotation_type == "label":
        kind, metric = ClassificationTask, partial(ClassificationMetric, spec.classes, spec.multi_label)
    elif spec.classes:
        kind, metric = SegmentationTask, partial(SegmentationMetric, spec.classes)
    elif spec.limits is not None and spec.limits[0] > 0:
        kind, metric = DepthTask, partial(DepthMetric, spec.limits)
    else:
        raise ConfigError(f"{spec.name} has limits {spec.limits}. It can be run, but there is no metric for it.")
    score = "map" if spec.multi_label else kind.main_metric
    return SimpleNamespace(
        spec=spec,
        create_metric=metric,
        main_metric=score,
        main_metric_sign=kind.main_metric_sign,
        is_auxiliary=False,
    )


def _write_report(out: Path, path: Path, manifest: Manifest, tasks: Mapping[str, Any], evaluation: Evaluation) -> None:
    with convert_write_errors(out / "metrics.json"):
        write_metrics(out / "metrics.json", {"score": evaluation.score, **evaluation.metrics})
    shelves = [(name, shelf) for name, group in evaluation.examples.items() for shelf in group.values()]
    write_report(
        out / "report.html",
        title=path.name,
        specs={name: task.spec for name, task in tasks.items()},
        metrics=evaluation.metrics,
        tables=evaluation.tables,
        events=[],
        examples=[
            ReportExample(one.id, name, one.quality, one.image, one.prediction, one.target)
            for name, shelf in shelves
            for one in shelf
        ],
        recipe=manifest_to_json(manifest, indent=1),
        metadata={
            "images evaluated": str(evaluation.num_images),
            "precision": manifest.precision,
            **runs.describe_environment(),
        },
        protocols={name: task.create_metric().protocol for name, task in tasks.items()},
    )
