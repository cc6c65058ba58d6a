"""How fast `perception predict` is on a video beside its network alone, and whether its memory stays flat.

python tools/benchmark_video.py MODEL.onnx VIDEO [--rounds 3] [--loops 20]

The network alone runs on the frames of the video, letterboxed, by one thread, as it does within `predict`. All take
turns.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from perception.runtime.predictor import Predictor, preprocess
from perception.video.predict import PredictOptions, predict
from perception.video.readers import to_rgb

SAVED_FORMATS = {"predict, jsonl": ("jsonl",), "predict, jsonl and mp4": ("jsonl", "mp4")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops", type=int, default=0, help="how often to run the video through, for the memory")
    parser.add_argument("--track", action="store_true", help="follow objects too")
    parsed = parser.parse_args()
    perceiver = Predictor(parsed.model, threads=1, allow_spinning=False).warm_up()
    kinds: dict[str, Callable[[], float]] = {"network alone": lambda: time_network(perceiver, parsed.video)}
    for name, save in SAVED_FORMATS.items():
        kinds[name] = lambda s=save: time_predict(perceiver, parsed.video, PredictOptions(save=s, track=parsed.track))
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(parsed.rounds):
        for name, run in kinds.items():
            rates[name].append(run())
    first = rates["network alone"]
    for name, found in rates.items():
        ratio = np.median(np.divide(found, first))
        print(f"{name:24s} {np.median(found):6.1f} frames/s  {ratio:.2f} x the network alone")
    memory = []
    for _ in range(parsed.loops):
        time_predict(perceiver, parsed.video, PredictOptions(track=parsed.track))
        memory.append(resident_megabytes())
    if memory:
        print(f"resident memory after loops 2 and {parsed.loops}: {memory[1]:.0f} and {memory[-1]:.0f} MB")


def time_network(predictor: Predictor, path: Path) -> float:
    """Frames per second of the network by itself."""
    video, seconds, count = cv2.VideoCapture(str(path)), 0.0, 0
    while True:
        done, frame = video.read()
        if not done:
            break
        batch, _ = preprocess([to_rgb(frame)], predictor.letterbox_size())
        begin = time.perf_counter()
        predictor.run(batch)
        seconds, count = seconds + time.perf_counter() - begin, count + 1
    return count / seconds


def time_predict(predictor: Predictor, path: Path, options: PredictOptions) -> float:
    """Frames per second of `predict`, from the first frame that is read to the last that is written."""
    with tempfile.TemporaryDirectory() as folder:
        report = predict(predictor, path, Path(folder) / "out", options, quiet=True)
    return report.frames / report.seconds


def resident_megabytes() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
