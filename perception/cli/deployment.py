"""The command that runs networks: predict."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from perception.cli.arguments import add_command, add_tasks, bar, camera, count, names, positive, size

SAVE = "what to write: mp4 (pictures as jpg), jsonl, rrd (default: mp4,jsonl)"


def add_commands(commands: Any) -> None:
    predict = add_command(commands, "predict", _predict, "run a network on pictures or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file (which needs no torch)")
    predict.add_argument("source", help="picture, folder, glob, video file, camera number, stream URL, ROS bag")
    add_tasks(predict)
    predict.add_argument("--out", type=Path, help="folder for what is written, new or empty (default: runs/predict)")
    predict.add_argument("--save", type=names, default=["mp4", "jsonl"], metavar="A,B", help=SAVE)
    predict.add_argument("--maps", action="store_true", help="also write label maps and depth maps as PNG")
    predict.add_argument("--show", action="store_true", help="a live window (needs an OpenCV that has windows)")
    predict.add_argument("--size", type=size, metavar="HxW", help="what the network sees (default: as in training)")
    predict.add_argument("--batch", type=count, default=1, metavar="N", help="pictures of a file run together")
    predict.add_argument("--frames", type=count, metavar="N", help="stop each video or stream after so many")
    predict.add_argument("--camera", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    predict.add_argument("--topics", type=names, metavar="A,B", help="image topics of a bag (default: all)")
    predict.add_argument("--threads", type=count, help="CPU threads of the network (default: all cores but one)")
    predict.add_argument("--providers", type=names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)")
    predict.add_argument("--deadline", type=positive, metavar="MS", help="flag results that take longer")
    predict.add_argument(
        "--timeout", type=positive, default=5.0, metavar="S", help="give up what is silent (default: 5)"
    )


def _predict(parsed: argparse.Namespace) -> int:
    quiet_ffmpeg()
    from perception.deploy.predict import Options, out_folder, predict
    from perception.deploy.robots.bags import is_bag
    from perception.deploy.robots.replay import replay

    threads = parsed.threads or max(1, usable_cores() - 1)
    options = Options(
        camera=camera(parsed.camera),
        size=parsed.size,
        batch=parsed.batch,
        save=(*parsed.save, *(["maps"] if parsed.maps else []), *(["window"] if parsed.show else [])),
        frames=parsed.frames,
        deadline=parsed.deadline and parsed.deadline / 1000,
        timeout=parsed.timeout,
    )
    if parsed.model.suffix == ".onnx":
        from perception.deploy.runtime import Perceiver

        perceiver = Perceiver(parsed.model, threads, parsed.providers, parsed.tasks, spinning=False)
    else:
        from perception import runs
        from perception.deploy.torch_runtime import TorchPerceiver

        recipe, model = runs.open_run(parsed.model, tasks=parsed.tasks)
        perceiver = TorchPerceiver(model, size=recipe.data.size, threads=threads)
    if is_bag(parsed.source):
        folder = out_folder(parsed.out)
        done = replay(perceiver, parsed.source, folder / Path(parsed.source).stem, topics=parsed.topics, bar=bar)
        print(done, file=sys.stderr)  # noqa: T201
        return 130 if done.interrupted else 0
    report = predict(perceiver.warm_up(parsed.batch, parsed.size), parsed.source, parsed.out, options)
    if report.interrupted is not None:
        return 128 + report.interrupted if report.interrupted else 0
    return 0 if not report.failures else 1


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_ffmpeg() -> None:
    """FFmpeg writes a line for each damaged packet, OpenCV one for each attempt to open; the summary counts them."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
