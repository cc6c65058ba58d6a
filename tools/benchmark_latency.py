"""One network against several, as ONNX files in ONNX Runtime on one thread, in turns.

python tools/benchmark_latency.py OURS.onnx THEIRS.onnx ... --size 640x640

Random weights take as long as trained ones, so the others' files may come from an untrained network, for example
Ultralytics' `yolo export model=yolo26n.yaml format=onnx imgsz=640`, and the same of yolo26n-sem and yolo26n-depth.
"""

import argparse
import time

import numpy as np
import onnxruntime

NUM_ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours")
    parser.add_argument("theirs", nargs="+")
    parser.add_argument("--size", default="640x640")
    parsed = parser.parse_args()
    height, width = map(int, parsed.size.split("x"))
    runs = {path: open_runner(path, height, width) for path in (parsed.ours, *parsed.theirs)}
    seconds: dict[str, list[float]] = {path: [] for path in runs}
    for _ in range(NUM_ROUNDS):
        for path, run in runs.items():
            begin = time.process_time()
            run()
            seconds[path].append(time.process_time() - begin)
    medians = {path: 1e3 * float(np.median(values)) for path, values in seconds.items()}
    for path, median in medians.items():
        print(f"{median:9.1f} ms  {path}")
    others = [medians[path] for path in parsed.theirs]
    ratios = np.array(seconds[parsed.ours]) / np.sum([seconds[path] for path in parsed.theirs], axis=0)
    low, high = np.percentile(ratios, [25, 75])
    print(f"ours / sum of theirs ({sum(others):.1f} ms) = {np.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")


def open_runner(path: str, height: int, width: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (entry,) = found.get_inputs()
    kind = np.uint8 if "uint8" in entry.type else np.float32
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, height, width))
    feed = {entry.name: noise.astype(kind) if kind == np.uint8 else (noise / 255).astype(kind)}
    found.run(None, feed)
    return lambda: found.run(None, feed)


if __name__ == "__main__":
    main()
