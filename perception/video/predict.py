"""`perception predict`: any network, any source; annotated images or mp4, ``predictions.jsonl`` and a summary."""

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
    """Run ``predictor`` over ``source`` and write what it says to the folder ``out``.

    source: image, folder, glob, video, camera index or stream URL
    out:    a folder that is empty or does not exist yet; None = the next free of runs/predict, runs/predict-2, ...
    quiet:  no progress, failures and summary on standard error

    Reading, the network, what is made of its outputs, drawing and encoding run side by side. A source that cannot be
    read is reported and the others are done. Whatever happens, what was written before stays whole.
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
    """Write ``summary.json``, or tell that it could not be written: what has ended the run is not to be lost."""
    path = report.out / SUMMARY
    try:
        write_atomic(path, f"{json.dumps(report.to_json(), indent=2)}\n".encode())
    except PerceptionError as error:
        if not report.is_disk_full:  # else the same has been said already
            report.failures.append((str(path), str(error)))
            report.event_log.record(SUMMARY, Status.DEGRADED, str(error))


def make_output_folder(out: str | Path | None) -> Path:
    """The folder to write to, made. Raises PerceptionError where it already holds something: nothing is overwritten."""
    if out is None:
        number = 1
        while (folder := Path("runs") / (f"predict-{number}" if number > 1 else "predict")).exists():
            number += 1
    else:
        folder = Path(out)
        with convert_write_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise PerceptionError(f"{folder} is a file. Expected a new or empty folder: give another.")
            if folder.exists() and any(folder.iterdir()):
                raise PerceptionError(
                    f"{folder} is not empty. Expected a new or empty folder: give another, or remove it."
                )
    make_folder(folder)
    return folder
