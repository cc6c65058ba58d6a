"""Every kind of head learns a real batch by heart: nothing between the labels of COCO and the metric loses anything."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from perception import recipe as recipes
from perception.data.loader import make_train_loader
from perception.types import Batch, DenseMap, Instances

DATA = Path(os.environ.get("PERCEPTION_TEST_DATA", "/nowhere"))
STEPS = {"detection": 300, "segmentation": 500}
ALONE: dict[str, dict[str, dict[str, Any]]] = {
    "boxes": {"detection": {}},
    "boxes by SimOTA": {"detection": {"assignment": "sim_ota"}},
    "boxes by distributions": {"detection": {"bins": 16}},
    "boxes without suppression": {"detection": {"one_to_one": True}},
    "boxes from stride 4": {"detection": {"strides": [4, 8, 16, 32]}},
    "segmentation masks": {"segmentation": {"loss_stride": 1}},
    "segmentation masks by Lovasz": {"segmentation": {"loss_stride": 1, "lovasz_weight": 1.0, "dice_weight": 0.0}},
    "both": {"detection": {}, "segmentation": {"loss_stride": 1}},
}
"""Every pixel of the segmentation masks counts: without augmentation a coarser loss would see the same ones in every
step, and
no network could then be right about more than 0.90 of the others."""


def recipe(tasks: dict[str, dict[str, Any]], shown: Collection[str] = ()) -> recipes.Recipe:
    """Photographs of 320 x 320, not augmented, with COCO's 80 classes of boxes and 133 of segmentation masks, or of
    these those
    that are ``shown``."""
    files = {
        "detection": ("coco", "instances", {}),
        "segmentation": ("coco_panoptic", "panoptic", {"detection_task": None, "segmentation_ignore": "rest"}),
    }
    labels, classes = [], {}
    for task in tasks:
        kind, part, own = files[task]
        file = f"coco128/annotations/{part}_val2017.json"
        labels.append({"format": kind, "images": "coco128/val2017", "annotations": file, **own})
        names = [category["name"] for category in json.loads((DATA / file).read_text())["categories"]]
        classes[task] = [name for name in names if task != "segmentation" or not shown or name in shown]
    return recipes.parse(
        json.dumps(
            {
                "data": {
                    "root": str(DATA),
                    "size": [320, 320],
                    "augment": {"scale": [1.0, 1.0], "flip": 0.0, "color": 0.0, "degrade": 0.0},
                    "train": [{"name": "coco", "labels": labels}],
                },
                "tasks": {task: {"classes": classes[task], **settings} for task, settings in tasks.items()},
            }
        )
    )


def first_batch(setup: recipes.Recipe) -> Batch:
    return next(iter(make_train_loader(recipes.build_mixture(setup), tuple(setup.tasks), 4, 1)))


def classes_shown(setup: recipes.Recipe) -> list[str]:
    maps = [a for a in first_batch(setup).annotations["segmentation"] if isinstance(a, DenseMap)]
    ids = torch.cat([one.values[one.valid] for one in maps]).unique().tolist()
    return [setup.classes["segmentation"][number] for number in ids]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "coco128").is_dir(), reason="PERCEPTION_TEST_DATA has no coco128")
@pytest.mark.parametrize("name", ALONE)
def test_a_real_batch_is_learned_by_heart(name):
    """Four photographs to AP50 >= 0.95 and mIoU >= 0.95, by the metrics that evaluations use."""
    setup = recipe(ALONE[name])
    tasks = tuple(setup.tasks)
    if "segmentation" in tasks:  # a loss of classes that none of the four shows would take most of the time
        setup = recipe(ALONE[name], classes_shown(setup))
    torch.manual_seed(0)
    batch = first_batch(setup)
    model = recipes.build_model(setup).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0)
    steps = max(STEPS[task] for task in tasks)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = model.compute_losses(batch)
        sum(losses[task] for task in tasks).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        found = {key: value.numpy() for key, value in model.eval().predict(batch.images).items()}
    reached = {}
    for task in tasks:
        metric = model.tasks[task].create_metric()
        for i, (picture, target) in enumerate(zip(batch.ids, batch.annotations[task], strict=True)):
            if target is not None:
                metric.update(picture, *pair(task, found, i, target))
        reached |= {f"{task}/{key}": value for key, value in metric.compute().items()}
    wanted = {"detection": "detection/ap50", "segmentation": "segmentation/miou"}
    assert all(reached[wanted[task]] >= 0.95 for task in tasks), {wanted[task]: reached[wanted[task]] for task in tasks}


def pair(task: str, found: dict[str, Any], i: int, target: Instances | DenseMap) -> tuple[Any, Any]:
    """What was found in image ``i``, and its truth."""
    if isinstance(target, DenseMap):
        values, valid = target.values.numpy(), target.valid.numpy()
        return DenseMap(found[f"{task}.label_map"][i], valid | True), DenseMap(values, valid)
    boxes, scores, labels = (found[f"{task}.{key}"][i] for key in ("boxes", "scores", "labels"))
    arrays = (
        None if x is None else x.numpy()
        for x in (target.boxes, target.labels, target.scores, target.ignore, target.labeled_classes)
    )
    return Instances(boxes, labels, scores), Instances(*arrays)
