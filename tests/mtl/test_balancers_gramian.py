"""Balancers of gradients: torchjd's weights and updates, closed forms, and that conflict makes a difference."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import tiny_network
import torch
import torchjd.aggregation as oracle
from balancer_cases import TASKS, gramian, losses, make, weights_of
from torch import Tensor, nn
from torchjd.autojac import jac_to_grad, mtl_backward
from torchjd.linalg import DualConeProjector

from perception.engine.backward import compute_gradients
from perception.engine.distributed import reduce_losses
from perception.model import LossOutput
from perception.mtl import solvers
from perception.mtl.balancer import GradientSpace, derive_seed
from perception.mtl.balancers import BALANCERS
from perception.mtl.gramian import GramianBalancer
from perception.mtl.task_gradients import compute_gramian as products_of
from perception.mtl.task_gradients import describe_gradients
from perception.nn.gradient_cut import GraphCuts
from perception.tasks import LossTerm
from perception.types import ConfigError

CONFLICT = [name for name, kind in BALANCERS.items() if issubclass(kind, GramianBalancer)]
SEEDS = range(8)


class Projector(DualConeProjector):
    """torchjd's own needs quadprog, which is GPL; this is the same problem, whose solution a test below certifies."""

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:  # type: ignore[override]
        return solvers.project_onto_dual_cone(U, G)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pcgrad", oracle.PCGradWeighting()),
        ("mgda", oracle.MGDAWeighting(1e-12, 3000)),  # its steps only come near the solution
        ("imtl_g", oracle.IMTLGWeighting()),
        ("aligned_mtl", oracle.AlignedMTLWeighting()),
        ("upgrad", oracle.UPGradWeighting(projector=Projector())),
        ("fairgrad", oracle.FairGradWeighting(alpha=1.0)),  # depends on the scale: a mean diagonal of 1
    ],
)
def test_weights_are_torchjds(name, expected, seed):
    products = gramian(seed)
    products = products / products.diagonal().mean()
    torch.manual_seed(derive_seed(5, seed))
    wanted = expected(products).tolist()
    before = torch.get_rng_state()
    assert weights_of(make(name), losses(1.0, 2.0, 3.0), step=seed, products=products) == pytest.approx(
        wanted, abs=1e-2 if name == "mgda" else 1e-6
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_gradvac_keeps_torchjds_targets_from_step_to_step():
    balancer, expected = make("gradvac", beta=0.3), oracle.GradVacWeighting(beta=0.3)
    for step in range(6):
        products = gramian(step)
        torch.manual_seed(derive_seed(5, step))
        wanted = expected(products / products.diagonal().mean()).tolist()
        found = weights_of(balancer, losses(1.0, 2.0, 3.0), step=step, products=products)
        assert found == pytest.approx(wanted, abs=1e-6)
    assert balancer.targets.abs().max() > 0.05


def test_gradvac_targets_rest_while_a_task_is_absent():
    balancer = make("gradvac")
    weights_of(balancer, losses(1.0, 2.0, 3.0), products=gramian(0))
    before = balancer.targets.clone()
    weights_of(balancer, losses(1.0, 2.0, 3.0), (TASKS[0], TASKS[2]), 1, gramian(1, 2))
    changed = balancer.targets != before
    assert changed.nonzero().tolist() == [[0, 2], [2, 0]]


def test_cagrad_gives_torchjds_weights():
    """Where the packages that torchjd's solver asks for are at hand; it is an interior point, good to about 1e-4."""
    pytest.importorskip("cvxpy")
    for seed in SEEDS:
        products = gramian(seed, 4)
        expected = oracle.CAGradWeighting(c=0.4)(products).tolist()
        assert solvers.solve_cagrad(products, 0.4).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_nash_mtl_is_the_bargaining_solution(seed):
    products = gramian(seed)
    weights = torch.tensor(weights_of(make("nash_mtl"), losses(1.0, 2.0, 3.0), products=products)).double()
    assert weights.min() > 0
    assert ((products / products.norm()) @ weights * weights).tolist() == pytest.approx([1.0] * 3, abs=1e-4)


@pytest.mark.parametrize("name", BALANCERS)
def test_heads_are_weighted_only_where_a_recipe_asks(name):
    assert not make(name).has_head_weights
    if name in ("nash_mtl", "fairgrad"):
        assert make(name, heads="weighted").has_head_weights
        assert make(name, heads="weighted").has_shared_weights


def test_imtl_is_g_on_the_gradients_of_the_losses_that_l_scales():
    balancer, products = make("imtl"), gramian(4)
    scales = torch.tensor([0.5, 1.0, 3.0]).double()
    for name, scale in zip(TASKS, scales, strict=True):
        nn.init.constant_(balancer.log_scales[name], float(scale.log()))
    found = weights_of(balancer, losses(1.0, 2.0, 3.0), products=products)
    expected = oracle.IMTLGWeighting()(products * torch.outer(scales, scales)) * scales
    assert found == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
@pytest.mark.parametrize("name", CONFLICT)
def test_the_unit_of_gradients_does_not_matter(name, scale):
    one, other = (
        weights_of(make(name), losses(1.0, 2.0, 3.0), products=gramian(1, scale=unit)) for unit in (1.0, scale)
    )
    assert other == pytest.approx(one, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", CONFLICT)
def test_a_task_with_no_gradient_stops_nobody(name):
    products = gramian(2)
    products[1] = products[:, 1] = 0
    weights = weights_of(make(name), losses(1.0, 2.0, 3.0), products=products)
    places = torch.tensor([0, 2])
    two = weights_of(
        make(name, (TASKS[0], TASKS[2])), losses(1.0, 2.0, 3.0), (TASKS[0], TASKS[2]), 0, products[places][:, places]
    )
    assert [weights[0], weights[2]] == pytest.approx(two, rel=1e-9)
    assert weights[1] == 1


@pytest.mark.parametrize("name", CONFLICT)
def test_weights_are_kept_for_every_steps_and_for_the_tasks_that_they_were_found_for(name):
    balancer, names, some = make(name, update_every=3), TASKS, TASKS[:2]
    first = weights_of(balancer, losses(1.0, 2.0, 3.0), step=4, products=gramian(0))
    assert not balancer.needs_gramian(names, 6)
    assert weights_of(balancer, losses(1.0, 2.0, 3.0), step=6, products=gramian(1)) == first
    assert balancer.needs_gramian(some, 6)
    weights_of(balancer, losses(1.0, 2.0, 3.0), some, 6, gramian(1, 2))
    assert balancer.needs_gramian(names, 7)
    assert not balancer.needs_gramian(some, 8)
    assert weights_of(balancer, losses(1.0, 2.0, 3.0), step=7, products=gramian(1)) != first


# --- updates ---------------------------------------------------------------------------------------------------------


def inputs() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()


class Pair(nn.Module):
    """A trunk of two layers and two heads; ``pull`` sets how much the second task contradicts the first."""

    def __init__(self, pull: float = -0.7, tasks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.tasks = nn.ModuleDict({f"task{k}": nn.Linear(5, 1) for k in range(tasks)})
        self.pull = pull
        with torch.no_grad():
            for head in self.tasks.values():
                head.load_state_dict(self.tasks["task0"].state_dict())
        self.double()

    def totals(self, outputs: list[Tensor]) -> list[Tensor]:
        targets = [3.0 if k == 0 else 3.0 * self.pull * k for k in range(len(outputs))]
        return [((output - target) ** 2).sum() for output, target in zip(outputs, targets, strict=True)]

    def compute_loss_terms(self, inputs: Tensor, cut_graph: bool = False) -> LossOutput:
        cuts = GraphCuts(trunk_penalties=frozenset({"size"}))
        features = self.trunk(inputs)
        features = cuts.cut_trunk(features) if cut_graph else features
        streams = {name: {1: features} for name in self.tasks}
        streams = cuts.cut_pyramids(streams) if cut_graph else streams
        totals = self.totals([head(streams[name][1]) for name, head in self.tasks.items()])
        parts = {f"task{k}": {"error": LossTerm(total, torch.tensor(4.0))} for k, total in enumerate(totals)}
        penalties = {"size": 0.1 * features.square().mean()}
        return LossOutput(parts, (features,), penalties, cuts if cut_graph else None)

    def shared_parameters(self):
        return self.trunk.parameters()

    def last_shared_parameters(self):
        return self.trunk[2].parameters()

    def late_shared_parameters(self):
        return [*self.trunk.parameters()][1:]

    def task_specific_parameters(self):
        return iter(())


def step_of(name: str, model: Any, labelled: dict[str, int] | None = None, penalty: bool = True, **options: Any):
    """Gradients by name after the engine's backward pass."""
    model.zero_grad()
    found = model.compute_loss_terms(inputs(), cut_graph=True)
    found = found if penalty else found._replace(penalties={})
    labelled = labelled or dict.fromkeys(found.terms, 4)
    done = compute_gradients(
        make(name, tuple(found.terms), **options), model, found, reduce_losses(found, labelled, {}), 0
    )
    assert not done.problem
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "expected", "tasks"),
    [
        ("pcgrad", oracle.PCGrad, 3),
        ("mgda", lambda: oracle.MGDA(1e-12, 3000), 2),
        ("imtl_g", oracle.IMTLG, 2),  # of three, the gradients are dependent: none have equal projections
        ("aligned_mtl", oracle.AlignedMTL, 2),
        ("aligned_mtl", oracle.AlignedMTL, 3),
        ("upgrad", lambda: oracle.UPGrad(projector=Projector()), 2),
        ("upgrad", lambda: oracle.UPGrad(projector=Projector()), 3),
        ("gradvac", oracle.GradVac, 3),
    ],
)
def test_the_update_in_parameter_space_is_that_of_torchjds_mtl_backward(name, expected, tasks):
    model = Pair(tasks=tasks)
    found = step_of(name, model, penalty=False, space="all_shared")
    model.zero_grad()
    parts = model.compute_loss_terms(inputs())
    mtl_backward([own["error"].total / 4 for own in parts.terms.values()], features=parts.shared_features)
    torch.manual_seed(derive_seed(5, 0))
    jac_to_grad(model.trunk.parameters(), expected())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("space", get_args(GradientSpace))
@pytest.mark.parametrize("name", CONFLICT)
def test_heads_learn_by_their_own_loss_and_the_trunk_by_the_weighted_sum(name, space):
    """Against gradients of whole losses, taken one by one; penalties count once everywhere."""
    model = Pair()
    found = step_of(name, model, space=space)
    parts = model.compute_loss_terms(inputs())
    totals = [own["error"].total / 4 for own in parts.terms.values()]
    places = {
        "features": parts.shared_features,
        "last_shared": [*model.last_shared_parameters()],
        "late": [*model.late_shared_parameters()],
        "all_shared": [*model.shared_parameters()],
    }
    products = products_of([torch.autograd.grad(total, places[space], retain_graph=True) for total in totals])
    weights = weights_of(
        make(name, ("task0", "task1")),
        dict(zip(("task0", "task1"), totals, strict=True)),
        ("task0", "task1"),
        0,
        products,
    )
    trunk = [*model.trunk.parameters()]
    combined = sum(weight * total for weight, total in zip(weights, totals, strict=True)) + parts.penalties["size"]
    expected = torch.autograd.grad(combined, trunk, retain_graph=True)
    for parameter, gradient in zip(trunk, expected, strict=True):
        key = next(key for key, own in model.named_parameters() if own is parameter)
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6)
    for head, total in zip(model.tasks.values(), totals, strict=True):
        own = torch.autograd.grad(total, [*head.parameters()], retain_graph=True)
        key = next(key for key, p in model.named_parameters() if p is head.weight)
        torch.testing.assert_close(found[key], own[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", get_args(GradientSpace))
@pytest.mark.parametrize("name", CONFLICT)
def test_opposed_tasks_do_not_move_the_trunk_as_equal_weights_do(name, space):
    """The second task wants exactly the opposite, and half as much."""

    class Opposed(Pair):
        def totals(self, outputs: list[Tensor]) -> list[Tensor]:
            return [outputs[0].sum(), -0.5 * outputs[1].sum()]

        def compute_loss_terms(self, inputs: Tensor, cut_graph: bool = False) -> LossOutput:
            return super().compute_loss_terms(inputs, cut_graph)._replace(penalties={})

    found, equal = step_of(name, Opposed(), space=space), step_of("static", Opposed())
    moved = torch.cat([(found[key] - equal[key]).flatten() for key in found if key.startswith("trunk")])
    size = torch.cat([equal[key].flatten() for key in equal if key.startswith("trunk")]).norm()
    assert moved.isfinite().all()
    assert moved.norm() > 0.05 * size


@pytest.mark.parametrize("space", get_args(GradientSpace))
def test_an_absent_task_is_not_in_the_gramian(space):
    model = Pair()
    found = step_of("mgda", model, {"task0": 4, "task1": 0}, space=space)
    alone = Pair()
    parts = alone.compute_loss_terms(inputs())
    (parts.terms["task0"]["error"].total / 4 + parts.penalties["size"]).backward()
    for key, parameter in alone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-6, atol=1e-7)
    assert not found["tasks.task1.weight"].any()


@pytest.mark.parametrize("name", CONFLICT)
def test_without_shared_features_parameters_are_weighed_themselves(name):
    """As in cross-stitch networks, where tasks share parameters but no features."""

    class Apart(Pair):
        def compute_loss_terms(self, inputs: Tensor, cut_graph: bool = False) -> LossOutput:
            return super().compute_loss_terms(inputs, cut_graph)._replace(shared_features=())

    found, expected = step_of(name, Apart(), space="all_shared"), step_of(name, Pair(), space="all_shared")
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"space is 'features'.*share no features.*space 'all_shared'"):
        step_of(name, Apart(), space="features")


def test_a_frozen_trunk_leaves_heads_to_their_own_loss():
    model = Pair()
    model.trunk.requires_grad_(False)
    found = model.compute_loss_terms(inputs(), cut_graph=True)
    done = compute_gradients(
        make("mgda", ("task0", "task1")), model, found, reduce_losses(found, dict.fromkeys(found.terms, 4), {}), 0
    )
    assert not done.problem
    assert all(head.weight.grad.any() for head in model.tasks.values())


def test_a_gradient_that_is_not_finite_is_named_before_any_solver_sees_it():
    model = Pair()

    class Broken(Pair):
        def totals(self, outputs: list[Tensor]) -> list[Tensor]:
            return [(outputs[0] - outputs[0].detach()).abs().sqrt().sum(), outputs[1].sum()]

    model = Broken()
    found = model.compute_loss_terms(inputs(), cut_graph=True)
    labelled = {"task0": 4, "task1": 0}
    done = compute_gradients(
        make("upgrad", ("task0", "task1"), space="all_shared"), model, found, reduce_losses(found, labelled, {}), 0
    )
    assert done.problem == "gradient of task0 is not finite"


def test_bfloat16_features_are_compared_in_float32():
    features = torch.randn(3, 4096, dtype=torch.bfloat16, requires_grad=True)
    scales = [torch.randn(3, 4096) for _ in range(2)]
    gradients = [torch.autograd.grad((features.float() * scale).sum(), [features]) for scale in scales]
    rounded = torch.stack([scale.bfloat16().double().flatten() for scale in scales])
    torch.testing.assert_close(products_of(gradients), rounded @ rounded.T, rtol=1e-5, atol=1e-3)


def test_what_is_said_of_gradients():
    rows = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]).double()
    found = describe_gradients(rows @ rows.T, ("a", "b", "c"), torch.tensor([1.0, 2.0, 1.0]))
    assert (found["task_gradient_norm/a"], found["task_gradient_norm/b"]) == (
        3,
        pytest.approx(0.5**0.5),
    )  # half of the weighted norm
    assert found["cosine/a/b"] == pytest.approx(-(0.5**0.5))
    rounded = torch.full((2, 2), 1.0).double() + torch.tensor([[0, 1e-12], [1e-12, 0]]).double()
    assert describe_gradients(rounded, ("a", "b"), torch.ones(2))["cosine/a/b"] == 1
    assert "cosine/a/c" not in found  # without a gradient there is no angle


def test_all_balancers_are_in_the_distributed_proof():
    assert {name for name, _ in tiny_network.VARIANTS} == set(BALANCERS)
