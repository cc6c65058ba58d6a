"""Checkpoints of a run: written so that no crash can lose one, read so that no damage goes unnoticed.

    RUN/checkpoints/step_00000100/model.safetensors  the weights to use (the moving average), with the recipe in them
                                  recipe.yaml        the resolved recipe
                                  train_state.pt     what training needs to go on; only read with ``weights_only=True``
                                  manifest.json      SHA-256 and size of each file, step, versions
    RUN/checkpoints/last -> step_00000100            the newest
    RUN/checkpoints/best -> step_00000050            the newest that was the best when it was written

A checkpoint is written into a temporary folder, synced to the disk, and renamed. Both links follow from the manifests,
so a crash between the rename and the links is mended by the next `save` or `tidy`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pickle
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
from perception.types import CheckpointError

WEIGHTS, RECIPE, STATE, MANIFEST = "model.safetensors", "recipe.yaml", "train_state.pt", "manifest.json"
FORMAT = 1
TEMPORARY = ".writing-"
DAMAGED = "damaged-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Verified weights.

    path:    the checkpoint's folder, or the lone .safetensors file
    weights: state dict of the network
    recipe:  YAML text of the resolved recipe; "" where a lone file carries none
    step:    optimiser steps done; -1 for a lone file
    """

    path: Path
    weights: dict[str, Tensor]
    recipe: str
    step: int


def save(
    run: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    train_state: Mapping[str, Any],
    recipe: str,
    best: bool = False,
    keep: int = 2,
) -> Path:
    """Write ``RUN/checkpoints/step_N``, set the links ``last`` and ``best``, delete all but the newest ``keep``.

    model:       the weights to use, as a state dict
    train_state: nested dicts and lists of tensors, numbers and strings
    best:        also becomes ``best``

    Raises CheckpointError where the disk is full or the folder cannot be written; older checkpoints stay as they were.
    """
    folder = run / "checkpoints"
    final = folder / f"step_{step:08d}"
    temporary = folder / f"{TEMPORARY}{final.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, model, train_state, recipe, best)
        if final.exists():
            final.replace(folder / f"{TEMPORARY}replaced-{final.name}-{os.getpid()}")
        temporary.replace(final)
        _sync(folder)
        _link(folder)
        _prune(folder, keep)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"Could not write checkpoint {final}: {error}. Older checkpoints are intact. "
            "Free some space or make the folder writable, then go on with --resume."
        ) from error
    return final


def _write_files(
    folder: Path, step: int, model: Mapping[str, Tensor], train_state: Mapping[str, Any], recipe: str, best: bool
) -> None:
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in model.items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"recipe": recipe})
    (folder / RECIPE).write_text(recipe, "utf-8")
    with (folder / STATE).open("wb") as file:
        torch.save(dict(train_state), file)
    manifest = {
        "format": FORMAT,
        "step": step,
        "best": best,
        "versions": {"perception": __version__, "torch": str(torch.__version__)},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in (WEIGHTS, RECIPE, STATE)
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def load(path: Path, name: Literal["last", "best"] = "last") -> Checkpoint:
    """The verified checkpoint ``name`` of a run folder, or the one in a checkpoint folder.

    Where the wanted one of a run is damaged, the newest sound one is taken instead, with a warning.
    Raises CheckpointError where there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or not (path / "checkpoints").is_dir():
        return _read(path.resolve())
    folder = path / "checkpoints"
    candidates = _steps(folder)[::-1]
    if name == "best" and (folder / "best").exists():
        wanted = (folder / "best").resolve()
        candidates = [wanted, *(other for other in candidates if other.name != wanted.name)]
    problems = []
    for candidate in candidates:
        try:
            checkpoint = _read(candidate)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            lost = "\n  ".join(problems)
            warnings.warn(f"Fell back to {checkpoint.path}, because\n  {lost}", stacklevel=2)
        return checkpoint
    raise CheckpointError(
        "\n  ".join([f"No sound checkpoint in {folder}. Train again, or give another run.", *problems])
    )


def load_train_state(folder: Path) -> dict[str, Any]:
    """What training needs to go on from a checkpoint that `load` verified. Never runs code from the file."""
    try:
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / STATE} cannot be read: {reason} Resume from another checkpoint.") from error


def load_weights(path: Path) -> Checkpoint:
    """The weights that a user names: a run folder (its best checkpoint), a checkpoint folder or a .safetensors file."""
    path = Path(path)
    if path.is_dir():
        return load(path, "best")
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at {path}. Give a run folder, a checkpoint folder or a .safetensors file."
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file. Pickles (.pt, .pth) can run code and are not read.")
    weights, recipe = _read_weights(path)
    beside = path.with_name(RECIPE)
    return Checkpoint(path, weights, recipe or (beside.read_text("utf-8") if beside.is_file() else ""), -1)


def fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights into ``model``, without those of initial predictions (`perception.nn.auxiliary`) that it has
    not, for they only train. Raises CheckpointError naming the first tensors that do not fit."""
    own = model.state_dict()
    needed = {
        name: x for name, x in checkpoint.weights.items() if name in own or "initial_prediction" not in name.split(".")
    }
    problems = [f"lacks {name}" for name in own if name not in needed]
    problems += [f"has {name}, which the network has not" for name in needed if name not in own]
    problems += [
        f"has {name} of shape {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in needed.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit this network: it {'; '.join(problems[:3])}{more}. "
            "Use the recipe that is saved beside it."
        )
    model.load_state_dict(needed)


def require_same_recipe(checkpoint: Checkpoint, recipe: str) -> None:
    """Raise CheckpointError showing the difference where the run was trained by another recipe."""
    if checkpoint.recipe == recipe:
        return
    difference = difflib.unified_diff(
        checkpoint.recipe.splitlines(), recipe.splitlines(), "the run's recipe", "this recipe", lineterm="", n=1
    )
    raise CheckpointError(
        "\n".join(
            [
                f"The recipe differs from the one of {checkpoint.path}:",
                *difference,
                "Undo the change, or force the resume.",
            ]
        )
    )


def tidy(run: Path, step: int | None = None) -> None:
    """What a crash left behind: remove temporary folders and set the links right.

    step: training goes on from here; newer checkpoints (damaged, or `load` had taken them) are set aside under another
    name, so that they neither count as the newest nor push sound ones out.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        return
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
        else:
            shutil.rmtree(leftover)
    for newer in _steps(folder):
        if step is not None and _number(newer) > step:
            aside = folder / f"{DAMAGED}{newer.name}"
            shutil.rmtree(aside, ignore_errors=True)
            newer.replace(aside)
    _link(folder)


def has_checkpoints(run: Path) -> bool:
    """Whether a run folder holds anything to resume from."""
    return bool(_steps(run / "checkpoints"))


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one move: after a crash it holds the old text or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    temporary.write_text(text, "utf-8")
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> Checkpoint:
    """Verify every file of a checkpoint folder against its manifest, and read the weights."""
    manifest = _manifest(folder)
    for name in (WEIGHTS, RECIPE, STATE):
        path, expected = folder / name, manifest["files"].get(name, {}).get("sha256")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if (found := sha256(path)) != expected:
            raise CheckpointError(f"{path} is damaged: expected SHA-256 {expected}, found {found}.")
    weights, recipe = _read_weights(folder / WEIGHTS)
    return Checkpoint(folder, weights, recipe, manifest["step"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no checkpoint: {MANIFEST} cannot be read ({error}).") from error
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise CheckpointError(
            f"{path} is not a manifest of format {FORMAT}. Use the version of perception that wrote it."
        )
    return manifest


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return weights, (file.metadata() or {}).get("recipe", "")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Use another checkpoint.") from error


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _link(folder: Path) -> None:
    steps = _steps(folder)
    best = [path for path in steps if _is_best(path)]
    for name, targets in (("last", steps), ("best", best)):
        if not targets:
            continue
        temporary = folder / f"{TEMPORARY}{name}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(targets[-1].name)
        temporary.replace(folder / name)
    _sync(folder)


def _is_best(folder: Path) -> bool:
    try:
        return bool(_manifest(folder)["best"])
    except CheckpointError:
        return False


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints (two at least: one to fall back to) and the best one."""
    steps = _steps(folder)
    best = [path for path in steps if _is_best(path)][-1:]
    kept = {path.name for path in steps[-max(2, keep) :] + best}
    for path in steps:
        if path.name not in kept:
            doomed = folder / f"{TEMPORARY}deleted-{path.name}-{os.getpid()}"
            path.replace(doomed)
    for doomed in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
