"""The contract of every family of timm backbones that is promised to work with one line of a recipe."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from perception.config import validate_config
from perception.export.export import export
from perception.export.parity import generate_batches
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import Backbone, BackboneConfig, reparameterize
from perception.tasks import TASKS
from perception.types import CheckpointError, ConfigError

FAMILIES = {
    "ResNet": "test_resnet",
    "EfficientNet": "test_efficientnet",
    "EfficientNet-Lite": "tf_efficientnet_lite0",
    "MobileNetV4": "mobilenetv4_conv_small_035",
    "ConvNeXt": "test_convnext",
    "RepVGG": "repvgg_a0",
    "MobileOne": "mobileone_s0",
    "NHWC inside": "test_mambaout",
    "Swin": "swin_s3_tiny_224",
    "Swin V2": "swinv2_cr_tiny_ns_224",
    "ViT": "test_vit3",
    "ViT with registers": "test_vit2",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv3": "vit_tiny_patch16_dinov3_qkvb",
}
LARGER = (
    "resnet50",
    "tf_efficientnet_lite2",
    "mobilenetv4_conv_medium",
    "mobilenetv4_hybrid_medium",
    "convnext_tiny",
    "convnextv2_nano",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "repvgg_b0",
    "fastvit_t8",
    "repvit_m0_9",
)
BRANCHES = ("repvgg_a0", "mobileone_s0")


def network(name: str, *tasks: str) -> MultiTaskModel:
    torch.manual_seed(0)
    settings = {
        task: {"classes": ("a", "b")} if "classes" in TASKS[task].Config.__dataclass_fields__ else {} for task in tasks
    }
    configs = {task: TASKS[task].Config(**given) for task, given in settings.items()}
    return MultiTaskModel(ModelConfig(backbone=BackboneConfig(name=name, weights="none")), configs)


def noise(*size: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def check(name: str) -> None:
    model = network(name, "detection", "segmentation")
    backbone = model.backbone
    plain = len(backbone.channels) == 1
    assert plain or set(backbone.channels) == {4, 8, 16, 32}
    with torch.inference_mode():
        for size in ((64, 64), (96, 224)):
            for stride, one in backbone.eval()(noise(*size, count=1)).items():
                assert one.shape == (1, backbone.channels[stride], size[0] // stride, size[1] // stride)
        outputs = model.eval().predict(noise(96, 160))
    assert outputs["segmentation.mask"].shape == (2, 96, 160)
    raw = model.train()(noise(64, 96))
    (raw["segmentation"].logits.square().mean() + raw["detection"].box_regression.square().mean()).backward()
    trunk = model.sharing.named_parameters()
    silent = [key for key, one in trunk if one.grad is None or not torch.isfinite(one.grad).all()]
    assert not silent, "a distributed run waits for these gradients for ever"


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_works_with_one_line_at_sizes_of_its_own_and_trains(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_members_too(name):
    check(name)


def settle(model: MultiTaskModel) -> None:
    """Statistics that fit, of one pass; and paths past convolutions that lead, as in what has been trained.

    Without, a deep random network of branches makes a hundred times as much of every rounding, and so does a channel
    that is all but silent, which the normalization then amplifies.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = 1.0, 0.1
            if "conv_" in name:
                module.weight.mul_(0.2)
    pictures = (images for _, images in generate_batches(((96, 160),), (4,), []))
    model.train()(torch.cat([torch.from_numpy(images) for images in pictures]))


RESIZING = ("test_vit3", "test_vit2", "vit_small_patch14_dinov2")
"""They resize their positions by the size of the image; DINOv3 turns them."""
CUBIC = {"Resize with mode cubic", "Resize with antialias 1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_exports_with_dynamic_sizes(name, tmp_path):
    model = network(name, "segmentation", "depth")
    with torch.no_grad():  # as large as trained ones, so that their interpolation is seen
        for key, value in model.named_parameters():
            if "pos_embed" in key or "bias_table" in key:
                value.normal_()
        settle(model)
    sizes = ((96, 160), (64, 64), (160, 224), (256, 128))
    report = export(
        model.eval(), tmp_path / "model.onnx", size=(96, 160), parity_sizes=sizes, parity_batch_sizes=(1, 3)
    )
    if name in RESIZING:  # TensorRT's
        assert {obstacle.partition(" (")[0] for obstacle in report.tensorrt_problems} == CUBIC
        report_of_one_size = export(model, tmp_path / "one_size.onnx", size=(96, 160), dynamic=False)
        assert report_of_one_size.tensorrt_problems == ()
    else:
        assert report.tensorrt_problems == ()
    assert report.num_batches >= 2 * len(sizes)
    if name in BRANCHES:
        import onnx

        kinds = [node.op_type for node in onnx.load(report.path).graph.node]
        trained = sum(isinstance(module, nn.Conv2d) for module in model.modules())
        assert kinds.count("Conv") < trained


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_become_one_convolution(name):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=name, weights="none"))
    with torch.no_grad():
        for module in backbone.modules():  # no branch is an identity, no running mean is zero
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
        for _ in range(3):
            backbone.train()(noise(64, 64))
        wanted = backbone.eval()(noise(64, 96))
        before = len(list(backbone.modules()))
        merged = reparameterize(backbone)
        found = merged(noise(64, 96))
    assert merged is backbone
    assert len(list(merged.modules())) < before / 2
    for stride, one in wanted.items():
        torch.testing.assert_close(found[stride], one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    keys = set(merged.body.state_dict())
    assert not [key for key in keys if "running_mean" in key and name == "repvgg_a0"]


def test_a_network_without_branches_stays_as_it_is():
    model = network("test_resnet", "segmentation").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = reparameterize(model).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_patches_of_14_see_what_patches_of_16_see_of_an_image_that_is_larger(tmp_path):
    """FlexiViT's property: tokens are the same where each patch was stretched from 14 to 16."""
    donor = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=70)
    torch.save({"state_dict": donor.state_dict()}, tmp_path / "dinov2.pth")
    heir = Backbone(BackboneConfig(name="vit_small_patch14_dinov2", weights=str(tmp_path / "dinov2.pth"))).body.model
    patches = torch.rand(5, 3, 14, 14)
    stretched = F.interpolate(patches, size=16, mode="bicubic", align_corners=False, antialias=True)
    wanted, found = donor.patch_embed.proj(patches), heir.patch_embed.proj(stretched)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert heir.pos_embed.shape[1] == 37 * 37 + 1, "the grid of positions is that of the published weights"
    assert torch.equal(heir.pos_embed[:, 0], donor.pos_embed[:, 0])
    assert torch.equal(heir.blocks[3].attn.qkv.weight, donor.blocks[3].attn.qkv.weight)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "mobilenetv4_conv_small_035", "test_vit3"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_the_whole_classifier_are_taken_from_a_file(name, suffix, tmp_path):
    """As timm saves them: names without the wrapper for features, a classifier that is not needed."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state, path = timm.create_model(name).state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    own = Backbone(BackboneConfig(name=name, weights=str(path))).body.state_dict()
    plain = {key.replace(".", "_"): value for key, value in state.items()}
    assert own
    for key, value in own.items():
        assert torch.equal(value, plain[key.removeprefix("model.").replace(".", "_")]), key


def test_files_that_are_no_weights_are_refused(tmp_path):
    for name, content in (("a.safetensors", b"\x10" * 40), ("b.pth", b"no zip"), ("c.pth", None)):
        path = tmp_path / name
        if content is None:
            torch.save({"epoch": 3, "names": ["a"]}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a state dict"):
            Backbone(BackboneConfig(name="test_resnet", weights=str(path)))


def test_weights_that_cannot_be_got_are_told(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"cannot load weights of .test_resnet.*Set it to .none."):
        Backbone(BackboneConfig(name="test_resnet", weights="timm"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet5O"}, "timm has no model 'resnet5O'. Similar: resnet50"),
        ({"name": "mobilenet_v4"}, "Similar: .*mobilenetv4"),
        ({"name": "hf-hub:someone/something"}, "timm has no model"),
        ({"name": "local-dir:/tmp"}, "timm has no model"),
        ({"name": "test_maxvit"}, "does not accept images of any size.*divisible by window.*without fixed windows"),
        ({"name": "test_coatnet"}, "does not accept images of any size"),
        ({"name": "test_vit_relpos"}, "does not accept images of any size"),
        ({"name": "levit_128s"}, "has strides .16, 32, 64.. Expected 8, 16, 32"),
        ({"name": "inception_v3"}, "returns 20 x 36 features for a 96 x 160 image at stride 4"),
        ({"name": "mixer_s32_224"}, "does not accept images of any size"),
        ({"name": "vgg11", "drop_path": 0.1}, "does not support drop_path"),
    ],
)
def test_what_cannot_be_a_backbone_is_told(settings, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(validate_config(BackboneConfig, {"weights": "none", **settings}))
