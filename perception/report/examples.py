"""The worst and best predictions next to the ground truth."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops import draw
from perception.ops.image import warp_annotation, warp_boxes, warp_image
from perception.ops.palette import class_palette, mask_class_names
from perception.types import Annotation, DenseMap, ImageLabel, ImageTransform, Instances, TaskSpec

IMAGE_WIDTH = 440
"""Width of an image in the page, pixels."""
MAX_PER_TASK = 3
"""Maximum number of worst images, and of best images, per task."""


@dataclass(frozen=True, slots=True)
class ReportExample:
    """One validation image for one task.

    Attributes:
        id: id of the image.
        task: name of the task.
        quality: `Metric.score_image` of the image.
        image: uint8 RGB [H, W, 3].
        prediction: task name -> annotation in pixels of ``image``; only that of ``task`` is drawn.
        target: the same for the ground truth.
    """

    id: str
    task: str
    quality: float
    image: Any
    prediction: Mapping[str, Annotation | None]
    target: Mapping[str, Annotation | None]


def render_gallery(examples: Sequence[ReportExample], spec: TaskSpec) -> str:
    """Render the worst and best examples of one task. Repeated ids and examples with NaN quality are skipped."""
    judged = {example.id: example for example in examples if not math.isnan(example.quality)}
    ranked = sorted(judged.values(), key=lambda example: (example.quality, example.id))
    half = (len(ranked) + 1) // 2
    parts = []
    for title, chosen in (("Worst", ranked[:half][:MAX_PER_TASK]), ("Best", ranked[half:][::-1][:MAX_PER_TASK])):
        if chosen:
            rows = "".join(_render_row(example, spec) for example in chosen)
            kind = "labels" if spec.annotation_type == "label" else "rows"
            parts.append(f"<h4>{title}</h4><div class={kind}>{rows}</div>")
    if parts and spec.annotation_type == "dense" and spec.classes:
        truths = [example.target.get(spec.name) for example in judged.values()]
        spaces = dict.fromkeys(truth.label_space for truth in truths if isinstance(truth, DenseMap))
        parts += [
            _render_legend(spec.classes),
            *(_render_legend(mask_class_names(s, spec.classes), len(spec.classes)) for s in spaces if s),
        ]
    return "".join(parts)


def _render_row(example: ReportExample, spec: TaskSpec) -> str:
    frame = _fit_to_width(np.asarray(example.image).shape)
    image = warp_image(np.asarray(example.image), frame)
    found, true = (
        _scale_annotation(example.prediction.get(spec.name), frame),
        _scale_annotation(example.target.get(spec.name), frame),
    )
    if isinstance(found, ImageLabel) and isinstance(true, ImageLabel):
        words = (
            f"<b>{escape(draw.format_label(found, spec))}</b><br>ground truth: {escape(draw.format_label(true, spec))}"
        )
        caption = f"<figcaption>{words}<br>{_render_name(example)}</figcaption>"
        return f"<figure>{_render_image(image, 'input')}{caption}</figure>"
    limits = _choose_depth_range(true, spec)
    tiles = (
        ("input", image),
        ("prediction", _draw_annotation(image, found, spec, limits)),
        ("ground truth", _draw_annotation(image, true, spec, limits)),
    )
    pictures = "".join(f"<figure>{_render_image(p, name)}<figcaption>{name}</figcaption></figure>" for name, p in tiles)
    return f"<div class=example><p>{_render_name(example)}</p><div class=tiles>{pictures}</div></div>"


def _render_name(example: ReportExample) -> str:
    return f"<span class=id>{escape(example.id)}</span> <span class=quality>quality {example.quality:.2f}</span>"


def _draw_annotation(image: NDArray, annotation: Annotation | None, spec: TaskSpec, limits: object) -> NDArray:
    return draw.draw_annotations(image, {spec.name: annotation}, {spec.name: replace(spec, limits=limits)})


def _choose_depth_range(target: Annotation | None, spec: TaskSpec) -> tuple[float, float] | None:
    """The depth range of the ground truth, for both images. With the range of the task, a room would have one color."""
    if not isinstance(target, DenseMap) or spec.classes:
        return spec.limits
    known = np.asarray(target.values)[np.asarray(target.valid, np.bool_)]
    if not known.size:
        return spec.limits
    low, high = np.percentile(known, (1, 99))
    return float(low) * 0.9, float(high) * 1.1


def _fit_to_width(shape: tuple[int, ...]) -> ImageTransform:
    height, width = shape[:2]
    scale = min(1.0, IMAGE_WIDTH / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return ImageTransform((height, width), size, (0, 0, width, height), (0, 0, size[1], size[0]))


def _scale_annotation(annotation: Annotation | None, transform: ImageTransform) -> Annotation | None:
    if isinstance(annotation, Instances):  # boxes are scaled before text is drawn, so that text stays readable
        return replace(annotation, boxes=warp_boxes(np.asarray(annotation.boxes).reshape(-1, 4), transform))
    return warp_annotation(annotation, transform) if isinstance(annotation, DenseMap) else annotation


def _render_image(image: NDArray, name: str) -> str:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    text = base64.b64encode(data.tobytes()).decode("ascii")
    height, width = image.shape[:2]
    return f'<img width={width} height={height} alt="{name}" loading=lazy src="data:image/jpeg;base64,{text}">'


def _render_legend(classes: Sequence[str], start: int = 0) -> str:
    swatches = (
        f'<span><i style="background:rgb({",".join(map(str, color))})"></i>{escape(name)}</span>'
        for name, color in list(zip(classes, class_palette(classes).tolist(), strict=True))[start:]
    )
    return f"<p class=legend>{''.join(swatches)}</p>"
