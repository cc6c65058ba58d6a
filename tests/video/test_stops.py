"""A run that is stopped at any moment ends with the code that says how, and what it wrote is whole."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
from prediction_files import write_noise_video
from video_server import JpegServer, scripted_frames

SEED = 19


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_noise_video(tmp_path_factory.mktemp("film") / "long.mp4", 3000, 25)


@contextmanager
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}/cam"


@contextmanager
def live_server():
    """JPEGs without end, but for a stall now and then."""

    def script(number: int):
        while True:
            yield from scripted_frames(60)
            yield 0.5

    with JpegServer(script) as url:
        yield url


def as_from_a_terminal() -> None:
    """Signals that who runs the tests ignores (nohup, a shell's background) are not ignored here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def begin(model: Path, source: object, out: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "perception.cli", "predict", model, source, "--out", out, "--threads", "1"]
    return subprocess.Popen(
        [*map(str, command), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_a_terminal,  # noqa: PLW1509 - one thread
    )


def stop(process: subprocess.Popen, number: int, after: float, again: float | None) -> tuple[int, str]:
    """Exit code, as a shell tells it, and what it said. again: seconds until the signal comes a second time."""
    time.sleep(after)
    process.send_signal(number)
    if again is not None:
        time.sleep(again)
        process.send_signal(number)
    said = process.communicate(timeout=40)[1]
    return process.returncode if process.returncode >= 0 else 128 - process.returncode, said


def check_whole(out: Path, *, complete: bool) -> None:
    """What is there can be read; the summary counts what is in the records, and the video has as many frames."""
    lines = [json.loads(line) for line in read(out / "predictions.jsonl").splitlines()]
    if complete:
        summary = json.loads(read(out / "summary.json"))
        assert summary["frames"] == len(lines)
    for path in out.glob("*.mp4"):
        video = cv2.VideoCapture(str(path))
        assert sum(iter(lambda v=video: v.read()[0], False)) == len(lines)
        video.release()
    assert not list(out.rglob(".partial-*"))


def read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def stop_often(model: Path, film: Path, out: Path, count: int) -> None:
    """Random sources, signals and moments: while it begins, opens, runs and closes."""
    choose = random.Random(SEED)
    with live_server() as live, silent_server() as silent:
        sources = [film, live, film, f"http://{silent}", live, f"rtsp://{silent}"]
        for turn in range(count):
            source = sources[turn % len(sources)]
            number = choose.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
            after, again = choose.uniform(0.3, 4), choose.choice([None, None, 0.0, 0.05])
            folder = out / str(turn)
            process = begin(model, source, folder, *choose.choice([(), ("--save", "jsonl"), ("--track", "--maps")]))
            code, said = stop(process, number, after, again)
            how = f"turn {turn}: {source}, signal {number} after {after:.2f} s, again {again}: {said[-800:]}"
            lost = str(silent) in str(source) and code == 1  # it gave up before the signal came
            assert code == 128 + number or lost, how
            assert "Traceback" not in said or "perception/cli/__init__.py" in said, how  # Python's own, at its start
            check_whole(folder, complete=(folder / "summary.json").exists())


def test_every_stop_ends_with_the_code_of_its_signal(exported, film, tmp_path):
    stop_often(exported, film, tmp_path, 6)


@pytest.mark.slow
def test_sixty_random_stops_end_with_the_code_of_their_signal(exported, film, tmp_path):
    stop_often(exported, film, tmp_path, 60)


def ends(model: Path, source: object, out: Path, *options: object) -> int:
    process = begin(model, source, out, *options)
    process.communicate(timeout=60)
    return process.returncode


def test_cut_after_some_frames_it_ends_with_0(exported, film, tmp_path):
    with live_server() as live:
        for turn, source in enumerate((film, live) * 2):
            out = tmp_path / str(turn)
            assert ends(exported, source, out, "--max-frames", 5) == 0
            check_whole(out, complete=True)


def test_nobody_listening_to_what_it_says_does_not_end_it(exported, film, tmp_path):
    process = begin(exported, film, tmp_path / "out", "--max-frames", 9)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    assert process.wait(timeout=60) == 0
    check_whole(tmp_path / "out", complete=True)


def test_a_signal_that_comes_while_files_are_closed_waits_for_that(exported, film, tmp_path, monkeypatch):
    code = """
import os, signal, sys, threading
from perception import cli
from perception.video.mp4_writer import Mp4Writer
close = Mp4Writer.close
def slow(self):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    close(self)
Mp4Writer.close = slow
sys.argv = ["perception", *sys.argv[1:]]
sys.exit(cli.main())
"""
    command = ["predict", exported, film, "--out", tmp_path / "out", "--max-frames", 7, "--threads", 1]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 143), done.stderr
    check_whole(tmp_path / "out", complete=True)


@pytest.mark.parametrize("command", ["predict", "label", "ood fit"])
def test_a_signal_waits_for_the_import_of_opencv_which_would_print_it(exported, tmp_path, command):
    code = """
import os, signal, sys
from perception import cli
class Interrupt:
    def find_spec(self, name, *_):
        if name == "cv2":
            os.kill(os.getpid(), signal.SIGTERM)
            print("goes on")
sys.meta_path.insert(0, Interrupt())
sys.exit(cli.main(sys.argv[1:]))
"""
    source = [] if command == "ood fit" else ["--out", tmp_path / "out"]
    asked = [sys.executable, "-c", code, *command.split(), exported, tmp_path, *source]
    done = subprocess.run([*map(str, asked)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, set(done.stdout.split("\n")), done.stderr) == (143, {"goes on", ""}, "")


def test_a_thread_that_hangs_does_not_change_the_exit_code(tmp_path):
    code = """
import sys, time
from perception.video import threads
threads.start_thread(lambda: time.sleep(600), "decode")
print("said", end="")
threads.exit_despite_hung_threads(143)
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (143, "said")
    assert time.monotonic() - begun < 5
