"""`perception predict`: any network, any source; annotated pictures or mp4, ``predictions.jsonl`` and a summary."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from perception.files.safe_write import make_folder, write_whole, writing
from perception.runtime.predictor import check_camera
from perception.runtime.sources import find
from perception.types import PerceptionError
from perception.video.event_log import Journal, Status
from perception.video.interrupt import Stopped, held, terminable
from perception.video.pipeline import Network
from perception.video.progress import say
from perception.video.run import Options, Run
from perception.video.summary import SUMMARY, Report
from perception.video.writers import make_writers

__all__ = ["Options", "Report", "predict"]


def predict(
    network: Network,
    source: str | Path | int,
    out: str | Path | None = None,
    options: Options | None = None,
    *,
    quiet: bool = False,
) -> Report:
    """Run ``network`` over ``source`` and write what it says to the folder ``out``.

    source: image, folder, glob, video, camera index or stream URL
    out:    a folder that is empty or does not exist yet; None = the next free of runs/predict, runs/predict-2, ...
    quiet:  no progress, failures and summary on standard error

    Reading, the network, what is made of its outputs, drawing and encoding run side by side. A source that cannot be
    read is reported and the others are done. Whatever happens, what was written before stays whole.
    """
    options = options or Options()
    check_camera(options.camera)
    network.placed(options.size)
    sources, writers = find(source, options.timeout), make_writers(set(options.save))
    stream = None if quiet else sys.stderr
    report = Report(out_folder(out), journal=Journal(lambda text: say(stream, text)))
    run = Run(network, options, report, writers, stream)
    begin = time.perf_counter()
    with terminable(), held():
        try:
            run.all(sources)
        except Stopped as stopped:
            report.interrupted = stopped.signal
        except KeyboardInterrupt:
            report.interrupted = signal.SIGINT
        finally:
            report.seconds = time.perf_counter() - begin
            _summarize(report)
        say(stream, str(report))
    return report


def _summarize(report: Report) -> None:
    """Write ``summary.json``, or tell that it could not be written: what has ended the run is not to be lost."""
    path = report.out / SUMMARY
    try:
        write_whole(path, f"{json.dumps(report.to_json(), indent=2)}\n".encode())
    except PerceptionError as error:
        if not report.full:  # else the same has been said already
            report.failures.append((str(path), str(error)))
            report.journal.note(SUMMARY, Status.DEGRADED, str(error))


def out_folder(out: str | Path | None) -> Path:
    """The folder to write to, made. Raises PerceptionError where it already holds something: nothing is overwritten."""
    if out is None:
        number = 1
        while (folder := Path("runs") / (f"predict-{number}" if number > 1 else "predict")).exists():
            number += 1
    else:
        folder = Path(out)
        with writing(folder):
            if folder.exists() and not folder.is_dir():
                raise PerceptionError(f"{folder} is a file. Expected a new or empty folder: give another.")
            if folder.exists() and any(folder.iterdir()):
                raise PerceptionError(
                    f"{folder} is not empty. Expected a new or empty folder: give another, or remove it."
                )
    make_folder(folder)
    return folder
