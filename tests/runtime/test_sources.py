"""What a path, folder, glob, pattern or list names: faults of names and of what lies about in folders."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from prediction_files import write_noise_video

from perception.files.file_types import detect_file_type
from perception.runtime.sources import find_sources, read_image_frame
from perception.types import PerceptionError
from perception.video.declared_length import explain_undecodable
from perception.video.event_log import EventLog, Status
from perception.video.run import assign_output_names
from perception.video.stream import VideoStream

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg" if path.suffix == ".jpg" else ".png", PIXELS)[1].tobytes())
    return path


def ids(source: str | Path) -> list[str]:
    return [item.id for item in find_sources(source)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = ["2024-05-01T12:30:00", "-rf", "100%", "%04d", "a#b?", " a ", "[x]", 'it\'s "q"', "concat:a", "ünï", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_file_is_called_it_is_opened(here, name):
    write_noise_video(here / "a.mp4", 3, 10).rename(f"{name}.mp4")
    picture(here / f"{name}.png")
    for source in (f"{name}.mp4", f"./{name}.mp4", here / f"{name}.mp4"):
        (item,) = find_sources(source)
        assert (item.id, item.kind, sum(1 for _ in VideoStream(item))) == (f"{name}.mp4", "video", 3)
    assert read_image_frame(find_sources(f"{name}.png")[0]).image.shape == (40, 60, 3)
    assert sorted(ids(".")) == sorted([f"{name}.mp4", f"{name}.png"])


@pytest.mark.parametrize("nothing", ["", " ", "\0", "a\0b", "x" * 5000, "nowhere", "nowhere/*.jpg", "~/no", "%d.png"])
def test_what_names_nothing_is_told(here, nothing):
    with pytest.raises(PerceptionError, match=r"no source|nothing there"):
        find_sources(nothing)


def test_hidden_files_and_what_systems_leave_in_folders_are_none(here):
    picture(here / "in/a.jpg")
    for other in ("._a.jpg", ".h/b.jpg", "__MACOSX/c.jpg", ".ipynb_checkpoints/d.jpg", "x/@eaDir/e.jpg"):
        picture(here / "in" / other)
    (here / "in/Thumbs.db").write_text("x")
    assert ids("in") == ids("in/*") == ids("in/**/*.jpg") == ["a.jpg"]
    assert ids("in/.h") == ids("in/.h/*") == ["b.jpg"]  # who names one means it


def test_a_name_that_is_not_utf8_keeps_no_other_from_being_done(here):
    picture(here / "in/good.png")
    picture(here / "in/a.png").rename(os.fsdecode(b"in/caf\xe9.png"))
    write_noise_video(here / "in/a.mp4", 3, 10).rename(os.fsdecode(b"in/f\xe9.mp4"))
    one, two, good = find_sources("in")
    assert (one.id, two.id, good.id) == ("caf%E9.png", "f%E9.mp4", "good.png")
    assert read_image_frame(one).image.shape == (40, 60, 3)
    with pytest.raises(PerceptionError, match=r"not UTF-8\. Rename it") as raised:
        read_image_frame(two)  # never opened: OpenCV ends the program there
    (here / os.fsdecode(b"in/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(PerceptionError, match="is empty") as empty:
        read_image_frame(one)
    assert f"{raised.value}{empty.value}{one.display_name}".encode()


def test_links_are_followed_once_and_those_to_nothing_are_told(here):
    picture(here / "in/real/a.png")
    picture(here / "else/b.png")
    for name, target in {"loop": ".", "again": "real", "out": "../else", "no.png": "x", "self.png": "self.png"}.items():
        (here / "in" / name).symlink_to(target)
    found = find_sources("in")
    assert [item.id for item in found] == ["no.png", "out/b.png", "real/a.png", "self.png"]
    for item in (found[0], found[3]):
        with pytest.raises(PerceptionError, match=r"No image at|cannot be read"):
            read_image_frame(item)


def test_a_glob_takes_what_is_there_by_its_name(here):
    for name in ("cats [1]/a.png", "cats [1]/b.png", "cats 1/c.png"):
        picture(here / name)
    assert ids("cats [1]/*.png") == ["a.png", "b.png"]
    assert ids("cats*/?.png") == ["cats 1/c.png", "cats [1]/a.png", "cats [1]/b.png"]


def test_a_numbered_pattern_gives_its_files_by_number(here):
    for number in (10, 2, 1):
        picture(here / f"in/frame_{number:04d}.png")
    picture(here / "in/frame_x.png")
    assert ids("in/frame_%04d.png") == ids("in/frame_%d.png") == [f"frame_{n:04d}.png" for n in (1, 2, 10)]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".m3u"])
def test_a_list_names_files_in_its_order_and_what_is_missing_is_told(here, suffix):
    for name in ("d/in/b.png", "d/in/a b.png", "d/c.jpg"):
        picture(here / name)
    end = ",7" if suffix == ".csv" else ""
    lines = ["# a comment", "", *([f"file{end}"] if end else []), *(f"{n}{end}" for n in ("in/b.png", "./in/a b.png"))]
    (here / f"d/list{suffix}").write_bytes(
        "\r\n".join([*lines, f"gone.png{end}", str(here / "d/c.jpg") + end]).encode()
    )
    found = find_sources(f"d/list{suffix}")
    assert [item.id for item in found] == ["in/b.png", "in/a b.png", "gone.png", "c.jpg"]
    assert [bool(item.problem) for item in found] == [False, False, True, False]
    with pytest.raises(PerceptionError, match=rf"gone\.png, which d/list\{suffix} names, is no file"):
        read_image_frame(found[2])
    for nothing in ("", "# only a comment", "not an image"):
        (here / f"d/list{suffix}").write_text(nothing)
        with pytest.raises(PerceptionError, match="names a file"):
            find_sources(f"d/list{suffix}")


def test_what_is_not_read_is_told_and_not_left_out(here):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(50)
    picture(here / "in/a.jpg")
    (here / "in/b.HEIC").write_bytes(heic)
    (here / "in/a.CR2").write_bytes(b"II*\0\x10\0\0\0CR" + bytes(50))  # the raw image of a.jpg
    picture(here / "in/c.heic")  # only called so
    (here / "in/d.ts").write_text("export const a = 1")
    (here / "in/e.mp4").write_bytes(b"")
    found = {item.id: item.problem for item in find_sources("in")}
    assert sorted(found) == ["a.jpg", "b.HEIC", "c.heic", "e.mp4"]
    assert "is a HEIC image, which is not supported. Convert it first: heif-convert" in found["b.HEIC"]
    assert found["e.mp4"] == "in/e.mp4 is empty. Copy it again."
    assert not found["c.heic"]
    (here / "drawing.svg").write_text("<svg/>")
    with pytest.raises(PerceptionError, match=r"is a drawing \(SVG\)"):
        find_sources("drawing.svg")


def test_a_file_is_what_it_holds(here):
    write_noise_video(here / "a.mp4", 3, 10).rename("video")
    picture(here / "a.png").rename("photo")
    picture(here / "b.png").rename("b.mp5")
    assert [(item.id, item.kind) for item in find_sources(".")] == [("photo", "image"), ("video", "video")]
    assert find_sources("b.mp5")[0].kind == "image"
    os.mkfifo("pipe.jpg")
    assert ids("video") == ["video"]


HEADS = {
    "FLV": b"FLV\1\5\0\0\0\x09",
    "MPEG-PS": b"\0\0\1\xba\x44",
    "MPEG-2": b"\0\0\1\xb3\x14",
    "H.264": b"\0\0\0\1\x67\x64",
    "H.265": b"\0\0\0\1\x40\1",
    "MP4": b"\0\0\0\x20ftypisom",
    "AVI": b"RIFF\0\0\0\0AVI LIST",
    "Matroska": b"\x1aE\xdf\xa3\x9f",
    "Ogg": b"OggS\0",
    "ASF": b"0&\xb2u\x8ef\xcf\x11",
    "MPEG-TS": b"G" + bytes(187) + b"G",
    "M2TS": bytes(4) + b"G" + bytes(191) + b"G",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_video_without_a_suffix_is_known_by_its_first_bytes(name):
    assert detect_file_type(HEADS[name] + bytes(100)) == "video"


@pytest.mark.parametrize("frames", [1, 3])
def test_a_gif_that_moves_is_a_video(here, frames):
    images = [Image.new("RGB", (60, 40), (60 * i, 200, 0)) for i in range(frames)]
    images[0].save("a.gif", save_all=True, append_images=images[1:], duration=100)
    (item,) = find_sources("a.gif")
    if frames == 1:
        assert item.kind == "image"
        assert read_image_frame(item).image.shape == (40, 60, 3)
    else:
        assert [shot.time for shot in VideoStream(item)] == pytest.approx([0, 0.1, 0.2])


def test_a_folder_of_many_images_is_listed_at_once(here):
    (here / "in").mkdir()
    for i in range(20_000):
        (here / f"in/{i:05d}.jpg").touch()
    found = find_sources("in")
    assert [item.id for item in found] == [f"{i:05d}.jpg" for i in range(20_000)]
    assert len(set(assign_output_names(found).values())) == 20_000  # was quadratic


@pytest.mark.fault("V1")
def test_a_damaged_frame_in_a_video_of_jpegs_is_told_and_not_shown(here):
    writer = cv2.VideoWriter("a.avi", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (320, 240))
    for i in range(20):
        writer.write(cv2.resize(np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8), (320, 240)))
    writer.release()
    sound = [shot.image for shot in VideoStream(find_sources("a.avi")[0])]
    data = bytearray(Path("a.avi").read_bytes())
    begins = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    middle = (begins[7] + begins[8]) // 2
    data[middle : middle + 40] = bytes(40)
    Path("b.avi").write_bytes(data)
    Path("c.mjpg").write_bytes(
        b"".join(bytes(data[a:b]) for a, b in zip(begins, [*begins[1:], len(data)], strict=True))
    )
    for name in ("b.avi", "c.mjpg"):
        journal = EventLog()
        video = VideoStream(find_sources(name)[0], event_log=journal)
        shown = [shot.image for shot in video]
        assert (len(shown), video.num_bad, journal.worst_status) == (19, 1, Status.DEGRADED)
        assert all(np.array_equal(a, b) for a, b in zip(shown, sound[:7] + sound[8:], strict=True))


@pytest.mark.fault("D4")
def test_a_video_of_frames_too_large_is_told_before_one_is_decoded(here):
    Path("b.y4m").write_bytes(b"YUV4MPEG2 W15000 H15000 F10:1 C420jpeg\nFRAME\n" + bytes(4096))
    with pytest.raises(PerceptionError, match=r"15000 x 15000 = 225 Mpx"):
        VideoStream(find_sources("b.y4m")[0])


@pytest.mark.fault("V3")
def test_a_codec_that_is_not_decoded_is_named_with_the_mend(here):
    data = write_noise_video(here / "a.mp4", 5, 10).read_bytes()
    Path("b.mp4").write_bytes(data.replace(b"mp4v", b"av01").replace(b"esds", b"free"))
    video = VideoStream(find_sources("b.mp4")[0])
    assert list(video) == []
    assert "codec is AV1" in explain_undecodable(video.codec)
    assert "ffmpeg -i IN -c:v libx264 OUT.mp4" in explain_undecodable(video.codec)


@pytest.mark.fault("V1")
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_video_that_is_cut_is_told(here, suffix):
    write_noise_video(here / f"a{suffix}", 60, 25)
    data = Path(f"a{suffix}").read_bytes()
    assert sum(1 for _ in VideoStream(find_sources(f"a{suffix}")[0])) == 60
    Path(f"b{suffix}").write_bytes(data[: len(data) // 2])
    journal = EventLog()
    try:
        list(VideoStream(find_sources(f"b{suffix}")[0], event_log=journal))
    except PerceptionError as error:
        assert "did not open" in str(error)  # noqa: PT017
    else:
        assert journal.worst_status == Status.DEGRADED


@pytest.mark.fault("V3")
def test_a_container_that_claims_more_than_its_frames_is_ok(here):
    """Matroska tells a duration, which is that of the sound where there is a longer one."""
    data = bytearray(write_noise_video(here / "a.mkv", 20, 25).read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = np.array(8000.0, ">f8").tobytes()
    Path("b.mkv").write_bytes(data)
    journal = EventLog()
    video = VideoStream(find_sources("b.mkv")[0], event_log=journal)
    assert video.length == 200
    assert (sum(1 for _ in video), video.num_bad, journal.worst_status) == (20, 0, Status.OK)
