"""V1-V4 at the source: what never opens, stalls, ends, sends garbage, changes size, or comes faster than it is used.

RTSP is read by OpenCV's FFmpeg like a file and cannot be served here; its stalls are those of a server without a word.
"""

import socket
import threading
import time
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from prediction_files import write_noise_video
from video_server import JpegServer, encode_jpeg, scripted_frames, wait_until

from perception.files.images import decode_image
from perception.runtime.sources import MediaSource, find_sources
from perception.types import PerceptionError
from perception.video import mjpeg
from perception.video.event_log import EventLog, Status
from perception.video.readers import to_rgb
from perception.video.stream import RECOVERY_FRAMES, VideoStream
from perception.video.timestamps import FrameClock


def live(url: str, **options) -> VideoStream:
    options = {"timeout": 1.0, "max_attempts": 2, "backoff": 0.02, **options}
    return VideoStream(MediaSource("stream", url, "live"), **options)


def path_of(journal: EventLog) -> list[str]:
    """The statuses it went through, without repetitions."""
    names = [event["status"] for event in journal.events]
    return names[:1] + [b for a, b in pairwise(names) if a != b]


@pytest.fixture
def film(tmp_path) -> Path:
    """60 frames at 25 frames per second."""
    path = tmp_path / "drive.mp4"
    return write_noise_video(path, 60, 25)


def test_a_sound_stream_is_ok_from_end_to_end():
    journal = EventLog()
    with JpegServer(lambda number: scripted_frames(5) if number == 0 else ()) as url:
        shots = list(live(url, event_log=journal, max_attempts=1))
    assert [int(shot.image.mean()) for shot in shots][-1] == 44
    assert all(shot.image.shape == (48, 80, 3) for shot in shots)
    assert path_of(journal) == ["DEGRADED", "LOST"]  # it ended, and did not come back


@pytest.mark.fault("V1")
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_what_never_answers_is_given_up_in_time(scheme):
    with socket.socket() as server:  # accepts connections, never says a word
        server.bind(("127.0.0.1", 0))
        server.listen()
        begin = time.monotonic()
        with pytest.raises(PerceptionError, match=r"did not open within 0\.5 s"):
            live(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x", timeout=0.5)
        assert time.monotonic() - begin < 2


@pytest.mark.fault("V1")
def test_what_refuses_is_given_up_at_once_and_its_password_is_not_told():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with pytest.raises(PerceptionError) as raised:
        live(f"http://robot:secret@127.0.0.1:{port}/x")
    assert "secret" not in str(raised.value)
    assert f"http://127.0.0.1:{port}/x" in str(raised.value)


@pytest.mark.fault("V1")
def test_a_stall_degrades_and_a_stream_that_comes_back_is_ok_again():
    def script(number: int):
        yield from scripted_frames(5)
        if number == 0:
            yield 30.0
        yield from scripted_frames(10 * RECOVERY_FRAMES)

    journal = EventLog()
    with JpegServer(script) as url:
        video = live(url, event_log=journal, timeout=0.4)
        shots = []
        for shot in video:
            shots.append(shot)
            if len(shots) > 5 and journal.status("stream") == Status.OK:
                video.stop()
    assert path_of(journal) == ["DEGRADED", "OK"]
    assert journal.events[0]["event"] == "no frame for 0.4 s"
    assert all(a.time < b.time for a, b in pairwise(shots))


@pytest.mark.fault("V1")
def test_a_connection_that_falls_silent_has_stalled_and_not_ended():
    with JpegServer(lambda number: (*scripted_frames(1), 30.0)) as url:
        stream = mjpeg.open_mjpeg(url, 0.2)
        assert stream is not None
        with closing(stream):
            assert decode_image(stream.read() or b"", "a frame").shape == (48, 80, 3)
            with pytest.raises(TimeoutError):
                stream.read()


@pytest.mark.fault("V1")
def test_a_stream_that_stays_away_is_lost_after_bounded_attempts():
    def script(number: int):
        if number == 0:
            yield from scripted_frames(5)

    journal, server = EventLog(), JpegServer(script)
    begin = time.monotonic()
    with server as url:
        assert len(list(live(url, event_log=journal, max_attempts=3))) >= 1
    assert path_of(journal) == ["DEGRADED", "LOST"]
    assert server.connections >= 4  # the first and three attempts
    assert time.monotonic() - begin < 10


@pytest.mark.fault("V1")
def test_the_wait_before_each_attempt_doubles():
    times = []

    def script(number: int):
        times.append(time.monotonic())
        if number == 0:
            yield from scripted_frames(2)

    with JpegServer(script) as url:
        list(live(url, max_attempts=3, backoff=0.15))
    waits = [b - a for a, b in pairwise(times) if b - a > 0.1]  # an attempt connects twice: by ourselves, by FFmpeg
    assert waits == pytest.approx([0.15, 0.3, 0.6], abs=0.14)


@pytest.mark.fault("V1")
@pytest.mark.parametrize("lengths", [True, False])
def test_garbage_degrades_and_is_passed_over(lengths):
    good = np.full((48, 80, 3), 200, np.uint8)

    def script(number: int):
        yield from scripted_frames(4, pause=0.01)
        if number == 0:
            for i in range(4):
                yield np.random.default_rng(i).bytes(400)
                yield encode_jpeg(good)[:-60]  # cut short: OpenCV would fill the rest with gray
                yield 0.01
        for _ in range(3 * RECOVERY_FRAMES):
            yield good
            yield 0.01

    journal = EventLog()
    with JpegServer(script, lengths) as url:
        video = live(url, event_log=journal)
        shots = list(islice(video, 4 + 2 * RECOVERY_FRAMES))
        video.stop()
    assert video.num_bad == 8
    assert path_of(journal) == ["DEGRADED", "OK"]
    assert {round(float(shot.image.mean())) for shot in shots[4:]} == {200}


@pytest.mark.fault("V1")
def test_what_is_only_garbage_is_lost():
    def script(number: int):
        yield encode_jpeg(np.zeros((48, 80, 3), np.uint8))
        while True:
            yield b"\xff\xd8 no image \xff\xd9"
            yield 0.01

    journal = EventLog()
    with JpegServer(script) as url:
        video = live(url, event_log=journal, timeout=0.3, max_attempts=1)
        shots = list(video)
    assert len(shots) <= 2
    assert path_of(journal) == ["DEGRADED", "LOST"]
    assert video.num_bad > 5


@pytest.mark.fault("V1")
def test_damage_within_a_file_is_passed_over_and_told(film):
    data = bytearray(film.read_bytes())
    begin = data.index(b"mdat") + len(data) // 3
    data[begin : begin + len(data) // 10] = np.random.default_rng(0).bytes(len(data) // 10)
    film.write_bytes(bytes(data))
    journal = EventLog()
    video = VideoStream(find_sources(film)[0], event_log=journal)
    shots = list(video)
    assert len(shots) + video.num_bad >= 55
    assert shots[-1].time == pytest.approx(59 / 25, abs=0.05)
    assert journal.status("drive.mp4") == Status.DEGRADED or video.num_bad == 0


@pytest.mark.fault("V1")
def test_a_file_that_ends_early_is_told(film, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "head.mp4"  # its index first, as cameras and the web write it
    with av.open(str(film)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    journal = EventLog()
    shots = list(VideoStream(find_sources(path)[0], event_log=journal))
    assert 10 < len(shots) < 40
    assert journal.events[-1]["event"] == f"ended after {len(shots)} of 60 frames"
    assert journal.worst_status == Status.DEGRADED


@pytest.mark.fault("V1")
def test_a_whole_file_is_ok(film):
    journal = EventLog()
    video = VideoStream(find_sources(film)[0], event_log=journal)
    assert len(list(video)) == 60
    assert (journal.events, journal.worst_status, video.num_bad, video.num_dropped) == ([], Status.OK, 0, 0)


@pytest.mark.fault("V1")
def test_stopping_ends_a_wait_at_once():
    def script(number: int):
        yield from scripted_frames(2)
        yield 60.0

    with JpegServer(script) as url:
        video = live(url, timeout=30.0)
        threading.Timer(0.3, video.stop).start()
        begin = time.monotonic()
        list(video)
        assert time.monotonic() - begin < 3


@pytest.mark.fault("V2")
def test_size_and_channels_change_in_mid_stream():
    def script(number: int):
        yield from scripted_frames(3, (48, 80), 0.02)
        yield from scripted_frames(3, (90, 60), 0.02)
        yield from scripted_frames(3, (48, 80), 0.02, gray=True)

    with JpegServer(script) as url:
        shapes = [shot.image.shape for shot in live(url, max_attempts=0)]
    assert shapes == [(48, 80, 3)] * 3 + [(90, 60, 3)] * 3 + [(48, 80, 3)] * 3


@pytest.mark.fault("V2")
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (6, 8, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_kind_of_pixel_becomes_rgb(shape, kind):
    image = np.zeros(shape, kind)
    image[..., 0] = np.iinfo(kind).max
    found = to_rgb(image)
    assert found.shape == (6, 8, 3)
    assert found.dtype == np.uint8
    if len(shape) == 3 and shape[2] > 1:
        assert found[0, 0].tolist() == [0, 0, 255]


@pytest.mark.fault("V3")
def test_a_variable_rate_keeps_its_times(tmp_path):
    av = pytest.importorskip("av")
    from fractions import Fraction

    path, stamps = tmp_path / "variable.mp4", [0, 40, 80, 200, 210, 500, 540, 1000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((96, 160, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [shot.time for shot in VideoStream(find_sources(path)[0])] == pytest.approx(
        [stamp / 1000 for stamp in stamps], abs=1e-3
    )


@pytest.mark.fault("V3")
def test_times_that_go_back_or_stand_still_grow_all_the_same():
    clock = FrameClock(0.04, is_live=False)
    times = [clock.stamp(wanted, 0.0) for wanted in (0.0, 0.08, 0.08, 0.02, 0.3, 0.1, None, None, 0.5)]
    assert all(a < b for a, b in pairwise(times))
    assert times[0] == 0
    assert times[1] == 0.08
    assert times[4] == 0.3
    assert times[-1] == 0.5


@pytest.mark.fault("V3")
def test_a_live_stream_keeps_its_own_spacing_but_never_leaves_the_wall_clock():
    clock = FrameClock(0.04, is_live=True)
    wall = [100 + 0.04 * i + 0.015 * (i % 3) for i in range(50)]  # jitter of the network
    times = [clock.stamp(7.0 + 0.04 * i, arrived) for i, arrived in enumerate(wall)]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-9)
    after = [clock.stamp(0.04 * i, 200 + 0.04 * i) for i in range(3)]  # the camera began anew
    assert after[0] == pytest.approx(100)
    assert clock.stamp(None, 300.0) == pytest.approx(200)


@pytest.mark.fault("V4")
def test_of_a_live_stream_the_oldest_is_dropped_and_counted():
    sent = 60

    with JpegServer(lambda number: scripted_frames(sent, pause=0.01) if number == 0 else ()) as url:
        video = live(url, max_attempts=0)
        lags, values = [], []
        for shot in video:
            time.sleep(0.08)  # eight times slower than it comes
            lags.append(time.monotonic() - shot.arrival_time)
            values.append(int(shot.image.mean()))
    assert video.num_dropped > sent / 2
    assert video.num_frames + video.num_dropped == sent
    assert max(lags) < 0.08 * 4  # what waits is bounded, whatever comes
    assert values == sorted(values)
    assert values[-1] == 40 + sent - 1  # the newest is kept


@pytest.mark.fault("V4")
def test_a_file_waits_and_drops_nothing(film):
    video = VideoStream(find_sources(film)[0])
    iterator = iter(video)
    next(iterator)
    time.sleep(0.3)
    assert 1 + sum(1 for _ in iterator) == 60
    assert video.num_dropped == 0


def test_nobody_listening_ends_the_thread_that_reads(film):
    before = threading.active_count()
    video = VideoStream(find_sources(film)[0])
    assert len(list(islice(video, 2))) == 2
    video.stop()
    assert wait_until(lambda: threading.active_count() <= before)
