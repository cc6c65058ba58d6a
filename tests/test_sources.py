"""What a path, folder, glob, pattern or list names: faults of names and of what lies about in folders."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from films import noise_film
from PIL import Image

from perception.files.file_types import kind_of
from perception.runtime.sources import find, read_picture
from perception.types import PerceptionError
from perception.video.declared_length import undecodable
from perception.video.event_log import Journal, Status
from perception.video.run import output_names
from perception.video.stream import Video

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg" if path.suffix == ".jpg" else ".png", PIXELS)[1].tobytes())
    return path


def ids(source: str | Path) -> list[str]:
    return [item.id for item in find(source)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = ["2024-05-01T12:30:00", "-rf", "100%", "%04d", "a#b?", " a ", "[x]", 'it\'s "q"', "concat:a", "ünï", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_file_is_called_it_is_opened(here, name):
    noise_film(here / "a.mp4", 3, 10).rename(f"{name}.mp4")
    picture(here / f"{name}.png")
    for source in (f"{name}.mp4", f"./{name}.mp4", here / f"{name}.mp4"):
        (item,) = find(source)
        assert (item.id, item.kind, sum(1 for _ in Video(item))) == (f"{name}.mp4", "video", 3)
    assert read_picture(find(f"{name}.png")[0]).image.shape == (40, 60, 3)
    assert sorted(ids(".")) == sorted([f"{name}.mp4", f"{name}.png"])


@pytest.mark.parametrize("nothing", ["", " ", "\0", "a\0b", "x" * 5000, "nowhere", "nowhere/*.jpg", "~/no", "%d.png"])
def test_what_names_nothing_is_told(here, nothing):
    with pytest.raises(PerceptionError, match=r"no source|nothing there"):
        find(nothing)


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
    noise_film(here / "in/a.mp4", 3, 10).rename(os.fsdecode(b"in/f\xe9.mp4"))
    one, two, good = find("in")
    assert (one.id, two.id, good.id) == ("caf%E9.png", "f%E9.mp4", "good.png")
    assert read_picture(one).image.shape == (40, 60, 3)
    with pytest.raises(PerceptionError, match=r"not UTF-8\. Rename it") as raised:
        read_picture(two)  # never opened: OpenCV ends the program there
    (here / os.fsdecode(b"in/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(PerceptionError, match="is empty") as empty:
        read_picture(one)
    assert f"{raised.value}{empty.value}{one.shown}".encode()


def test_links_are_followed_once_and_those_to_nothing_are_told(here):
    picture(here / "in/real/a.png")
    picture(here / "else/b.png")
    for name, target in {"loop": ".", "again": "real", "out": "../else", "no.png": "x", "self.png": "self.png"}.items():
        (here / "in" / name).symlink_to(target)
    found = find("in")
    assert [item.id for item in found] == ["no.png", "out/b.png", "real/a.png", "self.png"]
    for item in (found[0], found[3]):
        with pytest.raises(PerceptionError, match=r"No picture at|cannot be read"):
            read_picture(item)


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
    found = find(f"d/list{suffix}")
    assert [item.id for item in found] == ["in/b.png", "in/a b.png", "gone.png", "c.jpg"]
    assert [bool(item.trouble) for item in found] == [False, False, True, False]
    with pytest.raises(PerceptionError, match=rf"gone\.png, which d/list\{suffix} names, is no file"):
        read_picture(found[2])
    for nothing in ("", "# only a comment", "not a picture"):
        (here / f"d/list{suffix}").write_text(nothing)
        with pytest.raises(PerceptionError, match="names a file"):
            find(f"d/list{suffix}")


def test_what_is_not_read_is_told_and_not_left_out(here):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(50)
    picture(here / "in/a.jpg")
    (here / "in/b.HEIC").write_bytes(heic)
    (here / "in/a.CR2").write_bytes(b"II*\0\x10\0\0\0CR" + bytes(50))  # the raw picture of a.jpg
    picture(here / "in/c.heic")  # only called so
    (here / "in/d.ts").write_text("export const a = 1")
    (here / "in/e.mp4").write_bytes(b"")
    found = {item.id: item.trouble for item in find("in")}
    assert sorted(found) == ["a.jpg", "b.HEIC", "c.heic", "e.mp4"]
    assert "is a HEIC picture, which is not read. Convert it first: heif-convert" in found["b.HEIC"]
    assert found["e.mp4"] == "in/e.mp4 is empty. Copy it again."
    assert not found["c.heic"]
    (here / "drawing.svg").write_text("<svg/>")
    with pytest.raises(PerceptionError, match=r"is a drawing \(SVG\)"):
        find("drawing.svg")


def test_a_file_is_what_it_holds(here):
    noise_film(here / "a.mp4", 3, 10).rename("film")
    picture(here / "a.png").rename("photo")
    picture(here / "b.png").rename("b.mp5")
    assert [(item.id, item.kind) for item in find(".")] == [("film", "video"), ("photo", "picture")]
    assert find("b.mp5")[0].kind == "picture"
    os.mkfifo("pipe.jpg")
    assert ids("film") == ["film"]


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
def test_a_film_without_a_suffix_is_known_by_its_first_bytes(name):
    assert kind_of(HEADS[name] + bytes(100)) == "video"


@pytest.mark.parametrize("frames", [1, 3])
def test_a_gif_that_moves_is_a_film(here, frames):
    images = [Image.new("RGB", (60, 40), (60 * i, 200, 0)) for i in range(frames)]
    images[0].save("a.gif", save_all=True, append_images=images[1:], duration=100)
    (item,) = find("a.gif")
    if frames == 1:
        assert item.kind == "picture"
        assert read_picture(item).image.shape == (40, 60, 3)
    else:
        assert [shot.time for shot in Video(item)] == pytest.approx([0, 0.1, 0.2])


def test_a_folder_of_many_pictures_is_listed_at_once(here):
    (here / "in").mkdir()
    for i in range(20_000):
        (here / f"in/{i:05d}.jpg").touch()
    found = find("in")
    assert [item.id for item in found] == [f"{i:05d}.jpg" for i in range(20_000)]
    assert len(set(output_names(found).values())) == 20_000  # was quadratic


def test_v1_a_damaged_frame_in_a_film_of_jpegs_is_told_and_not_shown(here):
    writer = cv2.VideoWriter("a.avi", cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25, (320, 240))
    for i in range(20):
        writer.write(cv2.resize(np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8), (320, 240)))
    writer.release()
    sound = [shot.image for shot in Video(find("a.avi")[0])]
    data = bytearray(Path("a.avi").read_bytes())
    begins = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    middle = (begins[7] + begins[8]) // 2
    data[middle : middle + 40] = bytes(40)
    Path("b.avi").write_bytes(data)
    Path("c.mjpg").write_bytes(
        b"".join(bytes(data[a:b]) for a, b in zip(begins, [*begins[1:], len(data)], strict=True))
    )
    for name in ("b.avi", "c.mjpg"):
        journal = Journal()
        video = Video(find(name)[0], journal=journal)
        shown = [shot.image for shot in video]
        assert (len(shown), video.bad, journal.worst) == (19, 1, Status.DEGRADED)
        assert all(np.array_equal(a, b) for a, b in zip(shown, sound[:7] + sound[8:], strict=True))


def test_d4_a_film_of_frames_too_large_is_told_before_one_is_decoded(here):
    Path("b.y4m").write_bytes(b"YUV4MPEG2 W15000 H15000 F10:1 C420jpeg\nFRAME\n" + bytes(4096))
    with pytest.raises(PerceptionError, match=r"15000 x 15000 = 225 Mpx"):
        Video(find("b.y4m")[0])


def test_v3_a_codec_that_is_not_decoded_is_named_with_the_mend(here):
    data = noise_film(here / "a.mp4", 5, 10).read_bytes()
    Path("b.mp4").write_bytes(data.replace(b"mp4v", b"av01").replace(b"esds", b"free"))
    video = Video(find("b.mp4")[0])
    assert list(video) == []
    assert "coded as AV1" in undecodable(video.codec)
    assert "ffmpeg -i IN -c:v libx264 OUT.mp4" in undecodable(video.codec)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_v1_a_film_that_is_cut_is_told(here, suffix):
    noise_film(here / f"a{suffix}", 60, 25)
    data = Path(f"a{suffix}").read_bytes()
    assert sum(1 for _ in Video(find(f"a{suffix}")[0])) == 60
    Path(f"b{suffix}").write_bytes(data[: len(data) // 2])
    journal = Journal()
    try:
        list(Video(find(f"b{suffix}")[0], journal=journal))
    except PerceptionError as error:
        assert "did not open" in str(error)  # noqa: PT017
    else:
        assert journal.worst == Status.DEGRADED


def test_v3_a_container_that_claims_more_than_its_frames_is_ok(here):
    """Matroska tells a duration, which is that of the sound where there is a longer one."""
    data = bytearray(noise_film(here / "a.mkv", 20, 25).read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = np.array(8000.0, ">f8").tobytes()
    Path("b.mkv").write_bytes(data)
    journal = Journal()
    video = Video(find("b.mkv")[0], journal=journal)
    assert video.length == 200
    assert (sum(1 for _ in video), video.bad, journal.worst) == (20, 0, Status.OK)
