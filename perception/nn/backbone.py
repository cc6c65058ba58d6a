"""Any timm backbone as a multi-scale feature extractor. `perception.nn.backbone_weights` loads the weights."""

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
"""Options by which timm model families accept images of any size. The last family needs no option."""

PROBE_SIZE = (96, 160)
"""Height and width of the test image for a new backbone."""


@config_dataclass
class BackboneConfig:
    """Config of the backbone.

    Attributes:
        name: any timm model that supports `features_only`.
        weights: "package" (ImageNet weights of EfficientNet-Lite0, installed with the package, no download), "timm"
            (timm's pretrained weights, from its cache or the network), "none", or the path of a .safetensors or .pth
            state dict.
        drop_path: stochastic depth rate, if the backbone supports it.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "package"
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Backbone(nn.Module):
    """A timm backbone: uint8 RGB [B, 3, H, W] to {stride: [B, C, H / stride, W / stride]}.

    H and W are multiples of 32. The strides are those of 4, 8, 16 and 32 that timm's model has. A plain ViT has a
    single stride for all features. If the patch size is not a power of two, patch weights are resampled to the nearest
    one (14 to 16: FlexiViT, Beyer et al. 2023). This is equivalent to resizing the image by 14 / 16. Position
    embeddings are resampled to the size of each image.

    Normalization is the first layer, so training and inference always use the same preprocessing.

    Args:
        config: the backbone's config.
        weights: whether to load the weights that the config names.

    Raises:
        ConfigError: timm cannot build the backbone, or it does not accept images of any size.
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
            raise ConfigError(f"model.backbone.name: '{config.name}' has strides {strides}. Expected 8, 16, 32.")
        self.strides = tuple(strides[i] for i in wanted)
        self.feature_indices = wanted
        self.channels_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")
        if weights and config.weights not in ("timm", "none"):
            load_weights(self.body, config.name, config.weights)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(self.body.pretrained_cfg[name]).view(1, 3, 1, 1) * 255)
        self.channels = self._probe_channels(config.name)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Return {stride: [B, C, H / stride, W / stride]} of uint8 RGB images [B, 3, H, W]."""
        features = self.body(self.normalize(images))
        chosen = [features[i] for i in self.feature_indices]
        if self.channels_last:
            chosen = [one.permute(0, 3, 1, 2) for one in chosen]
        return dict(zip(self.strides, chosen, strict=True))

    def normalize(self, images: Tensor) -> Tensor:
        """Return the normalized images, the input of ``body``."""
        return (images.float() - self.mean) / self.std

    def _probe_channels(self, name: str) -> dict[int, int]:
        """Run a non-square image and return {stride: channels}.

        Raises ConfigError if the output sizes do not match the strides.
        """
        training = self.training
        try:
            with torch.no_grad():
                found = self.eval()(torch.zeros(1, 3, *PROBE_SIZE, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"model.backbone.name: '{name}' does not accept images of any size that is a multiple of 32, here "
                f"{PROBE_SIZE[0]} x {PROBE_SIZE[1]}: {str(error).rstrip('.')}. "
                "Choose a backbone without fixed windows or positions."
            ) from error
        self.train(training)
        for stride, one in found.items():
            if one.shape[-2:] != (PROBE_SIZE[0] // stride, PROBE_SIZE[1] // stride):
                raise ConfigError(
                    f"model.backbone.name: '{name}' returns {one.shape[-2]} x {one.shape[-1]} features "
                    f"for a {PROBE_SIZE[0]} x {PROBE_SIZE[1]} image "
                    f"at stride {stride}. Choose a backbone that pads its convolutions."
                )
        return {stride: one.shape[1] for stride, one in found.items()}


def _create_body(config: BackboneConfig, pretrained: bool) -> nn.Module:
    """Create timm's feature extractor for images of any size."""
    name = config.name
    if not timm.is_model(name):
        near = _find_similar_names(name.partition(".")[0])
        raise ConfigError(f"model.backbone.name: timm has no model '{name}'. Similar: {', '.join(near) or 'none'}.")
    body, free = _create_for_any_size(config, pretrained)
    patch = body.feature_info.reduction()[-1]
    if len(set(body.feature_info.reduction())) == 1 and patch & (patch - 1):
        side = 1 << round(math.log2(patch))
        grid = body.pretrained_cfg["input_size"][-1] // patch  # keeps the number of positions
        body = _create_timm_model(config, pretrained, **free, patch_size=side, img_size=grid * side)
    return body


class StridedSliceConv(nn.Conv2d):
    """A strided 1x1 convolution, computed as an unstrided convolution of the sliced input.

    oneDNN reads past the end of its memory in the backward pass of a strided 1x1 convolution with 2 to 7 channels in
    channels-last layout. The first layer of RepVGG and MobileOne has this form. Training on a CPU then crashes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve every ``stride``-th pixel of ``input`` [B, C, H, W]."""
        down, right = self.stride
        return F.conv2d(input[..., ::down, ::right], self.weight, self.bias)


def _needs_slicing(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 8


def _replace_strided_convs(network: nn.Module) -> nn.Module:
    """Replace the convolutions of ``network`` that need it by `StridedSliceConv`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _needs_slicing(child):
                picked = StridedSliceConv(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                picked.stride = child.stride
                picked.load_state_dict(child.state_dict())
                setattr(parent, name, picked)
    return network


def _find_similar_names(name: str) -> list[str]:
    """Return timm's names that start with ``name``, ignoring punctuation, or else look similar."""
    plain = re.sub("[^a-z0-9]", "", name.lower())
    known = timm.list_models()
    started = [one for one in known if plain and one.replace("_", "").startswith(plain)]
    return started[:5] or difflib.get_close_matches(name, known, n=5, cutoff=0.4)


def _create_for_any_size(config: BackboneConfig, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    """The model, and the options by which timm builds it for images of any size."""
    name = config.name
    for free in ANY_SIZE_OPTIONS:
        try:
            return _create_timm_model(config, pretrained, **free), free
        except TypeError as error:  # "... got an unexpected keyword argument"
            if not any(key in str(error) for key in free):
                hint = " It does not support drop_path. Remove it." if "drop_path_rate" in str(error) else ""
                raise ConfigError(f"model.backbone.name: timm cannot build '{name}': {error}.{hint}") from error
    raise ConfigError(f"model.backbone.name: timm cannot build '{name}' for images of any size. Choose another one.")


def _create_timm_model(config: BackboneConfig, pretrained: bool, **options: Any) -> Any:
    """Create timm's model. Raises TypeError if it does not accept an option."""
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        return timm.create_model(config.name, features_only=True, pretrained=pretrained, **options)
    except TypeError:
        raise
    except Exception as error:  # any download error, or a model without features_only
        if pretrained:
            raise CheckpointError(
                f"model.backbone.weights: timm cannot load weights of '{config.name}' from its cache or the network: "
                f"{error}. Set it to 'none' or the path of a state dict."
            ) from error
        raise ConfigError(f"model.backbone.name: timm cannot build '{config.name}': {error}.") from error


def reparameterize(model: nn.Module) -> nn.Module:
    """Merge parallel training branches into single convolutions, in place, and return ``model``.

    RepVGG (Ding et al. 2021) and timm's models of this kind: MobileOne, FastViT, RepViT. Outputs are the same,
    inference is faster.
    """
    for part in model.modules():
        if isinstance(part, Backbone):
            part.body = reparameterize_model(part.body, inplace=True)
    return model
