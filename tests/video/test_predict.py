"""`perception predict`: images, folders, globs, video and broken sources, with torch and with ONNX Runtime."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from prediction_files import read_records, read_summary
from torch_free import without_torch

from perception import cli
from perception.runtime.predictor import Predictor
from perception.runtime.sources import Frame, find_sources
from perception.torch_predictor import TorchPredictor
from perception.types import Camera, DenseMap, PerceptionError, TaskSpec
from perception.video.mp4_writer import Mp4Writer
from perception.video.predict import PredictOptions, make_output_folder, predict
from perception.video.progress import Progress
from perception.video.stage_times import Timings
from perception.video.stream import VideoStream
from perception.video.writer import WriterContext
from perception.video.writers.maps import MapWriter, map_scale


def test_a_line_of_progress_may_begin_at_nothing():
    stream = io.StringIO()
    line = Progress(stream, "a.mp4", 5)
    line.set_count(0)
    line.finish()
    assert stream.getvalue() == "a.mp4 0/5 frames, 0.0/s\n"


@pytest.fixture(scope="module")
def perceiver(exported) -> Predictor:
    return Predictor(exported, threads=1)


def picture(seed: int = 0, height: int = 90, width: int = 150) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good images in two folders, one truncated image, and a text file."""
    root = tmp_path / "in"
    (root / "deeper").mkdir(parents=True)
    cv2.imwrite(str(root / "a.png"), picture(0))
    cv2.imwrite(str(root / "deeper" / "b.jpg"), picture(1))
    (root / "broken.jpg").write_bytes((root / "deeper" / "b.jpg").read_bytes()[:2000])
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """40 frames of odd height at 12.5 frames per second."""
    path = tmp_path_factory.mktemp("film") / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, (150, 98))
    for i in range(40):
        frame = np.full((98, 150, 3), 90, np.uint8)
        frame[20:60, i : i + 40] = (30, 60, 220)
        writer.write(frame)
    writer.release()
    return path


def test_a_folder_is_done_but_for_what_is_broken(perceiver, folder, tmp_path, capsys):
    report = predict(perceiver, folder, tmp_path / "out")
    assert [record["id"] for record in read_records(report.out)] == ["a.png", "deeper/b.jpg"]
    assert report.frames == 2
    assert [Path(source).name for source, _ in report.failures] == ["broken.jpg"]
    assert "truncated" in report.failures[0][1]
    said = capsys.readouterr().err
    assert "broken.jpg" in said
    assert "1 sources failed" in said
    written = sorted(p.relative_to(report.out).as_posix() for p in report.out.rglob("*") if p.is_file())
    assert written == ["a.jpg", "deeper/b.jpg", "predictions.jsonl", "summary.json"]
    assert cv2.imread(str(report.out / "a.jpg")).shape[1] >= 150


def test_records_say_what_the_network_says(perceiver, folder, tmp_path):
    camera = Camera(140, 140, 75, 45)
    report = predict(perceiver, folder / "a.png", tmp_path / "out", PredictOptions(camera=camera), quiet=True)
    (record,) = read_records(report.out)
    image = cv2.imread(str(folder / "a.png"))[:, :, ::-1]
    wanted = perceiver(np.ascontiguousarray(image), camera)
    boxes, spec = wanted.annotations["detection"], perceiver.specs["detection"]
    shown = boxes.scores >= spec.score_threshold
    assert record["size"] == [90, 150]
    assert "time" not in record
    assert "flags" not in record
    assert len(record["detection"]) == shown.sum() == report.boxes > 0
    for item, box, label, score, distance in zip(
        record["detection"], boxes.boxes, boxes.labels, boxes.scores, wanted.distances, strict=False
    ):
        assert item["box"] == pytest.approx(box.tolist(), abs=0.006)
        assert item["label"] == spec.classes[label]
        assert item["score"] == pytest.approx(float(score), abs=1e-4)
        assert item["distance"] == pytest.approx(float(distance), abs=1e-3)
    assert set(record["classification"]["scores"]) == {"day", "night"}


def test_torch_and_onnx_write_the_same(small_network, perceiver, folder, tmp_path):
    networks = {"torch": TorchPredictor(small_network, perceiver.size), "onnx": perceiver}
    told = {
        name: read_records(predict(network, folder, tmp_path / name, quiet=True).out)
        for name, network in networks.items()
    }
    for one, other in zip(told["torch"], told["onnx"], strict=True):
        assert one["id"] == other["id"]
        assert len(one["detection"]) == len(other["detection"]) > 0
        for a, b in zip(one["detection"], other["detection"], strict=True):
            assert a["label"] == b["label"]
            assert a["box"] == pytest.approx(b["box"], abs=0.02)
            assert a["distance"] == pytest.approx(b["distance"], rel=1e-3)


def test_maps_are_written_and_named(perceiver, folder, tmp_path):
    report = predict(perceiver, folder / "a.png", tmp_path / "out", PredictOptions(save=("maps", "jsonl")), quiet=True)
    (record,) = read_records(report.out)
    wanted = perceiver(np.ascontiguousarray(cv2.imread(str(folder / "a.png"))[:, :, ::-1])).annotations
    labels = cv2.imread(str(report.out / record["segmentation"]["file"]), cv2.IMREAD_UNCHANGED)
    depth = cv2.imread(str(report.out / record["depth"]["file"]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, wanted["segmentation"].values)
    assert depth.dtype == np.uint16
    assert record["depth"]["unit"] == "m"
    np.testing.assert_allclose(depth * record["depth"]["scale"], wanted["depth"].values, atol=0.51 / 256)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0.1, 10.0), 0.001), ((1.0, 65.535), 0.001), ((0.5, 80.0), 1 / 256), (None, 1 / 256), ((1.0, 655.35), 0.01)],
)
def test_the_farthest_depth_fits_into_16_bits(limits, expected):
    assert map_scale(TaskSpec("depth", "dense", ("depth",), (), "m", limits)) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_video_keeps_its_frames_rate_and_times(perceiver, film, tmp_path, batch_size):
    report = predict(perceiver, film, tmp_path / "out", PredictOptions(batch_size=batch_size), quiet=True)
    told = read_records(report.out)
    assert [record["id"] for record in told] == [f"drive.mp4#{i}" for i in range(40)]
    assert [record["time"] for record in told] == pytest.approx([i / 12.5 for i in range(40)], abs=1e-3)
    video = cv2.VideoCapture(str(report.out / "drive.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert sum(1 for _ in iter(video.grab, False)) == 40
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) % 2 == 0
    video.release()


def test_a_video_can_be_cut_short_and_its_maps_are_numbered(perceiver, film, tmp_path):
    report = predict(
        perceiver, film, tmp_path / "out", PredictOptions(max_frames=3, save=("maps", "jsonl")), quiet=True
    )
    assert report.frames == 3
    assert [record["depth"]["file"] for record in read_records(report.out)] == [
        f"maps/drive/{i:06d}.depth.png" for i in range(3)
    ]


@pytest.mark.fault("V1")
def test_a_file_that_is_no_video_fails_and_what_was_written_is_whole(perceiver, tmp_path):
    broken = tmp_path / "cut.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42 and nothing else")
    report = predict(perceiver, broken, tmp_path / "out", quiet=True)
    assert "did not open" in report.failures[0][1]
    assert read_summary(report.out)["status"] == "LOST"


@pytest.mark.fault("V2")
def test_an_image_of_another_size_in_mid_stream_is_still_written(perceiver, film, tmp_path, monkeypatch):
    read, count = VideoStream.__iter__, iter(range(100))

    def changing(self):
        for shot in read(self):
            image = shot.image if next(count) < 20 else np.ascontiguousarray(shot.image[:60, :90])
            yield type(shot)(image, shot.time)

    monkeypatch.setattr(VideoStream, "__iter__", changing)
    report = predict(perceiver, film, tmp_path / "out", quiet=True)
    assert [tuple(record["size"]) for record in read_records(report.out)] == [(98, 150)] * 20 + [(60, 90)] * 20
    video = cv2.VideoCapture(str(report.out / "drive.mp4"))
    assert sum(1 for _ in iter(video.grab, False)) == 40
    video.release()


@pytest.mark.fault("M4")
def test_flags_reach_the_records(perceiver, folder, tmp_path, monkeypatch):
    run = perceiver.run
    monkeypatch.setattr(
        perceiver, "run", lambda images: {**run(images), "depth.depth": run(images)["depth.depth"] * np.nan}
    )
    report = predict(perceiver, folder / "a.png", tmp_path / "out", quiet=True)
    (record,) = read_records(report.out)
    assert report.flagged == 1
    assert record["flags"] == ["depth: 15360 of 15360 pixels are not positive and finite"]
    assert all("distance" not in item for item in record["detection"])


def test_what_is_there_is_never_overwritten(perceiver, folder, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(PerceptionError, match="is not empty"):
        predict(perceiver, folder, tmp_path / "full", quiet=True)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    monkeypatch.chdir(tmp_path)
    assert [make_output_folder(None).as_posix() for _ in range(3)] == [
        "runs/predict",
        "runs/predict-2",
        "runs/predict-3",
    ]


def test_sources_are_found(folder, film, tmp_path):
    assert [source.id for source in find_sources(folder)] == ["a.png", "broken.jpg", "deeper/b.jpg"]
    assert [source.id for source in find_sources(f"{folder}/*.png")] == ["a.png"]
    assert [source.id for source in find_sources(f"{folder}/**/*.jpg")] == ["broken.jpg", "deeper/b.jpg"]
    assert [(source.id, source.kind) for source in find_sources(film)] == [("drive.mp4", "video")]
    assert [(source.address, source.kind) for source in find_sources("0")] == [(0, "live")]
    assert find_sources("rtsp://robot/front")[0].kind == "live"
    for nothing in (tmp_path / "absent.jpg", folder / "notes.txt", f"{folder}/*.gif"):
        with pytest.raises(PerceptionError, match="No image or video at"):
            find_sources(nothing)


def test_names_that_would_meet_keep_their_suffix(perceiver, tmp_path):
    for name in ("a.png", "a.bmp"):
        cv2.imwrite(str(tmp_path / name), picture())
    out = predict(perceiver, f"{tmp_path}/a.*", tmp_path / "out", quiet=True).out
    assert sorted(p.name for p in out.glob("*.jpg")) == ["a.bmp.jpg", "a.png.jpg"]


def test_predicting_needs_no_torch(exported, folder, tmp_path):
    code = """
from perception.video.predict import predict
from perception.runtime.predictor import Predictor
report = predict(Predictor(sys.argv[1], threads=1), sys.argv[2], sys.argv[3])
print(report.frames, len(report.failures), "torch" in sys.modules)
"""
    out = tmp_path / "out"
    assert without_torch(code, str(exported), str(folder), str(out)).split() == ["2", "1", "False"]
    assert len(read_records(out)) == 2


@pytest.mark.parametrize(
    ("option", "words"), [(["--size", "100x100"], "Use 128x128"), (["--topics", "/x"], "only bags have topics")]
)
def test_the_command_refuses_what_it_cannot_do_before_it_writes(exported, tmp_path, capsys, option, words):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = ["predict", str(exported), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *option]
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "ood fit", "label"])
def test_providers_are_refused_where_torch_runs(command, tmp_path, capsys):
    arguments = [*command.split(), str(tmp_path / "run"), str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--providers", "CUDAExecutionProvider"]) == 2
    assert "--providers: a run folder runs in torch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("save", ["mp4", "rrd", "mcap", "jsonl"])
def test_a_name_that_is_not_utf_8_is_written_and_the_rest_is_done(perceiver, folder, tmp_path, save):
    if save == "rrd":
        pytest.importorskip("rerun")
    (folder / "deeper" / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())
    out = tmp_path / "out"
    predict(perceiver, folder, out, PredictOptions(save=(save, "maps", "jsonl")), quiet=True)
    ids = [record["id"] for record in read_records(out)]
    assert "deeper/caf%E9.png" in ids
    assert "deeper/b.jpg" in ids
    assert all(path.name.encode() for path in out.rglob("*"))
    if save == "mp4":
        assert (out / "deeper" / "caf%E9.jpg").exists()
    json.dumps(read_summary(out), ensure_ascii=False).encode()


def test_an_image_too_wide_for_a_jpeg_is_drawn_smaller(perceiver, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shape in (("a", (60, 100)), ("m", (30, 40_000)), ("n", (65_600, 12)), ("z", (60, 100))):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((*shape, 3), 90, np.uint8))
    report = predict(perceiver, folder, tmp_path / "out")
    assert report.failures == []
    assert [record["id"] for record in read_records(tmp_path / "out")] == ["a.png", "m.png", "n.png", "z.png"]
    drawn = {path.stem: cv2.imread(str(path)).shape for path in (tmp_path / "out").glob("*.jpg")}
    assert set(drawn) == {"a", "m", "n", "z"}
    assert drawn["m"][1] == 40_000  # its maps are below it
    assert drawn["n"][0] == 65_500
    assert "n.jpg: reduced to" in capsys.readouterr().err


def test_what_cannot_be_written_of_one_image_is_told_of_it_and_the_rest_is_done(perceiver, folder, tmp_path):
    long = "x" * 250 + ".png"  # its maps would have names of over 255 bytes
    (folder / long).write_bytes((folder / "a.png").read_bytes())
    report = predict(perceiver, folder, tmp_path / "out", PredictOptions(save=("mp4", "maps", "jsonl")), quiet=True)
    names = [name for name, reason in report.failures if "name too long" in reason]
    assert names
    assert set(names) == {str(folder / long)}
    ids = [record["id"] for record in read_records(tmp_path / "out")]
    assert {"a.png", "deeper/b.jpg", long} <= set(ids)
    assert (tmp_path / "out" / "deeper" / "b.jpg").exists()


def test_a_video_wider_than_its_codec_is_drawn_smaller(tmp_path, capsys):
    path = tmp_path / "wide.mp4"
    video = Mp4Writer(path, 25, (40, 9000))
    video.write(np.full((40, 9000, 3), 200, np.uint8), 0.0)
    video.close()
    assert cv2.VideoCapture(str(path)).read()[1].shape == (36, 8190, 3)


def test_file_names_cannot_move_the_cursor(exported, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a\x1b[2J\x1b]0;owned\x07.png").write_bytes(b"no image")
    assert cli.main(["predict", str(exported), str(folder), "--out", str(tmp_path / "out"), "--threads", "1"]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b[2J" in said


@pytest.mark.parametrize("kind", ["images", "film"])
def test_where_nothing_is_decoded_the_exit_code_is_1(exported, tmp_path, capsys, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    name = "a.png" if kind == "images" else "a.mp4"
    (folder / name).write_bytes(b"nothing of the kind")
    assert cli.main(["predict", str(exported), str(folder), "--out", str(tmp_path / "out"), "--threads", "1"]) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "a/b"])
def test_a_task_cannot_lead_out_of_the_folder_of_maps(tmp_path, name):
    spec = TaskSpec(name, "dense", ("mask",), ("road",))
    found = DenseMap(np.zeros((4, 6), np.uint8), np.ones((4, 6), bool))
    writer, out = MapWriter(), tmp_path / "deep" / "out"
    writer.open(WriterContext(out, "", 0.0, {name: spec}, Timings()))
    result = SimpleNamespace(annotations={name: found}, specs={name: spec})
    with pytest.raises(PerceptionError, match="cannot be the name of a file"):
        writer.write(Frame(np.zeros((4, 6, 3), np.uint8), output_stem="a"), result, {})
    assert not list(tmp_path.rglob("*.png"))


def test_progress_is_told_before_anything_is_done():
    told = io.StringIO()
    line = Progress(told, "", 7, unit="images compared")
    line.set_count(0)
    line.finish()
    assert told.getvalue() == "0/7 images compared, 0.0/s\n"
