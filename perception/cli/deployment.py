"""The commands that run networks: predict, export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from perception.cli.arguments import add_command, add_tasks, bar, camera, names


def add_commands(commands: Any) -> None:
    predict = add_command(commands, "predict", _predict, "run a network on pictures or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file (which needs no torch)")
    predict.add_argument("source", help="picture, folder, glob, video file, camera number, stream URL, ROS bag")
    add_tasks(predict)
    predict.add_argument("--out", type=Path, help="folder for pictures or video and predictions.jsonl")
    predict.add_argument("--maps", action="store_true", help="also write label maps and depth maps as PNG")
    predict.add_argument("--threads", type=int, help="CPU threads")
    predict.add_argument("--camera", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    predict.add_argument("--topics", type=names, metavar="A,B", help="image topics of a bag (default: all)")

    export = add_command(commands, "export", _export, "write one verified ONNX file")
    export.add_argument("model", type=Path, metavar="RUN", help="run folder or checkpoint")
    add_tasks(export)
    export.add_argument("--out", type=Path, help="the file (default: RUN/model.onnx)")


def _predict(parsed: argparse.Namespace) -> int:
    from perception.deploy.predict import out_folder, predict
    from perception.deploy.robots.bags import is_bag
    from perception.deploy.robots.replay import replay

    lens = camera(parsed.camera)
    if parsed.model.suffix == ".onnx":
        from perception.deploy.runtime import Perceiver

        perceiver = Perceiver(parsed.model, threads=parsed.threads, tasks=parsed.tasks)
    else:
        from perception import runs
        from perception.deploy.torch_runtime import TorchPerceiver

        recipe, model = runs.open_run(parsed.model, tasks=parsed.tasks)
        perceiver = TorchPerceiver(model, size=recipe.data.size, threads=parsed.threads)
    if is_bag(parsed.source):
        folder = out_folder(parsed.out)
        done = replay(perceiver, parsed.source, folder / Path(parsed.source).stem, topics=parsed.topics, bar=bar)
        print(done, file=sys.stderr)  # noqa: T201
        return 130 if done.interrupted else 0
    report = predict(perceiver, parsed.source, out=parsed.out, save_maps=parsed.maps, camera=lens)
    return 0 if not report.failures else 1


def _export(parsed: argparse.Namespace) -> int:
    from perception import runs
    from perception.deploy.export import export

    recipe, model = runs.open_run(parsed.model, tasks=parsed.tasks)
    print("Exporting and comparing with torch takes about a minute.", file=sys.stderr)  # noqa: T201
    out = parsed.out or (parsed.model if parsed.model.is_dir() else parsed.model.parent) / "model.onnx"
    print(export(model, out, size=recipe.data.size, images=runs.some_pictures(recipe)))  # noqa: T201
    return 0
