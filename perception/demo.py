"""A complete example on synthetic street data: train four tasks, evaluate, predict a video, export and report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from perception import checkpoint, runs
from perception import recipe as recipes
from perception.engine.log import progress_bar
from perception.export.export import export
from perception.runtime.predictor import Predictor
from perception.synthetic import write_dataset, write_video
from perception.types import PerceptionError
from perception.video.interrupt import StopRequested
from perception.video.predict import predict

NUM_IMAGES = 2000
SEED = 0
VIDEO_SECONDS = 10
MARK = "demo.txt"


def run_demo(out: Path, overrides: Sequence[str] = ()) -> None:
    """Write metrics.json, report.html, model.onnx and video.mp4 to the folder ``out``.

    An interrupted demo continues from its last checkpoint. Raises PerceptionError if ``out`` contains other files.
    """
    _claim_folder(out)
    text = resources.files("perception").joinpath("demo.yaml").read_text("utf-8")
    recipe = recipes.parse(text, [f"data.root={out / 'data'}", *overrides], where="demo.yaml")
    if not (out / "data").is_dir():
        _print_progress(f"1/5 Generating {NUM_IMAGES} street images with labels for four tasks")
        with progress_bar("street images", NUM_IMAGES) as advance_to:
            write_dataset(
                out / "data", NUM_IMAGES, SEED, recipe.data.size, validation_fraction=0.1, report_progress=advance_to
            )
    resume = checkpoint.has_checkpoints(out)
    verb = "Resuming" if resume else "Starting"
    _print_progress(f"2/5 {verb} joint training of {', '.join(recipe.tasks)}, {recipe.train.steps} steps")
    evaluation = runs.train(recipe, out, resume=resume, force=resume)
    _print_progress("3/5 Exporting one ONNX file and comparing its outputs with torch")
    _, model = runs.open_inference_model(out)
    _print_progress(
        str(
            export(
                model, out / "model.onnx", size=recipe.data.size, parity_images=runs.sample_validation_images(recipe)
            )
        )
    )
    _print_progress("4/5 Predicting a synthetic video with the ONNX file, without torch")
    film = out / "drive.mp4"
    write_video(film, VIDEO_SECONDS, SEED + 1, recipe.data.size)
    shutil.rmtree(out / "prediction", ignore_errors=True)
    report = predict(Predictor(out / "model.onnx"), str(film), out=out / "prediction")
    if report.stop_signal is not None:
        raise StopRequested(report.stop_signal)
    if report.failures:
        raise PerceptionError(report.failures[0][1])
    (out / "prediction" / "drive.mp4").replace(out / "video.mp4")
    (out / MARK).write_text("finished\n", "utf-8")
    _print_progress(f"5/5 Done: open {out / 'report.html'} and {out / 'video.mp4'}")
    if evaluation is not None:
        for name, task in model.tasks.items():
            key = f"{name}/{task.main_metric}"
            _print_progress(f"  {key:24s} {evaluation.metrics[key]:.3f}")


def _claim_folder(out: Path) -> None:
    """Use ``out`` if it is new or contains an interrupted demo. Delete a finished demo first."""
    mark = out / MARK
    if out.is_dir() and any(out.iterdir()):
        if not mark.is_file():
            raise PerceptionError(f"{out} contains files that are not from a demo. Give another folder with --out.")
        if mark.read_text("utf-8").strip() == "finished":
            shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text("begun\n", "utf-8")


def _print_progress(text: str) -> None:
    print(text, flush=True)  # noqa: T201
