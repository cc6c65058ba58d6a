"""Training loaders compared, in turns: OMP_NUM_THREADS=1 taskset -c 0 python tools/benchmark_data.py DATA [WORKERS ...]

DATA holds carla/ (datasets/README.md). Batches of 16 at 352 x 640 with mirroring, zoom, crop and colour: this project,
torchvision's transforms v2, and Ultralytics' loader where it can be imported (384 x 640 with "rect", else 640 x 640).
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import benchmark_rivals as rivals
import cv2
import torch
from benchmark_rivals import ANNOTATIONS, BATCH, IMAGES, NAMES, SIZE

from perception.bench.data import batches_cost
from perception.config import build
from perception.data import AugmentConfig, SourceConfig, open_source
from perception.data.loader import train_batches
from perception.data.mixture import Mixture

SECONDS, ROUNDS = 4, 5


def ours(data, workers, mosaic=0.0):
    labels = {"format": "coco", "images": IMAGES, "annotations": ANNOTATIONS}
    source = open_source(build(SourceConfig, {"name": "carla", "labels": [labels]}), data, {"detection": NAMES})
    augment = build(AugmentConfig, {"scale": [0.5, 1.5], "colour": 1, "degrade": 0, "mosaic": mosaic})
    assert source is not None
    yield from train_batches(Mixture([source], SIZE, augment), ["detection"], BATCH, 10**6, workers=workers)


CONTENDERS = {
    "ours": ours,
    "torchvision v2": rivals.torchvision,
    "torchvision v2, Pillow": lambda data, workers: rivals.torchvision(data, workers, pillow=True),
    "ultralytics, rect": lambda data, workers: rivals.ultralytics(data, workers, rect=True),
    "ultralytics": rivals.ultralytics,
    "ours, mosaic": lambda data, workers: ours(data, workers, 1.0),
    "ultralytics, mosaic": lambda data, workers: rivals.ultralytics(data, workers, mosaic=1.0),
}


def count(batch) -> int:
    return len(batch["img"] if isinstance(batch, dict) else batch)


def main(data: Path, workers: int) -> None:
    there = importlib.util.find_spec("ultralytics") is not None
    costs = {name: [] for name in CONTENDERS if there or not name.startswith("ultralytics")}
    for _ in range(ROUNDS):
        for name, values in costs.items():
            values.append(batches_cost(CONTENDERS[name](data, workers), count, SECONDS))
    middle = {name: [statistics.median(part) for part in zip(*values, strict=True)] for name, values in costs.items()}
    print(f"\n{f'{workers} workers, per picture':24s} {'wall':>9s} {'processor':>12s} {'ours is faster by':>18s}")
    for name, (wall, processor) in middle.items():
        ratio = processor / middle["ours, mosaic" if name.endswith("mosaic") else "ours"][1]
        print(f"{name:24s} {wall * 1e3:6.2f} ms {processor * 1e3:9.2f} ms {ratio:18.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for workers in map(int, sys.argv[2:] or ("0", "1")):
        main(Path(sys.argv[1]).resolve(), workers)
