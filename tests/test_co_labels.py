"""Tasks that no image labels together, and the space of gradients in which they then cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from sharing_networks import batch, network
from test_backward import step
from test_configs import RECIPES

from perception import recipe as recipes
from perception.data.joint_labels import pairs_apart, void_space
from perception.report.balance import advise
from perception.types import Batch


@dataclass
class Reader:
    tasks: tuple[str, ...]


ROAD = [[Reader(("boxes",))], [Reader(("masks",)), Reader(("scene",))], [Reader(("depth", "scene"))]]
TASKS = ("boxes", "masks", "depth", "scene")


def test_a_pair_is_apart_where_no_source_labels_both():
    apart = pairs_apart(ROAD, TASKS)
    assert apart == [("boxes", "masks"), ("boxes", "depth"), ("boxes", "scene"), ("masks", "depth")]
    assert pairs_apart([[Reader(TASKS)]], TASKS) == []


def test_only_the_features_are_void():
    assert "boxes and masks" in void_space("features", ROAD, TASKS)
    assert void_space("late", ROAD, TASKS) == void_space(None, ROAD, TASKS) == ""
    assert void_space("features", [[Reader(TASKS)]], TASKS) == ""


@pytest.mark.parametrize("name", ["road", "street"])
def test_a_training_says_so_before_it_begins(name):
    path = next(path for path in RECIPES if path.stem == name)
    blind = recipes.load(path, ["balance={name: pcgrad, space: features}"])
    assert bool(recipes.warnings(blind)) == (name == "road")
    for other in ("{name: pcgrad}", "{name: gradnorm, space: features}", "{name: static}"):
        assert recipes.warnings(recipes.load(path, [f"balance={other}"])) == []


def test_the_report_repeats_it():
    said = advise([{"kind": "warning", "step": 0, "text": "Blind."}], [], ("a", "b"), [])
    assert said == ["Blind."]


def test_why_it_matters():
    """One image for each task: at the features every cosine is exactly zero, in the weights it is not."""
    both = batch()
    first, second = both.annotations["segmentation"][0], both.annotations["depth"][1]
    annotations = {
        "detection": [None, None],
        "segmentation": [first, None],
        "depth": [None, second],
        "classification": [None, None],
    }
    torn = Batch(both.images, annotations, both.cameras, both.frames, both.ids, both.sources)
    model = network("hard").eval()  # in training, BatchNorm mixes the images
    labelled = {"detection": 0, "segmentation": 1, "depth": 1, "classification": 0}
    cosines = {}
    for space in ("features", "late", "params"):
        done, _, _ = step("pcgrad", model, torn, labelled=labelled, space=space)
        cosines[space] = done.looks["cosine/segmentation/depth"]
    assert cosines["features"] == 0
    assert abs(cosines["late"]) > 1e-3 < abs(cosines["params"])
    assert torch.sign(torch.tensor(cosines["late"])) == torch.sign(torch.tensor(cosines["params"]))
