"""The moving average of the Gramian: it converges, it is a Gramian, absent tasks keep theirs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from balancer_cases import CONFLICT, TASKS, losses, make

from perception import config
from perception.mtl.balancers import BalanceConfig
from perception.mtl.gramian import UPGrad
from perception.mtl.gramian_average import GramianAverage
from perception.types import ConfigError

MEAN = torch.tensor([[1.0, -0.4, 0.1], [-0.4, 4.0, 0.6], [0.1, 0.6, 0.25]]).double()


def noisy(seed: int) -> torch.Tensor:
    """A Gramian around MEAN: of sums of MEAN's gradients and noise, whose own inner products are zero on the whole."""
    random = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(MEAN)
    rows = root @ torch.randn(3, 6, generator=random, dtype=torch.float64)
    return rows @ rows.T / 6


def cosines(products: torch.Tensor) -> torch.Tensor:
    lengths = products.diagonal().sqrt()
    return products / torch.outer(lengths, lengths)


class Seen(UPGrad):
    """Keeps what `solve` was given."""

    def solve(self, gramian, names, step):
        self.gramian = gramian
        return super().solve(gramian, names, step)


def seen(memory: float, steps: int) -> list[torch.Tensor]:
    balancer = Seen(config.validate_config(BalanceConfig, {"name": "upgrad", "gramian_decay": memory}), TASKS)
    found = []
    for step in range(steps):
        balancer.observe_gramian(noisy(step), losses(1.0, 2.0, 3.0), step)
        found.append(cosines(balancer.gramian))
    return found


def test_cosines_converge_to_those_of_the_mean():
    expected = cosines(MEAN)
    errors = [(own - expected).abs().max() for own in seen(0.95, 400)[100:]]
    raw = [(own - expected).abs().max() for own in seen(0.0, 400)[100:]]
    assert np.mean(errors) < 0.15
    assert np.mean(raw) > 3 * np.mean(errors)


def test_the_first_average_is_the_first_gramian():
    """As Adam's moments, it is corrected for the zeros that it starts from."""
    memory = GramianAverage(3, 0.99)
    memory.update((0, 2), noisy(0)[:2, :2])
    torch.testing.assert_close(memory.compute_average((0, 2)), noisy(0)[:2, :2])
    memory.update((0, 2), 3 * noisy(0)[:2, :2])
    assert memory.compute_average((0, 2))[0, 0] == pytest.approx(float(noisy(0)[0, 0]) * (0.99 + 3) / 1.99)


def test_pairs_that_contradict_each_other_give_the_nearest_gramian():
    """a = b and b = c, each seen together, but a = -c: no gradients are so."""
    memory = GramianAverage(3, 0.5)
    for places, cosine in (((0, 1), 1.0), ((1, 2), 1.0), ((0, 2), -1.0)):
        memory.update(places, torch.tensor([[4.0, 4 * cosine], [4 * cosine, 4.0]]).double())
    found = memory.compute_average((0, 1, 2))
    assert torch.linalg.eigvalsh(found).min() > -1e-12
    assert found.diagonal().tolist() == pytest.approx([4.0] * 3)  # lengths stay
    assert cosines(found)[0].tolist() == pytest.approx([1.0, 0.5, -0.5])


def test_a_pair_that_was_never_seen_together_counts_as_orthogonal():
    memory = GramianAverage(3, 0.9)
    memory.update((0, 1), MEAN[:2, :2])
    assert not memory.has_all((0, 2))
    memory.update((2,), MEAN[2:, 2:])
    assert memory.has_all((0, 2))
    torch.testing.assert_close(memory.compute_average((0, 2)), torch.diag(MEAN.diagonal()[[0, 2]]))
    torch.testing.assert_close(memory.compute_average((0, 1)), MEAN[:2, :2])  # the absence of a task left no trace


@pytest.mark.parametrize("name", CONFLICT)
def test_weights_of_known_tasks_are_solved_from_memory_alone(name):
    balancer, some = make(name, gramian_decay=0.9, update_every=4), (TASKS[0], TASKS[2])
    assert balancer.needs_gramian(TASKS, 0)
    assert balancer.shared_weights(some) is None
    balancer.observe_gramian(MEAN, losses(1.0, 2.0, 3.0), 0)
    assert not balancer.needs_gramian(some, 3)
    found = balancer.shared_weights(some)
    direct = make(name)
    here = {key: loss for key, loss in losses(1.0, 2.0, 3.0).items() if key in some}
    direct.observe_gramian(MEAN[[0, 2]][:, [0, 2]], here, 0)
    assert found is not None
    assert found.tolist() == pytest.approx(direct.shared_weights(some).tolist(), rel=1e-9)
    assert balancer.needs_gramian(some, 4)
    balancer.observe_gramian(torch.eye(2).double(), here, 4)
    assert not balancer.needs_gramian(TASKS, 7)  # `every` counts whatever tasks are present
    assert balancer.needs_gramian(TASKS, 8)


def test_a_task_that_was_never_seen_asks_for_a_gramian():
    balancer = make("upgrad", gramian_decay=0.9, update_every=100)
    two = {key: loss for key, loss in losses(1.0, 2.0, 3.0).items() if key in TASKS[:2]}
    balancer.observe_gramian(MEAN[:2, :2], two, 0)
    assert not balancer.needs_gramian(TASKS[:1], 1)
    assert balancer.needs_gramian(TASKS, 1)
    without = MEAN.clone()
    without[2] = without[:, 2] = 0
    balancer.observe_gramian(without, losses(1.0, 2.0, 0.0), 1)
    assert not balancer.needs_gramian(TASKS, 2)  # it has no gradient: another look is due in 100 steps
    assert balancer.needs_gramian((TASKS[0], TASKS[2]), 2)


def test_a_task_of_weight_zero_does_not_ask_for_gramians():
    balancer, without = make("upgrad", gramian_decay=0.9, update_every=100, weights={TASKS[1]: 0}), MEAN.clone()
    without[1] = without[:, 1] = 0
    balancer.observe_gramian(without, losses(1.0, 2.0, 3.0), 0)
    assert not balancer.needs_gramian(TASKS[:2], 1)
    assert balancer.shared_weights(TASKS[:2]).tolist() == pytest.approx([1.0, 1.0])
    assert balancer.shared_weights(TASKS[1:2]) is None


@pytest.mark.parametrize("name", CONFLICT)
def test_memory_comes_back_bit_for_bit(name):
    balancer, other = make(name, gramian_decay=0.8), make(name, gramian_decay=0.8)
    for step in range(3):
        balancer.observe_gramian(noisy(step), losses(1.0, 2.0, 3.0), step)
    balancer.shared_weights(TASKS[:2])
    other.load_state_dict(copy.deepcopy(balancer.state_dict()))
    for step in range(3, 6):
        for one in (balancer, other):
            one.observe_gramian(noisy(step), losses(1.0, 2.0, 3.0), step)
        for names in (TASKS, TASKS[:2], TASKS[1:]):
            assert torch.equal(balancer.shared_weights(names), other.shared_weights(names))


def test_a_state_that_is_kept_aside_does_not_change():
    """A step that breaks is undone by the state from before it."""
    balancer = make("gradvac", gramian_decay=0.8)
    balancer.observe_gramian(noisy(0), losses(1.0, 2.0, 3.0), 0)
    before = balancer.get_extra_state()
    kept = copy.deepcopy(before)
    balancer.observe_gramian(noisy(1), losses(1.0, 2.0, 3.0), 1)
    assert torch.equal(before["gramian_average"]["sums"], kept["gramian_average"]["sums"])
    assert torch.equal(before["targets"], kept["targets"])
    assert before["cached_weights"] == kept["cached_weights"]


@pytest.mark.parametrize("memory", [1.0, -0.1, float("nan")])
def test_a_wrong_memory_is_refused(memory):
    with pytest.raises(ConfigError, match="gramian_decay"):
        config.validate_config(BalanceConfig, {"name": "upgrad", "gramian_decay": memory})
