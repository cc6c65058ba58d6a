"""The update of a step: every gradient counted once, whatever was looked at, against plain autograd and torchjd."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest
import torch
from backward_step import step
from sharing_networks import CONFIGS, build_network, make_batch, randomize_gates
from torch import Tensor, nn
from torchjd.autojac import jac

from perception.engine.backward import BackwardResult, compute_gradients
from perception.engine.distributed import reduce_losses
from perception.model import LossOutput, MultiTaskModel
from perception.mtl.balancer import GradientSpace
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.fusion import FUSIONS
from perception.nn.gradient_cut import GraphCuts, no_cut
from perception.nn.necks import NECKS
from perception.nn.sharing import SHARINGS
from perception.tasks import LossTerm, sum_loss_terms
from perception.types import ConfigError

SPACES = get_args(GradientSpace)
COMPARING = [name for name, kind in BALANCERS.items() if "space" in kind.Config.__dataclass_fields__]
NETWORKS = list(product([neck for neck in NECKS if neck != "simple"], SHARINGS, FUSIONS))
FAST = {kind for kind in NETWORKS if kind[0] == "pan" or kind[1:] == ("hard", "none")}
"""The others, and every balancer on other networks, are slow tests: `make test-slow`."""


class Chain(nn.Module):
    """f1 = a x and f2 = b f1; the losses are L1 = f1 + f2 and L2 = f2. With x = 1, b = 3: dL/da = (1 + b) + b = 7."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
        self.tasks = nn.ModuleDict({"one": nn.Identity(), "two": nn.Identity()})

    def compute_loss_terms(self, _: Any = None, cut_graph: bool = True) -> LossOutput:
        cuts = GraphCuts()
        first = self.a * torch.ones(())
        made = {1: first, 2: self.b * first}
        shared = {key: cuts.cut_trunk(value) if cut_graph else value for key, value in made.items()}
        streams = {"one": shared, "two": {2: shared[2]}}
        one, two = (cuts.cut_pyramids(streams) if cut_graph else streams).values()
        losses = {"one": one[1] + one[2], "two": two[2]}
        parts = {name: {"sum": LossTerm(loss, torch.ones(()))} for name, loss in losses.items()}
        return LossOutput(parts, tuple(shared.values()), {}, cuts if cut_graph else None)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.parameters()

    last_shared_parameters = late_shared_parameters = shared_parameters

    def task_specific_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())


MODES = {"plain": {}, "logged": {"with_weights": True}, "looked at": {"with_weights": True, "log_gradients": True}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["static", "gradnorm"])
@pytest.mark.parametrize("space", SPACES)
def test_a_feature_that_is_computed_from_another_sends_its_gradient_once(name, mode, space):
    options = {"space": space} if name == "gradnorm" else {}
    _, found, _ = step(name, Chain(), **MODES[mode], **options)
    assert found["a"] == 7
    assert found["b"] == 4


def test_the_gramian_at_features_that_depend_on_each_other_is_that_of_what_heads_read():
    done, _, _ = step("gradnorm", Chain(), space="features")
    assert done.gradient_stats["task_gradient_norm/one"] == pytest.approx(2**0.5)
    assert done.gradient_stats["task_gradient_norm/two"] == 1
    assert done.gradient_stats["cosine/one/two"] == pytest.approx(0.5**0.5)


def marked(kinds: Any, fast: Any = FAST) -> list[Any]:
    return [pytest.param(kind, id="-".join(kind), marks=() if kind in fast else pytest.mark.slow) for kind in kinds]


@pytest.fixture(scope="module", params=marked(NETWORKS))
def model(request) -> MultiTaskModel:
    """In training mode, without what is random in it."""
    neck, sharing, fusion = request.param
    return randomize_gates(build_network(sharing, fusion, neck=neck, task_dropout=0.0, router_noise=0.0)).train()


@pytest.fixture(scope="module")
def truth(model) -> dict[str, dict[str, Tensor]]:
    """Task (or "penalty") -> parameter -> gradient, by plain autograd of the whole graph."""
    torch.manual_seed(0)
    found = model.compute_loss_terms(make_batch())
    sums = {name: sum_loss_terms(parts) for name, parts in found.terms.items()}
    if found.penalties:
        sums["penalty"] = torch.stack(list(found.penalties.values())).sum()
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    places = list(named.values())
    taken = {name: torch.autograd.grad(s, places, retain_graph=True, allow_unused=True) for name, s in sums.items()}
    return {name: dict(zip(named, gradients, strict=True)) for name, gradients in taken.items()}


def expected(
    model: MultiTaskModel, truth: dict[str, dict[str, Tensor]], weights: dict[str, float]
) -> dict[str, Tensor]:
    """The weighted sum in what tasks share; each task's own gradient in what is its own."""
    own = {id(p) for p in model.task_specific_parameters()}
    sums: dict[str, Tensor] = {}
    for key, parameter in model.named_parameters():
        alone = key.startswith("tasks.") or id(parameter) in own
        for name, gradients in truth.items():
            if gradients.get(key) is not None:
                term = gradients[key] * (1.0 if alone else weights.get(name, 1.0))
                sums[key] = sums[key] + term if key in sums else term
    return sums


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Of all gradients together: |found - wanted| / |wanted|; and no gradient where there should be none."""
    assert {key for key, g in found.items() if g.any()} <= set(wanted)
    difference = [(found[key] - g if key in found else g).flatten() for key, g in wanted.items()]
    return float(torch.cat(difference).norm() / torch.cat([g.flatten() for g in wanted.values()]).norm())


def trunk_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    below = {key: g for key, g in wanted.items() if not key.startswith("tasks.")}
    return error({key: g for key, g in found.items() if key in below}, below)


def check(model: MultiTaskModel, truth: Any, name: str, **options: Any) -> None:
    """All three kinds of step make one and the same update, that of plain autograd."""
    updates = {mode: step(name, model, make_batch(), **look, **options) for mode, look in MODES.items()}
    done, plain, balancer = updates["plain"]
    for mode, (_, found, _) in updates.items():
        assert found.keys() == plain.keys(), mode
        assert all(torch.equal(g, plain[key]) for key, g in found.items()), mode
    logged: BackwardResult = updates["logged"][0]
    weights = {key.removeprefix("weight/"): weight for key, weight in logged.weights.items()}
    heads = dict.fromkeys(CONFIGS, 1.0)
    if balancer.has_shared_weights:  # the scalar's own weights act in the heads as well
        shared = dict(zip(CONFIGS, balancer.shared_weights(tuple(CONFIGS)).tolist(), strict=True))
        heads = {task: weights[task] / shared[task] for task in CONFIGS}
    else:
        shared, heads = dict.fromkeys(CONFIGS, 1.0), weights
    scaled = {
        task: {key: g if g is None else g * heads.get(task, 1.0) for key, g in gradients.items()}
        for task, gradients in truth.items()
    }
    wanted = expected(model, scaled, shared)
    assert error(plain, wanted) < 1e-4
    assert trunk_error(plain, wanted) < 1e-4
    assert float(done.total_loss) == pytest.approx(float(logged.total_loss))


def test_every_step_of_a_loss_balancer_is_plain_autograd_of_the_weighted_sum(model, truth):
    check(model, truth, "static")


@pytest.mark.parametrize(
    "space", ["all_shared", "features", *(pytest.param(s, marks=pytest.mark.slow) for s in ("last_shared", "late"))]
)
def test_every_step_of_a_gradient_balancer_is_plain_autograd_of_the_weighted_sum(model, truth, space):
    meets = model.compute_loss_terms(make_batch()).shared_features and list(model.last_shared_parameters())
    if space != "all_shared" and not meets:
        pytest.skip("nothing is shared there")
    if space == "all_shared" and not list(model.shared_parameters()):
        pytest.skip("nothing is shared")
    check(model, truth, "imtl_g", space=space)


def test_the_gramian_over_the_parameters_is_torchjds_of_the_full_jacobian(model):
    shared = [p for p in model.shared_parameters() if p.requires_grad]
    if not shared:
        pytest.skip("nothing is shared")
    done, _, _ = step("gradnorm", model, make_batch(), space="all_shared")
    torch.manual_seed(0)
    losses = [sum_loss_terms(parts) for parts in model.compute_loss_terms(make_batch()).terms.values()]
    rows = [jacobian.flatten(1).double() for jacobian in jac(losses, shared, parallel_chunk_size=1)]
    products = torch.stack([row @ row.T for row in rows]).sum(0)
    norms = products.diagonal().sqrt()
    for i, one in enumerate(CONFIGS):
        assert done.gradient_stats[f"task_gradient_norm/{one}"] == pytest.approx(float(norms[i]), rel=1e-4)
        for j, other in list(enumerate(CONFIGS))[i + 1 :]:
            cosine = float(products[i, j] / norms[i] / norms[j])
            assert done.gradient_stats[f"cosine/{one}/{other}"] == pytest.approx(cosine, abs=1e-4)


FEW = [("pan", "experts", "attention"), ("bifpn", "hard", "none"), ("fpn", "task_attention", "none")]


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("model", marked(FEW, FEW[:1]), indirect=True)
def test_every_balancer_in_every_space_makes_one_update_in_every_kind_of_step(model, truth, name):
    for space in SPACES if name in COMPARING else (None,):
        check(model, truth, name, **({"space": space} if space else {}))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("parts", [("backbone",), ("backbone", "neck")], ids="-".join)
def test_what_is_shared_may_rest_after_it_was_weighed(sharing, parts):
    """The weights of the last step are still there, and then have nothing to act on; heads go on by their own loss."""
    model = randomize_gates(build_network(sharing, router_noise=0.0)).train()
    space = "all_shared" if list(model.shared_parameters()) else None
    name = "upgrad" if space else "static"
    _, _, balancer = step(name, model, make_batch(), **({"space": space} if space else {}))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not set(parts) & set(key.split(".")))
    _, found, _ = step(name, model, make_batch(), step=1, balancer=balancer)
    assert {key for key in found if key.startswith("tasks.")} == {
        key for key, _ in model.named_parameters() if key.startswith("tasks.")
    }


def test_looks_between_two_gramians_are_taken_in_the_balancers_space():
    model = build_network("hard").train()
    _, _, balancer = step("upgrad", model, make_batch(), space="features", update_every=5)
    first, _, _ = step("upgrad", model, make_batch(), step=5, balancer=balancer, log_gradients=True)
    between, _, _ = step("upgrad", model, make_batch(), step=6, balancer=balancer, log_gradients=True)
    assert between.gradient_stats == first.gradient_stats


def test_weighted_heads_do_not_weigh_what_else_is_asked_of_them():
    model = build_network("hard").train()
    found = model.compute_loss_terms(make_batch(), cut_graph=True)
    asked = found._replace(penalties={"distil_depth": sum_loss_terms(found.terms["depth"])})
    joint = reduce_losses(asked, dict.fromkeys(found.terms, 2), {})
    balancer = build_balancer(BALANCERS["nash_mtl"].Config(heads="weighted"), tuple(CONFIGS))
    with pytest.raises(ConfigError, match="heads: plain"):
        compute_gradients(balancer, model, asked, joint, 0)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
@pytest.mark.parametrize("model", marked(FEW, FEW[:1]), indirect=True)
def test_heads_are_weighted_too_where_asked(model, truth, name):
    """The update is then the gradient of the weighted sum of the losses, everywhere."""
    done, found, balancer = step(name, model, make_batch(), heads="weighted", with_weights=True)
    weights = {key.removeprefix("weight/"): weight for key, weight in done.weights.items()}
    assert balancer.has_head_weights
    assert max(weights.values()) > 1.1 * min(weights.values())
    scaled = {
        task: {key: g if g is None else g * weights.get(task, 1.0) for key, g in gradients.items()}
        for task, gradients in truth.items()
    }
    assert error(found, expected(model, scaled, {})) < 1e-4


def test_a_whole_graph_is_what_it_was():
    """Without division one backward reaches every parameter, as in plain PyTorch."""
    model = build_network("hard", neck="pan").train()
    torch.stack(list(model.compute_losses(make_batch()).values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert no_cut(model.backbone.body) is model.backbone.body
