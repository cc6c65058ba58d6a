"""The pipeline as a whole: side by side, in order, whole after every end; and the files that it writes."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from prediction_files import read_records, read_summary, write_noise_video
from video_server import JpegServer, scripted_frames, wait_until

from perception.runtime.predictor import Predictor
from perception.types import PerceptionError
from perception.video.bounded_queue import BoundedQueue, QueueClosed, prefetch
from perception.video.mp4_writer import Mp4Writer, fit_image
from perception.video.predict import PredictOptions, predict
from perception.video.writers import WRITERS, make_writers

DATA = Path(os.environ.get("PERCEPTION_TEST_DATA", ""))


@pytest.fixture(scope="module")
def perceiver(exported) -> Predictor:
    return Predictor(exported, threads=1)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """40 frames, each another, at 20 frames per second."""
    path = tmp_path_factory.mktemp("film") / "drive.mp4"
    return write_noise_video(path, 40, 20)


def frame_count(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = sum(1 for _ in iter(video.grab, False))
    video.release()
    return count


def test_a_channel_is_bounded_and_either_side_may_end_it():
    channel: BoundedQueue[int] = BoundedQueue(2)
    channel.put(1)
    channel.put(2)
    blocked = threading.Thread(target=lambda: channel.put(3), daemon=True)
    blocked.start()
    time.sleep(0.05)
    assert blocked.is_alive()
    assert channel.get() == 1
    blocked.join(2)
    assert not blocked.is_alive()
    channel.finish()
    assert [channel.get(), channel.get()] == [2, 3]
    with pytest.raises(QueueClosed):
        channel.get()
    channel.abandon()
    with pytest.raises(QueueClosed):
        channel.put(4)
    with pytest.raises(TimeoutError):
        BoundedQueue(1).get(0.02)


@pytest.mark.fault("V4")
def test_a_channel_for_the_newest_drops_the_oldest():
    channel: BoundedQueue[int] = BoundedQueue(2, drop_oldest=True)
    for i in range(10):
        channel.put(i)
    assert channel.dropped == 8
    assert [channel.get(), channel.get()] == [8, 9]


def test_running_ahead_keeps_order_passes_errors_on_and_closes_its_source():
    closed = threading.Event()

    def source():
        try:
            yield from range(5)
            raise ValueError("broken")
        finally:
            closed.set()

    found = []
    with pytest.raises(ValueError, match="broken"):  # noqa: PT012 - what came before counts
        for item in prefetch(source(), 2):
            found.append(item)
    assert found == [0, 1, 2, 3, 4]
    assert closed.is_set()

    closed.clear()
    generator = prefetch(source(), 2)
    assert next(generator) == 0
    generator.close()
    assert closed.is_set()


def test_stages_really_run_side_by_side():
    def slow(items):
        for item in items:
            time.sleep(0.02)
            yield item

    begin = time.perf_counter()
    assert list(prefetch(slow(prefetch(slow(prefetch(slow(range(15)))))))) == list(range(15))
    assert time.perf_counter() - begin < 0.75 * 3 * 15 * 0.02


def test_the_summary_tells_stages_status_and_counts(perceiver, film, tmp_path):
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(deadline=60.0), quiet=True)
    told = read_summary(report.out)
    assert (told["status"], told["frames"], told["dropped"], told["deadline_misses"]) == ("OK", 40, 0, 0)
    assert told["interrupted"] is False
    stages = ("decode", "preprocess", "inference", "restore", "postprocess", "latency", "draw", "encode", "write")
    assert set(stages) <= set(told["latency_ms"])
    for stage in stages:
        assert 0 <= told["latency_ms"][stage]["p50"] <= told["latency_ms"][stage]["p99"]
    assert [record["sequence"] for record in read_records(report.out)] == list(range(1, 41))


@pytest.mark.fault("M3")
def test_missed_deadlines_are_in_the_records_and_the_summary(perceiver, film, tmp_path):
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(deadline=1e-6, max_frames=5), quiet=True)
    assert read_summary(report.out)["deadline_misses"] == 5
    assert all(record["flags"][0].startswith("late: ") for record in read_records(report.out))


@pytest.mark.fault("M1")
def test_black_frames_are_not_valid_in_the_records_and_the_image(perceiver, tmp_path):
    path = tmp_path / "night.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20, (160, 96))
    generator = np.random.default_rng(0)
    for i in range(20):
        writer.write(
            np.zeros((96, 160, 3), np.uint8) if i >= 10 else generator.integers(0, 256, (96, 160, 3), np.uint8)
        )
    writer.release()
    report = predict(perceiver, path, tmp_path / "out", quiet=True)
    valid = [record.get("valid", True) for record in read_records(report.out)]
    assert valid == [True] * 11 + [False] * 9
    assert report.invalid == read_summary(report.out)["invalid"] == 9
    off = predict(perceiver, path, tmp_path / "off", PredictOptions(monitor=False), quiet=True)
    assert off.invalid == 0


@pytest.mark.fault("V1")
def test_what_was_written_of_a_stream_that_is_lost_is_whole(perceiver, tmp_path):
    with JpegServer(lambda number: scripted_frames(12, (96, 160), 0.03) if number == 0 else ()) as url:
        report = predict(perceiver, url, tmp_path / "out", PredictOptions(timeout=0.5, max_attempts=1), quiet=True)
    told = read_summary(report.out)
    assert told["status"] == "LOST"
    assert [event["status"] for event in told["events"]][:1] == ["DEGRADED"]
    assert told["frames"] + told["dropped"] == 12
    assert len(read_records(report.out)) == frame_count(report.out / "stream.mp4") == told["frames"] > 0
    assert "was lost after" in report.failures[0][1]


@pytest.mark.fault("V2")
def test_a_size_that_changes_is_followed_and_every_frame_written(perceiver, tmp_path):
    def script(number: int):
        if number == 0:
            yield from scripted_frames(6, (96, 160), 0.15)
            yield from scripted_frames(6, (120, 90), 0.15)

    with JpegServer(script) as url:
        report = predict(perceiver, url, tmp_path / "out", PredictOptions(timeout=2.0, max_attempts=0), quiet=True)
    sizes = [tuple(record["size"]) for record in read_records(report.out)]
    assert set(sizes) == {(96, 160), (120, 90)}
    assert len(sizes) + report.dropped == 12
    assert frame_count(report.out / "stream.mp4") == len(sizes)


@pytest.mark.fault("V4")
def test_latency_of_a_live_source_is_bounded_whatever_comes(perceiver, tmp_path, monkeypatch):
    run = perceiver.run
    monkeypatch.setattr(perceiver, "run", lambda images: (time.sleep(0.06), run(images))[1])
    with JpegServer(lambda number: scripted_frames(150, (96, 160), 0.004) if number == 0 else ()) as url:
        report = predict(
            perceiver, url, tmp_path / "out", PredictOptions(timeout=2.0, max_attempts=0, save=("jsonl",)), quiet=True
        )
    told = read_summary(report.out)
    assert told["dropped"] > 50
    assert told["frames"] + told["dropped"] == 150
    assert told["latency_ms"]["latency"]["p50"] < 8 * told["latency_ms"]["inference"]["p50"]


def test_a_writer_that_fails_fails_its_source_and_leaves_the_others_whole(perceiver, film, tmp_path, monkeypatch):
    write, seen = WRITERS["mp4"].write, []

    def failing(self, shot, result, record):
        seen.append(shot.id)
        if len(seen) == 10:
            raise PerceptionError("no room")
        write(self, shot, result, record)

    monkeypatch.setattr(WRITERS["mp4"], "write", failing)
    report = predict(perceiver, film, tmp_path / "out", quiet=True)
    assert report.failures[0][1] == "no room"
    assert frame_count(report.out / "drive.mp4") == 9
    assert len(read_records(report.out)) == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_loses_nothing_that_was_written(exported, film, tmp_path, number):
    code = """
import signal, sys, time
from perception.video.predict import predict
from perception.runtime.predictor import Predictor
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
perceiver = Predictor(sys.argv[1], threads=1)
run = perceiver.run
perceiver.run = lambda images: (time.sleep(0.15), run(images))[1]
report = predict(perceiver, sys.argv[2], sys.argv[3], quiet=True)
print(report.stop_signal)
"""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(exported), str(film), str(out)], stdout=subprocess.PIPE, text=True
    )
    lines = out / "predictions.jsonl"
    assert wait_until(lambda: lines.is_file() and lines.read_text().count("\n") >= 5, 60)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert said.strip() == str(int(number))
    told = read_records(out)
    assert 5 <= len(told) < 40
    assert abs(frame_count(out / "drive.mp4") - len(told)) <= 1
    assert read_summary(out)["interrupted"] is True


@pytest.mark.fault("V3")
def test_an_mp4_keeps_the_times_of_its_frames(tmp_path):
    times = [0.0, 0.04, 0.08, 0.2, 0.21, 0.5, 0.54, 1.0]
    path = tmp_path / "uneven.mp4"
    video = Mp4Writer(path, 25, (97, 160))
    for i, seconds in enumerate(times):
        video.write(np.full((97, 160, 3), 30 * i, np.uint8), 7 + seconds)
    video.close()
    read, found, values = cv2.VideoCapture(str(path)), [], []
    while (frame := read.read())[0]:
        found.append(read.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        values.append(int(frame[1].mean()))
    read.release()
    assert found == pytest.approx(times, abs=1e-3)
    assert all(b - a > 20 for a, b in pairwise(values))
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times, abs=1e-4)
        assert float(stream.duration * stream.time_base) == pytest.approx(1.04, abs=1e-3)


def test_an_mp4_that_is_not_whole_is_told(tmp_path, monkeypatch):
    video = Mp4Writer(tmp_path / "x.mp4", 25, (96, 160))
    video.write(np.zeros((96, 160, 3), np.uint8), 0.0)
    release = video._file.release

    class Full:
        write = video._file.write

        @staticmethod
        def release() -> None:
            release()
            path = tmp_path / "x.mp4"
            path.write_bytes(path.read_bytes()[:-400])

    video._file = Full()
    with pytest.raises(PerceptionError, match="is incomplete"):
        video.close()


def test_an_image_of_another_size_is_fitted_with_its_aspect_ratio():
    picture = np.full((40, 80, 3), 200, np.uint8)
    found = fit_image(picture, (80, 80))
    assert found.shape == (80, 80, 3)
    assert (found[:40] == 200).all()
    assert (found[40:] == 48).all()
    assert fit_image(picture, (80, 40)) is picture


def test_unknown_ways_to_save_and_a_window_that_is_not_there(perceiver, film, tmp_path):
    with pytest.raises(PerceptionError, match=r"No way to save avi\. There are: maps, jsonl, mp4"):
        make_writers({"avi"})
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(save=("window",)), quiet=True)
    assert "has no window support" in report.failures[0][1]


def test_a_recording_for_rerun_is_written_without_a_viewer(perceiver, film, tmp_path):
    pytest.importorskip("rerun")
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(save=("rrd",), max_frames=4), quiet=True)
    assert report.failures == []
    data = (report.out / "drive.rrd").read_bytes()
    assert data.startswith(b"RRF")
    for name in (b"camera/image", b"camera/detection", b"camera/depth"):
        assert name in data


def test_without_rerun_the_error_names_the_command(perceiver, film, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(save=("rrd",)), quiet=True)
    assert "pip install 'dense-perception[rerun]'" in report.failures[0][1]


def test_tracks_and_smoothing_run_within_the_pipeline(perceiver, film, tmp_path):
    pytest.importorskip("trackers")
    report = predict(
        perceiver, film, tmp_path / "out", PredictOptions(track=True, smoothing_seconds=0.3, max_frames=10), quiet=True
    )
    assert report.frames == 10
    assert any("track" in item for record in read_records(report.out) for item in record["detection"])


def test_options_are_plain_values():
    assert dataclasses.replace(PredictOptions(), track=True) == PredictOptions(track=True)


@pytest.mark.slow
def test_memory_is_flat_over_twenty_loops_of_a_drive(perceiver, tmp_path):
    path = DATA / "video" / "solidWhiteRight.mp4"
    if not path.is_file():
        pytest.skip("PERCEPTION_TEST_DATA is not set")
    resident = []
    for loop in range(20):
        predict(perceiver, path, tmp_path / str(loop), quiet=True)
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert max(resident[-5:]) - max(resident[2:7]) < 20, resident
