"""Any timm backbone as features of several strides. Where its weights come from: `perception.nn.backbone_weights`."""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone_weights import load_weights
from perception.types import CheckpointError, ConfigError

ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""How families of timm are told to take images of any size; the last one needs no telling."""

PROBE_SIZE = (96, 160)
"""Height and width of the image that a new backbone is tried with."""


@config_dataclass
class BackboneConfig:
    """name: any timm model that offers `features_only`.

    weights: "package" (ImageNet EfficientNet-Lite0 that is installed with the package: no download), "timm" (timm's
        pretrained weights, from its cache or the network), "none", or the path of a .safetensors or .pth state dict.
    drop_path: stochastic depth rate, where the backbone has it.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "package"
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Backbone(nn.Module):
    """uint8 RGB [B, 3, H, W] to {stride: [B, C, H / stride, W / stride]}, H and W multiples of 32.

    The strides are 4, 8, 16 and 32, as far as timm's model has them, or the one that all features of a plain ViT have.
    Patches whose side is no power of two are resampled to the nearest (14 to 16: FlexiViT, Beyer et al. 2023), which is
    what an image resized by 14 / 16 would give, and positions to the size of each image.

    Normalization is the first layer, so nobody can prepare an image in another way than the network was trained with.
    Raises ConfigError where timm cannot build it, or not for images of any size. weights: load what the config names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, weights: bool = True) -> None:
        super().__init__()
        self.body: Any = _replace_strided_convs(_create_body(config, weights and config.weights == "timm"))
        strides = self.body.feature_info.reduction()
        plain = len(set(strides)) == 1
        wanted = [len(strides) - 1] if plain else [i for i, stride in enumerate(strides) if stride in (4, 8, 16, 32)]
        if not plain and len(wanted) < 3:
            raise ConfigError(f"model.backbone.name: '{config.name}' has strides {strides}. Needed: 8, 16, 32.")
        self.strides = tuple(strides[i] for i in wanted)
        self.feature_indices = wanted
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        if weights and config.weights not in ("timm", "none"):
            load_weights(self.body, config.name, config.weights)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(self.body.pretrained_cfg[name]).view(1, 3, 1, 1) * 255)
        self.channels = self._probe_channels(config.name)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        features = self.body(self.normalize(images))
        chosen = [features[i] for i in self.feature_indices]
        if self.channels_last:
            chosen = [one.permute(0, 3, 1, 2) for one in chosen]
        return dict(zip(self.strides, chosen, strict=True))

    def normalize(self, images: Tensor) -> Tensor:
        """What the body reads."""
        return (images.float() - self.mean) / self.std

    def _probe_channels(self, name: str) -> dict[int, int]:
        """{stride: channels} of an image that is not square. Raises ConfigError where the strides are not kept."""
        training = self.training
        try:
            with torch.no_grad():
                found = self.eval()(torch.zeros(1, 3, *PROBE_SIZE, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model.backbone.name: '{name}' does not take images of any size that is a multiple of 32, here "
                f"{PROBE_SIZE[0]} x {PROBE_SIZE[1]}: {str(error).rstrip('.')}. "
                "Take a backbone without fixed windows or positions."
            ) from error
        self.train(training)
        for stride, one in found.items():
            if one.shape[-2:] != (PROBE_SIZE[0] // stride, PROBE_SIZE[1] // stride):
                raise ConfigError(
                    f"model.backbone.name: '{name}' makes {one.shape[-2]} x {one.shape[-1]} "
                    f"of {PROBE_SIZE[0]} x {PROBE_SIZE[1]} "
                    f"at stride {stride}. Take a backbone that pads its convolutions."
                )
        return {stride: one.shape[1] for stride, one in found.items()}


def _create_body(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """timm's model that returns a list of features, for images of any size."""
    name = config.name
    if not timm.is_model(name):
        near = _find_similar_names(name.partition(".")[0])
        raise ConfigError(f"model.backbone.name: timm knows no '{name}'. Similar: {', '.join(near) or 'none'}.")
    for free in ANY_SIZE_OPTIONS:
        try:
            body = _create_timm_model(config, pretrained, **free)
            break
        except TypeError as error:  # "... got an unexpected keyword argument"
            if not any(key in str(error) for key in free):
                hint = " It has no drop_path: leave that out." if "drop_path_rate" in str(error) else ""
                raise ConfigError(f"model.backbone.name: timm cannot build '{name}': {error}.{hint}") from error
    patch = body.feature_info.reduction()[-1]
    if len(set(body.feature_info.reduction())) == 1 and patch & (patch - 1):
        side = 1 << round(math.log2(patch))
        grid = body.pretrained_cfg["input_size"][-1] // patch  # of positions: the same as before
        body = _create_timm_model(config, pretrained, **free, patch_size=side, img_size=grid * side)
    return body


class StridedSliceConv(nn.Conv2d):
    """A 1x1 convolution with a stride, as one without of the pixels that it looks at.

    oneDNN takes the gradient of the former past the end of its memory where there are 2 to 7 channels and they lie
    last, as in the first layer of RepVGG and MobileOne: a crash in training on a processor.
    """

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(input[..., ::down, ::right], self.weight, self.bias)


def _needs_slicing(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 8


def _replace_strided_convs(network: nn.Module) -> nn.Module:
    """``network`` with every convolution as `StridedSliceConv` that needs it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _needs_slicing(child):
                picked = StridedSliceConv(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                picked.stride = child.stride
                picked.load_state_dict(child.state_dict())
                setattr(parent, name, picked)
    return network


def _find_similar_names(name: str) -> list[str]:
    """Names of timm's that start as ``name`` does but for its punctuation, or else look like it."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    known = timm.list_models()
    started = [one for one in known if plain and one.replace("_", "").startswith(plain)]
    return started[:5] or difflib.get_close_matches(name, known, n=5, cutoff=0.4)


def _create_timm_model(config: BackboneConfig, pretrained: bool, **options: Any) -> Any:
    """timm's model. TypeError where it does not know an option."""
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        return timm.create_model(config.name, features_only=True, pretrained=pretrained, **options)
    except TypeError:
        raise
    except Exception as error:  # whatever a download raises, or a model that is not made for features
        if pretrained:
            raise CheckpointError(
                f"model.backbone.weights: timm cannot get weights of '{config.name}' from its cache or the network: "
                f"{error}. Give 'none', or the path of a state dict."
            ) from error
        raise ConfigError(f"model.backbone.name: timm cannot build '{config.name}': {error}.") from error


def reparameterize(model: nn.Module) -> nn.Module:
    """``model`` with branches that are trained side by side merged into the one convolution that they add up to, in
    place (RepVGG, Ding et al. 2021, and timm's others of the kind: MobileOne, FastViT, RepViT). Same outputs, faster.
    """
    for part in model.modules():
        if isinstance(part, Backbone):
            part.body = reparameterize_model(part.body, inplace=True)
    return model
