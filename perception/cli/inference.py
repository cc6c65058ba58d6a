"""The inference commands: predict, ood, label."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perception.cli.arguments import (
    Commands,
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

if TYPE_CHECKING:
    from perception.runtime.predictor import ImagePredictor
    from perception.video.ood import OodModel

SAVE_HELP = (
    "output formats: mp4 (images as jpg), jsonl, mcap (a ROS 2 bag), rrd (default: mp4,jsonl; for a bag always mcap)"
)


def add_commands(commands: Commands) -> None:
    """Add the commands `predict`, `ood` and `label`."""
    _add_predict(commands)
    _add_ood(commands)
    _add_label(commands)


def _add_predict(commands: Commands) -> None:
    predict = add_command(commands, "predict", end_on_signal(_predict), "run a network on images or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder, or .onnx file (runs without torch)")
    predict.add_argument("source", help="image, folder, glob, list, video, camera number, URL, - (stdin), ROS bag")
    add_tasks(predict)
    predict.add_argument("--out", type=Path, help="output folder, new or empty (default: runs/predict)")
    predict.add_argument("--save", type=parse_names, metavar="A,B", help=SAVE_HELP)
    predict.add_argument("--maps", action="store_true", help="also write segmentation masks and depth maps as PNG")
    predict.add_argument(
        "--show", action="store_true", help="show a live window (needs an OpenCV build with GUI support)"
    )
    predict.add_argument(
        "--size", type=parse_size, metavar="HxW", help="input size of the network (default: as in training)"
    )
    predict.add_argument("--batch-size", type=parse_count, default=1, metavar="N", help="batch size for files")
    predict.add_argument("--max-frames", type=parse_count, metavar="N", help="stop each video or stream after N frames")
    predict.add_argument("--intrinsics", help="camera intrinsics fx,fy,cx,cy in source pixels")
    predict.add_argument("--topics", type=parse_names, metavar="A,B", help="image topics of a bag (default: all)")
    predict.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores but one)")
    predict.add_argument(
        "--providers", type=parse_names, metavar="A,B", help="ONNX Runtime providers, preferred first (default: CPU)"
    )
    predict.add_argument(
        "--track", action="store_true", help="track objects: track ids, closing speed, time to contact"
    )
    predict.add_argument(
        "--smooth",
        type=parse_positive,
        metavar="S",
        help="smooth segmentation masks and depth of videos over S seconds (0.1 to 1; at least two frames)",
    )
    predict.add_argument(
        "--ood", type=Path, metavar="FILE", help="output of `perception ood fit` (default: the file beside MODEL)"
    )
    predict.add_argument(
        "--deadline", type=parse_positive, metavar="MS", help="mark results that take longer than MS milliseconds"
    )
    predict.add_argument(
        "--timeout",
        type=parse_positive,
        default=5.0,
        metavar="S",
        help="seconds without a frame before a source is closed (default: 5)",
    )


def _add_ood(commands: Commands) -> None:
    ood = commands.add_parser(
        "ood", help="detect images unlike the training data", description="Out-of-distribution score."
    )
    kinds = ood.add_subparsers(dest="kind", required=True, metavar="KIND")
    fit = add_command(kinds, "fit", end_on_signal(_fit_ood), "fit the out-of-distribution score to good images")
    fit.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file")
    fit.add_argument("source", help="typical images or videos of the deployment site: file, folder, glob")
    add_tasks(fit)
    fit.add_argument(
        "--out", type=Path, metavar="FILE", help="output file (default: beside MODEL, where predict finds it)"
    )
    fit.add_argument("--intrinsics", help="camera intrinsics fx,fy,cx,cy in source pixels")
    fit.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores)")
    fit.add_argument(
        "--providers", type=parse_names, metavar="A,B", help="ONNX Runtime providers, preferred first (default: CPU)"
    )


def _add_label(commands: Commands) -> None:
    label = add_command(
        commands,
        "label",
        end_on_signal(_label),
        "write pseudo-labels for unlabeled images, where the network is confident",
    )
    label.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file, trained for the tasks")
    label.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    add_tasks(label)
    label.add_argument("--out", type=Path, required=True, help="folder for the labels, new or empty")
    label.add_argument("--resume", action="store_true", help="continue an interrupted run, or merge shards")
    label.add_argument("--jobs", type=parse_count, default=1, metavar="N", help="processes (default: 1)")
    label.add_argument(
        "--shard",
        type=parse_shard,
        metavar="I/N",
        help="process only every N-th image, starting with the I-th; --resume merges the shards",
    )
    label.add_argument("--root", type=Path, default=Path(), help="data.root of the recipe that will read them")
    label.add_argument(
        "--no-mirror", action="store_true", help="do not use mirrored views: left and right differ (text, arrows)"
    )
    label.add_argument("--intrinsics", help="camera intrinsics fx,fy,cx,cy in image pixels")
    label.add_argument("--threads", type=parse_count, help="CPU threads of the network (default: all cores)")
    label.add_argument(
        "--providers", type=parse_names, metavar="A,B", help="ONNX Runtime providers, preferred first (default: CPU)"
    )


def end_on_signal(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Wrap a command so that the first stop signal ends it cleanly, even while it imports."""

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
    predictor = _open_predictor(parsed, threads)
    options = dataclasses.replace(options, ood_model=_load_ood(parsed.ood, parsed.model, parsed.tasks, predictor))
    if bag:
        folder = make_output_folder(parsed.out)
        out = folder / (Path(parsed.source).stem or Path(parsed.source).resolve().stem)
        done = replay(predictor, parsed.source, out, topics=parsed.topics, options=options, progress_bar=progress_bar)
        print(done, file=sys.stderr)  # noqa: T201
        return 128 + done.stop_signal if done.stop_signal is not None else 0 if done.frames else 1
    report = predict(predictor.warm_up(parsed.batch_size, parsed.size), parsed.source, parsed.out, options)
    if report.stop_signal is not None:
        return 128 + report.stop_signal if report.stop_signal else 0
    return 0 if not report.failures else 1


def _check_options(parsed: argparse.Namespace, is_bag_source: bool) -> None:
    """Raise ConfigError for options that have no effect for this source."""
    from perception.types import ConfigError

    unsupported = {
        "--topics": parsed.topics and not is_bag_source and "only bags have topics",
        "--save": is_bag_source and parsed.save not in (None, ["mcap"]) and "the output for a bag is always a bag",
        "--maps": is_bag_source and parsed.maps and "the output for a bag is a bag, which includes the maps",
        "--show": is_bag_source and parsed.show and "a bag is processed at full speed; play the output afterwards",
        "--batch-size": is_bag_source and parsed.batch_size > 1 and "the images of a bag are processed one at a time",
        "--deadline": is_bag_source and parsed.deadline and "a bag is not processed in real time",
    }
    if wrong := [f"{option}: {why}" for option, why in unsupported.items() if why]:
        raise ConfigError(f"{'; '.join(wrong)}. Remove the option.")


def _open_predictor(parsed: argparse.Namespace, threads: int) -> ImagePredictor:
    check_argument_order(parsed)
    if parsed.model.suffix == ".onnx":
        from perception.runtime.predictor import Predictor

        return Predictor(parsed.model, threads, parsed.providers, parsed.tasks, allow_spinning=False)
    from perception import runs
    from perception.torch_predictor import TorchPredictor
    from perception.types import ConfigError

    if parsed.providers:
        raise ConfigError("--providers: a run folder runs in torch. Remove the option, or give an exported .onnx file.")
    recipe, model = runs.open_inference_model(parsed.model, parsed.tasks)
    return TorchPredictor(model, size=recipe.data.size, threads=threads)


def _fit_ood(parsed: argparse.Namespace) -> int:
    from perception.video.ood_fit import fit_ood_model

    out = parsed.out or _ood_file(parsed.model)
    make_folder(out.parent)
    predictor = _open_predictor(parsed, parsed.threads or count_usable_cores())
    found = fit_ood_model(predictor, parsed.source, parse_intrinsics(parsed.intrinsics), _graph_digest(predictor))
    found.save(out)
    print(f"{out}: fitted to {found.num_images} images", file=sys.stderr)  # noqa: T201
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
        predictor, identity = _open_labeler(parsed, threads)
        done = label_images(predictor, parsed.images, parsed.out, identity=identity, **options)
    print_lines(map(escape_unprintable, done.summary_lines()))
    return 128 + done.stop_signal if done.stop_signal is not None else 1 if done.failures else 0


def _open_labeler(parsed: argparse.Namespace, threads: int) -> tuple[ImagePredictor, str]:
    """The network and the SHA-256 of its graph or weights, so that labels of two networks are never mixed."""
    predictor = _open_predictor(parsed, threads)
    identity = _graph_digest(predictor)
    if parsed.model.suffix != ".onnx":
        from perception.torch_predictor import TorchPredictor, hash_weights

        assert isinstance(predictor, TorchPredictor)
        identity = hash_weights(predictor.model)
    return predictor, identity


def _load_ood(path: Path | None, model: Path, tasks: list[str] | None, predictor: ImagePredictor) -> OodModel | None:
    """The OOD model at ``path``, or the one beside the network if it exists and all tasks are run."""
    from perception.video.ood import load_ood_model

    beside = _ood_file(model)
    if path is None and (tasks is not None or not beside.is_file()):
        return None
    return load_ood_model(path or beside, predictor.specs, _graph_digest(predictor))


def _ood_file(model: Path) -> Path:
    return model / "ood.json" if model.is_dir() else model.with_suffix(".ood.json")


def _graph_digest(predictor: ImagePredictor) -> str:
    """SHA-256 of an exported network; "" for a run folder, whose weights may change."""
    manifest = getattr(predictor, "manifest", None)
    return manifest.graph_sha256 if manifest else ""


def count_usable_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silence_ffmpeg() -> None:
    """Turn off the log lines of FFmpeg and OpenCV about damaged packets and failed opens; the summary counts them."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
