"""Tasks that no image labels together, and the space of gradients in which they then cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from backward_step import step
from recipe_files import RECIPES
from sharing_networks import build_network, make_batch

from perception import recipe as recipes
from perception.data.joint_labels import explain_incomparable_gradients, find_unpaired_tasks
from perception.report.gradients import advise
from perception.types import Batch


@dataclass
class Reader:
    tasks: tuple[str, ...]


ROAD = [[Reader(("boxes",))], [Reader(("masks",)), Reader(("scene",))], [Reader(("depth", "scene"))]]
TASKS = ("boxes", "masks", "depth", "scene")


def test_a_pair_is_apart_where_no_source_labels_both():
    apart = find_unpaired_tasks(ROAD, TASKS)
    assert apart == [("boxes", "masks"), ("boxes", "depth"), ("boxes", "scene"), ("masks", "depth")]
    assert find_unpaired_tasks([[Reader(TASKS)]], TASKS) == []


def test_only_the_features_are_void():
    assert "boxes and masks" in explain_incomparable_gradients("features", ROAD, TASKS)
    assert (
        explain_incomparable_gradients("late", ROAD, TASKS) == explain_incomparable_gradients(None, ROAD, TASKS) == ""
    )
    assert explain_incomparable_gradients("features", [[Reader(TASKS)]], TASKS) == ""


@pytest.mark.parametrize("name", ["road", "street"])
def test_a_training_says_so_before_it_begins(name):
    path = next(path for path in RECIPES if path.stem == name)
    blind = recipes.load(path, ["balance={name: pcgrad, space: features}"])
    assert bool(recipes.collect_warnings(blind)) == (name == "road")
    for other in ("{name: pcgrad}", "{name: gradnorm, space: features}", "{name: static}"):
        assert recipes.collect_warnings(recipes.load(path, [f"balance={other}"])) == []


def test_the_report_repeats_it():
    said = advise([{"kind": "warning", "step": 0, "text": "Blind."}], [], ("a", "b"), [])
    assert said == ["Blind."]


def test_why_it_matters():
    """One image for each task: at the features every cosine is exactly zero, in the weights it is not."""
    both = make_batch()
    first, second = both.annotations["segmentation"][0], both.annotations["depth"][1]
    annotations = {
        "detection": [None, None],
        "segmentation": [first, None],
        "depth": [None, second],
        "classification": [None, None],
    }
    torn = Batch(both.images, annotations, both.cameras, both.transforms, both.ids, both.sources)
    model = build_network("hard").eval()  # in training, BatchNorm mixes the images
    labelled = {"detection": 0, "segmentation": 1, "depth": 1, "classification": 0}
    cosines = {}
    for space in ("features", "late", "all_shared"):
        done, _, _ = step("pcgrad", model, torn, labeled=labelled, space=space)
        cosines[space] = done.gradient_stats["cosine/segmentation/depth"]
    assert cosines["features"] == 0
    assert abs(cosines["late"]) > 1e-3 < abs(cosines["all_shared"])
    assert torch.sign(torch.tensor(cosines["late"])) == torch.sign(torch.tensor(cosines["all_shared"]))
