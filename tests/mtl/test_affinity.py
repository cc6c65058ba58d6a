"""Looking ahead against closed forms; the grouping against every partition; a made problem with known affinity."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from perception.mtl.affinity import Affinity, compare_groupings, find_best_groupings, measure_affinity, score_grouping


class Scalars(nn.Module):
    """One shared number, and one of each task's own."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor([0.0]))
        self.own = nn.Parameter(torch.tensor([2.0]))

    def losses(self) -> dict[str, Tensor]:
        x = self.shared
        return {"up": ((x - 1) ** 2).sum(), "down": ((x + 1) ** 2).sum() + self.own.sum() * 0, "far": 4 - 2 * x.sum()}


def test_a_step_and_what_it_takes_in_closed_form():
    """At 0 the gradients are -2, 2 and -2: each task moves by 2 s / sqrt(12), and squares are exact to second order."""
    network, s = Scalars(), 0.3
    found = measure_affinity(network, network.losses, ("up", "down", "far"), step_size=s, weights={}, seed=0)
    d = 2 * s / math.sqrt(12)
    up, down = 1 - (d - 1) ** 2, 1 - (d + 1) ** 2
    assert found["up"] == pytest.approx({"up": up, "down": down, "far": 2 * d / 4})
    assert found["far"] == pytest.approx(found["up"])
    assert found["down"] == pytest.approx({"up": down, "down": up, "far": -2 * d / 4})


def test_weights_share_the_step_out_and_absent_tasks_take_no_part():
    network = Scalars()
    found = measure_affinity(network, network.losses, ("up", "down"), step_size=0.1, weights={"up": 3.0}, seed=0)
    long, short = 0.1 * 3 / math.sqrt(10), 0.1 / math.sqrt(10)
    assert found.keys() == {"up", "down"} == found["up"].keys()
    assert found["up"]["up"] == pytest.approx(1 - (1 - long) ** 2)
    assert found["down"]["down"] == pytest.approx(1 - (1 - short) ** 2)


class Network(nn.Module):
    """A trunk with BatchNorm and dropout, and three heads."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in ("one", "twin", "noise")})

    def losses(self, x: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            name: nn.functional.binary_cross_entropy_with_logits(head(features)[:, 0], labels[name])
            for name, head in self.heads.items()
        }


def batches(steps: int, seed: int):
    """One rule for two tasks; a coin for the third."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(12, generator=generator)
    for _ in range(steps):
        x = torch.randn(32, 12, generator=generator)
        label = (x @ rule > 0).float()
        coin = torch.randint(0, 2, (32,), generator=generator).float()
        yield x, {"one": label, "twin": label, "noise": coin}


def test_nothing_is_left_changed():
    torch.manual_seed(0)
    network = Network().train()
    x, labels = next(iter(batches(1, 0)))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.get_rng_state()
    measure_affinity(network, lambda: network.losses(x, labels), tuple(labels), step_size=0.1, weights={}, seed=3)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_only_shared_parameters_move():
    """A head is used by one task alone: were it moved, a task's step would do more to itself."""
    torch.manual_seed(0)
    network = Network().eval()
    x, labels = next(iter(batches(1, 0)))
    found = measure_affinity(
        network, lambda: network.losses(x, labels), tuple(labels), step_size=1e-3, weights={}, seed=3
    )
    network.heads.requires_grad_(False)
    again = measure_affinity(
        network, lambda: network.losses(x, labels), tuple(labels), step_size=1e-3, weights={}, seed=3
    )
    assert found == again


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_made_problem_is_found(seed):
    """Two tasks of one rule help each other, a coin helps nobody; two networks are best spent on setting it apart."""
    torch.manual_seed(seed)
    network = Network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    names, looks = ("one", "twin", "noise"), []
    for step, (x, labels) in enumerate(batches(150, seed)):
        if step % 5 == 0:
            losses = partial(network.losses, x, labels)
            look = measure_affinity(network, losses, names, step_size=3e-4, weights={}, seed=step)
            looks.append([[look[i][j] for j in names] for i in names])
        optimizer.zero_grad()
        torch.stack(list(network.losses(x, labels).values())).sum().backward()
        optimizer.step()
    found = Affinity(names, np.array(looks))
    (_, groups), (_, runner_up) = find_best_groupings(found.mean, 2)
    assert groups == ((0, 1), (2,))
    interval = compare_groupings(found, groups, runner_up)
    assert interval is not None
    assert interval[0] > 0
    matrix, error = found.mean, found.standard_error
    assert min(matrix[0, 1], matrix[1, 0]) > 5 * error[2].max() > 0
    assert matrix[2, :2].max() < 0.2 * min(matrix[0, 1], matrix[1, 0])


def partitions(items: list[int]):
    """Every partition, by the textbook recursion."""
    if not items:
        yield []
        return
    first, *rest = items
    for smaller in partitions(rest):
        for i, group in enumerate(smaller):
            yield [*smaller[:i], [first, *group], *smaller[i + 1 :]]
        yield [[first], *smaller]


@given(st.integers(2, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, 10**6))))
def test_the_best_groupings_are_the_best_of_all_partitions(case):
    tasks, networks, seed = case
    matrix = np.random.default_rng(seed).normal(size=(tasks, tasks))
    expected = sorted(
        (score_grouping(matrix, p) for p in partitions(list(range(tasks))) if len(p) <= networks), reverse=True
    )
    found = find_best_groupings(matrix, networks)
    assert [value for value, _ in found] == pytest.approx(expected[:2])
    for value, groups in found:
        assert value == pytest.approx(score_grouping(matrix, groups))
        assert sorted(i for group in groups for i in group) == list(range(tasks))
        assert len(groups) <= networks


def test_the_budget_is_kept_and_not_spent_where_all_help_alike():
    helpful = np.full((3, 3), 0.1)
    assert find_best_groupings(helpful, 3)[0][1] == ((0, 1, 2),)
    assert find_best_groupings(-helpful, 3)[0] == (0.0, ((0,), (1,), (2,)))
    assert find_best_groupings(-helpful, 1)[0][1] == ((0, 1, 2),)
    assert len(find_best_groupings(helpful, 1)) == 1


def test_twelve_tasks_are_grouped_in_time():
    matrix = np.random.default_rng(0).normal(size=(12, 12))
    assert len(find_best_groupings(matrix, 3)) == 2


def test_pairs_that_no_look_saw_count_as_nothing():
    values = np.full((4, 2, 2), np.nan)
    values[:, 0, 0] = values[:, 1, 1] = 1.0
    found = Affinity(("a", "b"), values)
    assert np.isnan(found.mean[0, 1])
    assert score_grouping(found.mean, [(0, 1)]) == 0.0
    assert found.standard_error[0, 0] == 0.0


def test_the_standard_error_is_that_of_the_stretches():
    values = np.random.default_rng(0).normal(size=(100, 1, 1))
    means = values.reshape(10, 10).mean(1)
    assert Affinity(("a",), values).standard_error[0, 0] == pytest.approx(means.std(ddof=1) / math.sqrt(10))
