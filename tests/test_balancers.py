"""Balancers: their formulas, and that an absent task changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from perception import config
from perception.mtl.balancers import BALANCERS, BalanceConfig, build_balancer, effective_weights
from perception.types import ConfigError

TASKS = ("detection", "depth", "classification")


def make(name: str, tasks=TASKS, **settings: Any):
    return build_balancer(config.build(BalanceConfig, {"name": name, **settings}), tasks)


def losses(*values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(TASKS, values, strict=False)}


def test_static_is_the_weighted_sum():
    total = make("static", weights={"depth": 0.5})(losses(1.0, 2.0, 3.0), TASKS, 0)
    assert total.item() == 1.0 + 0.5 * 2.0 + 3.0


def test_uncertainty_is_kendalls_formula_and_rests_at_half_the_inverse_loss():
    balancer = make("uncertainty", initial=0.7)
    values = (1.0, 0.2, 5.0)
    total = balancer(losses(*values), TASKS, 0)
    assert total.item() == pytest.approx(sum(math.exp(-0.7) * value + 0.35 for value in values), rel=1e-6)
    optimizer = torch.optim.LBFGS(balancer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = balancer(losses(*values), TASKS, 0)
        found.backward()
        return found

    optimizer.step(closure)
    here = losses(*values)
    weights = effective_weights(balancer(here, TASKS, 0), here)
    assert [weights[name] for name in TASKS] == pytest.approx([1 / (2 * value) for value in values], rel=1e-3)


def test_geometric_mean_is_the_root_of_the_product_and_scale_free():
    here = losses(1.0, 2.0, 4.0)
    total = make("geometric_mean")(here, TASKS, 0)
    assert total.item() == pytest.approx(2.0, rel=1e-6)
    weights = effective_weights(total, here)
    assert [weights[name] * here[name].item() for name in TASKS] == pytest.approx([2 / 3] * 3, rel=1e-5)


def test_geometric_mean_leaves_out_a_loss_of_zero():
    here = losses(1.0, 0.0, 4.0)
    total = make("geometric_mean")(here, TASKS, 0)
    total.backward()
    assert total.item() == pytest.approx(2.0, rel=1e-6)
    assert here["depth"].grad == 0
    assert make("geometric_mean")(losses(0.0, 0.0, 0.0), TASKS, 0).item() == 0


@pytest.mark.parametrize("name", BALANCERS)
def test_an_absent_task_has_no_say_but_keeps_its_graph(name):
    balancer, smaller = make(name), make(name, ("detection", "classification"))
    here = losses(1.5, 0.0, 3.0)
    total = balancer(here, {"detection", "classification"}, 3)
    total.backward()
    others = {key: torch.tensor(here[key].item(), requires_grad=True) for key in ("detection", "classification")}
    expected = smaller(others, set(others), 3)
    expected.backward()
    assert torch.equal(total, expected)
    for key, loss in others.items():
        assert torch.equal(here[key].grad, loss.grad)
    assert here["depth"].grad is not None
    assert here["depth"].grad == 0
    assert all(p.grad is None for key, p in balancer.named_parameters() if key.endswith("depth"))


@pytest.mark.parametrize("name", BALANCERS)
def test_no_task_present_gives_a_connected_zero(name):
    here = losses(0.0, 0.0, 0.0)
    total = make(name)(here, frozenset(), 0)
    total.backward()
    assert total.item() == 0
    assert all(loss.grad == 0 for loss in here.values())


@pytest.mark.parametrize("name", BALANCERS)
def test_a_loss_that_is_not_finite_is_not_hidden(name):
    assert not math.isfinite(make(name)(losses(1.0, math.nan, 1.0), TASKS, 0).item())


def test_parameters_and_state_come_back():
    balancer = make("uncertainty")
    nn.init.constant_(balancer.log_variances["depth"], 2.5)
    other = make("uncertainty")
    other.load_state_dict(balancer.state_dict())
    assert other.log_variances["depth"].item() == 2.5
    assert not list(make("static").parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pcgradient"}, "pcgradient"),
        ({"name": "static", "weights": {"depth": -1}}, "weights.depth"),
        ({"name": "static", "weights": {"depth": float("nan")}}, "weights.depth"),
        ({"name": "static", "weight": {}}, "weight: unknown key"),
        ({"name": "static", "weights": {"lanes": 1}}, "no task 'lanes'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_balancer(config.build(BalanceConfig, settings), TASKS)
