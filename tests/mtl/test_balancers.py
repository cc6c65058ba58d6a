"""Balancers of losses: their formulas, torchjd's numbers, and the contract of all: an absent task changes nothing."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torchjd.scalarization as oracle
from balancer_cases import TASKS, decide, gramian, losses, make, weights_of
from torch import nn

from perception import config
from perception.mtl.balancer import derive_seed
from perception.mtl.balancers import BALANCERS, BalanceConfig, build_balancer, effective_weights
from perception.types import ConfigError

# --- formulas --------------------------------------------------------------------------------------------------------


def test_static_is_the_weighted_sum():
    total = make("static", weights={"depth": 0.5})(losses(1.0, 2.0, 3.0), TASKS, 0)
    assert total.item() == 1.0 + 0.5 * 2.0 + 3.0


def test_uncertainty_is_kendalls_formula_and_rests_at_half_the_inverse_loss():
    balancer = make("uncertainty", initial_log_variance=0.7)
    values = (1.0, 0.2, 5.0)
    total = balancer(losses(*values), TASKS, 0)
    assert total.item() == pytest.approx(sum(math.exp(-0.7) * value + 0.35 for value in values), rel=1e-6)
    assert rest(balancer, values) == pytest.approx([1 / (2 * value) for value in values], rel=1e-3)


def test_imtl_l_rests_where_all_scaled_losses_are_one():
    values = (1.0, 0.2, 5.0)
    assert rest(make("imtl_l"), values) == pytest.approx([1 / value for value in values], rel=1e-3)


def rest(balancer, values) -> list[float]:
    """Weights where the balancer's own parameters have converged."""
    optimizer = torch.optim.LBFGS(balancer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        found = balancer(losses(*values), TASKS, 0)
        found.backward()
        return found

    optimizer.step(closure)
    return weights_of(balancer, losses(*values))


def test_geometric_mean_is_the_root_of_the_product_and_scale_free():
    here = losses(1.0, 2.0, 4.0)
    total = make("geometric_mean")(here, TASKS, 0)
    assert total.item() == pytest.approx(2.0, rel=1e-6)
    weights = effective_weights(total, here)
    assert [weights[name] * here[name].item() for name in TASKS] == pytest.approx([2 / 3] * 3, rel=1e-5)


def test_log_sum_divides_every_gradient_by_its_loss():
    here = losses(1.0, 2.0, 4.0)
    assert make("log_sum")(here, TASKS, 0).item() == pytest.approx(math.log(8.0), rel=1e-6)
    assert weights_of(make("log_sum"), here) == pytest.approx([1.0, 0.5, 0.25], rel=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("geometric_mean", 2.0), ("log_sum", math.log(4.0))])
def test_a_loss_of_zero_is_left_out_of_logarithms(name, expected):
    here = losses(1.0, 0.0, 4.0)
    total = make(name)(here, TASKS, 0)
    total.backward()
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert here["depth"].grad == 0
    assert make(name)(losses(0.0, 0.0, 0.0), TASKS, 0).item() == 0


def test_gradnorm_steps_against_its_l1_distance_and_keeps_the_sum():
    balancer, products = make("gradnorm", alpha=0.5, lr=0.1), torch.diag(torch.tensor([1.0, 4.0, 16.0])).double()
    first = weights_of(balancer, losses(2.0, 2.0, 2.0), products=products)
    assert first == [1, 1, 1]  # what is measured now counts from the next step on
    expected = torch.tensor([1.1, 1.1, 0.9])  # norms 1, 2, 4 against their mean 7 / 3; Adam's first step is lr
    expected *= 3 / expected.sum()
    assert weights_of(balancer, losses(2.0, 2.0, 2.0), step=1, products=products) == pytest.approx(expected.tolist())
    slow = balancer.gradient(torch.ones(3), torch.ones(3).double(), dict(zip(TASKS, (2.0, 1.0, 0.5), strict=True)))
    assert slow.sign().tolist() == [-1, 1, 1]  # the first loss has not fallen at all: its weight goes up


SCALE_FREE = ("geometric_mean", "log_sum")
"""A factor on a loss would change nothing."""


@pytest.mark.parametrize("name", [name for name in BALANCERS if name not in SCALE_FREE])
def test_weights_scale_losses_before_the_balancer_looks(name):
    """A recipe with factors is one without whose losses and gradients are so much larger, for a few steps."""
    factors = torch.tensor([0.5, 1.0, 3.0]).double()
    weighted, plain = (
        make(name, **extra, **({"window": 2} if name == "dwa" else {}))
        for extra in ({"weights": {"detection": 0.5, "classification": 3.0}}, {})
    )
    for step in range(5):
        values = torch.tensor([1.0 + step, 2.0, 3.0 - 0.5 * step]).double()
        products = gramian(step)
        found = weights_of(weighted, losses(*values.tolist()), step=step, products=products)
        scaled = products * torch.outer(factors, factors)
        expected = weights_of(plain, losses(*(values * factors).tolist()), step=step, products=scaled)
        assert found == pytest.approx((torch.tensor(expected).double() * factors).tolist(), rel=1e-4)
        after = values * torch.tensor([0.9, 0.99, 1.05])
        weighted.observe_updated_losses(losses(*after.tolist()))
        plain.observe_updated_losses(losses(*(after * factors).tolist()))
    assert not any("weight" in key for key in set(weighted.state_dict()) ^ set(plain.state_dict()))


@pytest.mark.parametrize("name", [name for name in BALANCERS if name not in SCALE_FREE])
def test_a_task_of_weight_zero_is_as_if_absent(name):
    balancer, smaller = make(name, weights={"depth": 0}), make(name, (TASKS[0], TASKS[2]))
    for step in range(3):
        whole = gramian(step)
        some = whole[[0, 2]][:, [0, 2]]
        here = losses(1.0, 2.0 + step, 3.0)
        found = weights_of(balancer, here, step=step, products=whole)
        others = {key: here[key] for key in (TASKS[0], TASKS[2])}
        expected = weights_of(smaller, others, tuple(others), step, some)
        assert found == pytest.approx([expected[0], 0.0, expected[1]], rel=1e-6)
        balancer.observe_updated_losses(losses(0.9, 1.0, 3.1))
        smaller.observe_updated_losses({key: loss for key, loss in losses(0.9, 1.0, 3.1).items() if key in others})


GRAMIAN = [name for name, kind in BALANCERS.items() if kind.has_shared_weights]


@pytest.mark.parametrize("name", [name for name in GRAMIAN if name != "imtl"])
def test_log_works_on_gradients_divided_by_their_loss(name):
    values = torch.tensor([0.5, 2.0, 8.0]).double()
    products = gramian(1)
    found = weights_of(make(name, log_losses=True, weights={"depth": 3.0}), losses(*values.tolist()), products=products)
    scales = torch.tensor([1.0, 3.0, 1.0]).double() / values  # factors multiply logarithms
    expected = weights_of(make(name), losses(1.0, 1.0, 1.0), products=products * torch.outer(scales, scales))
    assert found == pytest.approx((torch.tensor(expected).double() * scales).tolist(), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in GRAMIAN if name != "imtl"])
def test_log_leaves_out_a_loss_of_exactly_zero(name):
    here, products, some = losses(0.5, 0.0, 8.0), gramian(1), (TASKS[0], TASKS[2])
    balancer = make(name, log_losses=True)
    found = weights_of(balancer, here, products=products)
    others = {key: here[key] for key in some}
    expected = weights_of(make(name, some, log_losses=True), others, some, 0, products[[0, 2]][:, [0, 2]])
    assert found == pytest.approx([expected[0], 0.0, expected[1]], rel=1e-6)
    balancer(here, TASKS, 0).backward()
    assert here["depth"].grad == 0  # still in the graph
    assert not make(name, log_losses=True)(losses(1.0, math.nan, 1.0), TASKS, 0).isfinite()


def test_famo_leaves_out_a_loss_of_exactly_zero():
    """A depth map without a valid pixel: the others go on as without the task, which learns nothing from it."""
    balancer, smaller = make("famo", lr=0.1), make("famo", (TASKS[0], TASKS[2]), lr=0.1)
    for step in range(4):
        here = losses(1.0 + step, 0.0, 3.0)
        others = {key: here[key] for key in (TASKS[0], TASKS[2])}
        found, expected = (
            weights_of(balancer, here, step=step),
            weights_of(smaller, others, tuple(others), step),
        )
        assert found == pytest.approx([expected[0], 0.0, expected[1]], rel=1e-6)
        balancer.observe_updated_losses(losses(0.9, 0.0, 2.0))
        smaller.observe_updated_losses({key: loss for key, loss in losses(0.9, 0.0, 2.0).items() if key in others})
    assert balancer.logits.get(TASKS).ne(0).tolist() == [True, False, True]
    total = balancer(losses(0.0, 0.0, 0.0), TASKS, 9)
    assert total == 0
    assert total.requires_grad


def test_gradnorm_leaves_out_a_task_without_gradient():
    balancer, smaller = make("gradnorm", lr=0.1), make("gradnorm", (TASKS[0], TASKS[2]), lr=0.1)
    products = torch.diag(torch.tensor([1.0, 0.0, 16.0])).double()
    for step in range(4):
        here = losses(1.0, 0.0, 3.0)
        others = {key: here[key] for key in (TASKS[0], TASKS[2])}
        found = weights_of(balancer, here, step=step, products=products)
        expected = weights_of(smaller, others, tuple(others), step, products[[0, 2]][:, [0, 2]])
        assert found == pytest.approx([expected[0], 1.0, expected[1]], rel=1e-6)
    assert "depth" not in balancer.initial_losses  # its first loss is the first that it learns from


# --- torchjd ---------------------------------------------------------------------------------------------------------


def run(balancer, steps: int = 24):
    """The totals and weights of a few steps with losses that fall unevenly."""
    for step in range(steps):
        values = [(2 + k) * math.exp(-step * (k + 1) / 40) + 0.1 * math.sin(7 * step + k) for k in range(3)]
        here = losses(*values)
        yield step, here, torch.tensor(values), weights_of(balancer, here, step=step)


def test_dwa_gives_torchjds_weights():
    expected = oracle.DWA(temperature=1.5)
    for step, _, values, weights in run(make("dwa", temperature=1.5, window=6)):
        if step % 6 == 0:
            expected.step()
        leaf = values.clone().requires_grad_()
        expected(leaf).backward()
        assert weights == pytest.approx(leaf.grad.tolist(), rel=1e-6)
    assert max(weights) > 1.01


def test_rlw_gives_torchjds_weights_drawn_by_seed_and_step():
    drawn = []
    for step, _, values, weights in run(make("rlw"), 4):
        leaf = values.clone().requires_grad_()
        torch.manual_seed(derive_seed(5, step))
        oracle.Random()(leaf).backward()
        assert weights == pytest.approx(leaf.grad.tolist(), rel=1e-6)
        drawn.append(weights)
    assert drawn[0] != drawn[1]
    before = torch.get_rng_state()
    decide(make("rlw"), losses(1.0, 2.0, 3.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_famo_gives_torchjds_weights():
    balancer, expected = make("famo", lr=0.1), oracle.FAMO(3, lr=0.1)
    for step, here, values, weights in run(balancer):
        leaf = values.clone().requires_grad_()
        expected(leaf).backward()
        assert weights == pytest.approx(leaf.grad.tolist(), rel=1e-5)
        after = values * torch.tensor([0.9, 0.99, 1.05]) ** (step % 3)
        balancer.observe_updated_losses(dict(zip(here, after, strict=True)))
        expected.update(after)
    assert balancer.logits.get(TASKS).tolist() == pytest.approx(expected._w.tolist(), rel=1e-5)
    assert max(expected._w.tolist()) > 0.1


@pytest.mark.parametrize(
    ("name", "expected", "factor"),
    [
        ("static", oracle.Sum(), 1.0),
        ("geometric_mean", oracle.GeometricMean(), 1.0),
        ("uncertainty", oracle.UW(3), 2.0),  # torchjd halves the loss
        ("imtl_l", oracle.IMTLL(3), 1.0),
    ],
)
def test_scalars_are_torchjds(name, expected, factor):
    balancer = make(name)
    for own, other in zip(balancer.parameters(), itertools.chain(*expected.parameters()), strict=False):
        nn.init.constant_(own, 0.3)
        other.data.fill_(0.3)
    for _, here, values, weights in run(balancer, 3):
        leaf = values.clone().requires_grad_()
        total = expected(leaf * factor)
        total.backward()
        assert balancer(here, TASKS, 0).item() == pytest.approx(total.item(), rel=1e-6)
        assert weights == pytest.approx(leaf.grad.tolist(), rel=1e-6)


# --- the contract of all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BALANCERS)
def test_an_absent_task_has_no_say_but_keeps_its_graph(name):
    some = ("detection", "classification")
    balancer, smaller = make(name), make(name, some)
    products = gramian(3, 2)
    here = losses(1.5, 0.0, 3.0)
    total = decide(balancer, here, some, 3, products)
    total.backward()
    others = {key: torch.tensor(here[key].item(), requires_grad=True) for key in some}
    expected = decide(smaller, others, some, 3, products)
    expected.backward()
    assert torch.equal(total, expected)
    for key, loss in others.items():
        assert torch.equal(here[key].grad, loss.grad)
    assert here["depth"].grad is not None
    assert here["depth"].grad == 0
    assert all(p.grad is None for key, p in balancer.named_parameters() if key.endswith("depth"))


@pytest.mark.parametrize("name", BALANCERS)
def test_steps_without_a_task_leave_no_trace_in_it(name):
    """Six steps without the third task: the others get the weights of a recipe without it, and its state is fresh."""
    settings = {"window": 2} if name == "dwa" else {}
    some = TASKS[:2]
    balancer, alone, without = make(name, **settings), make(name, **settings), make(name, some, **settings)
    optimizers = [
        torch.optim.SGD(b.parameters(), 0.1) if list(b.parameters()) else None for b in (balancer, alone, without)
    ]

    def step(which, here, present, number, products) -> list[float]:
        one, optimizer = (balancer, alone, without)[which], optimizers[which]
        weights = weights_of(one, here, present, number, products)
        if optimizer:
            optimizer.zero_grad()
            one(here, present, number).backward()
            optimizer.step()
        if one.needs_updated_losses:
            one.observe_updated_losses({key: loss.detach() * 0.9 for key, loss in here.items() if key in present})
        return weights

    for number in range(6):
        values = [2.0 / (number + 1), 1.0 + 0.1 * number, 3.0]
        products = gramian(number)
        assert step(0, losses(*values), some, number, products[:2, :2]) == pytest.approx(
            step(2, losses(*values[:2]), some, number, products[:2, :2]), rel=1e-6
        )
    state = {key: value for key, value in flat(balancer.state_dict()).items() if "classification" in key}
    fresh = {key: value for key, value in flat(alone.state_dict()).items() if "classification" in key}
    assert state == fresh


def flat(value, path="") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value.tolist() if isinstance(value, torch.Tensor) else value}


@pytest.mark.parametrize("name", BALANCERS)
def test_no_task_present_gives_a_connected_zero(name):
    here = losses(0.0, 0.0, 0.0)
    total = make(name)(here, frozenset(), 0)
    total.backward()
    assert total.item() == 0
    assert all(loss.grad == 0 for loss in here.values())


@pytest.mark.parametrize("name", BALANCERS)
def test_a_loss_that_is_not_finite_is_not_hidden(name):
    assert not math.isfinite(decide(make(name), losses(1.0, math.nan, 1.0), products=gramian(0)).item())


@pytest.mark.parametrize("name", BALANCERS)
def test_state_comes_back_whole(name):
    """What follows a reload, with other numbers, is what follows without one."""
    balancer = make(name)
    for number in range(3):
        decide(balancer, losses(1.0, 2.0 + number, 3.0), step=number, products=gramian(number))
        balancer.observe_updated_losses(losses(0.9, 1.5, 3.1))
    for parameter in balancer.parameters():
        nn.init.constant_(parameter, 0.4)
    other = make(name)
    other.load_state_dict(copy.deepcopy(balancer.state_dict()))
    for number in range(3, 300, 33):
        here = losses(0.5, 0.3 * number, 2.0)
        expected = weights_of(balancer, here, step=number, products=gramian(number))
        assert weights_of(other, here, step=number, products=gramian(number)) == expected
        for one in (balancer, other):
            one.observe_updated_losses(losses(0.4, 0.2, 2.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "pcgradient"}, "pcgradient"),
        ({"name": "static", "weights": {"depth": -1}}, "weights.depth"),
        ({"name": "static", "weights": {"depth": float("nan")}}, "weights.depth"),
        ({"name": "static", "weight": {}}, "weight: unknown key"),
        ({"name": "static", "weights": {"lanes": 1}}, "no task 'lanes'"),
        ({"name": "pcgrad", "weights": {"lanes": 1}}, "no task 'lanes'"),
        ({"name": "famo", "weights": {"depth": -1}}, "weights.depth"),
        ({"name": "log_sum", "weights": {"depth": 2}}, "weights: unknown key"),
        ({"name": "imtl", "log_losses": True}, "log"),
        ({"name": "fairgrad", "heads": "own"}, "heads"),
        ({"name": "upgrad", "heads": "weighted"}, "heads: unknown key"),
        ({"name": "upgrad", "space": "heads"}, "space"),
        ({"name": "famo", "lr": -1}, "lr"),
        ({"name": "mgda", "update_every": 0}, "every"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_balancer(config.validate_config(BalanceConfig, settings), TASKS)
