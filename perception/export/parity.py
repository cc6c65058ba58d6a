"""Do torch and ONNX Runtime say the same? The check that decides whether an export is kept. numpy, no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perception.ops.image import compute_letterbox, warp_image
from perception.types import PerceptionError, TaskSpec

PARITY_SIZES = ((256, 512), (352, 480), (640, 640), (32, 64), (288, 800))
PARITY_BATCH_SIZES = (1, 2, 3, 4, 5)

SCORE_TOLERANCE = 1e-4
"""Of scores and probabilities, and of the logarithm of a quantity (which is what a depth head predicts)."""

BOX_TOLERANCE = 1e-2
"""Of a box's sides, in input pixels."""

PIXEL_TOLERANCE = 1e-4
"""Pixels whose class may differ: where two classes tie to the last digits of float32."""

TIE_TOLERANCE = 0.01
"""Boxes, of all that were compared, that may be on one side only because their score or overlap ties."""


class ParityError(PerceptionError):
    """Torch and ONNX Runtime gave different answers. The message says where and by how much."""


def generate_batches(
    sizes: Sequence[tuple[int, int]], batch_sizes: Sequence[int], images: Sequence[NDArray[np.uint8]], seed: int = 0
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(description, uint8 [B, 3, H, W]): noise and images; every size and every count, in turns.

    images: images [H, W, 3] to letterbox; without any, colored shapes on a gradient stand in.
    """
    generator = np.random.default_rng(seed)
    for i in range(max(len(sizes), len(batch_sizes))):
        count, (height, width) = batch_sizes[i % len(batch_sizes)], sizes[i % len(sizes)]
        where = f"{count}x3x{height}x{width}"
        yield f"noise {where}", generator.integers(0, 256, (count, 3, height, width), np.uint8)
        chosen = [
            images[k % len(images)] if images else draw_rectangles(generator, height, width) for k in range(count)
        ]
        frames = [compute_letterbox((image.shape[0], image.shape[1]), (height, width)) for image in chosen]
        placed = [warp_image(image, frame) for image, frame in zip(chosen, frames, strict=True)]
        yield f"images {where}", np.ascontiguousarray(np.stack(placed).transpose(0, 3, 1, 2))


def generate_edge_cases(logits: NDArray[np.float32], seed: int = 0) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(description, logits [B, P, C]) that images rarely bring: nothing, a crowd, one class alone, equal scores."""
    generator = np.random.default_rng(seed)
    yield "no detections", np.full_like(logits, -200.0)
    yield "a crowd", generator.normal(0, 2, logits.shape).astype(np.float32)
    for label in sorted({0, logits.shape[2] - 1}):
        one = np.full_like(logits, -200.0)
        one[:, :, label] = generator.normal(0, 2, logits.shape[:2])
        yield f"class {label} alone", one
    yield "equal scores", generator.integers(-2, 3, logits.shape).astype(np.float32)


def draw_rectangles(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A made-up image [height, width, 3]: colored rectangles on a gradient."""
    ramp = np.linspace(0, 200, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
    for _ in range(30):
        y, x = generator.integers(0, height), generator.integers(0, width)
        tall, wide = generator.integers(4, 4 + height // 3), generator.integers(4, 4 + width // 3)
        image[y : y + tall, x : x + wide] = generator.integers(0, 256, 3)
    return image


class ParityCheck:
    """Accumulates differences over many batches. ``largest``: output -> the largest difference seen.

    Of boxes, ``<task>.unmatched`` is the share that only one side has because of a tie; of a segmentation mask, the
    difference
    is the share of pixels of another class.
    """

    def __init__(self, specs: Mapping[str, TaskSpec], iou_thresholds: Mapping[str, float]) -> None:
        self.specs = specs
        self.iou_thresholds = iou_thresholds
        self.largest: dict[str, float] = {}
        self._detection_counts: dict[str, int] = {}
        self._tied_counts: dict[str, int] = {}

    def update(
        self,
        where: str,
        expected: Mapping[str, NDArray],
        actual: Mapping[str, NDArray],
        tasks: Collection[str] | None = None,
    ) -> None:
        """Compare torch's ``expected`` with ONNX Runtime's ``actual`` for one batch. Raises Disagreement.

        Values called ``<task>.raw.<field>`` are compared too. tasks: the only ones that are there; None = all.
        """
        for key in expected:
            if expected[key].shape != actual[key].shape or expected[key].dtype != actual[key].dtype:
                kinds = [f"{x[key].dtype} {list(x[key].shape)}" for x in (expected, actual)]
                raise ParityError(f"{key} of {where}: torch gives {kinds[0]}, ONNX Runtime {kinds[1]}.")
            if ".raw." in key:
                self._compare_raw(key, where, expected[key], actual[key])
        for name, spec in self.specs.items():
            if tasks is not None and name not in tasks:
                continue
            keys = [f"{name}.{output}" for output in spec.outputs]
            if spec.annotation_type == "instances":
                for i in range(len(expected[keys[0]])):
                    pair = [Detections(*(side[key][i] for key in keys[:3])) for side in (expected, actual)]
                    self._compare_detections(name, f"{where}, image {i}", *pair)
            else:
                for key in keys:
                    self._check_difference(key, where, *_compare_dense(spec, expected[key], actual[key]))

    def _compare_raw(self, key: str, where: str, expected: NDArray, actual: NDArray) -> None:
        """Boxes in pixels; anything else (logits) absolutely up to 10, and in proportion from there on."""
        if key.endswith("boxes"):
            self._check_difference(key, where, _max_difference(expected, actual), BOX_TOLERANCE)
        else:
            scale = np.maximum(1.0, np.abs(expected, dtype=np.float64) / 10)
            self._check_difference(key, where, _max_difference(expected / scale, actual / scale), SCORE_TOLERANCE)

    def compute(self) -> dict[str, float]:
        """The largest differences. Raises Disagreement where more boxes are on one side than ties explain."""
        for name, compared in self._detection_counts.items():
            share = self._tied_counts.get(name, 0) / max(compared, 1)
            self._check_difference(f"{name}.unmatched", "all batches", share, TIE_TOLERANCE)
        return dict(self.largest)

    def _check_difference(self, key: str, where: str, difference: float, tolerance: float) -> None:
        self.largest[key] = max(self.largest.get(key, 0.0), difference)
        if np.isnan(difference):
            raise ParityError(
                f"{key} of {where} is no number (NaN), from torch or from ONNX Runtime. The weights are damaged or the "
                "training diverged: take another checkpoint, or train again with a lower learning rate."
            )
        if difference > tolerance:
            raise ParityError(
                f"Torch and ONNX Runtime disagree: {key} of {where} differs by {difference:.3g}, "
                f"tolerance {tolerance:.3g}. After a short training rounding alone can do this: train longer, else "
                "report it."
            )

    def _compare_detections(self, name: str, where: str, expected: Detections, actual: Detections) -> None:
        pairs = expected.match(actual)
        self._check_difference(
            f"{name}.boxes",
            where,
            _max_difference(expected.boxes[pairs[:, 0]], actual.boxes[pairs[:, 1]]),
            BOX_TOLERANCE,
        )
        self._check_difference(
            f"{name}.scores",
            where,
            _max_difference(expected.scores[pairs[:, 0]], actual.scores[pairs[:, 1]]),
            SCORE_TOLERANCE,
        )
        self._detection_counts[name] = self._detection_counts.get(name, 0) + len(expected.scores) + len(actual.scores)
        threshold = self.iou_thresholds.get(name, np.nan)
        for side, this, other in ((0, expected, actual), (1, actual, expected)):
            # A score within the tolerance of zero may be zero, which is padding, on the other side.
            alone = np.setdiff1d(np.nonzero(~(this.scores <= SCORE_TOLERANCE))[0], pairs[:, side])
            for i in alone:
                if not this.is_tie(int(i), other, threshold):
                    raise ParityError(
                        f"Torch and ONNX Runtime disagree: only {('torch', 'ONNX Runtime')[side]} finds the box "
                        f"{this.boxes[i].round(2).tolist()}, class {this.labels[i]}, score {this.scores[i]:.4f} "
                        f"in {name} of {where}."
                    )
            self._tied_counts[name] = self._tied_counts.get(name, 0) + len(alone)


class Detections:
    """The boxes of one image without padding: boxes [N, 4], scores [N], labels [N]; NaN counts as a box."""

    def __init__(self, boxes: NDArray, scores: NDArray, labels: NDArray) -> None:
        self.is_full = bool((scores != 0).all())
        self.boxes, self.scores, self.labels = boxes[scores != 0], scores[scores != 0], labels[scores != 0]

    def match(self, other: Detections) -> NDArray[np.int64]:
        """[M, 2] pairs (own, other) of one class within the tolerances, each used once, nearest first."""
        away = np.abs(self.boxes[:, None] - other.boxes[None]).max(2, initial=0) / BOX_TOLERANCE
        away = np.maximum(away, np.abs(self.scores[:, None] - other.scores[None]) / SCORE_TOLERANCE)
        away = np.where(self.labels[:, None] == other.labels[None], away, np.inf)
        rows, columns = np.nonzero(away <= 1)
        free, free_other, pairs = set(range(len(self.scores))), set(range(len(other.scores))), []
        for k in np.argsort(away[rows, columns], kind="stable"):
            i, j = int(rows[k]), int(columns[k])
            if i in free and j in free_other:
                free.remove(i)
                free_other.remove(j)
                pairs.append((i, j))
        return np.array(pairs, np.int64).reshape(-1, 2)

    def is_tie(self, i: int, other: Detections, iou_threshold: float) -> bool:
        """Is there a tie that explains why only this side has box ``i``?

        Its score is within the tolerance of the last place of a full list; or a box of the other side, of its class,
        overlaps it and has the same score, so that either could suppress the other; or its overlap with a better box of
        its class is within the tolerance of the threshold of non-maximum suppression.
        """
        near = 2 * SCORE_TOLERANCE
        if (self.is_full or other.is_full) and self.scores[i] <= min(
            self.scores.min(), other.scores.min(initial=np.inf)
        ) + near:
            return True
        same = other.labels == self.labels[i]
        overlap = iou(self.boxes[i], other.boxes[same])
        swapped = (overlap > iou_threshold - 1e-3) & (np.abs(other.scores[same] - self.scores[i]) <= near)
        edge = (np.abs(overlap - iou_threshold) <= 1e-3) & (other.scores[same] >= self.scores[i] - near)
        return bool((swapped | edge).any())


def iou(box: NDArray, boxes: NDArray) -> NDArray:
    """IoU of one box [4] with each of boxes [N, 4]: [N]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.clip(sides, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / np.maximum(areas - common, 1e-9)


def _compare_dense(spec: TaskSpec, expected: NDArray, actual: NDArray) -> tuple[float, float]:
    if spec.annotation_type == "dense" and spec.classes:
        return float((expected != actual).mean()), PIXEL_TOLERANCE
    if spec.annotation_type == "dense":
        with np.errstate(invalid="ignore", divide="ignore"):
            return _max_difference(np.log(expected), np.log(actual)), SCORE_TOLERANCE
    return _max_difference(expected, actual), SCORE_TOLERANCE


def _max_difference(expected: NDArray, actual: NDArray) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0))
