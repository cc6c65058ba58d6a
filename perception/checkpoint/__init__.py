"""Checkpoints of a run. Writing survives a crash; reading detects damaged files.

    RUN/checkpoints/step_00000100/model.safetensors  the weights to use (moving average), with the recipe as metadata
                                  recipe.yaml        the resolved recipe
                                  train_state.pt     state to resume training; only read with ``weights_only=True``
                                  manifest.json      SHA-256 and size of each file, step, versions, own checksum
    RUN/checkpoints/last -> step_00000100            the newest checkpoint
    RUN/checkpoints/best -> step_00000050            the newest one that was the best when it was written

A checkpoint is written to a temporary folder, synced to disk and renamed. The manifests determine both links. After a
crash between the rename and the links, the next `save` or `clean_up` repairs the links.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from perception import __version__
from perception.checkpoint import manifest as manifests
from perception.checkpoint.folder import (
    DAMAGED_PREFIX,
    FILES,
    MANIFEST,
    RECIPE,
    REPLACED_PREFIX,
    STATE,
    TEMPORARY_PREFIX,
    WEIGHTS,
    clean_up,
    has_checkpoints,
    is_best,
    list_step_folders,
    prune,
    read_manifest,
    sync_to_disk,
    update_links,
    write_atomically,
)
from perception.checkpoint.manifest import sha256
from perception.files.safe_write import DiskFullError, is_disk_full
from perception.types import CheckpointError


class CheckpointDiskFullError(CheckpointError, DiskFullError):
    """A checkpoint could not be written: the disk is full, or a quota or limit is reached."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Verified weights.

    Attributes:
        path: the checkpoint's folder, or a single .safetensors file.
        weights: state dict of the network.
        recipe_text: YAML text of the resolved recipe; "" if a single file has none.
        step: number of optimizer steps; -1 for a single file.
        version: perception version that wrote it; "" if unknown.
    """

    path: Path
    weights: dict[str, Tensor]
    recipe_text: str
    step: int
    version: str = ""


def save(
    run_folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    train_state: Mapping[str, Any],
    recipe_text: str,
    best: bool = False,
    keep: int = 2,
) -> Path:
    """Write ``RUN/checkpoints/step_N``, update the links ``last`` and ``best``, delete old checkpoints.

    Args:
        run_folder: the run.
        step: number of optimizer steps.
        model: the weights to use, as a state dict.
        train_state: nested dicts and lists of tensors, numbers and strings.
        recipe_text: YAML text of the resolved recipe.
        best: this checkpoint also becomes ``best``.
        keep: number of newest checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointDiskFullError: the disk is full.
        CheckpointError: the folder is not writable. In both cases, older checkpoints stay unchanged.
    """
    folder = run_folder / "checkpoints"
    final = folder / f"step_{step:08d}"
    temporary = folder / f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, model, train_state, recipe_text, best)
        if final.exists():
            final.replace(folder / f"{REPLACED_PREFIX}{final.name}-{os.getpid()}")
        temporary.replace(final)
        sync_to_disk(folder)
        update_links(folder)
        prune(folder, keep)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch wraps OS errors in a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        full = is_disk_full(error)
        raise (CheckpointDiskFullError if full else CheckpointError)(
            f"Could not write checkpoint {final}: {error}. Older checkpoints are intact. "
            f"{'Free some space' if full else 'Make the folder writable'}, then continue with --resume."
        ) from error
    return final


def _write_files(
    folder: Path, step: int, model: Mapping[str, Tensor], train_state: Mapping[str, Any], recipe_text: str, best: bool
) -> None:
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model.items()
    }
    try:
        save_file(weights, folder / WEIGHTS, metadata={"recipe": recipe_text})
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder / WEIGHTS)) from error
        raise
    (folder / RECIPE).write_text(recipe_text, "utf-8")
    with (folder / STATE).open("wb") as file:
        torch.save(dict(train_state), file)
    versions = {"perception": __version__, "torch": str(torch.__version__)}
    manifests.write(folder, step, best, versions, FILES)
    for path in (*folder.iterdir(), folder):
        sync_to_disk(path)


def load(path: Path, name: Literal["last", "best"] = "last") -> Checkpoint:
    """Load and verify the checkpoint ``name`` of a run folder, or the one in a checkpoint folder.

    If this checkpoint of a run is damaged, load the newest valid one instead, with a warning.

    Raises:
        CheckpointError: there is no valid checkpoint.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or not (path / "checkpoints").is_dir():
        return _read_verified(Path(os.path.realpath(path)))
    folder = path / "checkpoints"
    candidates = list_step_folders(folder)[::-1]
    if name == "best":
        link = Path(os.path.realpath(folder / "best"))  # not `Path.resolve`: it raises on cyclic links
        wanted = [link] if link.is_dir() else [step for step in candidates if is_best(step)][:1]
        candidates = [*wanted, *(other for other in candidates if other.name not in {one.name for one in wanted})]
    problems = []
    for candidate in candidates:
        try:
            checkpoint = _read_verified(candidate)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            lost = "\n  ".join(problems)
            warnings.warn(f"Loaded {checkpoint.path} instead, because\n  {lost}", stacklevel=2)
        return checkpoint
    raise CheckpointError(
        "\n  ".join([f"No valid checkpoint in {folder}. Train again, or give another run.", *problems])
    )


def load_train_state(folder: Path) -> dict[str, Any]:
    """Load the state to resume training from a folder that `load` verified. Never executes code from the file."""
    try:
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # the safe unpickler has no specific error class
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder / STATE} cannot be read: {reason} Resume from another checkpoint.") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{folder / STATE} contains a {type(state).__name__}, expected a dict. Resume from another checkpoint."
        )
    return state


def load_weights(path: Path) -> Checkpoint:
    """Load weights from a run folder (its best checkpoint), a checkpoint folder or a .safetensors file.

    Raises:
        CheckpointError: the weights are missing, damaged or of another file type.
    """
    path = Path(path)
    if path.is_dir():
        return load(path, "best")
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at {path}. Give a run folder, a checkpoint folder or a .safetensors file."
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file. Pickles (.pt, .pth) can execute code and are not supported."
        )
    weights, recipe = _read_weights(path)
    return Checkpoint(path, weights, recipe or read_recipe(path.parent), -1)


def read_recipe(folder: Path) -> str:
    """Return the text of recipe.yaml in a folder; "" if there is none. Raises CheckpointError if it is not readable."""
    path = folder / RECIPE
    try:
        return path.read_text("utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Restore the recipe of the run.") from error


def load_into_model(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights into ``model``.

    Weights of auxiliary heads (`perception.nn.auxiliary_head`) that the model does not have are skipped: only training
    uses them.

    Raises:
        CheckpointError: tensors do not match. The message names the first ones.
    """
    own = model.state_dict()
    needed = {
        name: x for name, x in checkpoint.weights.items() if name in own or "auxiliary_head" not in name.split(".")
    }
    problems = [f"lacks {name}" for name in own if name not in needed]
    problems += [f"has {name}, which the network does not have" for name in needed if name not in own]
    problems += [
        f"has {name} of shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in needed.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path} does not match this network: it {'; '.join(problems[:3])}{more}. "
            "Use the recipe in the same folder."
        )
    model.load_state_dict(needed)


def require_same_recipe(checkpoint: Checkpoint, recipe_text: str) -> None:
    """Raise CheckpointError with a diff if the run was trained with another recipe."""
    if checkpoint.recipe_text == recipe_text:
        return
    difference = difflib.unified_diff(
        checkpoint.recipe_text.splitlines(),
        recipe_text.splitlines(),
        "the run's recipe",
        "this recipe",
        lineterm="",
        n=1,
    )
    raise CheckpointError(
        "\n".join(
            [
                f"The recipe differs from that of {checkpoint.path}:",
                *difference,
                "Undo the change, or force the resume.",
            ]
        )
    )


def _read_verified(folder: Path) -> Checkpoint:
    """Verify all files of a checkpoint folder against its manifest, then read the weights."""
    manifest = read_manifest(folder)
    for name, expected in manifest.checksums.items():
        path = folder / name
        try:
            found = sha256(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing.") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if found != expected:
            raise CheckpointError(f"{path} is damaged: expected SHA-256 {expected}, found {found}.")
    weights, recipe = _read_weights(folder / WEIGHTS)
    return Checkpoint(folder, weights, recipe, manifest.step, manifest.version)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return weights, (file.metadata() or {}).get("recipe", "")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Use another checkpoint.") from error


__all__ = [
    "DAMAGED_PREFIX",
    "MANIFEST",
    "RECIPE",
    "STATE",
    "TEMPORARY_PREFIX",
    "WEIGHTS",
    "Checkpoint",
    "CheckpointDiskFullError",
    "clean_up",
    "has_checkpoints",
    "load",
    "load_into_model",
    "load_train_state",
    "load_weights",
    "read_recipe",
    "require_same_recipe",
    "save",
    "sha256",
    "write_atomically",
]
