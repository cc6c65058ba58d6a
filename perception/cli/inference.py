"""The commands that run networks: predict, calibrate, label."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perception.cli.arguments import (
    add_command,
    add_tasks,
    bar,
    camera,
    check_order,
    count,
    names,
    positive,
    say,
    shard,
    size,
)
from perception.files.safe_names import printable
from perception.files.safe_write import make_folder
from perception.video.interrupt import check, held, terminable

SAVE = (
    "what to write: mp4 (pictures as jpg), jsonl, mcap (a ROS 2 bag), rrd (default: mp4,jsonl; of a bag always a bag)"
)


def add_commands(commands: Any) -> None:
    predict = add_command(commands, "predict", stoppable(_predict), "run a network on pictures or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file (which needs no torch)")
    predict.add_argument("source", help="picture, folder, glob, list, video, camera number, URL, - (stdin), ROS bag")
    add_tasks(predict)
    predict.add_argument("--out", type=Path, help="folder for what is written, new or empty (default: runs/predict)")
    predict.add_argument("--save", type=names, metavar="A,B", help=SAVE)
    predict.add_argument("--maps", action="store_true", help="also write label maps and depth maps as PNG")
    predict.add_argument("--show", action="store_true", help="a live window (needs an OpenCV that has windows)")
    predict.add_argument("--size", type=size, metavar="HxW", help="what the network sees (default: as in training)")
    predict.add_argument("--batch", type=count, default=1, metavar="N", help="pictures of a file run together")
    predict.add_argument("--frames", type=count, metavar="N", help="stop each video or stream after so many")
    predict.add_argument("--camera", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    predict.add_argument("--topics", type=names, metavar="A,B", help="image topics of a bag (default: all)")
    predict.add_argument("--threads", type=count, help="CPU threads of the network (default: all cores but one)")
    predict.add_argument("--providers", type=names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)")
    predict.add_argument("--track", action="store_true", help="follow objects: numbers, closing speed, time to contact")
    predict.add_argument(
        "--smooth",
        type=positive,
        metavar="S",
        help="smooth label maps and depth of videos over so many seconds (0.1 to 1; at least two frames)",
    )
    predict.add_argument(
        "--calibration", type=Path, metavar="FILE", help="of `perception calibrate` (default: MODEL's)"
    )
    predict.add_argument("--deadline", type=positive, metavar="MS", help="flag results that take longer")
    predict.add_argument(
        "--timeout", type=positive, default=5.0, metavar="S", help="give up what is silent (default: 5)"
    )

    calibrate = add_command(
        commands, "calibrate", stoppable(_calibrate), "learn what good pictures look like to a network"
    )
    calibrate.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file")
    calibrate.add_argument("source", help="good pictures or videos of where it will work: file, folder, glob")
    add_tasks(calibrate)
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="default: beside MODEL, where predict looks for it")
    calibrate.add_argument("--camera", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    calibrate.add_argument("--threads", type=count, help="CPU threads of the network (default: all cores)")
    calibrate.add_argument("--providers", type=names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)")

    label = add_command(
        commands, "label", stoppable(_label), "label pictures that lack labels, where a network is sure of them"
    )
    label.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file, trained for the tasks")
    label.add_argument("pictures", type=Path, metavar="PICTURES", help="folder of pictures")
    add_tasks(label)
    label.add_argument("--out", type=Path, required=True, help="folder for the labels, new or empty")
    label.add_argument("--resume", action="store_true", help="go on where it was stopped or killed, or merge shards")
    label.add_argument("--jobs", type=count, default=1, metavar="N", help="processes (default: 1)")
    label.add_argument("--shard", type=shard, metavar="I/N", help="every N-th picture only; --resume merges in the end")
    label.add_argument("--root", type=Path, default=Path(), help="data.root of the recipe that will read them")
    label.add_argument("--no-mirror", action="store_true", help="left and right are not alike (words, arrows)")
    label.add_argument("--camera", help="intrinsics in pixels of the pictures: fx,fy,cx,cy")
    label.add_argument("--threads", type=count, help="CPU threads of the network (default: all cores)")
    label.add_argument("--providers", type=names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)")


def stoppable(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command; the first signal ends it in order, from its imports on."""

    def run(parsed: argparse.Namespace) -> int:
        quiet_ffmpeg()
        with terminable():
            with held():  # interrupted in C, OpenCV's import of numpy prints a traceback
                import cv2  # noqa: F401
            check()
            return command(parsed)

    return run


def _predict(parsed: argparse.Namespace) -> int:
    from perception.robots.bags import is_bag
    from perception.video.predict import Options, out_folder, predict
    from perception.video.replay import replay

    bag = is_bag(parsed.source)
    _check_fits(parsed, bag)
    threads = parsed.threads or max(1, usable_cores() - 1)
    options = Options(
        track=parsed.track,
        smooth=parsed.smooth,
        camera=camera(parsed.camera),
        size=parsed.size,
        batch=parsed.batch,
        save=(
            *(parsed.save or ("mp4", "jsonl")),
            *(["maps"] if parsed.maps else []),
            *(["window"] if parsed.show else []),
        ),
        frames=parsed.frames,
        deadline=parsed.deadline and parsed.deadline / 1000,
        timeout=parsed.timeout,
    )
    perceiver = _perceiver(parsed, threads)
    options = dataclasses.replace(
        options, calibration=_calibration(parsed.calibration, parsed.model, parsed.tasks, perceiver)
    )
    if bag:
        folder = out_folder(parsed.out)
        out = folder / (Path(parsed.source).stem or Path(parsed.source).resolve().stem)
        done = replay(perceiver, parsed.source, out, topics=parsed.topics, options=options, bar=bar)
        print(done, file=sys.stderr)  # noqa: T201
        return 128 + done.interrupted if done.interrupted is not None else 0 if done.frames else 1
    report = predict(perceiver.warm_up(parsed.batch, parsed.size), parsed.source, parsed.out, options)
    if report.interrupted is not None:
        return 128 + report.interrupted if report.interrupted else 0
    return 0 if not report.failures else 1


def _check_fits(parsed: argparse.Namespace, bag: bool) -> None:
    """Raise ConfigError for an option that this source would leave unheard."""
    from perception.types import ConfigError

    unheard = {
        "--topics": parsed.topics and not bag and "only a bag has topics",
        "--save": bag and parsed.save not in (None, ["mcap"]) and "of a bag a bag is written",
        "--maps": bag and parsed.maps and "of a bag a bag is written, with its maps",
        "--show": bag and parsed.show and "a bag is written as fast as can be, and played afterwards",
        "--batch": bag and parsed.batch > 1 and "a bag's pictures are run one by one",
        "--deadline": bag and parsed.deadline and "the pictures of a bag wait for their turn",
    }
    if wrong := [f"{option}: {why}" for option, why in unheard.items() if why]:
        raise ConfigError(f"{'; '.join(wrong)}. Leave it out.")


def _perceiver(parsed: argparse.Namespace, threads: int) -> Any:
    check_order(parsed)
    if parsed.model.suffix == ".onnx":
        from perception.runtime.predictor import Perceiver

        return Perceiver(parsed.model, threads, parsed.providers, parsed.tasks, spinning=False)
    from perception import runs
    from perception.torch_predictor import TorchPerceiver
    from perception.types import ConfigError

    if parsed.providers:
        raise ConfigError("--providers: a run folder is run by torch. Leave it out, or give the exported network.")
    recipe, model = runs.open_network(parsed.model, parsed.tasks)
    return TorchPerceiver(model, size=recipe.data.size, threads=threads)


def _calibrate(parsed: argparse.Namespace) -> int:
    from perception.video.ood_fit import calibrate

    out = parsed.out or _calibration_file(parsed.model)
    make_folder(out.parent)
    perceiver = _perceiver(parsed, parsed.threads or usable_cores())
    found = calibrate(perceiver, parsed.source, camera(parsed.camera), _identity(perceiver))
    found.save(out)
    print(f"{out}: {found.count} good pictures", file=sys.stderr)  # noqa: T201
    return 0


def _label(parsed: argparse.Namespace) -> int:
    from perception.labeling.jobs import label_by_jobs
    from perception.labeling.label import label

    threads = max(1, (parsed.threads or usable_cores()) // parsed.jobs)
    options = {
        "camera": camera(parsed.camera), "mirror": not parsed.no_mirror, "root": parsed.root,
        "resume": parsed.resume, "shard": parsed.shard,
    }  # fmt: skip
    if parsed.jobs > 1:
        asked = argparse.Namespace(model=parsed.model, tasks=parsed.tasks, providers=parsed.providers)
        network = functools.partial(_labeller, asked, threads)
        done = label_by_jobs(network, parsed.jobs, parsed.pictures, parsed.out, **options)
    else:
        perceiver, identity = _labeller(parsed, threads)
        done = label(perceiver, parsed.pictures, parsed.out, identity=identity, **options)
    say(map(printable, done.lines()))
    return 128 + done.interrupted if done.interrupted is not None else 1 if done.failures else 0


def _labeller(parsed: argparse.Namespace, threads: int) -> tuple[Any, str]:
    """The network, and the SHA-256 of its graph or weights: labels of two networks are not to be mixed."""
    perceiver = _perceiver(parsed, threads)
    identity = _identity(perceiver)
    if not identity and hasattr(perceiver, "model"):
        from perception.torch_predictor import weights_digest

        identity = weights_digest(perceiver.model)
    return perceiver, identity


def _calibration(path: Path | None, model: Path, tasks: list[str] | None, perceiver: Any) -> Any:
    """The calibration at ``path``, or that beside the model where there is one and all its tasks are run."""
    from perception.video.ood import load

    beside = _calibration_file(model)
    if path is None and (tasks is not None or not beside.is_file()):
        return None
    return load(path or beside, perceiver.specs, _identity(perceiver))


def _calibration_file(model: Path) -> Path:
    return model / "calibration.json" if model.is_dir() else model.with_suffix(".calibration.json")


def _identity(perceiver: Any) -> str:
    """SHA-256 of an exported network; "" of a run folder, whose weights change."""
    manifest = getattr(perceiver, "manifest", None)
    return manifest.graph if manifest else ""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet_ffmpeg() -> None:
    """FFmpeg writes a line for each damaged packet, OpenCV one for each attempt to open; the summary counts them."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
