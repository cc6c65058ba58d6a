"""Checkpoints of a training: when they are written, and how a training that ends early is saved.

Disk space for one more checkpoint is reserved during training, so a full disk never costs the trained weights.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from perception import checkpoint
from perception.engine import distributed
from perception.engine.callbacks import Callback, TrainRun
from perception.engine.log import FILE
from perception.engine.step import StepResult
from perception.files.safe_write import DiskFullError, convert_write_errors
from perception.types import CheckpointError

STATE_COPIES = 4
"""Size of a checkpoint in multiples of the weights: the weights, their moving average, and two moments."""
BESIDE = 1.05, 1 << 18
"""Overhead of the files: a factor, and a number of bytes."""


class DiskReservation:
    """Disk space reserved by an unnamed temporary file; the system frees it whenever the process ends.

    Where the file system cannot reserve space, or limits the size of files, nothing is reserved.

    Args:
        folder: a folder on the disk.
        size: bytes to reserve.

    Raises:
        DiskFullError: the disk does not have enough free space.
    """

    def __init__(self, folder: Path, size: int) -> None:
        with convert_write_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - stays open until released
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            self._file.close()
            if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise DiskFullError(
                    f"{folder}: its disk has no room for a checkpoint ({size / 1e6:,.0f} MB). Free some space, or use "
                    "a folder on another disk."
                ) from error
        except AttributeError:  # a system without this call
            self._file.close()

    def release(self) -> bool:
        """Free the space. Returns whether any was reserved."""
        if self._file.closed:
            return False
        self._file.truncate(0)  # also where forked workers have the file open
        self._file.close()
        return True


class CheckpointWriter(Callback):
    """Writes the checkpoints of a training that `start_or_resume` has prepared.

    Used as a context manager; it keeps disk space for one checkpoint reserved until the end.

    Args:
        run: the training.
        recipe_text: YAML text of the resolved recipe.

    Raises:
        DiskFullError: the disk has no room for a checkpoint; raised on every rank.
    """

    def __init__(self, run: TrainRun, recipe_text: str) -> None:
        self._run, self._recipe_text = run, recipe_text
        self._saved_state = self._current_state() if checkpoint.has_checkpoints(run.folder) else None
        weights = run.state.model.state_dict().values()
        size = STATE_COPIES * sum(each.numel() * each.element_size() for each in weights)
        self._reservation = distributed.run_on_main(
            lambda: DiskReservation(run.folder, int(size * BESIDE[0]) + BESIDE[1])
        )

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._release_reservation()

    def _release_reservation(self) -> bool:
        return self._reservation is not None and self._reservation.release()

    def on_start(self, run: TrainRun) -> None:
        """Make up for a checkpoint that a signal prevented."""
        if run.state.step:
            self._save_if_due(run)

    def after_step(self, run: TrainRun, result: StepResult) -> None:
        """Write a checkpoint if one is due or the weights are the best so far.

        Raises:
            CheckpointError: it cannot be written; raised on every rank.
            DiskFullError: it was written, but only by using the reserved space.
        """
        self._save_if_due(run)

    def _save_if_due(self, run: TrainRun) -> None:
        best = run.best_step == run.state.step
        if best or run.config.is_due(run.state.step, run.config.checkpoint_every):
            self._save_changes(best)

    def _save_changes(self, best: bool) -> None:
        """Write a checkpoint if the state has changed since the last one."""
        if self._saved_state != self._current_state():
            distributed.run_on_main(lambda: self._write(best))
            self._saved_state = self._current_state()

    def save_before_exit(self, exit_code: int) -> int:
        """Save a training that ends early, and print a message.

        Args:
            exit_code: that of a signal, or 1 if the log cannot be written.

        Returns:
            The exit code.
        """
        run = self._run
        step, resume = run.state.step, f"Continue with --resume {run.folder}"
        if exit_code == 1:
            self._release_reservation()
        try:
            self._save_changes(best=False)
            saved = "saved"
        except CheckpointError as error:
            if exit_code > 1:
                raise
            saved = f"the training was not saved either ({error})"
        if exit_code > 1:
            run.log.print_message(f"Stopped by a signal at step {step}; {saved}. {resume}.")
            return exit_code
        run.log.print_message(
            f"Stopped at step {step}: {run.folder / FILE} cannot be written ({run.log.failure}); {saved}. "
            f"{resume} once there is room on the disk."
        )
        return 1

    def _current_state(self) -> tuple[int, int]:
        return self._run.state.step, self._run.state.evaluated_step

    def _write(self, best: bool) -> None:
        run = self._run
        run.state.seconds = run.log.seconds
        run.log.sync_to_disk()
        try:
            self._save(best)
        except checkpoint.CheckpointDiskFullError as error:
            if not self._release_reservation():
                raise
            self._save(best)
            raise DiskFullError(
                f"Stopped at step {run.state.step}: the disk of {run.folder} is full; saved in the reserved space. "
                f"Free some space, then continue with --resume {run.folder}."
            ) from error

    def _save(self, best: bool) -> None:
        run = self._run
        checkpoint.save(
            run.folder,
            run.state.step,
            model=run.state.ema.module.state_dict(),
            train_state=run.state.state_dict(),
            recipe_text=self._recipe_text,
            best=best,
            keep=run.config.keep_checkpoints,
        )
