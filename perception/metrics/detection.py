"""Average precision of boxes, by the COCO protocol."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as regions
from numpy.typing import NDArray

from perception.metrics.metric import PerImageRecords
from perception.types import Instances


class _BoxRecord(NamedTuple):
    boxes: NDArray[np.float64]  # [N, 4] x, y, width, height
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    target_boxes: NDArray[np.float64]  # [M, 4] x, y, width, height
    target_labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]


class DetectionMetric(PerImageRecords[_BoxRecord]):
    """COCO's average precision (Lin et al. 2014, https://cocodataset.org/#detection-eval), equal to pycocotools.

    * An ignore region of a target is COCO's crowd: detections of its class inside it count neither as right nor as
      wrong. A region without a class (label -1) applies to all classes.
    * If an image's source labels only some classes (``Instances.labeled_classes``), detections of the other classes are
      excluded: they count neither as right nor as wrong. For classes that it labels partially
      (``Instances.partial_classes``), unmatched detections are excluded.
    * The area for small, medium and large is that of the box (COCO uses the mask's area if there is one).
    * A class without a true box is excluded from the means; a class with true boxes but no detections has AP 0.

    Args:
        classes: names, in the order of the labels.
        score_threshold: minimum score of a detection in `score_image`; the average precisions use all scores.
    """

    protocol = (
        "COCO average precision over IoU 0.50 to 0.95, at most 100 boxes per class and image, area = the box's; "
        "classes without a true box are excluded from the means."
    )

    def __init__(self, classes: Sequence[str], score_threshold: float = 0.3) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.score_threshold = score_threshold

    def update(self, image_id: str, prediction: Instances, target: Instances) -> None:
        """Add one image.

        Raises:
            ValueError: a score or box is not finite. The message names ``image_id``.
        """
        self._records[image_id] = _make_record(image_id, prediction, target, len(self.classes))

    def compute(self) -> dict[str, float]:
        """Return ap, ap50, ap75, ap_small, ap_medium, ap_large, and ar100 (average recall with 100 boxes); 0 to 1."""
        precision, recall = self._run_coco_evaluation()
        return {
            "ap": _mean_valid(precision[:, :, :, 0]),
            "ap50": _mean_valid(precision[0, :, :, 0]),
            "ap75": _mean_valid(precision[5, :, :, 0]),
            "ap_small": _mean_valid(precision[:, :, :, 1]),
            "ap_medium": _mean_valid(precision[:, :, :, 2]),
            "ap_large": _mean_valid(precision[:, :, :, 3]),
            "ar100": _mean_valid(recall[:, :, 0]),
        }

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Return ap, ap50 and count (true boxes without crowds) per class."""
        precision, _ = self._run_coco_evaluation()
        counts = np.zeros(len(self.classes), np.int64)
        for picture in self._records.values():
            counts += np.bincount(picture.target_labels[~picture.crowds], minlength=len(self.classes))
        return {
            name: {
                "ap": _mean_valid(precision[:, :, k, 0]),
                "ap50": _mean_valid(precision[0, :, k, 0]),
                "count": float(counts[k]),
            }
            for k, name in enumerate(self.classes)
        }

    def score_image(self, prediction: Instances, target: Instances) -> float:
        """Return the panoptic quality (Kirillov et al. 2019) of the boxes, all classes together.

        It is the summed IoU of the matched boxes over (matched + half the false + half the missed). NaN for an image
        without true boxes and detections: it would be the best image of every run.
        """
        picture = _make_record("this image", prediction, target, len(self.classes))
        shown = picture.scores >= self.score_threshold
        overlap, matched, wrong = 0.0, 0, 0
        for label in np.unique(picture.labels[shown]):
            chosen = shown & (picture.labels == label)
            order = np.argsort(-picture.scores[chosen], kind="stable")
            true = picture.target_labels == label
            summed, hits, misses = _match_boxes(
                picture.boxes[chosen][order], picture.target_boxes[true], picture.crowds[true]
            )
            overlap, matched, wrong = overlap + summed, matched + hits, wrong + misses
        missed = int((~picture.crowds).sum()) - matched
        total = matched + 0.5 * (wrong + missed)
        return overlap / total if total else math.nan

    def _run_coco_evaluation(self) -> tuple[NDArray, NDArray]:
        """Return precision [10 IoUs, 101 recalls, C, 4 areas] and recall [10 IoUs, C, 4 areas]; -1 = no truth."""
        pictures = self._sorted_records()
        if not any(len(picture.target_boxes) for picture in pictures):
            return np.full((10, 101, len(self.classes), 4), -1.0), np.full((10, len(self.classes), 4), -1.0)
        truth = COCO(
            {
                "images": [{"id": i} for i in range(1, len(pictures) + 1)],
                "categories": [{"id": k, "name": name} for k, name in enumerate(self.classes, start=1)],
                "annotations": _coco_annotations(pictures),
            }
        )
        evaluation = COCOeval_faster(truth, truth.loadRes(_coco_detections(pictures)), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[..., -1], np.asarray(evaluation.eval["recall"])[..., -1]


def _make_record(id: str, prediction: Instances, target: Instances, classes: int) -> _BoxRecord:
    if prediction.scores is None:
        raise ValueError(f"{id}: the predicted boxes have no scores. Average precision needs one per box.")
    target = _expand_ignore_regions(target, classes)
    boxes, labels = _validate_instances(id, "predicted", prediction, classes)
    true_boxes, true_labels = _validate_instances(id, "true", target, classes)
    scores = np.asarray(prediction.scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"{id}: {(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite numbers.")
    ignore = np.zeros(len(true_boxes), np.bool_) if target.ignore is None else np.asarray(target.ignore, np.bool_)
    labelled = (
        np.ones(classes, np.bool_) if target.labeled_classes is None else np.asarray(target.labeled_classes, np.bool_)
    )
    kept, true_kept = labelled[labels], labelled[true_labels]
    return _BoxRecord(
        boxes[kept], labels[kept], scores[kept], true_boxes[true_kept], true_labels[true_kept], ignore[true_kept]
    )


def _expand_ignore_regions(target: Instances, classes: int) -> Instances:
    """Replace each ignore region of all classes (label -1) by one region per class.

    COCO has no class-agnostic regions. A class that is labeled partially gets an infinite region.
    """
    if target.partial_classes is not None:
        several = np.flatnonzero(target.partial_classes)
        ignore = np.zeros(len(target.labels), np.bool_) if target.ignore is None else np.asarray(target.ignore)
        target = dataclasses.replace(
            target, boxes=np.concatenate([target.boxes, np.tile([-1e6, -1e6, 1e6, 1e6], (len(several), 1))]),
            labels=np.concatenate([target.labels, several]),
            ignore=np.concatenate([ignore, np.ones(len(several), np.bool_)]),
        )  # fmt: skip
    labels = np.asarray(target.labels, np.int64)
    if target.ignore is None or not (every := np.asarray(target.ignore, np.bool_) & (labels == -1)).any():
        return target
    boxes, number = np.asarray(target.boxes), int(every.sum())
    return dataclasses.replace(
        target,
        boxes=np.concatenate([boxes[~every], np.repeat(boxes[every], classes, 0)]),
        labels=np.concatenate([labels[~every], np.tile(np.arange(classes), number)]),
        ignore=np.concatenate([np.asarray(target.ignore, np.bool_)[~every], np.ones(number * classes, np.bool_)]),
    )


def _validate_instances(
    id: str, kind: str, instances: Instances, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return boxes as x, y, width, height, and labels. COCO's evaluators crash on values that are not finite."""
    boxes = np.asarray(instances.boxes, np.float64).reshape(-1, 4).copy()
    labels = np.asarray(instances.labels, np.int64)
    if not np.isfinite(boxes).all():
        raise ValueError(f"{id}: {(~np.isfinite(boxes)).any(1).sum()} of {len(boxes)} {kind} boxes are not finite.")
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"{id}: {kind} labels are {labels.min()} to {labels.max()}. Expected 0 to {classes - 1}.")
    boxes[:, 2:] -= boxes[:, :2]
    return boxes, labels


def _coco_annotations(records: list[_BoxRecord]) -> list[dict]:
    rows = (
        (i, box, label, crowd)
        for i, picture in enumerate(records, start=1)
        for box, label, crowd in zip(
            picture.target_boxes.tolist(), picture.target_labels.tolist(), picture.crowds.tolist(), strict=True
        )
    )
    return [  # ids from 1: COCO's evaluators use 0 for "not matched"
        {"id": n, "image_id": i, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for n, (i, box, label, crowd) in enumerate(rows, start=1)
    ]


def _coco_detections(records: list[_BoxRecord]) -> list[dict]:
    return [
        {"image_id": i, "category_id": label + 1, "bbox": box, "score": score}
        for i, picture in enumerate(records, start=1)
        for box, label, score in zip(
            picture.boxes.tolist(), picture.labels.tolist(), picture.scores.tolist(), strict=True
        )
    ]


def _match_boxes(boxes: NDArray, target_boxes: NDArray, crowds: NDArray[np.bool_]) -> tuple[float, int, int]:
    """Match ``boxes``, best first, greedily at IoU 0.5. Return the summed IoU, the matches and the false detections."""
    if not len(boxes) or not len(target_boxes):
        return 0.0, 0, len(boxes)
    overlaps = np.asarray(regions.iou(boxes, target_boxes, crowds.astype(np.uint8).tolist()))
    free = ~crowds
    summed, matched, wrong = 0.0, 0, 0
    for row in overlaps:
        best = int(np.argmax(np.where(free, row, -1.0)))
        if free[best] and row[best] >= 0.5:
            free[best] = False
            summed, matched = summed + float(row[best]), matched + 1
        elif not (row[crowds] >= 0.5).any():
            wrong += 1
    return summed, matched, wrong


def _mean_valid(values: NDArray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
