"""Networks that `perception label` can run, and that fail in known ways."""

import os
import signal
import time

import numpy as np

from perception.types import TaskSpec

SPECS = {
    spec.name: spec
    for spec in (
        TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("thing", "other")),
        TaskSpec("segmentation", "dense", ("mask",), ("ground", "sky", "thing")),
        TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0)),
        TaskSpec("classification", "label", ("probabilities",), ("day", "night")),
        TaskSpec("weather", "label", ("probabilities",), ("rain", "sun"), multi_label=True, score_threshold=0.5),
    )
}


class ByColor:
    """A network that tells things by their color, and so says the same of every view; but for what is told not to."""

    size = (96, 160)
    specs = SPECS

    def __init__(self, left_only: bool = False) -> None:
        self.left_only = left_only
        self.seen: list[tuple[int, ...]] = []

    def letterbox_size(self, size=None):
        return size or self.size

    def run(self, images):
        self.seen.append(images.shape)
        red, _, blue = images.astype(int).transpose(1, 0, 2, 3)
        things = (red > 170) & (blue < 90)
        if self.left_only:
            things[:, :, things.shape[2] // 2 :] = False
        labels = np.where(things, 2, np.where(blue > 170, 1, 0)).astype(np.uint8)
        boxes = np.zeros((len(images), 3, 4), np.float32)
        scores = np.zeros((len(images), 3), np.float32)
        for i, thing in enumerate(things):
            if thing.any():
                rows, columns = np.flatnonzero(thing.any(1)), np.flatnonzero(thing.any(0))
                boxes[i, 0] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                boxes[i, 1], scores[i, 1] = (0, 0, 12, 12), 0.15  # something, faintly, in the corner
                scores[i, 0] = 0.9
        return {
            "detection.boxes": boxes,
            "detection.scores": scores,
            "detection.labels": np.zeros((len(images), 3), np.int64),
            "segmentation.mask": labels,
            "depth.depth": np.where(labels == 1, 70, 5).astype(np.float32),
            "classification.probabilities": np.tile(np.float32([0.8, 0.2]), (len(images), 1)),
            "weather.probabilities": np.array([[0.9, 0.9 if t.any() else 0.1] for t in things], np.float32),
        }


class Slow(ByColor):
    """Takes its time, so that a signal finds it at work."""

    def run(self, images):
        time.sleep(0.01)
        return super().run(images)


class Deadly(ByColor):
    """What is dark kills the process; what is bright is more than it can do."""

    def run(self, images):
        if images.mean() < 20:
            os.kill(os.getpid(), signal.SIGSEGV if images[:, 2].mean() > images[:, 1].mean() else signal.SIGKILL)
        if images.min() > 240:
            raise RuntimeError("too bright")
        return super().run(images)


MAKE = {"slow": Slow, "deadly": Deadly, "plain": ByColor}


def make(kind: str):
    return MAKE[kind](), kind
