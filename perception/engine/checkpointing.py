"""The checkpoints of a training: when one is written, and what is said when it ends before its time.

Room for one more is held on the disk all the while, so that a disk that fills ends a training with all it has learned.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from perception import checkpoint
from perception.engine import distributed
from perception.engine.log import FILE, TrainLog
from perception.engine.step import TrainState
from perception.files.safe_write import DiskFullError, convert_write_errors
from perception.types import CheckpointError

STATE_COPIES = 4
"""As often a checkpoint holds what is as large as the weights: them, their moving average, two moments of each."""
BESIDE = 1.05, 1 << 18
"""What files need beside numbers: so many times as much, and so many bytes more."""


class DiskReservation:
    """Bytes of a disk that a file without a name holds: the system frees them when the process ends, however it does.

    Raises FullError where the disk has not got them. A file system that cannot hold room (or a limit on the size of
    files) is none's concern: then there is none to give.
    """

    def __init__(self, folder: Path, size: int) -> None:
        with convert_write_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open until it is given
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            self._file.close()
            if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise DiskFullError(
                    f"{folder}: its disk has no room for a checkpoint ({size / 1e6:,.0f} MB). Free some space, or give "
                    "a folder on another disk."
                ) from error
        except AttributeError:  # a system that knows no such call
            self._file.close()

    def release(self) -> bool:
        """Give it back. Returns whether there was any."""
        if self._file.closed:
            return False
        self._file.truncate(0)  # also where forked workers have the file open
        self._file.close()
        return True


class CheckpointWriter:
    """Writes checkpoints of a training that `begin` has begun; ``keep``: how many of the newest stay.

    A context: it holds the room for one until its end. Raises FullError, on every rank, where there is none.
    """

    def __init__(self, train_state: TrainState, run_folder: Path, recipe_text: str, keep: int, log: TrainLog) -> None:
        self._train_state, self._run_folder, self._recipe_text, self._keep, self._log = (
            train_state,
            run_folder,
            recipe_text,
            keep,
            log,
        )
        self._saved_state = self._current_state() if checkpoint.has_checkpoints(run_folder) else None
        weights = train_state.model.state_dict().values()
        size = STATE_COPIES * sum(each.numel() * each.element_size() for each in weights)
        self._reservation = distributed.run_on_main(
            lambda: DiskReservation(run_folder, int(size * BESIDE[0]) + BESIDE[1])
        )

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._release_reservation()

    def _release_reservation(self) -> bool:
        return self._reservation is not None and self._reservation.release()

    def __call__(self, best: bool, due: bool = True) -> None:
        """Write one, where it is ``due`` and the newest is of another state. Every rank calls this.

        Raises CheckpointError, on every rank, where it cannot be written, FullError where that took the room that was
        held for it.
        """
        if not due or self._saved_state == self._current_state():
            return
        distributed.run_on_main(lambda: self._write(best))
        self._saved_state = self._current_state()

    def save_before_exit(self, exit_code: int) -> int:
        """Save what a training came to that ends early, and say so. exit_code: exit code of a signal, else the log
        cannot be
        written. Returns the exit code."""
        step, resume = self._train_state.step, f"Go on with --resume {self._run_folder}"
        if exit_code == 1:
            self._release_reservation()
        try:
            self(best=False)
            saved = "saved"
        except CheckpointError as error:
            if exit_code > 1:
                raise
            saved = f"the training was not saved either ({error})"
        if exit_code > 1:
            self._log.print_message(f"Stopped by a signal at step {step}; {saved}. {resume}.")
            return exit_code
        self._log.print_message(
            f"Stopped at step {step}: {self._run_folder / FILE} cannot be written ({self._log.failure}); {saved}. "
            f"{resume} once there is room on the disk."
        )
        return 1

    def _current_state(self) -> tuple[int, int]:
        return self._train_state.step, self._train_state.evaluated_step

    def _write(self, best: bool) -> None:
        training = self._train_state
        training.seconds = self._log.seconds
        self._log.sync_to_disk()
        try:
            self._save(best)
        except checkpoint.CheckpointDiskFullError as error:
            if not self._release_reservation():
                raise
            self._save(best)
            raise DiskFullError(
                f"Stopped at step {training.step}: the disk of {self._run_folder} "
                "is full; saved, in the room that was held "
                f"for it. Free some space, then go on with --resume {self._run_folder}."
            ) from error

    def _save(self, best: bool) -> None:
        training = self._train_state
        checkpoint.save(
            self._run_folder,
            training.step,
            model=training.ema.module.state_dict(),
            train_state=training.state_dict(),
            recipe_text=self._recipe_text,
            best=best,
            keep=self._keep,
        )
