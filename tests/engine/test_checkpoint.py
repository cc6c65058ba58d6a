"""Checkpoints: no crash loses one, no damage goes unnoticed, no code runs from one."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import full_disks
import pytest
import torch
from checkpoint_files import rewrite
from torch import nn

import perception
from perception import checkpoint
from perception.types import CheckpointError

RECIPE = "name: test\nlr: 0.1\n"


def write(run: Path, step: int, best: bool = False, **options) -> Path:
    weights = {"weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)}
    state = {"step": step, "model": weights, "groups": [{"lr": 0.5}]}
    return checkpoint.save(run, step, model=weights, train_state=state, recipe_text=RECIPE, best=best, **options)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_comes_back(tmp_path):
    folder = write(tmp_path, 7)
    for place in (tmp_path, folder, tmp_path / "checkpoints" / "last"):
        found = checkpoint.load(place)
        assert (found.step, found.recipe_text, found.path) == (7, RECIPE, folder)
        assert torch.equal(found.weights["weight"], torch.full((2, 3), 7.0))
        assert found.weights["count"].dtype == torch.int64
    state = checkpoint.load_train_state(folder)
    assert state["groups"] == [{"lr": 0.5}]
    content = json.loads((folder / "manifest.json").read_text())
    assert content["files"]["recipe.yaml"]["bytes"] == len(RECIPE)


def test_channels_last_and_shared_tensors_keep_their_values(tmp_path):
    image = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, 1, model={"a": image, "b": image, "c": image[:, :, 1]}, train_state={}, recipe_text="")
    found = checkpoint.load(tmp_path).weights
    assert torch.equal(found["a"], image)
    assert torch.equal(found["b"], image)
    assert torch.equal(found["c"], image[:, :, 1])


def test_links_and_what_is_kept(tmp_path):
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        write(tmp_path, step, best)
    assert names(tmp_path) == ["best", "last", "step_00000002", "step_00000004", "step_00000005"]
    assert str((tmp_path / "checkpoints/last").readlink()) == "step_00000005"
    assert checkpoint.load(tmp_path, "best").step == checkpoint.load_weights(tmp_path).step == 2
    write(tmp_path, 6, keep=4)
    assert len(names(tmp_path)) == 6


def test_a_run_can_be_moved(tmp_path):
    write(tmp_path / "a", 1, best=True)
    (tmp_path / "a").rename(tmp_path / "b")
    assert checkpoint.load(tmp_path / "b", "best").step == 1


def test_a_lone_file_of_weights_carries_its_recipe(tmp_path):
    write(tmp_path, 3)
    lone = tmp_path / "elsewhere.safetensors"
    lone.write_bytes((tmp_path / "checkpoints/last/model.safetensors").read_bytes())
    found = checkpoint.load_weights(lone)
    assert (found.recipe_text, found.step) == (RECIPE, -1)


@pytest.mark.fault("T4")
@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "train_state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, name, damage):
    write(tmp_path, 1)
    newest = write(tmp_path, 2, best=True)
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    kept = {"flip": content, "cut": content[:-1], "empty": b""}
    path.unlink() if damage == "gone" else path.write_bytes(kept[damage])
    with pytest.warns(UserWarning, match="step_00000002"):
        assert checkpoint.load(tmp_path).step == 1
    with pytest.warns(UserWarning, match=name):
        assert checkpoint.load(tmp_path, "best").step == 1
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(newest)


@pytest.mark.fault("T4")
def test_no_flipped_bit_of_a_manifest_counts(tmp_path):
    """Whatever it makes of step, sums, versions or the sum itself, the checkpoint before is taken, with a warning."""
    write(tmp_path, 1, best=True)
    path = write(tmp_path, 2) / "manifest.json"
    content = path.read_bytes()
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.warns(UserWarning, match="step_00000002"):
            assert checkpoint.load(tmp_path).step == 1, bit
    path.write_bytes(content)
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.fault("T4")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("step", value) for value in ("2", -1, 3, True, None, 2.5, [2])),
        *(("best", value) for value in ("yes", 1, None)),
        *(("files", value) for value in ([], {}, {"../x": {"sha256": "0" * 64}}, None, 7)),
        *(("format", value) for value in (True, "2", 3, None)),
        ("versions", 3),
    ],
)
def test_a_manifest_of_other_types_with_a_right_sum_is_passed_over(tmp_path, key, value):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    rewrite(newest, **{key: value})
    if key == "versions":
        assert checkpoint.load(tmp_path).version == ""
        return
    with pytest.warns(UserWarning, match="step_00000002"):
        assert checkpoint.load(tmp_path).step == 1


def test_a_manifest_of_an_older_version_is_read(tmp_path):
    folder = write(tmp_path, 1)
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    (folder / "manifest.json").write_text(json.dumps({**content, "format": 1}))
    assert checkpoint.load(tmp_path).step == 1


@pytest.mark.parametrize("link", ["loop", "dangling", "file", "folder"])
def test_links_that_lead_nowhere_do_not_hide_the_best(tmp_path, link):
    write(tmp_path, 1, best=True)
    write(tmp_path, 2)
    for name in ("best", "last"):
        path = tmp_path / "checkpoints" / name
        path.unlink()
        if link == "folder":
            shutil.copytree(tmp_path / "checkpoints" / f"step_0000000{1 if name == 'best' else 2}", path)
        elif link == "file":
            path.write_text("")
        else:
            path.symlink_to(name if link == "loop" else "step_00000099")
    assert checkpoint.load_weights(tmp_path).step == 1
    with pytest.raises(CheckpointError) if link != "folder" else nullcontext():
        checkpoint.load(tmp_path / "checkpoints" / "last")
    if link != "file":
        write(tmp_path, 3)
        assert str((tmp_path / "checkpoints/last").readlink()) == "step_00000003"
    assert checkpoint.load(tmp_path, "best").step == 1


@pytest.mark.fault("T1")
def test_a_crash_while_a_step_is_written_anew_loses_nothing(tmp_path, monkeypatch):
    write(tmp_path, 1)
    original = Path.replace

    def fails(self, target):
        if Path(target).name == "step_00000001":
            raise Crash
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(Crash):
            write(tmp_path, 1)
    checkpoint.clean_up(tmp_path)
    assert checkpoint.load(tmp_path).step == 1
    assert names(tmp_path) == ["last", "step_00000001"]


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02.", b"\x80\x02]q\x00.", b"garbage" * 99])
def test_a_train_state_that_is_none_is_told(tmp_path, content):
    folder = write(tmp_path, 1)
    (folder / "train_state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"train_state\.pt"):
        checkpoint.load_train_state(folder)


@pytest.mark.fault("T4")
def test_nothing_sound_says_what_is_wrong_with_each(tmp_path):
    for step in (1, 2):
        (write(tmp_path, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)No valid.*step_00000002.*step_00000001"):
        checkpoint.load(tmp_path)


@pytest.mark.fault("T4")
def test_damaged_newer_ones_are_set_aside_and_do_not_push_out_sound_ones(tmp_path):
    write(tmp_path, 1)
    (write(tmp_path, 9) / "recipe.yaml").unlink()
    checkpoint.clean_up(tmp_path, 1)
    assert names(tmp_path) == ["damaged-step_00000009", "last", "step_00000001"]
    for step in (2, 3, 9):
        write(tmp_path, step)
    assert [name for name in names(tmp_path) if name.startswith("step")] == ["step_00000003", "step_00000009"]
    assert checkpoint.load(tmp_path).step == 9


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.fault("T1")
@pytest.mark.parametrize("operation", ["replace", "symlink_to", "sync"])
@pytest.mark.parametrize("moment", range(12))
def test_a_crash_at_any_file_operation_of_a_save_loses_nothing(tmp_path, monkeypatch, operation, moment):
    write(tmp_path, 1, best=True)
    write(tmp_path, 2)
    owner, name = (os, "fsync") if operation == "sync" else (Path, operation)
    original, calls = getattr(owner, name), []

    def fails(*arguments, **options):
        calls.append(arguments)
        if len(calls) > moment:
            raise Crash
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        crashed = False
        try:
            write(tmp_path, 3, best=True)
        except Crash:
            crashed = True
    assert crashed == (len(calls) > moment)
    newest = checkpoint.load(tmp_path)
    assert newest.step in (2, 3)
    assert checkpoint.load(tmp_path, "best").step in (1, 3)
    checkpoint.clean_up(tmp_path, newest.step)
    assert not [name for name in names(tmp_path) if name.startswith(checkpoint.TEMPORARY_PREFIX)]
    assert str((tmp_path / "checkpoints/last").readlink()) == f"step_{newest.step:08d}"
    assert checkpoint.load(tmp_path, "best").step == (3 if newest.step == 3 else 1)
    write(tmp_path, 4)
    assert checkpoint.load(tmp_path).step == 4


@pytest.mark.fault("T1")
def test_a_step_that_is_written_again_replaces_the_old_one(tmp_path):
    (write(tmp_path, 1) / "recipe.yaml").unlink()
    write(tmp_path, 1)
    assert checkpoint.load(tmp_path).step == 1
    assert names(tmp_path) == ["last", "step_00000001"]


@pytest.mark.fault("T3")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    write(tmp_path, 1)
    code = (
        "import resource, sys, pathlib, torch\n"
        "from perception import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "big = {'w': torch.zeros(100_000)}\n"
        "small = {'w': torch.zeros(1)}\n"
        "for model, state in ((big, small), (small, big)):\n"
        "    try:\n"
        "        checkpoint.save(pathlib.Path(sys.argv[1]), 2, model=model, train_state=state, recipe_text='')\n"
        "    except checkpoint.CheckpointDiskFullError as error:\n"
        "        print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("Could not write checkpoint") == 2, done.stderr
    assert checkpoint.load(tmp_path).step == 1
    assert names(tmp_path) == ["last", "step_00000001"]


@pytest.mark.fault("T3")
def test_a_read_only_folder(tmp_path):
    write(tmp_path, 1)
    with (
        full_disks.read_only_folder(tmp_path / "checkpoints"),
        pytest.raises(CheckpointError, match="Make the folder writable"),
    ):
        write(tmp_path, 2)
    assert checkpoint.load(tmp_path).step == 1
    write(tmp_path, 2)
    assert names(tmp_path) == ["last", "step_00000001", "step_00000002"]


@pytest.mark.fault("T3")
def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="Could not write"):
        write(tmp_path, 1)


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {Bomb.target}",)

    target = ""


@pytest.mark.fault("S1")
def test_a_pickle_that_runs_code_is_refused(tmp_path):
    Bomb.target = str(tmp_path / "exploded")
    folder = write(tmp_path, 1)
    torch.save({"model": Bomb()}, folder / "train_state.pt")
    rewrite(folder)
    assert checkpoint.load(tmp_path).step == 1
    with pytest.raises(CheckpointError, match=r"train_state\.pt"):
        checkpoint.load_train_state(folder)
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match=name):
            checkpoint.load_weights(tmp_path / name)
    assert not Path(Bomb.target).exists()


@pytest.mark.fault("S1")
def test_no_code_path_reads_a_pickle_unguarded():
    package = Path(perception.__file__).parent
    for path in package.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert "weights_only=False" not in line, path
            assert "torch.load(" not in line or "weights_only=True" in line, path


@pytest.mark.parametrize("missing", ["nowhere", "empty", "file.txt"])
def test_nothing_there_says_so(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(CheckpointError, match=missing):
        checkpoint.load_weights(tmp_path / missing)


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = nn.Linear(3, 2)
    checkpoint.save(tmp_path, 1, model=model.state_dict(), train_state={}, recipe_text="")
    found = checkpoint.load(tmp_path)
    other = nn.Linear(3, 2)
    checkpoint.load_into_model(other, found)
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(CheckpointError, match=r"weight of shape \(2, 3\), expected \(4, 3\)"):
        checkpoint.load_into_model(nn.Linear(3, 4), found)
    with pytest.raises(CheckpointError, match=r"lacks 0\.weight"):
        checkpoint.load_into_model(nn.Sequential(nn.Linear(3, 2)), found)


@pytest.mark.fault("T5")
def test_a_changed_recipe_shows_the_difference(tmp_path):
    write(tmp_path, 1)
    found = checkpoint.load(tmp_path)
    checkpoint.require_same_recipe(found, RECIPE)
    with pytest.raises(CheckpointError, match=r"(?s)-lr: 0\.1.*\+lr: 0\.2"):
        checkpoint.require_same_recipe(found, RECIPE.replace("0.1", "0.2"))
