"""Labels that teach nothing: what is told while training, and what ends it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_network
import torch
from tiny_network import make_batches
from training_runs import events, fit

from perception import checkpoint
from perception.engine.label_check import (
    MIN_IMAGES,
    WARN_AFTER_INSTANCES,
    WARN_AFTER_MAPS,
    LabelCheck,
    has_usable_labels,
)
from perception.types import DataError, DenseMap, ImageLabel, Instances, LabelSpace, TaskSpec

DEPTH = TaskSpec("depth", "dense", ("depth",), unit="m", limits=(0.3, 10.0))
MAPS = TaskSpec("segmentation", "dense", ("mask",), ("road", "sky", "car"))


def millimetres(first: int, until: int = 10_000, **options):
    """The stub's stream, whose depth is of another unit up to step ``until``; two sources take turns."""
    for step, batch in enumerate(make_batches(first, **options), first):
        scale = 1000 if step < until else 1
        maps = [None if m is None else DenseMap(m.values * scale, m.valid) for m in batch.annotations["depth"]]
        sources = [f"hall {i % 2}" for i in range(len(batch))]
        yield dataclasses.replace(batch, annotations={**batch.annotations, "depth": maps}, sources=sources)


SOURCES = {"hall 0": "", "hall 1": ""}


def test_depth_that_never_counts_is_told_and_then_an_error(tmp_path, capsys):
    with pytest.raises(DataError, match=r"None of the \d+ images of hall 0, hall 1 labeled for 'depth' so far"):
        fit(
            tmp_path,
            stream=millimetres,
            steps=20,
            evaluate=tiny_network.evaluate_network,
            evaluate_every=18,
            data_fingerprints=SOURCES,
        )
    told = [event["text"] for event in events(tmp_path, "warning")]
    assert len(told) == 2
    assert f"None of the {WARN_AFTER_MAPS} images of hall 0 labeled for 'depth'" in told[0]
    assert "median 1," in told[0]
    assert "limits 0.1 to 10 m. If the unit is millimetres (0.001 m), the median is 1." in told[0]
    assert not events(tmp_path, "evaluation")
    assert all(line["labeled_fraction/depth"] == 0 for line in events(tmp_path, "train"))
    assert "Warning: None of the" in capsys.readouterr().err


def test_a_run_without_evaluations_ends_with_the_error_too(tmp_path):
    with pytest.raises(DataError, match="Nothing was learned"):
        fit(tmp_path, stream=millimetres, steps=6)


def test_one_source_that_teaches_is_enough_and_the_other_is_told(tmp_path):
    def stream(first):
        for batch in millimetres(first):
            maps = [
                m if m is None or source == "hall 0" else DenseMap(m.values / 1000, m.valid)
                for m, source in zip(batch.annotations["depth"], batch.sources, strict=True)
            ]
            yield dataclasses.replace(batch, annotations={**batch.annotations, "depth": maps})

    fit(tmp_path, stream=stream, steps=20, evaluate=tiny_network.evaluate_network, data_fingerprints=SOURCES)
    (told,) = events(tmp_path, "warning")
    assert "images of hall 0 labeled for 'depth'" in told["text"]
    seen = [line["labeled_fraction/depth"] for line in events(tmp_path, "train")]
    assert np.mean(seen) == pytest.approx(1 / 3, abs=0.05)


def test_a_resumed_run_tells_what_an_uninterrupted_one_does(tmp_path):
    options = {
        "steps": 20,
        "evaluate": tiny_network.evaluate_network,
        "evaluate_every": 0,
        "data_fingerprints": SOURCES,
    }
    late = lambda first: millimetres(first, until=19)  # noqa: E731
    fit(tmp_path / "whole", stream=late, **options)

    def broken(first):
        for step, batch in enumerate(late(first), first):
            if step == 7:
                raise OSError("the power is gone")
            yield batch

    with pytest.raises(OSError, match="power"):
        fit(tmp_path / "torn", stream=broken, **options)
    assert checkpoint.load(tmp_path / "torn").step == 4
    fit(tmp_path / "torn", stream=late, resume=True, **options)
    whole, torn = ([(e["step"], e["text"]) for e in events(tmp_path / run, "warning")] for run in ("whole", "torn"))
    assert len(whole) == 2
    assert whole == torn


def teaching(spec: TaskSpec) -> LabelCheck:
    return LabelCheck({spec.name: type("Task", (), {"spec": spec})()}, ("a",), {})


def test_a_few_images_and_images_without_objects_are_no_error():
    few = teaching(DEPTH)
    few.update({"images": 4, "labeled depth/a": MIN_IMAGES - 1, "usable depth/a": 0})
    few.require_usable_labels()
    few.update({"images": 4, "labeled depth/a": 1, "usable depth/a": 0, "labeled depth/b": 0, "usable depth/b": 0})
    with pytest.raises(DataError, match="images of a labeled for 'depth'"):
        few.require_usable_labels()
    boxes = teaching(TaskSpec("detection", "instances", (), ("car",)))
    seen, told = boxes.update({"images": 200, "labeled detection/a": WARN_AFTER_INSTANCES, "usable detection/a": 0})
    assert seen == {"labeled_fraction/detection": 1}  # an image without an object teaches, too
    assert "has an object that the loss counts" in told[0]
    boxes.require_usable_labels()


def depth(value: float, valid: bool = True) -> DenseMap:
    return DenseMap(torch.full((48, 64), value), torch.full((48, 64), valid))


def one_pixel(value: float) -> DenseMap:
    found = depth(50.0)
    found.values[3, 5] = value
    return found


SPACE = LabelSpace(("any", "road"), ((0, 1, 2), (0,)))


@pytest.mark.parametrize(
    ("target", "spec", "expected"),
    [
        (depth(2.0), DEPTH, True),
        (depth(2.0, False), DEPTH, False),
        (depth(1941.0), DEPTH, False),
        (depth(float("nan")), DEPTH, False),
        (one_pixel(1.0), DEPTH, True),
        (DenseMap(torch.ones(8, 8).byte(), torch.ones(8, 8).bool()), MAPS, True),
        (DenseMap(torch.ones(8, 8).byte(), torch.zeros(8, 8).bool()), MAPS, False),
        (DenseMap(torch.zeros(8, 8).byte(), torch.ones(8, 8).bool(), label_space=SPACE), MAPS, False),
        (DenseMap(torch.ones(8, 8).byte(), torch.ones(8, 8).bool(), label_space=SPACE), MAPS, True),
        (ImageLabel(torch.zeros(2), labeled_classes=torch.zeros(2).bool()), MAPS, False),
        (ImageLabel(torch.zeros(2)), MAPS, True),
        (Instances(torch.zeros(1, 4), torch.zeros(1).long(), ignore=torch.ones(1).bool()), MAPS, False),
        (
            Instances(torch.zeros(1, 4), torch.zeros(1).long(), labeled_classes=torch.tensor([False, True, True])),
            MAPS,
            False,
        ),
        (Instances(torch.zeros(0, 4), torch.zeros(0).long()), MAPS, False),
        (Instances(torch.zeros(1, 4), torch.zeros(1).long()), MAPS, True),
    ],
)
def test_what_counts(target, spec, expected):
    assert has_usable_labels(target, spec) is expected


def test_the_numbers_are_in_the_checkpoint(tmp_path: Path):
    fit(tmp_path, steps=4, data_fingerprints=SOURCES)
    state = checkpoint.load_train_state(checkpoint.load(tmp_path).path)
    assert sum(labelled for labelled, _ in state["label_counts"].values()) > 0
    assert json.dumps(state["label_counts"])
