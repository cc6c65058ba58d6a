"""tools/measure_flicker.py: what it counts, on segmentation masks whose changes are known."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from perception.types import DataError

SKY, ROAD, CAR, UNKNOWN = 0, 3, 8, 255


@pytest.fixture(scope="module")
def tool():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tools/measure_flicker.py")))


@pytest.fixture
def maps(tmp_path):
    """Sky over road; then two cars come up, one twice the other; then they are unknown, and road is in the sky."""
    frames = [np.full((20, 40), ROAD, np.uint8) for _ in range(3)]
    for frame in frames:
        frame[:10] = SKY
    frames[1][12:16, 2:10], frames[1][12:16, 20:24] = CAR, CAR
    frames[2][12:16, 2:10], frames[2][12:16, 20:24] = UNKNOWN, UNKNOWN
    frames[2][:2, :8] = ROAD
    for index, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{index:06d}.segmentation.png"), frame)
        cv2.imwrite(str(tmp_path / f"{index:06d}.depth.png"), frame.astype(np.uint16))
    return tmp_path


def test_changes_are_counted_and_the_largest_is_found(tool, maps):
    found = tool.measure_flicker(maps, ROAD, upper=0.4)
    assert found.num_frames == 3
    assert found.changed_shares == pytest.approx([48 / 800, 16 / 800])
    assert found.largest_changes == pytest.approx([32 / 800, 16 / 800])
    assert found.class_shares == pytest.approx([0, 0, 16 / 320])


def test_it_says_so(tool, maps, capsys):
    tool.main([str(maps), str(ROAD)])
    told = capsys.readouterr().out
    assert "3 frames: 4.0% of the pixels change" in told
    assert "4.0% at most\n" in told
    assert "5.0% at most; more than 0.5% in 1 frames" in told


@pytest.fixture
def moving(tmp_path) -> tuple[Path, Path]:
    """A video that moves three pixels a frame, and segmentation masks that go with it, but for a block in every other
    one."""
    ground = np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8)
    ground = cv2.resize(ground, (240, 120), interpolation=cv2.INTER_CUBIC)
    labels = np.repeat(np.arange(240) // 10 % 2, 120).reshape(240, 120).T.astype(np.uint8)
    film, folder = tmp_path / "video.avi", tmp_path / "maps"
    folder.mkdir()
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 96))
    for k in range(6):
        map_ = labels[:96, 3 * k : 3 * k + 160].copy()
        map_[40:50, 60:90] = np.where(k % 2, 5, map_[40:50, 60:90])
        writer.write(np.ascontiguousarray(ground[:96, 3 * k : 3 * k + 160]))
        cv2.imwrite(str(folder / f"{k:06d}.segmentation.png"), map_)
    writer.release()
    return film, folder


def test_along_the_motion_of_the_video_only_what_flickers_is_counted(tool, moving, capsys):
    film, folder = moving
    found = tool.measure_flicker(folder, video=film)
    assert found.changed_shares.min() > 0.25
    assert found.flicker_shares == pytest.approx(300 / (96 * 157), rel=0.25)
    assert np.isnan(tool.measure_flicker(folder).flicker_shares).all()
    tool.main([str(folder), "--video", str(film)])
    assert "along the motion of the video" in capsys.readouterr().out
    cv2.imwrite(str(folder / "000006.segmentation.png"), np.zeros((96, 160), np.uint8))
    with pytest.raises(DataError, match=r"ends before .*000006"):
        tool.measure_flicker(folder, video=film)
    with pytest.raises(DataError, match="cannot be read"):
        tool.measure_flicker(folder, video=folder / "nothing.mp4")


def test_what_is_no_video_of_label_maps_is_refused(tool, maps):
    (maps / "000002.segmentation.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000002.*damaged"):
        tool.measure_flicker(maps)
    cv2.imwrite(str(maps / "000001.segmentation.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"000001.* one video"):
        tool.measure_flicker(maps)
    with pytest.raises(DataError, match="two or more"):
        tool.measure_flicker(maps / "nowhere")
