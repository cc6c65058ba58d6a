"""The checkpoints of a training: when one is written, and what is said when it ends before its time."""

from __future__ import annotations

from pathlib import Path

from perception import checkpoint
from perception.engine import distributed
from perception.engine.log import FILE, Log
from perception.engine.step import Training
from perception.types import CheckpointError


class Saving:
    """Writes checkpoints of a training that `begin` has begun; ``keep``: how many of the newest stay."""

    def __init__(self, training: Training, run: Path, recipe: str, keep: int, log: Log) -> None:
        self._training, self._run, self._recipe, self._keep, self._log = training, run, recipe, keep, log
        self._saved = self._state() if checkpoint.has_checkpoints(run) else None

    def __call__(self, best: bool, wanted: bool = True) -> None:
        """Write one, where it is ``wanted`` and the newest is of another state. Every rank calls this.

        Raises CheckpointError, on every rank, where it cannot be written.
        """
        if not wanted or self._saved == self._state():
            return
        distributed.on_main(lambda: self._write(best))
        self._saved = self._state()

    def and_say_why(self, stop: int) -> int:
        """Save what a training came to that ends early, and say so. stop: exit code of a signal, else the log cannot be
        written. Returns the exit code."""
        step, resume = self._training.step, f"Go on with --resume {self._run}"
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
        checkpoint.save(
            self._run,
            training.step,
            model=training.ema.module.state_dict(),
            train_state=training.state_dict(),
            recipe=self._recipe,
            best=best,
            keep=self._keep,
        )
