"""T3: a training whose disk fills, or whose folder becomes read-only, loses nothing and says so."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import full_disks
import pytest
import torch
from tiny_network import make_batches
from training_runs import fit

from perception import checkpoint, runs
from perception.engine import log
from perception.engine.evaluate import Evaluation
from perception.files.safe_write import DiskFullError
from perception.types import CheckpointError


@pytest.mark.fault("T3")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"log_every": 1, "checkpoint_every": 0}, "metrics.jsonl cannot be written ([Errno 28] No space left"),
        ({"log_every": 12, "checkpoint_every": 4}, "is full; saved in the reserved space"),
    ],
)
def test_a_full_disk_ends_the_training_with_a_checkpoint_and_a_sentence(tmp_path, capsys, settings, said):
    """Of the step it came to; with room again it goes on as if nothing had happened."""
    settings = {"steps": 60, "evaluate_every": 0, "threads": 1, **settings}
    fit(tmp_path / "whole", **settings)
    capsys.readouterr()
    with full_disks.small_disk(tmp_path / "disk") as disk:

        def filling(first: int):
            for step, batch in enumerate(make_batches(first), first):
                if step == 5:
                    full_disks.fill_disk(disk)
                yield batch

        run = disk / "run"
        with pytest.raises((SystemExit, DiskFullError)) as ended:
            fit(run, None, filling, **settings)
        text = f"{ended.value}{capsys.readouterr().err}"
        assert text.count(said) == text.count("saved") == text.count("--resume") == 1, text
        found = checkpoint.load(run)
        assert 5 <= found.step < 60
        assert f"Stopped at step {found.step}" in text
        (disk / "balloon").unlink()
        fit(run, resume=True, **settings)
        one, other = (checkpoint.load(folder).weights for folder in (tmp_path / "whole", run))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.fault("T3")
def test_a_disk_without_room_for_a_checkpoint_is_told_at_the_start(tmp_path):
    with full_disks.small_disk(tmp_path / "disk") as disk:
        full_disks.fill_disk(disk).write_bytes(bytes(4_000_000))
        with pytest.raises(DiskFullError, match=r"no room for a checkpoint \(0 MB\)"):
            fit(disk / "run", steps=4)


@pytest.mark.fault("T3")
def test_a_full_disk_leaves_the_results_that_were_there(tmp_path):
    with full_disks.small_disk(tmp_path / "disk") as disk:
        (disk / "metrics.json").write_text("{}")
        full_disks.fill_disk(disk)
        with pytest.raises(DiskFullError, match=r"metrics\.json.* cannot be written: No space left on device"):
            runs.write_results(disk, None, None, Evaluation({}, {}, {}, 0.0, 1), 3)  # pyright: ignore[reportArgumentType]
        assert (disk / "metrics.json").read_text() == "{}"
        assert sorted(path.name for path in disk.iterdir()) == ["balloon", "metrics.json"]


@pytest.mark.fault("T3")
def test_a_full_disk_that_has_no_room_at_all_is_told(tmp_path, monkeypatch, capsys):
    """What was saved before stays."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def filling(first: int):
        for step, batch in enumerate(make_batches(first), first):
            if step == 5:
                patch.setattr(log, "to_json_value", full)
                patch.setattr(checkpoint, "_write_files", full)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        fit(tmp_path, None, filling, steps=12, evaluate_every=0, log_every=1)
    assert ended.value.code == 1
    assert "; the training was not saved either (" in capsys.readouterr().err
    assert checkpoint.load(tmp_path).step == 4


@pytest.mark.fault("T3")
def test_a_run_folder_that_becomes_read_only_ends_the_training(tmp_path):
    """With the checkpoint before intact, from which it goes on."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with ExitStack() as opened:

        def closing(first: int):
            for step, batch in enumerate(make_batches(first), first):
                if step == 5:
                    opened.enter_context(full_disks.read_only_folder(tmp_path / "run" / "checkpoints"))
                yield batch

        with pytest.raises(CheckpointError, match=r"step_00000008.*Make the folder writable"):
            fit(tmp_path / "run", None, closing, steps=12, evaluate_every=0)
    assert fit(tmp_path / "run", steps=12, evaluate_every=0, resume=True).step == 12
