"""The commands that run networks: predict, ood, label."""

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
    check_argument_order,
    parse_count,
    parse_intrinsics,
    parse_names,
    parse_positive,
    parse_shard,
    parse_size,
    print_lines,
    progress_bar,
)
from perception.files.safe_names import escape_unprintable
from perception.files.safe_write import make_folder
from perception.video.interrupt import check_stop, defer_stop, handle_stop_signals

SAVE_HELP = (
    "what to write: mp4 (images as jpg), jsonl, mcap (a ROS 2 bag), rrd (default: mp4,jsonl; of a bag always a bag)"
)


def add_commands(commands: Any) -> None:
    predict = add_command(commands, "predict", end_on_signal(_predict), "run a network on images or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file (which needs no torch)")
    predict.add_argument("source", help="image, folder, glob, list, video, camera number, URL, - (stdin), ROS bag")
    add_tasks(predict)
    predict.add_argument("--out", type=Path, help="folder for what is written, new or empty (default: runs/predict)")
    predict.add_argument("--save", type=parse_names, metavar="A,B", help=SAVE_HELP)
    predict.add_argument("--maps", action="store_true", help="also write segmentation masks and depth maps as PNG")
    predict.add_argument("--show", action="store_true", help="a live window (needs an OpenCV that has windows)")
    predict.add_argument(
        "--size", type=parse_size, metavar="HxW", help="what the network sees (default: as in training)"
    )
    predict.add_argument("--batch-size", type=parse_count, default=1, metavar="N", help="images of a file run together")
    predict.add_argument("--max-frames", type=parse_count, metavar="N", help="stop each video or stream after so many")
    predict.add_argument("--intrinsics", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    predict.add_argument("--topics", type=parse_names, metavar="A,B", help="image topics of a bag (default: all)")
    predict.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores but one)")
    predict.add_argument(
        "--providers", type=parse_names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)"
    )
    predict.add_argument("--track", action="store_true", help="follow objects: numbers, closing speed, time to contact")
    predict.add_argument(
        "--smooth",
        type=parse_positive,
        metavar="S",
        help="smooth segmentation masks and depth of videos over so many seconds (0.1 to 1; at least two frames)",
    )
    predict.add_argument("--ood", type=Path, metavar="FILE", help="of `perception ood fit` (default: MODEL's)")
    predict.add_argument("--deadline", type=parse_positive, metavar="MS", help="flag results that take longer")
    predict.add_argument(
        "--timeout", type=parse_positive, default=5.0, metavar="S", help="give up what is silent (default: 5)"
    )

    ood = commands.add_parser(
        "ood", help="detect images unlike the training data", description="Out-of-distribution score."
    )
    kinds = ood.add_subparsers(dest="kind", required=True, metavar="KIND")
    fit = add_command(kinds, "fit", end_on_signal(_fit_ood), "fit the out-of-distribution score to good images")
    fit.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file")
    fit.add_argument("source", help="good images or videos of where it will work: file, folder, glob")
    add_tasks(fit)
    fit.add_argument("--out", type=Path, metavar="FILE", help="default: beside MODEL, where predict looks for it")
    fit.add_argument("--intrinsics", help="intrinsics in pixels of the source: fx,fy,cx,cy")
    fit.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores)")
    fit.add_argument("--providers", type=parse_names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)")

    label = add_command(
        commands, "label", end_on_signal(_label), "label images that lack labels, where a network is sure of them"
    )
    label.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file, trained for the tasks")
    label.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    add_tasks(label)
    label.add_argument("--out", type=Path, required=True, help="folder for the labels, new or empty")
    label.add_argument("--resume", action="store_true", help="go on where it was stopped or killed, or merge shards")
    label.add_argument("--jobs", type=parse_count, default=1, metavar="N", help="processes (default: 1)")
    label.add_argument(
        "--shard", type=parse_shard, metavar="I/N", help="every N-th image only; --resume merges in the end"
    )
    label.add_argument("--root", type=Path, default=Path(), help="data.root of the recipe that will read them")
    label.add_argument("--no-mirror", action="store_true", help="left and right are not alike (words, arrows)")
    label.add_argument("--intrinsics", help="intrinsics in pixels of the images: fx,fy,cx,cy")
    label.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores)")
    label.add_argument(
        "--providers", type=parse_names, metavar="A,B", help="of ONNX Runtime, best first (default: CPU)"
    )


def end_on_signal(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command; the first signal ends it in order, from its imports on."""

    def run(parsed: argparse.Namespace) -> int:
        silence_ffmpeg()
        with handle_stop_signals():
            with defer_stop():  # interrupted in C, OpenCV's import of numpy prints a traceback
                import cv2  # noqa: F401
            check_stop()
            return command(parsed)

    return run


def _predict(parsed: argparse.Namespace) -> int:
    from perception.robots.bags import is_bag
    from perception.video.predict import PredictOptions, make_output_folder, predict
    from perception.video.replay import replay

    bag = is_bag(parsed.source)
    _check_options(parsed, bag)
    threads = parsed.threads or max(1, count_usable_cores() - 1)
    options = PredictOptions(
        track=parsed.track,
        smoothing_seconds=parsed.smooth,
        camera=parse_intrinsics(parsed.intrinsics),
        size=parsed.size,
        batch_size=parsed.batch_size,
        save=(
            *(parsed.save or ("mp4", "jsonl")),
            *(["maps"] if parsed.maps else []),
            *(["window"] if parsed.show else []),
        ),
        max_frames=parsed.max_frames,
        deadline=parsed.deadline and parsed.deadline / 1000,
        timeout=parsed.timeout,
    )
    perceiver = _open_predictor(parsed, threads)
    options = dataclasses.replace(options, ood_model=_load_ood(parsed.ood, parsed.model, parsed.tasks, perceiver))
    if bag:
        folder = make_output_folder(parsed.out)
        out = folder / (Path(parsed.source).stem or Path(parsed.source).resolve().stem)
        done = replay(perceiver, parsed.source, out, topics=parsed.topics, options=options, progress_bar=progress_bar)
        print(done, file=sys.stderr)  # noqa: T201
        return 128 + done.stop_signal if done.stop_signal is not None else 0 if done.frames else 1
    report = predict(perceiver.warm_up(parsed.batch_size, parsed.size), parsed.source, parsed.out, options)
    if report.stop_signal is not None:
        return 128 + report.stop_signal if report.stop_signal else 0
    return 0 if not report.failures else 1


def _check_options(parsed: argparse.Namespace, is_bag_source: bool) -> None:
    """Raise ConfigError for an option that this source would leave unheard."""
    from perception.types import ConfigError

    unheard = {
        "--topics": parsed.topics and not is_bag_source and "only a bag has topics",
        "--save": is_bag_source and parsed.save not in (None, ["mcap"]) and "of a bag a bag is written",
        "--maps": is_bag_source and parsed.maps and "of a bag a bag is written, with its maps",
        "--show": is_bag_source and parsed.show and "a bag is written as fast as can be, and played afterwards",
        "--batch-size": is_bag_source and parsed.batch_size > 1 and "a bag's images are run one by one",
        "--deadline": is_bag_source and parsed.deadline and "the images of a bag wait for their turn",
    }
    if wrong := [f"{option}: {why}" for option, why in unheard.items() if why]:
        raise ConfigError(f"{'; '.join(wrong)}. Leave it out.")


def _open_predictor(parsed: argparse.Namespace, threads: int) -> Any:
    check_argument_order(parsed)
    if parsed.model.suffix == ".onnx":
        from perception.runtime.predictor import Predictor

        return Predictor(parsed.model, threads, parsed.providers, parsed.tasks, allow_spinning=False)
    from perception import runs
    from perception.torch_predictor import TorchPredictor
    from perception.types import ConfigError

    if parsed.providers:
        raise ConfigError("--providers: a run folder is run by torch. Leave it out, or give the exported network.")
    recipe, model = runs.open_inference_model(parsed.model, parsed.tasks)
    return TorchPredictor(model, size=recipe.data.size, threads=threads)


def _fit_ood(parsed: argparse.Namespace) -> int:
    from perception.video.ood_fit import fit_ood_model

    out = parsed.out or _ood_file(parsed.model)
    make_folder(out.parent)
    perceiver = _open_predictor(parsed, parsed.threads or count_usable_cores())
    found = fit_ood_model(perceiver, parsed.source, parse_intrinsics(parsed.intrinsics), _graph_digest(perceiver))
    found.save(out)
    print(f"{out}: {found.num_images} good images", file=sys.stderr)  # noqa: T201
    return 0


def _label(parsed: argparse.Namespace) -> int:
    from perception.labeling.jobs import label_in_parallel
    from perception.labeling.label import label_images

    threads = max(1, (parsed.threads or count_usable_cores()) // parsed.jobs)
    options = {
        "camera": parse_intrinsics(parsed.intrinsics), "mirror": not parsed.no_mirror, "root": parsed.root,
        "resume": parsed.resume, "shard": parsed.shard,
    }  # fmt: skip
    if parsed.jobs > 1:
        asked = argparse.Namespace(model=parsed.model, tasks=parsed.tasks, providers=parsed.providers)
        network = functools.partial(_open_labeler, asked, threads)
        done = label_in_parallel(network, parsed.jobs, parsed.images, parsed.out, **options)
    else:
        perceiver, identity = _open_labeler(parsed, threads)
        done = label_images(perceiver, parsed.images, parsed.out, identity=identity, **options)
    print_lines(map(escape_unprintable, done.summary_lines()))
    return 128 + done.stop_signal if done.stop_signal is not None else 1 if done.failures else 0


def _open_labeler(parsed: argparse.Namespace, threads: int) -> tuple[Any, str]:
    """The network, and the SHA-256 of its graph or weights: labels of two networks are not to be mixed."""
    perceiver = _open_predictor(parsed, threads)
    identity = _graph_digest(perceiver)
    if not identity and hasattr(perceiver, "model"):
        from perception.torch_predictor import hash_weights

        identity = hash_weights(perceiver.model)
    return perceiver, identity


def _load_ood(path: Path | None, model: Path, tasks: list[str] | None, predictor: Any) -> Any:
    """The calibration at ``path``, or that beside the model where there is one and all its tasks are run."""
    from perception.video.ood import load_ood_model

    beside = _ood_file(model)
    if path is None and (tasks is not None or not beside.is_file()):
        return None
    return load_ood_model(path or beside, predictor.specs, _graph_digest(predictor))


def _ood_file(model: Path) -> Path:
    return model / "ood.json" if model.is_dir() else model.with_suffix(".ood.json")


def _graph_digest(predictor: Any) -> str:
    """SHA-256 of an exported network; "" of a run folder, whose weights change."""
    manifest = getattr(predictor, "manifest", None)
    return manifest.graph_sha256 if manifest else ""


def count_usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silence_ffmpeg() -> None:
    """FFmpeg writes a line for each damaged packet, OpenCV one for each attempt to open; the summary counts them."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
