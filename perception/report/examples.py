"""Worst and best pictures beside their truth."""

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
from perception.ops.image import warp, warp_boxes, warp_image
from perception.ops.palette import names_in, palette
from perception.types import Annotation, DenseMap, Frame, ImageLabel, Instances, TaskSpec

WIDTH = 440
"""Of a picture in the page, pixels."""
EACH = 3
"""How many of the worst and of the best pictures a task shows at most."""


@dataclass(frozen=True, slots=True)
class Example:
    """One validation picture for one task.

    quality:    `Metric.quality` of the picture
    image:      uint8 RGB [H, W, 3]
    prediction, truth: task name -> annotation in pixels of ``image``; only that of ``task`` is drawn
    """

    id: str
    task: str
    quality: float
    image: Any
    prediction: Mapping[str, Annotation | None]
    truth: Mapping[str, Annotation | None]


def gallery(examples: Sequence[Example], spec: TaskSpec) -> str:
    """The worst and best examples of one task as HTML; of equal ids one, without a quality none."""
    judged = {example.id: example for example in examples if not math.isnan(example.quality)}
    ranked = sorted(judged.values(), key=lambda example: (example.quality, example.id))
    half = (len(ranked) + 1) // 2
    parts = []
    for title, chosen in (("Worst", ranked[:half][:EACH]), ("Best", ranked[half:][::-1][:EACH])):
        if chosen:
            rows = "".join(_row(example, spec) for example in chosen)
            kind = "labels" if spec.shape == "label" else "rows"
            parts.append(f"<h4>{title}</h4><div class={kind}>{rows}</div>")
    if parts and spec.shape == "dense" and spec.classes:
        truths = [example.truth.get(spec.name) for example in judged.values()]
        spaces = dict.fromkeys(truth.classes for truth in truths if isinstance(truth, DenseMap))
        parts += [_legend(spec.classes), *(_legend(names_in(s, spec.classes), len(spec.classes)) for s in spaces if s)]
    return "".join(parts)


def _row(example: Example, spec: TaskSpec) -> str:
    frame = _frame(np.asarray(example.image).shape)
    image = warp_image(np.asarray(example.image), frame)
    found, true = _scaled(example.prediction.get(spec.name), frame), _scaled(example.truth.get(spec.name), frame)
    if isinstance(found, ImageLabel) and isinstance(true, ImageLabel):
        words = f"<b>{escape(draw.caption(found, spec))}</b><br>truth: {escape(draw.caption(true, spec))}"
        return f"<figure>{_picture(image, 'input')}<figcaption>{words}<br>{_name(example)}</figcaption></figure>"
    limits = _common_limits(true, spec)
    tiles = (
        ("input", image),
        ("prediction", _drawn(image, found, spec, limits)),
        ("truth", _drawn(image, true, spec, limits)),
    )
    pictures = "".join(f"<figure>{_picture(p, name)}<figcaption>{name}</figcaption></figure>" for name, p in tiles)
    return f"<div class=example><p>{_name(example)}</p><div class=tiles>{pictures}</div></div>"


def _name(example: Example) -> str:
    return f"<span class=id>{escape(example.id)}</span> <span class=quality>quality {example.quality:.2f}</span>"


def _drawn(image: NDArray, annotation: Annotation | None, spec: TaskSpec, limits: Any) -> NDArray:
    return draw.draw(image, {spec.name: annotation}, {spec.name: replace(spec, limits=limits)})


def _common_limits(truth: Annotation | None, spec: TaskSpec) -> tuple[float, float] | None:
    """One depth scale for prediction and truth, that of the truth, so that a room is not all one colour."""
    if not isinstance(truth, DenseMap) or spec.classes:
        return spec.limits
    known = np.asarray(truth.values)[np.asarray(truth.valid, np.bool_)]
    if not known.size:
        return spec.limits
    low, high = np.percentile(known, (1, 99))
    return float(low) * 0.9, float(high) * 1.1


def _frame(shape: tuple[int, ...]) -> Frame:
    height, width = shape[:2]
    scale = min(1.0, WIDTH / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return Frame((height, width), size, (0, 0, width, height), (0, 0, size[1], size[0]))


def _scaled(annotation: Annotation | None, frame: Frame) -> Annotation | None:
    if isinstance(annotation, Instances):  # text is drawn after scaling, so that it stays readable
        return replace(annotation, boxes=warp_boxes(np.asarray(annotation.boxes).reshape(-1, 4), frame))
    return warp(annotation, frame) if isinstance(annotation, DenseMap) else annotation


def _picture(image: NDArray, name: str) -> str:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    text = base64.b64encode(data.tobytes()).decode("ascii")
    height, width = image.shape[:2]
    return f'<img width={width} height={height} alt="{name}" loading=lazy src="data:image/jpeg;base64,{text}">'


def _legend(classes: Sequence[str], start: int = 0) -> str:
    swatches = (
        f'<span><i style="background:rgb({",".join(map(str, color))})"></i>{escape(name)}</span>'
        for name, color in list(zip(classes, palette(classes).tolist(), strict=True))[start:]
    )
    return f"<p class=legend>{''.join(swatches)}</p>"
