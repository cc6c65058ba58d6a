"""`perception predict`: run a model on any source; write annotated images or mp4, ``predictions.jsonl``, a summary."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from perception.files.safe_write import convert_write_errors, make_folder, write_atomic
from perception.runtime.predictor import check_camera
from perception.runtime.sources import find_sources
from perception.types import PerceptionError
from perception.video.event_log import EventLog, Status
from perception.video.interrupt import StopRequested, defer_stop, handle_stop_signals
from perception.video.pipeline import PredictorLike
from perception.video.progress import print_line
from perception.video.run import PredictOptions, PredictRunner
from perception.video.summary import SUMMARY, PredictReport
from perception.video.writers import make_writers

__all__ = ["PredictOptions", "PredictReport", "predict"]


def predict(
    predictor: PredictorLike,
    source: str | Path | int,
    out: str | Path | None = None,
    options: PredictOptions | None = None,
    *,
    quiet: bool = False,
) -> PredictReport:
    """Run ``predictor`` on ``source`` and write the results to the folder ``out``.

    Reading, inference, post-processing, drawing and encoding run in parallel. A source that cannot be read is reported,
    and the run continues with the others. Files that are already written always stay valid.

    Args:
        predictor: the network.
        source: image, folder, glob, video, camera index or stream URL.
        out: an empty or new folder; None = the next free of runs/predict, runs/predict-2, ...
        options: see `PredictOptions`.
        quiet: no progress, failures or summary on standard error.

    Returns:
        The counts and failures of the run.

    Raises:
        PerceptionError: an option, the source or ``out`` is invalid.
    """
    options = options or PredictOptions()
    check_camera(options.camera)
    predictor.letterbox_size(options.size)
    sources, writers = find_sources(source, options.timeout), make_writers(set(options.save))
    stream = None if quiet else sys.stderr
    report = PredictReport(make_output_folder(out), event_log=EventLog(lambda text: print_line(stream, text)))
    run = PredictRunner(predictor, options, report, writers, stream)
    begin = time.perf_counter()
    with handle_stop_signals(), defer_stop():
        try:
            run.run(sources)
        except StopRequested as stopped:
            report.stop_signal = stopped.signal
        except KeyboardInterrupt:
            report.stop_signal = signal.SIGINT
        finally:
            report.seconds = time.perf_counter() - begin
            _write_summary(report)
        print_line(stream, str(report))
    return report


def _write_summary(report: PredictReport) -> None:
    """Write ``summary.json``. A failure is added to the report, so that it does not hide the error of the run."""
    path = report.out / SUMMARY
    try:
        write_atomic(path, f"{json.dumps(report.to_json(), indent=2)}\n".encode())
    except PerceptionError as error:
        if not report.is_disk_full:  # a full disk is already reported
            report.failures.append((str(path), str(error)))
            report.event_log.record(SUMMARY, Status.DEGRADED, str(error))


def make_output_folder(out: str | Path | None) -> Path:
    """Create and return the output folder. Raises PerceptionError if it is not empty: nothing is overwritten."""
    if out is None:
        number = 1
        while (folder := Path("runs") / (f"predict-{number}" if number > 1 else "predict")).exists():
            number += 1
    else:
        folder = Path(out)
        with convert_write_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise PerceptionError(f"{folder} is a file. Expected a new or empty folder: choose another.")
            if folder.exists() and any(folder.iterdir()):
                raise PerceptionError(
                    f"{folder} is not empty. Expected a new or empty folder: choose another, or remove it."
                )
    make_folder(folder)
    return folder
