"""Every command. Heavy imports happen inside the command that needs them: `perception --help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from perception import __version__
from perception.types import PerceptionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code: 0, or 2 where the user must mend something."""
    parsed = _parse(arguments)
    try:
        return parsed.action(parsed) or 0
    except PerceptionError as error:
        print(f"perception {parsed.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "perception":
            raise
        print(  # noqa: T201
            f"perception {parsed.command}: the package {error.name} is not installed. "
            "Install all that training needs: pip install 'dense-perception[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with key=value overrides allowed anywhere: argparse takes positionals in one run only."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    strays = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(parsed, "overrides")]
    if strays:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="perception", description="One network, one pass: detection, segmentation, depth and classification."
    )
    parser.add_argument("--version", action="version", version=f"perception {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "the whole story on made street data, in minutes")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    _add_overrides(demo)

    train = _command(commands, "train", _train, "train the network of a recipe")
    train.add_argument("config", nargs="?", type=Path, help="YAML recipe; not needed with --resume")
    _add_overrides(train)
    _add_tasks(train)
    train.add_argument("--out", type=Path, help="run folder (default: runs/<name of the recipe>)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with the newest checkpoint of a run folder")
    train.add_argument("--force", action="store_true", help="resume although the recipe has changed")

    evaluate = _command(commands, "evaluate", _evaluate, "measure a run on held-out pictures")
    evaluate.add_argument("model", type=Path, metavar="RUN", help="run folder, checkpoint or .safetensors file")
    _add_overrides(evaluate)
    _add_tasks(evaluate)
    evaluate.add_argument("--data", type=Path, help="YAML file whose data.validation is taken instead of the run's")
    evaluate.add_argument("--out", type=Path, help="write metrics.json and report.html to this folder")
    evaluate.add_argument("--batch-size", type=int, default=8, help="pictures at a time; changes no number")

    predict = _command(commands, "predict", _predict, "run a network on pictures or video")
    predict.add_argument("model", type=Path, metavar="MODEL", help="run folder or .onnx file (which needs no torch)")
    predict.add_argument("source", help="picture, folder, glob, video file, camera number or stream URL")
    _add_tasks(predict)
    predict.add_argument("--out", type=Path, help="folder for pictures or video and predictions.jsonl")
    predict.add_argument("--maps", action="store_true", help="also write label maps and depth maps as PNG")
    predict.add_argument("--threads", type=int, help="CPU threads")
    predict.add_argument("--camera", help="intrinsics in pixels of the source: fx,fy,cx,cy")

    export = _command(commands, "export", _export, "write one verified ONNX file")
    export.add_argument("model", type=Path, metavar="RUN", help="run folder or checkpoint")
    _add_tasks(export)
    export.add_argument("--out", type=Path, help="the file (default: RUN/model.onnx)")

    doctor = _command(commands, "doctor", _doctor, "examine the data of a recipe, and the environment")
    doctor.add_argument("config", type=Path, help="YAML recipe")
    _add_overrides(doctor)
    _add_tasks(doctor)
    doctor.add_argument("--out", type=Path, help="folder of the page (default: doctor/<name of the recipe>)")
    doctor.add_argument("--quick", type=_count, metavar="N", help="look at N pictures of each source only")
    doctor.add_argument("--workers", type=int, help="processes (default: one a processor; 0 = none, unprotected)")

    bench = _command(commands, "bench", _bench, "how fast the training pictures of a recipe come")
    bench.add_argument("what", metavar="data", help="the word data: reading, decoding, augmenting, and the loader")
    bench.add_argument("config", type=Path, help="YAML recipe")
    _add_overrides(bench)
    bench.add_argument("--seconds", type=float, default=20, help="how long to measure (default: 20)")
    bench.add_argument("--workers", type=int, help="loader processes (default: the recipe's data.workers)")

    data = commands.add_parser("data", help="make street scenes, unpack archives", description="Make or unpack data.")
    kinds = data.add_subparsers(dest="kind", required=True, metavar="KIND")
    street = kinds.add_parser("street", help="made street scenes with exact labels for four tasks")
    street.set_defaults(action=_data_street)
    street.add_argument("out", type=Path, metavar="OUT", help="folder that is not there yet")
    street.add_argument("--count", type=int, default=1000, help="pictures, training and validation together")
    street.add_argument("--seed", type=int, default=0)
    street.add_argument(
        "--size", type=_size, default=(256, 512), metavar="HxW", help="height x width (default: 256x512)"
    )
    street.add_argument("--validation", type=float, default=0.2, help="share of the pictures that are held out")
    street.add_argument("--video", type=float, metavar="SECONDS", help="make OUT a video of a drive (.mp4) instead")
    extract = kinds.add_parser("extract", help="unpack a downloaded archive without trusting it")
    extract.set_defaults(action=_data_extract)
    extract.add_argument("archive", type=Path, metavar="ARCHIVE", help=".zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")
    extract.add_argument("folder", type=Path, metavar="FOLDER", help="where its content goes; nothing is overwritten")
    return parser


def _command(commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(action=run)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe")


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=_names, metavar="A,B", help="only these tasks; only what they need is run")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form HxW, for example 256x512")
    return int(height), int(width)


def _demo(parsed: argparse.Namespace) -> int:
    from perception.demo import demo

    demo(parsed.out, parsed.overrides)
    return 0


def _train(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception import runs
    from perception.types import ConfigError

    if parsed.config is not None and "=" in str(parsed.config):
        parsed.overrides.insert(0, str(parsed.config))
        parsed.config = None
    if parsed.config is None and parsed.resume is None:
        raise ConfigError("Give a recipe, for example: perception train configs/street.yaml")
    path = parsed.config or parsed.resume / "recipe.yaml"
    recipe = recipes.load(path, parsed.overrides, parsed.tasks)
    run = parsed.resume or parsed.out or Path("runs") / recipe.name
    evaluation = runs.train(recipe, run, resume=parsed.resume is not None, force=parsed.force)
    if evaluation is not None:
        _show(evaluation)
        print(f"Report: {run / 'report.html'}")  # noqa: T201
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from perception import runs
    from perception.engine.distributed import is_main

    evaluation = runs.evaluate(
        parsed.model,
        data=parsed.data,
        overrides=parsed.overrides,
        tasks=parsed.tasks,
        out=parsed.out,
        batch_size=parsed.batch_size,
    )
    if is_main():
        _show(evaluation)
    return 0


def _show(evaluation) -> None:
    print(f"{evaluation.pictures} pictures")  # noqa: T201
    for name, value in evaluation.metrics.items():
        print(f"{name:36s} {value:.4f}")  # noqa: T201


def _predict(parsed: argparse.Namespace) -> int:
    from perception.deploy.predict import predict

    camera = _camera(parsed.camera)
    if parsed.model.suffix == ".onnx":
        from perception.deploy.runtime import Perceiver

        perceiver = Perceiver(parsed.model, threads=parsed.threads, tasks=parsed.tasks)
    else:
        from perception import runs
        from perception.deploy.torch_runtime import TorchPerceiver

        recipe, model = runs.open_run(parsed.model, tasks=parsed.tasks)
        perceiver = TorchPerceiver(model, size=recipe.data.size, threads=parsed.threads)
    report = predict(perceiver, parsed.source, out=parsed.out, save_maps=parsed.maps, camera=camera)
    return 0 if not report.failures else 1


def _camera(text: str | None):
    from perception.types import Camera, ConfigError

    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--camera {text}: expected four numbers fx,fy,cx,cy in pixels of the source.") from error
    return Camera(fx, fy, cx, cy)


def _export(parsed: argparse.Namespace) -> int:
    from perception import runs
    from perception.deploy.export import export

    recipe, model = runs.open_run(parsed.model, tasks=parsed.tasks)
    print("Exporting and comparing with torch takes about a minute.", file=sys.stderr)  # noqa: T201
    out = parsed.out or (parsed.model if parsed.model.is_dir() else parsed.model.parent) / "model.onnx"
    print(export(model, out, size=recipe.data.size, images=runs.some_pictures(recipe)))  # noqa: T201
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    try:
        from perception.data import doctor
        from perception.report import doctor_page
    except (ImportError, AttributeError) as error:  # numpy, cv2 or pydantic is missing, broken or there twice
        providers = metadata.packages_distributions()
        found = "; ".join(f"{m} from {', '.join(providers.get(m, ['nowhere']))}" for m in ("numpy", "cv2", "pydantic"))
        print(f"perception doctor: {error}. Reinstall what is broken: {found}.", file=sys.stderr)  # noqa: T201
        return 1
    diagnosis = doctor.diagnose(
        parsed.config,
        parsed.overrides,
        parsed.tasks,
        quick=parsed.quick,
        workers=None if parsed.workers is None else max(0, parsed.workers),
        bar=_bar,
        check=_check_recipe,
    )
    _say(doctor.report_lines(diagnosis))
    _say([doctor_page.write(parsed.out or Path("doctor") / doctor_page.folder_name(diagnosis), diagnosis)])
    return diagnosis.exit_code


def _say(lines: Iterable[str]) -> None:
    """Lines on stdout, whatever its encoding, and though nobody may read them to the end."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for line in lines:
            print(line)  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Like `perception.engine.log.progress_bar`, without torch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"{text:8}"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)


def _check_recipe(state: None, mapping: dict) -> dict[str, dict] | str:
    """The settings of a recipe's tasks with their defaults, or what is wrong with it. Run by the doctor elsewhere."""
    from perception import config
    from perception.recipe import Recipe
    from perception.types import PerceptionError

    try:
        return {name: config.to_plain(task) for name, task in config.build(Recipe, mapping).tasks.items()}
    except PerceptionError as error:
        return str(error)


def _bench(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.data.bench import measure
    from perception.types import ConfigError

    if parsed.what != "data":
        raise ConfigError(f"'{parsed.what}' cannot be measured. Expected: perception bench data CONFIG")
    if not 0 < parsed.seconds <= 3600 or not 0 <= (parsed.workers or 0) <= 256:
        raise ConfigError(
            f"--seconds {parsed.seconds} --workers {parsed.workers}: expected 0 to 3600 seconds and 0 to 256 processes."
        )
    recipe = recipes.load(parsed.config, parsed.overrides)
    workers = recipe.data.workers if parsed.workers is None else parsed.workers
    mixture = recipes.build_mixture(recipe)
    print(measure(mixture, list(recipe.tasks), recipe.train.batch_size, workers, parsed.seconds))  # noqa: T201
    return 0


def _data_street(parsed: argparse.Namespace) -> int:
    from perception.data.street import write, write_video

    if parsed.video is not None:
        write_video(parsed.out, parsed.video, parsed.seed, parsed.size)
        return 0
    with _bar("street pictures", parsed.count) as advance_to:
        write(parsed.out, parsed.count, parsed.seed, parsed.size, parsed.validation, advance_to)
    return 0


def _data_extract(parsed: argparse.Namespace) -> int:
    from perception.data.files.archives import extract

    size = parsed.archive.stat().st_size if parsed.archive.is_file() else 0
    with _bar("MB unpacked", max(1, size // 10**6)) as advance_to:
        count = extract(parsed.archive, parsed.folder, progress=lambda done, total: advance_to(done // 10**6))
    _say([f"{count} files in {parsed.folder}"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
