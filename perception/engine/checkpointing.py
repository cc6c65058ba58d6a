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
from perception.engine.log import FILE, Log
from perception.engine.step import Training
from perception.files.safe_write import FullError, writing
from perception.types import CheckpointError

COPIES = 4
"""As often a checkpoint holds what is as large as the weights: them, their moving average, two moments of each."""
BESIDE = 1.05, 1 << 18
"""What files need beside numbers: so many times as much, and so many bytes more."""


class Room:
    """Bytes of a disk that a file without a name holds: the system frees them when the process ends, however it does.

    Raises FullError where the disk has not got them. A file system that cannot hold room (or a limit on the size of
    files) is none's concern: then there is none to give.
    """

    def __init__(self, folder: Path, size: int) -> None:
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open until it is given
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            self._file.close()
            if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise FullError(
                    f"{folder}: its disk has no room for a checkpoint ({size / 1e6:,.0f} MB). Free some space, or give "
                    "a folder on another disk."
                ) from error
        except AttributeError:  # a system that knows no such call
            self._file.close()

    def give(self) -> bool:
        """Give it back. Returns whether there was any."""
        if self._file.closed:
            return False
        self._file.truncate(0)  # also where forked workers have the file open
        self._file.close()
        return True


class Saving:
    """Writes checkpoints of a training that `begin` has begun; ``keep``: how many of the newest stay.

    A context: it holds the room for one until its end. Raises FullError, on every rank, where there is none.
    """

    def __init__(self, training: Training, run: Path, recipe: str, keep: int, log: Log) -> None:
        self._training, self._run, self._recipe, self._keep, self._log = training, run, recipe, keep, log
        self._saved = self._state() if checkpoint.has_checkpoints(run) else None
        weights = training.model.state_dict().values()
        size = COPIES * sum(each.numel() * each.element_size() for each in weights)
        self._room = distributed.on_main(lambda: Room(run, int(size * BESIDE[0]) + BESIDE[1]))

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_room()

    def _give_room(self) -> bool:
        return self._room is not None and self._room.give()

    def __call__(self, best: bool, wanted: bool = True) -> None:
        """Write one, where it is ``wanted`` and the newest is of another state. Every rank calls this.

        Raises CheckpointError, on every rank, where it cannot be written, FullError where that took the room that was
        held for it.
        """
        if not wanted or self._saved == self._state():
            return
        distributed.on_main(lambda: self._write(best))
        self._saved = self._state()

    def and_say_why(self, stop: int) -> int:
        """Save what a training came to that ends early, and say so. stop: exit code of a signal, else the log cannot be
        written. Returns the exit code."""
        step, resume = self._training.step, f"Go on with --resume {self._run}"
        if stop == 1:
            self._give_room()
        try:
            self(best=False)
            saved = "saved"
        except CheckpointError as error:
            if stop > 1:
                raise
            saved = f"the training was not saved either ({error})"
        if stop > 1:
            self._log.say(f"Stopped by a signal at step {step}; {saved}. {resume}.")
            return stop
        self._log.say(
            f"Stopped at step {step}: {self._run / FILE} cannot be written ({self._log.failure}); {saved}. "
            f"{resume} once there is room on the disk."
        )
        return 1

    def _state(self) -> tuple[int, int]:
        return self._training.step, self._training.assessed

    def _write(self, best: bool) -> None:
        training = self._training
        training.seconds = self._log.seconds
        self._log.sync()
        try:
            self._save(best)
        except checkpoint.NoRoomError as error:
            if not self._give_room():
                raise
            self._save(best)
            raise FullError(
                f"Stopped at step {training.step}: the disk of {self._run} is full; saved, in the room that was held "
                f"for it. Free some space, then go on with --resume {self._run}."
            ) from error

    def _save(self, best: bool) -> None:
        training = self._training
        checkpoint.save(
            self._run,
            training.step,
            model=training.ema.module.state_dict(),
            train_state=training.state_dict(),
            recipe=self._recipe,
            best=best,
            keep=self._keep,
        )
