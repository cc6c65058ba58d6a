"""The contract of every sharing architecture with every fusion, and what each of them is for."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
from sharing_networks import CLASSES, CONFIGS, GROUPS, build_network, make_batch, noise_images, randomize_gates

from perception.engine import optim
from perception.engine.backward import compute_gradients
from perception.engine.distributed import reduce_losses
from perception.export.export import export
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.fusion import FUSIONS
from perception.nn.sharing import SHARINGS
from perception.nn.sharing.groups import TaskGroupsConfig
from perception.nn.sharing.stages import run_in_stages
from perception.types import ConfigError

KINDS = list(product(SHARINGS, FUSIONS))
TRUNKS_OF = {"hard": (tuple(CONFIGS),), "groups": GROUPS}
"""Architecture -> the tasks that read each of its shared pyramids."""


def total(model: MultiTaskModel, labelled) -> torch.Tensor:
    found = model.compute_loss_terms(labelled)
    losses = [part.total for parts in found.terms.values() for part in parts.values()]
    return torch.stack([*losses, *found.penalties.values()]).sum()


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def model(kind) -> MultiTaskModel:
    """Awake, in evaluation mode, not to be changed."""
    return randomize_gates(build_network(*kind))


def test_every_task_reads_the_levels_that_it_asks_for(model):
    with torch.inference_mode():
        streams = model.streams(noise_images())
    assert list(streams) == list(CONFIGS)
    for name, pyramid in streams.items():
        assert {s: x.shape for s, x in pyramid.items()} == {
            s: (2, model.sharing.channels[name][s], 64 // s, 96 // s) for s in model.tasks[name].strides
        }


def test_every_parameter_learns(kind):
    model = randomize_gates(build_network(*kind)).train()
    total(model, make_batch()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    idle = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert not [n for n in idle if not n.startswith("tasks.") and ".experts." not in n]  # some are not tried this time


def test_tasks_that_are_not_labeled_leave_their_parts_as_they_are(kind):
    """Whatever only they use gets a gradient of zero, which is there: DistributedDataParallel waits for it."""
    model = randomize_gates(build_network(*kind, task_dropout=0.0, router_noise=0.0)).train()
    found = model.compute_loss_terms(make_batch("depth"))
    torch.stack([part.total for parts in found.terms.values() for part in parts.values()]).sum().backward()
    mine = build_network(*kind, task_dropout=0.0, router_noise=0.0)
    mine.load_state_dict(model.state_dict())
    needed = {name for name, _ in mine.keep_tasks(["depth"]).named_parameters()}
    if kind[1] == "attention":  # depth attends to the other tasks' views
        needed |= {name for name, _ in model.named_parameters() if not name.startswith("tasks.")}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert name in needed or parameter.grad is None or not parameter.grad.any(), name


def test_a_subset_of_the_tasks_gives_what_all_give(kind, model):
    """Without fusion to the last bit; with it another result, of the network that never knew the other tasks."""
    with torch.inference_mode():
        everything = model.streams(noise_images())
        for subset in ({"classification"}, {"detection", "depth"}):
            some = model.streams(noise_images(), subset)
            assert set(some) == subset
            same = [torch.equal(x, everything[name][s]) for name, pyramid in some.items() for s, x in pyramid.items()]
            assert all(same) == (kind[1] == "none")


def test_keep_drops_what_the_others_need_and_changes_nothing(kind, model):
    kept = build_network(*kind)
    kept.load_state_dict(model.state_dict())
    kept.keep_tasks(["depth", "classification"])
    with torch.inference_mode():
        wanted = model.predict(noise_images(), ["depth", "classification"])
        found = kept.predict(noise_images())
    assert {key: torch.equal(value, found[key]) for key, value in wanted.items()} == dict.fromkeys(wanted, True)
    left = [name for name, _ in kept.named_parameters() if "detection" in name or "segmentation" in name]
    assert not [name for name in left if not (kind[0] == "cross_stitch" and name.startswith("sharing.backbone."))]
    assert list(kept.sharing.channels) == ["depth", "classification"]


def test_a_state_dict_brings_everything_back(kind, model):
    other = build_network(*kind)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(0.1)
    other.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    with torch.inference_mode():
        wanted, found = model.predict(noise_images()), other.predict(noise_images())
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


def test_an_image_does_not_depend_on_its_batch(model):
    with torch.inference_mode():
        pair, single = model.streams(noise_images(2)), model.streams(noise_images(2)[1:])
    for name, pyramid in single.items():
        for stride, x in pyramid.items():
            torch.testing.assert_close(pair[name][stride][1:], x, rtol=1e-4, atol=1e-4)


def test_all_backbones_learn_at_their_share_of_the_rate(kind):
    model = build_network(*kind)
    optimizer = optim.build_optimizer("adamw", model, [], lr=1.0, weight_decay=0.0, backbone_lr_scale=0.1)
    slow = {id(p) for group in optimizer.param_groups if group["scale"] == 0.1 for p in group["params"]}
    assert slow == {id(p) for backbone in model.sharing.backbones() for p in backbone.parameters()}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_gradients_meet_where_they_are_said_to(sharing):
    """At the shared features, and in the shared parameters, several tasks' gradients are not zero; in no other."""
    model = randomize_gates(build_network(sharing, router_noise=0.0)).train()
    found = model.compute_loss_terms(make_batch())
    losses = {name: torch.stack([part.total for part in parts.values()]).sum() for name, parts in found.terms.items()}
    named = dict(model.named_parameters())
    touched = dict.fromkeys(named, 0)
    at_features = [0] * len(found.shared_features)
    for loss in losses.values():
        gradients = torch.autograd.grad(
            loss, [*named.values(), *found.shared_features], retain_graph=True, allow_unused=True
        )
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        touched = {name: touched[name] + hit for name, hit in zip(named, reached, strict=False)}
        at_features = [count + hit for count, hit in zip(at_features, reached[len(named) :], strict=True)]
    shared = {id(p) for p in model.shared_parameters()}
    assert {id(p) for p in model.last_shared_parameters()} <= shared
    assert bool(shared) == bool(found.shared_features) == (sharing != "soft")
    if sharing in TRUNKS_OF:  # a level may have one reader only
        readers = [Counter(s for task in group for s in model.tasks[task].strides) for group in TRUNKS_OF[sharing]]
        assert sorted(at_features) == sorted(count for levels in readers for count in levels.values())
    else:
        assert all(count > 1 for count in at_features)
    several = {name for name, count in touched.items() if count > 1}
    assert several <= {name for name, p in named.items() if id(p) in shared}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_one_task_alone_is_a_network_too(sharing):
    model = randomize_gates(build_network(sharing, "attention", tasks=("depth",)))
    with torch.inference_mode():
        assert model.predict(noise_images())["depth.depth"].isfinite().all()
    model.train()
    total(model, make_batch()).backward()


# What makes each of them what it is.


def test_each_group_is_the_network_that_it_would_be_alone():
    """Bit for bit, in what it says and in what it learns; the other groups' trunks are neither run nor kept."""
    model = randomize_gates(
        build_network("groups", groups=(("detection", "classification"), ("depth",)))
    ).train()  # and segmentation
    assert list(model.sharing.groups) == ["0", "1", "segmentation"]
    total(model, make_batch()).backward()
    for trunk, tasks in {
        "0": ("detection", "classification"),
        "1": ("depth",),
        "segmentation": ("segmentation",),
    }.items():
        alone = build_network("hard", tasks=tasks).train()
        mine = (f"sharing.groups.{trunk}.", *(f"tasks.{task}." for task in tasks))
        weights = {key.replace(mine[0], "sharing."): x for key, x in model.state_dict().items() if key.startswith(mine)}
        alone.load_state_dict(weights)
        total(alone, make_batch()).backward()
        own = {key.replace(mine[0], "sharing."): p.grad for key, p in model.named_parameters() if key.startswith(mine)}
        assert all(torch.equal(p.grad, own[key]) for key, p in alone.named_parameters())
    ran: list[str] = []
    for name, group in model.sharing.groups.items():
        group.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.predict(noise_images(), ["classification", "segmentation"])
    assert ran == ["0", "segmentation"]
    assert list(model.keep_tasks(["depth", "classification"]).sharing.groups) == ["0", "1"]
    assert list(model.keep_tasks(["depth"]).sharing.groups) == ["1"]


def test_every_trunk_begins_with_the_weights_of_the_backbone(tmp_path):
    body = Backbone(BackboneConfig(name="test_efficientnet", weights="none")).body.state_dict()
    torch.save(body, tmp_path / "body.pth")
    backbone = BackboneConfig(name="test_efficientnet", weights=str(tmp_path / "body.pth"))
    config = ModelConfig(backbone=backbone, sharing=TaskGroupsConfig(groups=GROUPS))
    for one in MultiTaskModel(config, CONFIGS).sharing.backbones():
        assert all(torch.equal(value, body[key]) for key, value in one.body.state_dict().items())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("detection", "deth"),), r"model\.sharing\.groups: this recipe has no 'deth'. Did you mean 'depth'"),
        ((("detection", "box"),), "has no 'box'. Expected one of: detection, segmentation, depth, classification"),
        ((("detection", "depth"), ("depth",)), r"model\.sharing\.groups: 'depth' is named 2 times"),
        ((("depth", "depth"),), "'depth' is named 2 times"),
    ],
)
def test_a_wrong_grouping_is_refused(groups, message):
    with pytest.raises(ConfigError, match=message):
        build_network("groups", groups=groups)


@pytest.fixture(scope="module")
def grouped() -> MultiTaskModel:
    return randomize_gates(build_network("groups", groups=(("detection", "classification"), ("depth",)))).train()


COMPARING = [name for name, kind in BALANCERS.items() if "space" in kind.Config.__dataclass_fields__]


@pytest.mark.parametrize(
    ("name", "tasks"), [*((name, tuple(CONFIGS)) for name in COMPARING), ("pcgrad", ("segmentation",))]
)
def test_balancers_find_groups_at_right_angles(grouped, name, tasks):
    """Also where it is the turn of a task that shares with none."""
    grouped.zero_grad()
    found = grouped.compute_loss_terms(make_batch(), tasks, cut_graph=True)
    joint = reduce_losses(found, dict.fromkeys(found.terms, 2), {})
    balancer = build_balancer(BALANCERS[name].Config(), tuple(CONFIGS))
    done = compute_gradients(balancer, grouped, found, joint, 0, with_weights=True)
    assert not done.problem
    assert all(done.gradient_stats[f"task_gradient_norm/{task}"] > 0 < done.weights[f"weight/{task}"] for task in tasks)
    cosines = {key for key, value in done.gradient_stats.items() if key.startswith("cosine/") and value}
    assert cosines == ({"cosine/detection/classification"} if len(tasks) > 1 else set())
    used = ("sharing.", "tasks.") if len(tasks) > 1 else ("sharing.groups.segmentation.", "tasks.segmentation.")
    learning = {key for key, parameter in grouped.named_parameters() if parameter.grad is not None}
    assert learning == {key for key, _ in grouped.named_parameters() if key.startswith(used)}


def test_soft_trunks_start_alike_and_are_pulled_together():
    model = build_network("soft", l2_weight=0.5).train()

    def pull() -> torch.Tensor:
        return model.sharing(noise_images(), {"depth": (32,)}).penalties["l2_distance"]

    assert pull().item() < 1e-6
    with torch.no_grad():
        for p in model.sharing.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    named = [dict(trunk.named_parameters()) for trunk in model.sharing.trunks.values()]
    everywhere = [torch.stack([trunk[name] for trunk in named if name in trunk]) for name in named[1]]
    expected = sum((group - group.mean(0)).square().sum().item() for group in everywhere)
    found = pull()
    assert found.item() == pytest.approx(0.5 * expected, rel=1e-4)
    found.backward()
    with torch.no_grad():
        for p in model.sharing.parameters():
            p.sub_(p.grad)  # half of the way's square: exactly to the mean
    assert pull().item() < 1e-4 * found.item()


BACKBONES = ("test_efficientnet", "test_resnet", "test_convnext", "mobilenetv4_conv_small", "repvgg_a0", "ghostnet_100")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_in_stages_is_the_backbone(name):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=name, weights="none")).eval()
    with torch.inference_mode():
        whole = backbone(noise_images())
        stages, sent, seen = run_in_stages(backbone, noise_images()), None, {}
        for _ in whole:
            stride, features = stages.send(sent)  # type: ignore[arg-type]
            seen[stride] = features.clone()
            sent = features * 0 if stride == 8 else features
        with pytest.raises(StopIteration):
            stages.send(sent)  # type: ignore[arg-type]
    assert torch.equal(seen[4], whole[4])
    assert torch.equal(seen[8], whole[8])
    assert not torch.equal(seen[16], whole[16]), "the next stage reads what is sent back"


def test_a_backbone_that_runs_only_as_a_whole_is_mixed_after_it():
    class Whole(torch.nn.Module):
        def forward(self, x):
            return [x]

    backbone = Backbone(BackboneConfig(name="test_resnet", weights="none"))
    levels = backbone(noise_images())
    backbone.body, backbone.forward = Whole(), lambda images: levels  # type: ignore[method-assign]
    assert [stride for stride, _ in run_in_stages(backbone, noise_images())] == [4, 8, 16, 32]


def test_a_cross_stitch_unit_gives_a_stream_its_mixture_and_the_next_stage_reads_it():
    model = randomize_gates(build_network("cross_stitch", tasks=("segmentation", "depth"), self_weight=0.8))
    sharing = model.sharing
    assert torch.allclose(sharing.units["8"][..., 5], torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    with torch.no_grad():
        for p in sharing.backbone["depth"].parameters():
            p.add_(torch.randn_like(p) * 0.01)
        before = sharing(noise_images(), {"depth": (16,)})
        other, own = before.shared_features[-2:]  # of the coarsest level, before they are mixed
        mixtures: list[dict[int, torch.Tensor]] = []
        sharing.neck["depth"].register_forward_pre_hook(lambda _, inputs: mixtures.append(dict(inputs[0])))
        sharing.units["32"][1, 0, 7] = 3.0
        after = sharing(noise_images(), {"depth": (16,)})
        expected = 0.2 * other + 0.8 * own
        expected[:, 7] += 2.8 * other[:, 7]
        torch.testing.assert_close(mixtures[0][32], expected)
        assert all(torch.equal(x, y) for x, y in zip(before.shared_features, after.shared_features, strict=True))
        sharing.units["8"][1] = torch.tensor([[1.0], [0.0]])  # depth goes on with the other's features
        after = sharing(noise_images(), {"depth": (16,)})
        assert all(
            torch.equal(x, y) for x, y in zip(before.shared_features[:4], after.shared_features[:4], strict=True)
        )
        assert not torch.equal(before.shared_features[5], after.shared_features[5])


ROUTES = ("image", "task")


@pytest.mark.parametrize("route", ROUTES)
def test_experts_that_are_chosen_too_often_are_chosen_less(route):
    torch.manual_seed(0)
    model = build_network("experts", num_experts=6, top_k=2, router_noise=0.3, router_weight=1.0, routing=route).train()
    gates = model.sharing.gates
    with torch.no_grad():
        for gate in gates.values():
            gate.bias.copy_(torch.tensor([1.0, 1.0, 0, 0, 0, 0]) + 0.01 * torch.randn(6))
    optimizer = torch.optim.SGD([gate.bias for gate in gates.values()], 1.0)
    found = []
    for _ in range(40):
        penalty = model.sharing(noise_images(), dict.fromkeys(CONFIGS, (32,))).penalties["load_balance"]
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        found.append(penalty.item())
    assert found[0] > 1.3
    assert np.mean(found[-20:]) < 1.1, "one: every expert as often and as likely as every other"
    tried = [model.sharing.select_experts(name, torch.zeros(2, 6)) for _ in range(5) for name in gates]
    assert torch.cat(tried).any(0).all()


def test_the_balance_counts_every_image_of_every_stream():
    """Against a plain loop over the tokens (Fedus et al. 2022, eq. 4), two of three experts each."""
    sharing = build_network("experts", num_experts=3, top_k=2, router_weight=0.5).sharing
    logits = {name: torch.randn(4, 3, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ab")}
    chosen = {name: torch.tensor([[True, True, False]] * 3 + [[False, True, True]]) for name in logits}
    tokens = [(logits[name][b].softmax(0), chosen[name][b]) for name in logits for b in range(4)]
    shares = [sum(float(taken[i]) for _, taken in tokens) / (2 * 8) for i in range(3)]
    likely = [sum(p[i] for p, _ in tokens) / 8 for i in range(3)]
    expected = 0.5 * 3 * sum(f * p for f, p in zip(shares, likely, strict=True))
    torch.testing.assert_close(sharing._load_balance_loss(logits, chosen), expected)


@pytest.mark.parametrize("route", ROUTES)
def test_experts_try_others_in_training_by_the_seed_of_the_step(route):
    sharing = build_network("experts", num_experts=8, top_k=2, router_noise=3.0, routing=route).train().sharing

    def tried(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([sharing.select_experts(name, torch.zeros(4, 8)) for name in CONFIGS])

    assert torch.equal(tried(1), tried(1))
    assert (tried(1).sum(1) == 2).all()
    assert not torch.equal(tried(1), tried(2))
    assert (len(tried(1)[:4].unique(dim=0)) > 1) == (route == "image"), "by image, each has its own"
    sharing.eval()
    assert torch.equal(tried(1), tried(2))


def divided(count: int = 4) -> tuple[MultiTaskModel, torch.Tensor]:
    """A network and two images whose features its gates send to different experts."""
    model = randomize_gates(build_network("experts", num_experts=count, top_k=2))
    images = torch.cat([noise_images(1) // 8, 255 - noise_images(1) // 8])
    sharing = model.sharing
    with torch.no_grad():
        pooled = sharing.trunk(images, (32,))[32].mean((2, 3))
        apart, middle = pooled[0] - pooled[1], pooled.mean(0)
        for gate in sharing.gates.values():
            signs = torch.tensor([2.0, 1.0, -1.0, -2.0])
            gate.weight.copy_(signs[:, None] * apart / apart.square().sum())
            gate.bias.copy_(-gate.weight @ middle)
    return model, images


def test_unlike_images_take_different_experts_and_no_other_images_matter():
    model, images = divided()
    sharing, found = model.sharing, {}
    for name, expert in sharing.experts.items():
        expert["32"].register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    with torch.inference_mode():
        pyramid = sharing.trunk(images, (32,))[32]
        logits = sharing.gates["depth"](pyramid.mean((2, 3)))
        assert sharing.select_experts("depth", logits).tolist() == [
            [True, True, False, False],
            [False, False, True, True],
        ]
        stream = sharing(images, {"depth": (32,)}).pyramids["depth"][32]
        for b, (one, other) in enumerate((("0", "1"), ("2", "3"))):
            weight = (logits[b, int(one)] - logits[b, int(other)]).sigmoid()
            expected = pyramid[b] + weight * found[one][b] + (1 - weight) * found[other][b]
            torch.testing.assert_close(stream[b], expected)
        many = torch.cat([images, noise_images(3, seed=5)])
        order = torch.tensor([3, 1, 4, 0, 2])
        straight, permuted = model.predict(many), model.predict(many[order])
    torch.testing.assert_close(permuted["depth.depth"], straight["depth.depth"][order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("route", ROUTES)
def test_gates_learn_by_what_their_task_says(route):
    model = build_network("experts", routing=route).train()
    parts = model.compute_loss_terms(make_batch()).terms["depth"]
    torch.stack([part.total for part in parts.values()]).sum().backward()
    assert model.sharing.gates["depth"].weight.grad.any()
    assert model.sharing.gates["depth"].bias.grad.any()


def test_by_image_all_experts_are_kept_and_run():
    model, images = divided()
    with torch.inference_mode():
        wanted = model.predict(images, ["depth"])["depth.depth"]
        model.keep_tasks(["depth"])
        assert list(model.sharing.experts) == ["0", "1", "2", "3"]
        assert list(model.sharing.gates) == ["depth"]
        assert torch.equal(model.predict(images)["depth.depth"], wanted)


def test_images_take_their_own_experts_in_an_export(tmp_path):
    """Counts and sizes that the trace did not see, and images of which the parity check knows only noise."""
    small = {"depth": type(CONFIGS["depth"])(channels=16, strides=(16, 32))}
    model = randomize_gates(build_network("experts", tasks=("depth",), configs=small))
    with torch.no_grad():  # the choice hangs on the image
        model.sharing.gates["depth"].weight.mul_(20)
        pooled = model.sharing.trunk(noise_images(8), (32,))[32].mean((2, 3))
        gate = model.sharing.gates["depth"]
        gate.bias.copy_(-gate.weight @ pooled.mean(0))
        assert len(model.sharing.select_experts("depth", gate(pooled)).unique(dim=0)) > 1
    report = export(model, tmp_path / "model.onnx", size=(64, 96), parity_sizes=((64, 96),), parity_batch_sizes=(1,))
    assert report.tensorrt_problems == ()  # TensorRT's
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    for images in (noise_images(8), noise_images(1, size=(32, 32)), noise_images(3, seed=2, size=(96, 160))):
        with torch.inference_mode():
            wanted = model.predict(images)["depth.depth"].numpy()
        found = session.run(["depth.depth"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_experts_of_the_kept_tasks_are_left_and_run():
    model = randomize_gates(build_network("experts", num_experts=6, top_k=2, routing="task"))
    with torch.no_grad():
        for n, gate in enumerate(model.sharing.gates.values()):  # 0 1, 1 2, 2 3, 3 4; 5 unused
            gate.bias.zero_()[n : n + 2] = torch.tensor([2.0, 1.0])
    ran: list[str] = []
    for name, expert in model.sharing.experts.named_children():
        for level in expert.children():
            level.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.predict(noise_images())
    assert set(ran) == set("01234")
    ran.clear()
    model.predict(noise_images(), ["classification"])
    assert ran == ["3", "4"], "its one level"
    assert list(model.keep_tasks(["detection", "depth"]).sharing.experts) == ["0", "1", "2", "3"]
    assert list(model.keep_tasks(["detection"]).sharing.experts) == ["0", "1"]


def test_more_experts_are_not_chosen_than_there_are():
    with pytest.raises(ConfigError, match="at most 2"):
        build_network("experts", num_experts=2, top_k=3)


def test_attention_masks_what_a_stream_reads_level_by_level():
    """A mask that is shut at one level shuts it for one stream, and for its coarser levels only through the carry."""
    model = randomize_gates(build_network("task_attention"))
    needs = {name: model.tasks[name].strides for name in ("depth", "segmentation")}
    with torch.inference_mode():
        before = model.sharing(noise_images(), needs).pyramids
        mask = model.sharing.attention_modules["depth"].masks["8"][1]
        mask.weight.zero_()
        mask.bias.fill_(-100.0)
        after = model.sharing(noise_images(), needs).pyramids
    assert all(torch.equal(before["segmentation"][s], after["segmentation"][s]) for s in (4, 8, 16, 32))
    assert not torch.equal(before["depth"][8], after["depth"][8])
    assert not torch.equal(before["depth"][32], after["depth"][32])


def exported_equals_torch(kind: tuple[str, str], subset: list[str] | None, path) -> None:
    """Every size and batch in a bare ONNX Runtime session."""
    small = {"strides": (16, 32)}
    tasks = {
        "segmentation": type(CONFIGS["segmentation"])(classes=CLASSES, channels=16, **small),
        "depth": type(CONFIGS["depth"])(channels=16, **small),
        "classification": CONFIGS["classification"],
    }
    model = randomize_gates(build_network(*kind, tasks=tuple(tasks), configs=tasks))
    report = export(model, path, size=(64, 96), parity_sizes=((64, 96),), parity_batch_sizes=(1,), tasks=subset)
    assert report.tensorrt_problems == ()  # TensorRT's
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    for count, size in ((1, (32, 32)), (3, (96, 160))):
        images = noise_images(count, size=size)
        with torch.inference_mode():
            wanted = model.predict(images, subset)
        for name, value in zip(wanted, session.run(list(wanted), {"images": images.numpy()}), strict=True):
            np.testing.assert_allclose(value, wanted[name].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("subset", [None, ["depth"]], ids=["all", "depth"])
def test_every_kind_exports(kind, subset, tmp_path):
    exported_equals_torch(kind, subset, tmp_path / "model.onnx")


def test_experts_behind_attention_export(tmp_path):
    exported_equals_torch(("experts", "attention"), ["depth", "classification"], tmp_path / "model.onnx")
