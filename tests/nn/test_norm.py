"""Which images normalize one another: by source, over ranks, not at all."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import norm_networks
import numpy as np
import onnx
import pytest
import tiny_network
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sharing_networks import noise_images
from timm.layers import BatchNormAct2d
from torch import nn

from perception import config
from perception import recipe as recipes
from perception.engine import distributed
from perception.engine.train import train
from perception.export.export import export
from perception.export.int8 import quantize_all
from perception.export.trace import flatten_raw
from perception.model import ModelConfig
from perception.nn import norm
from perception.nn.backbone import BackboneConfig
from perception.types import ConfigError

ROAD = Path(__file__).parents[2] / "configs" / "road.yaml"


def layer(sources: int, channels: int = 3, kind: Any = nn.BatchNorm2d, **options: Any) -> norm.JointBatchNorm:
    """One of float64 with statistics by source, and scale and shift away from where they start."""
    holder = nn.Sequential(kind(channels, **options)).double()
    for parameter in holder.parameters():
        nn.init.normal_(parameter)
    norm.convert_norm(holder, norm.PerSourceBatchNormConfig(), [str(s) for s in range(sources)])
    return holder[0]  # type: ignore[return-value]


@pytest.fixture
def told():
    """Tells the layers the rows of sources."""
    tokens = []
    yield lambda *rows: tokens.append(norm._source_indices.set(torch.tensor(rows)))
    for token in reversed(tokens):
        norm._source_indices.reset(token)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    size=st.sampled_from([(3, 4), (2, 1)]),
    seed=st.integers(0, 99),
)
def test_each_source_is_normalized_as_by_a_batchnorm_of_its_own(rows, size, seed):
    torch.manual_seed(seed)
    made = layer(4)
    x = (5 + 3 * torch.randn(len(rows), 3, *size, dtype=torch.float64)).contiguous(memory_format=torch.channels_last)
    slope = torch.randn_like(x)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    token = norm._source_indices.set(torch.tensor(rows))
    found = made(mine)
    norm._source_indices.reset(token)
    found.backward(slope)
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in (made.weight, made.bias))
    means, variances = torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for source in set(rows):
        own = [i for i, row in enumerate(rows) if row == source]
        expected[own] = F.batch_norm(theirs[own], means[source], variances[source], weight, bias, True, 0.1, made.eps)
    expected.backward(slope)
    for one, other in (
        (found, expected), (mine.grad, theirs.grad), (made.weight.grad, weight.grad), (made.bias.grad, bias.grad),
        (made.source_means, means), (made.source_vars, variances),
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    assert made.source_counts.tolist() == [rows.count(source) for source in range(4)]
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Evaluation is by the mixture, here as numpy has it of as many values of each source.
    shares = np.array([rows.count(source) for source in range(4)]) / len(rows)
    mean = np.average(means.numpy(), 0, shares)
    variance = np.average(variances.numpy() + means.numpy() ** 2, 0, shares) - mean**2
    np.testing.assert_allclose(made.running_mean.numpy(), mean, rtol=1e-9)
    np.testing.assert_allclose(made.running_var.numpy(), variance, rtol=1e-9)


def test_the_mixture_is_that_of_all_values_together():
    random = np.random.default_rng(0)
    parts = [random.normal(random.normal(size=4), 1 + random.random(4), (n, 4)) for n in (50, 20, 30)]
    table = [torch.tensor(np.stack([one(part, 0) for part in parts])) for one in (np.mean, np.var)]
    mean, variance = norm.mixture_moments(torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), *table)
    np.testing.assert_allclose(mean, np.concatenate(parts).mean(0))
    np.testing.assert_allclose(variance, np.concatenate(parts).var(0))


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    rows, empty = torch.tensor([0, 2, 0, 2, 1]), torch.ones(4, 2, dtype=torch.float64)

    def normalized(x, weight, bias):
        return norm._GroupedBatchNorm.apply(x, weight, bias, rows, empty, empty, 1e-5, False)[0]

    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 2, 1, 3), (2,), (2,))]
    assert torch.autograd.gradcheck(normalized, inputs)


def test_a_source_with_one_value_is_normalized_by_its_running_statistics(told):
    made, x = layer(2).train(), torch.randn(3, 3, 1, 1, dtype=torch.float64)
    made.source_means[1], made.source_vars[1] = 2.0, 9.0
    told(0, 1, 0)
    found = made(x)[1]
    scale = made.weight / (9.0 + made.eps) ** 0.5
    torch.testing.assert_close(found[:, 0, 0], (x[1, :, 0, 0] - 2.0) * scale + made.bias)
    assert made.source_means[1].tolist() == [2.0] * 3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_large_mean_costs_the_variance_nothing(kind, told):
    made = layer(1, 2).float()
    x = (1000 + torch.randn(4, 2, 32, 32)).to(kind)
    told(0, 0, 0, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        found = made(x)
    assert found.dtype == kind
    expected = 0.9 + 0.1 * x.double().var((0, 2, 3))
    torch.testing.assert_close(made.source_vars[0].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(made.source_means[0].double(), 0.1 * x.double().mean((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_timms_layer_keeps_its_activation_and_its_pace(momentum, told):
    made = layer(1, kind=BatchNormAct2d, act_layer=nn.SiLU, momentum=momentum)
    torchs = BatchNormAct2d(3, act_layer=nn.SiLU, momentum=momentum).double()
    torchs.load_state_dict({k: v for k, v in made.state_dict().items() if "source" not in k})
    told(0, 0, 0, 0)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(made(x), torchs(x))
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value)
    torch.testing.assert_close(made.eval()(x), torchs.eval()(x))


def gradients(model, batch) -> torch.Tensor:
    model.zero_grad()
    sum(model.compute_losses(batch).values()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def convert(chosen, model=None):
    """The small network of `norm_stub` with another norm, as if its weights had come with statistics."""
    model = model or norm_networks.build_network()
    for _ in range(3):
        model(noise_images(4))
    model.sources = norm_networks.SOURCES if isinstance(chosen, norm.PerSourceBatchNormConfig) else ()
    norm.convert_norm(model, chosen, norm_networks.SOURCES)
    return model.train()


@pytest.mark.parametrize(
    ("chosen", "mixes"),
    [
        (norm.BatchNormConfig(), True),
        (norm.FrozenBatchNormConfig(), True),  # neck and heads still do
        (norm.GroupNormConfig(backbone="batch"), True),  # the backbone still does
        (norm.PerSourceBatchNormConfig(), False),
        (norm.GroupNormConfig(), False),
    ],
)
def test_what_unlabeled_images_of_another_source_do_to_the_gradient(chosen, mixes):
    model, labelled = convert(chosen), norm_networks.make_batch([0, 2, 4, 6])
    more = norm_networks.make_batch([0, 1, 2, 3, 4, 5, 6, 7])
    bare = {task: [a if i % 2 == 0 else None for i, a in enumerate(own)] for task, own in more.annotations.items()}
    alone, together = gradients(model, labelled), gradients(model, dataclasses.replace(more, annotations=bare))
    changed = float((alone - together).norm() / alone.norm())
    assert changed > 0.1 if mixes else changed < 1e-5, changed


def test_frozen_statistics_are_the_backbones_and_stay_while_all_else_learns():
    model = convert(norm.FrozenBatchNormConfig())
    before = copy.deepcopy(model.state_dict())
    images = noise_images(4)
    inside = model.backbone(images)
    torch.testing.assert_close(model.backbone(images[:1])[8], inside[8][:1])
    gradients(model, norm_networks.make_batch([0, 1, 2, 3]))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("sharing.trunk.backbone") for key in moved)
    assert any("running_var" in key for key in moved)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(module.weight.grad is not None and not module.training for module in norms)


@pytest.mark.parametrize("width", [1, 16, 5])
def test_groups_divide_channels_and_keep_scale_and_shift(width):
    before = norm_networks.build_network()
    model = norm_networks.build_network(norm=norm.GroupNormConfig(backbone="batch", channels_per_group=width))
    found = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert found
    assert all(module.num_channels // module.num_groups == math.gcd(module.num_channels, width) for module in found)
    outside = [m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "backbone" not in n.split(".")]
    assert not outside
    for (name, own), (same, other) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(own, other)


def test_evaluation_copies_and_files_are_those_of_plain_batchnorm():
    model = norm_networks.build_network("per_source")
    gradients(model, norm_networks.make_batch(range(6)))
    copied = copy.deepcopy(model).eval()
    plain = norm_networks.build_network().eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".source_" not in key})
    outputs = flatten_raw(copied(noise_images(2)))
    assert outputs
    assert all(torch.equal(value, outputs[key]) for key, value in flatten_raw(plain(noise_images(2))).items())
    names = norm_networks.build_network().state_dict().keys()
    norm.synchronize_batchnorm(plain)
    assert plain.state_dict().keys() == names


@pytest.mark.parametrize("chosen", [norm.PerSourceBatchNormConfig(), norm.GroupNormConfig()])
def test_an_export_agrees_with_torch_and_can_be_int8(chosen, tmp_path):
    model = norm_networks.build_network(norm=norm.BatchNormConfig()).float()
    model = convert(chosen, model)
    gradients(model, norm_networks.make_batch(range(6)))
    norm.synchronize_batchnorm(model)
    model.keep_tasks(("segmentation", "classification")).eval()
    # Raises where they differ.
    report = export(
        model, tmp_path / "model.onnx", size=(64, 96), parity_sizes=((64, 96), (96, 64)), parity_batch_sizes=(2,)
    )
    assert report.tensorrt_problems == ()  # TensorRT's
    small = quantize_all(onnx.load(tmp_path / "model.onnx"), [noise_images(1).numpy()])
    kinds = {node.op_type for node in small.graph.node}
    assert "BatchNormalization" not in kinds
    assert "QuantizeLinear" in kinds


def test_a_killed_training_by_source_goes_on_bit_for_bit(tmp_path):
    def stream(until: int):
        def batches(first: int):
            for step in range(first, 99):
                if step == until:
                    raise KeyError("killed")
                yield norm_networks.make_batch(range(step * 3, step * 3 + 3))  # at times two sources, at times one

        return batches

    def fit(model, name: str, until: int = 99, resume: bool = False):
        chosen = tiny_network.train_config(steps=4, batch_size=3, checkpoint_every=2, evaluate_every=0, threads=1)
        balancer = norm_networks.make_balancer()
        train(
            model,
            stream(until),
            chosen,
            run_folder=tmp_path / name,
            recipe_text="name: a\n",
            balancer=balancer,
            resume=resume,
        )
        return model

    def fresh():
        return norm_networks.build_network("per_source").float()

    whole = fit(fresh(), "whole")
    with pytest.raises(KeyError, match="killed"):
        fit(fresh(), "parts", until=3)
    again = fit(fresh(), "parts", resume=True)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())
    assert any(key.endswith("source_counts") and value.sum() == 12 for key, value in whole.state_dict().items())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[int, list[dict]]:
    return {
        world: tiny_network.run_on_ranks(norm_networks.save_results, world, tmp_path_factory.mktemp("ranks"))
        for world in (2, 3)
    }


@pytest.mark.parametrize("variant", norm_networks.VARIANTS, ids=lambda variant: " ".join(map(str, variant)))
def test_a_real_network_learns_over_ranks_as_in_one_process(ranks, variant):
    """In training mode; the ranks' shares are uneven, and at times a rank has no label of a task, or no source."""
    expected = norm_networks.train_updates(*variant)
    for world in norm_networks.world_sizes(variant):
        one, *others = [found[" ".join(map(str, variant))] for found in ranks[world]]
        assert one.keys() == expected.keys()
        assert all(torch.equal(one[key], other[key]) for other in others for key in one)
        moved = {key for key, value in expected.items() if value.is_floating_point() and "/" not in key}
        away = sum(float((one[key] - expected[key]).square().sum()) for key in moved)
        assert math.sqrt(away) < 1e-5 * math.sqrt(sum(float(expected[key].square().sum()) for key in moved))
        for key in expected.keys() - moved:  # numbers of the log, counts
            torch.testing.assert_close(one[key], expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.fault("E3")
def test_every_number_of_all_four_tasks_over_ranks_equals_one_process(ranks):
    """Eleven images, in batches of two: the ranks' shares, and their last batches, are uneven."""
    expected = norm_networks.evaluate_network()
    assert expected.num_images == 11
    for task, score in {
        "detection": "ap",
        "segmentation": "miou",
        "depth": "abs_rel",
        "classification": "top1",
    }.items():
        assert 0.05 < expected.metrics[f"{task}/{score}"] < 0.95, expected.metrics
    for world in ranks:
        for found in ranks[world]:
            assert found["metrics"] == pytest.approx(expected.metrics, rel=1e-9, nan_ok=True)


def test_a_recipe_names_the_sources():
    recipe = recipes.load(ROAD, ["model.norm={name: per_source}"])
    model = recipes.build_model(recipe, pretrained=False)
    assert model.sources == ("carla", "camvid", "rgbd")
    assert model.backbone.body.bn1.source_means.shape[0] == 3
    assert recipes.parse(config.dump_yaml(recipe)).model.norm == norm.PerSourceBatchNormConfig()


def test_what_cannot_be_says_so(monkeypatch):
    with pytest.raises(ConfigError, match=r"'none'\. Set model\.backbone\.weights"):
        ModelConfig(backbone=BackboneConfig(weights="none"), norm=norm.FrozenBatchNormConfig())
    with pytest.raises(ConfigError, match=r"no data\.train"):
        norm.convert_norm(norm_networks.build_network(), norm.PerSourceBatchNormConfig())
    model = norm_networks.build_network("per_source")
    with pytest.raises(ConfigError, match=r"found none\. Train with compute_loss_terms"):
        model(noise_images(2))
    strange = dataclasses.replace(norm_networks.make_batch([0, 1]), sources=["boxes", "videos"])
    with pytest.raises(ConfigError, match="boxes, maps; a batch holds images of videos"):
        model.compute_losses(strange)
    with pytest.raises(ConfigError, match="BatchNorm3d, which cannot be changed"):
        norm.synchronize_batchnorm(nn.Sequential(nn.BatchNorm3d(2)))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"train.sync_batchnorm is false, but model.norm.name 'per_source'"):
        distributed.synchronize_batchnorm(model, enabled=False)
