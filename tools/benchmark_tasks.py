"""What the four tasks cost beside the bare backbone, in one run: python tools/benchmark_tasks.py [HEIGHT WIDTH]."""

import statistics
import sys
import time

import torch

from perception.model import ModelConfig, MultiTaskModel
from perception.tasks import TASKS

CLASSES = {"detection": 6, "segmentation": 19, "classification": 6}
NUM_ROUNDS = 15


def main(height: int = 512, width: int = 512) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    names = {task: tuple(map(str, range(count))) for task, count in CLASSES.items()}
    configs = {task: kind.Config(**({"classes": names[task]} if task in names else {})) for task, kind in TASKS.items()}
    model = MultiTaskModel(ModelConfig(), configs).eval()
    picture = torch.randint(0, 255, (1, 3, height, width), dtype=torch.uint8)
    stages = {
        "backbone": lambda: model.backbone(picture),
        "four tasks, raw outputs": lambda: model(picture),
        "four tasks, decoded": lambda: model.predict(picture),
        **{f"{task} alone, decoded": lambda task=task: model.predict(picture, {task}) for task in TASKS},
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    with torch.inference_mode():
        for _ in range(NUM_ROUNDS):
            for name, stage in stages.items():
                start = time.perf_counter()
                stage()
                seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds["backbone"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:28s} {median * 1e3:7.1f} ms  {median / bare:.2f} x backbone")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
