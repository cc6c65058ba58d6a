"""The contract of every neck. A new member of NECKS inherits it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perception import config
from perception.export.export import export
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NECKS, STRIDES, AutoNeckConfig, Neck, NeckConfig, build_neck
from perception.nn.necks.bifpn import WeightedSum
from perception.tasks import TASKS
from perception.types import ConfigError

STAGES = {4: 6, 8: 10, 16: 14, 32: 18}
SUBSETS = [{4, 8, 16, 32, 64}, {4, 8, 16, 32}, {8, 16}, {4}, {32}, {64}, {4, 32}, {8, 64}]


def channels(kind: type[Neck]) -> dict[int, int]:
    """Of a backbone that the neck is made for."""
    return {16: 24} if kind.single_scale else STAGES


def features(kind: type[Neck], size: tuple[int, int] = (96, 32), batch: int = 2) -> dict[int, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        stride: torch.randn(batch, depth, size[0] // stride, size[1] // stride, generator=random)
        for stride, depth in channels(kind).items()
    }


def make(name: str, strides: set[int], **settings: Any) -> Neck:
    torch.manual_seed(0)
    settings = {"channels": 16, "fine_channels": 8, **settings}
    return build_neck(
        config.validate_config(NeckConfig, {"name": name, **settings}), channels(NECKS[name]), strides
    ).eval()


@pytest.fixture(params=NECKS)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("strides", SUBSETS, ids=str)
def test_levels_have_the_promised_shapes_and_every_parameter_a_gradient(name, strides):
    neck = make(name, strides).train()
    pyramid = neck(features(NECKS[name]), strides)
    assert set(pyramid) == set(neck.channels) == strides
    for stride, level in pyramid.items():
        assert level.shape == (2, neck.channels[stride], -(-96 // stride), -(-32 // stride))
    # A square is no constant under BatchNorm, whose outputs always sum to the same.
    sum(level.square().sum() for level in pyramid.values()).backward()
    assert not [key for key, value in neck.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("strides", SUBSETS, ids=str)
def test_a_subset_is_what_the_whole_is_and_needs_no_other_layer(name, strides):
    neck = make(name, set(STRIDES))
    whole = neck(features(NECKS[name]), set(STRIDES))
    ran: list[str] = []
    for key, module in neck.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, key=key: ran.append(key))
    some = neck(features(NECKS[name]), strides)
    for stride in strides:
        assert torch.equal(some[stride], whole[stride])
    sum(level.square().sum() for level in some.values()).backward()
    assert sorted(ran) == sorted({key.rpartition(".")[0] for key, p in neck.named_parameters() if p.grad is not None})


def test_no_level_costs_what_finer_ones_cost(name):
    """Heads of stride 8 and coarser do not pay for stride 4."""
    neck = make(name, {4, 8, 16, 32})
    fine: list[tuple[int, ...]] = []
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: fine.append(output.shape[-2:]))
    neck(features(NECKS[name]), {8, 16, 32})
    assert fine
    assert max(fine) <= (96 // 8, 32 // 8)


def test_every_task_works_on_it(name):
    """The widths that heads see are the neck's, not typed anywhere; detection reads stride 64 as well."""
    backbone = "test_vit2" if NECKS[name].single_scale else "test_resnet"
    neck = config.validate_config(NeckConfig, {"name": name, "channels": 40, "fine_channels": 24})
    tasks = {
        task: kind.Config(classes=("a", "b")) if "classes" in kind.Config.__dataclass_fields__ else kind.Config()
        for task, kind in TASKS.items()
    }
    tasks["detection"] = TASKS["detection"].Config(classes=("a", "b"), strides=(4, 8, 16, 32, 64))
    model = MultiTaskModel(ModelConfig(backbone=BackboneConfig(name=backbone, weights="none"), neck=neck), tasks).eval()
    assert model.sharing.trunk.neck.channels == {4: 24, 8: 40, 16: 40, 32: 40, 64: 40}
    outputs = model.predict(torch.zeros(1, 3, 96, 160, dtype=torch.uint8))
    assert outputs["segmentation.mask"].shape == (1, 96, 160)


@pytest.mark.slow
def test_exports_with_dynamic_sizes(name, tmp_path):
    """All its levels, 64 too, where an image of 96 pixels ends in the middle of a cell."""
    backbone = BackboneConfig(name="test_vit2" if NECKS[name].single_scale else "test_resnet", weights="none")
    neck = config.validate_config(NeckConfig, {"name": name, "channels": 16, "fine_channels": 8})
    task = TASKS["segmentation"].Config(classes=("a", "b", "c"), strides=STRIDES, channels=16)
    torch.manual_seed(0)
    model = MultiTaskModel(ModelConfig(backbone=backbone, neck=neck), {"segmentation": task}).eval()
    sizes = ((96, 160), (64, 64), (224, 32))
    report = export(model, tmp_path / "model.onnx", size=(96, 160), parity_sizes=sizes, parity_batch_sizes=(1, 3))
    assert report.tensorrt_problems == ()  # TensorRT's
    assert report.num_batches >= 2 * len(sizes)


def test_a_name_chooses_and_the_backbone_where_none_is_given():
    for name, kind in NECKS.items():
        assert type(make(name, {8})) is kind
    assert isinstance(config.validate_config(NeckConfig, {"channels": 8}), AutoNeckConfig)
    chosen = [type(build_neck(AutoNeckConfig(), given, {8, 16})).__name__ for given in (STAGES, {16: 8}, {32: 8})]
    assert chosen == ["FPN", "SimplePyramid", "SimplePyramid"]


@pytest.mark.parametrize(
    ("settings", "given", "strides", "message"),
    [
        ({"name": "fpm"}, STAGES, {8}, "fpm"),
        ({"name": "bifpn", "layer": 2}, STAGES, {8}, "layer: unknown key. Did you mean 'num_layers'"),
        ({"chanels": 2}, STAGES, {8}, "chanels: unknown key. Did you mean 'channels'"),
        ({"name": "bifpn", "num_layers": 0}, STAGES, {8}, "layers"),
        ({"name": "fpn"}, {16: 8}, {8}, "reads features of several strides.*have stride 16. Use .*simple"),
        ({"name": "simple"}, STAGES, {8}, "reads features of one stride.*Use .*fpn or pan or bifpn"),
        ({"name": "pan"}, {8: 4, 16: 4, 32: 4}, {4, 8}, "from stride 4 on.*strides 8, 16, 32. Set tasks"),
        ({"name": "pan"}, STAGES, {2, 8}, "stride 2. Levels have"),
        ({"name": "pan"}, STAGES, {24}, "stride 24. Levels have"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(settings, given, strides, message):
    with pytest.raises(ConfigError, match=message):
        build_neck(config.validate_config(ModelConfig, {"neck": settings}).neck, given, strides)


def test_weighted_sum_is_a_mean_that_learns_to_leave_out():
    fuse = WeightedSum(3)
    one, two, three = torch.full((1,), 3.0), torch.full((1,), 6.0), torch.full((1,), 9.0)
    assert fuse(one, two, three).item() == pytest.approx(6, rel=1e-3)
    with torch.no_grad():
        fuse.weights.copy_(torch.tensor([1.0, -5.0, 3.0]))
    assert fuse(one, two, three).item() == pytest.approx((3 + 27) / 4, rel=1e-3)
