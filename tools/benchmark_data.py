"""Training loaders compared, in turns: OMP_NUM_THREADS=1 taskset -c 0 python tools/benchmark_data.py DATA [WORKERS ...]

DATA holds carla/ (datasets/README.md). Batches of 16 at 352 x 640 with mirroring, zoom, crop and color: this project,
torchvision's transforms v2, and Ultralytics' loader where it can be imported (384 x 640 with "rect", else 640 x 640).
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import cv2
import peer_loaders as rivals
import torch
from peer_loaders import ANNOTATIONS, BATCH, CLASSES, IMAGES, SIZE

from perception.bench.data import time_batches
from perception.config import validate_config
from perception.data import AugmentConfig, SourceConfig, open_source
from perception.data.loader import make_train_loader
from perception.data.mixture import Mixture

SECONDS, NUM_ROUNDS = 4, 5


def our_loader(data, workers, mosaic=0.0):
    labels = {"format": "coco", "images": IMAGES, "annotations": ANNOTATIONS}
    source = open_source(
        validate_config(SourceConfig, {"name": "carla", "labels": [labels]}), data, {"detection": CLASSES}
    )
    augment = validate_config(AugmentConfig, {"scale": [0.5, 1.5], "color": 1, "degrade": 0, "mosaic": mosaic})
    assert source is not None
    yield from make_train_loader(Mixture([source], SIZE, augment), ["detection"], BATCH, 10**6, workers=workers)


LOADERS = {
    "ours": our_loader,
    "torchvision v2": rivals.torchvision_loader,
    "torchvision v2, Pillow": lambda data, workers: rivals.torchvision_loader(data, workers, pillow=True),
    "ultralytics, rect": lambda data, workers: rivals.ultralytics_loader(data, workers, rect=True),
    "ultralytics": rivals.ultralytics_loader,
    "ours, mosaic": lambda data, workers: our_loader(data, workers, 1.0),
    "ultralytics, mosaic": lambda data, workers: rivals.ultralytics_loader(data, workers, mosaic=1.0),
}


def count_images(batch) -> int:
    return len(batch["img"] if isinstance(batch, dict) else batch)


def main(data: Path, workers: int) -> None:
    there = importlib.util.find_spec("ultralytics") is not None
    costs = {name: [] for name in LOADERS if there or not name.startswith("ultralytics")}
    for _ in range(NUM_ROUNDS):
        for name, values in costs.items():
            values.append(time_batches(LOADERS[name](data, workers), count_images, SECONDS))
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
