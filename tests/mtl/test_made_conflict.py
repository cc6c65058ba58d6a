"""Made problems whose conflict and affinity are known: what each space of gradients sees of them, and what follows.

Three classifications begin with equal heads. "same" has the labels of "one", "opposed" the other class. Each image
labels one task only, as in mixtures of real sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from backward_step import step
from sharing_networks import build_network, noise_images, randomize_gates

from perception.engine.backward import LOG_SPACE
from perception.model import MultiTaskModel
from perception.mtl.affinity import Affinity, find_best_groupings, measure_affinity
from perception.mtl.balancers import BALANCERS
from perception.mtl.conflict import is_conflicting
from perception.tasks import TASKS
from perception.types import Batch, Camera, ImageLabel

NAMES = ("one", "same", "opposed")
LOOKS = 8
DEFAULT = BALANCERS["pcgrad"].Config().space


def model(neck: str = "fpn") -> MultiTaskModel:
    config = TASKS["classification"].Config(classes=("left", "right"), channels=16)  # type: ignore[call-arg]
    configs = dict.fromkeys(NAMES, config)
    made = build_network("hard", tasks=NAMES, configs=configs, neck=neck)
    for name in NAMES[1:]:
        made.tasks[name].load_state_dict(made.tasks["one"].state_dict())
    return randomize_gates(made)  # BatchNorm by running statistics: in training it mixes the images


def torn(seed: int, each: int = 1) -> Batch:
    """``each`` images for every task."""
    left, right = (ImageLabel(row) for row in torch.eye(2))
    targets = {"one": left, "same": left, "opposed": right}
    count = each * len(NAMES)
    annotations = {
        name: [targets[name] if i // each == k else None for i in range(count)] for k, name in enumerate(NAMES)
    }
    ids = [str(i) for i in range(count)]
    return Batch(noise_images(count, seed), annotations, [Camera(100, 100, 48, 32)] * count, [None] * count, ids, ids)


@cache
def cosines(space: str, neck: str = "fpn") -> dict[str, list[float]]:
    """ "cosine/<task>/<task>" -> those of some batches."""
    network = model(neck)
    looks = [step("gradnorm", network, torn(seed), space=space)[0].gradient_stats for seed in range(LOOKS)]
    return {key: [look[key] for look in looks] for key in looks[0] if key.startswith("cosine/")}


@pytest.mark.parametrize("space", sorted({DEFAULT, LOG_SPACE, "all_shared"}))
def test_conflict_and_affinity_are_seen_in_the_weights(space):
    found = cosines(space)
    assert is_conflicting(found["cosine/one/opposed"])
    assert is_conflicting(found["cosine/same/opposed"])
    assert not is_conflicting(found["cosine/one/same"])
    assert is_conflicting([-value for value in found["cosine/one/same"]]), "affinity is as sure as conflict"


def test_the_features_see_neither():
    assert all(abs(np.mean(values)) < 0.02 for values in cosines("features").values())


def updates(space: str) -> Iterator[float]:
    """How far PCGrad's update of the shared parameters is from that of the plain sum, in lengths of the latter."""
    network = model()
    for seed in range(4):
        _, plain, _ = step("static", network, torn(seed))
        _, found, _ = step("pcgrad", network, torn(seed), space=space)
        keys = [key for key in plain if not key.startswith("tasks.")]
        difference = torch.cat([(found[key] - plain[key]).flatten() for key in keys]).norm()
        yield float(difference / torch.cat([plain[key].flatten() for key in keys]).norm())


def test_gradient_surgery_acts_in_the_default_space_and_not_at_the_features():
    assert min(updates(DEFAULT)) > 0.1
    assert max(updates("features")) < 0.05


def test_grouping_puts_the_tasks_together_that_pull_together():
    network = model()
    looks = []
    for seed in range(4):
        batch = torn(seed)
        found = measure_affinity(
            network, lambda b=batch: network.compute_losses(b), NAMES, step_size=1e-3, weights={}, seed=0
        )
        looks.append([[found[one][other] for other in NAMES] for one in NAMES])
    affinity = Affinity(NAMES, np.array(looks))
    mean, error = affinity.mean, affinity.standard_error
    assert mean[0, 1] > 3 * error[0, 1] > 0 > -3 * error[0, 2] > mean[0, 2]
    assert find_best_groupings(mean, 2)[0][1] == ((0, 1), (2,))
