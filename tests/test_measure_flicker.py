"""tools/measure_flicker.py: what it counts, on label maps whose changes are known."""

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
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "tools/measure_flicker.py")))


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
    found = tool.measure(maps, ROAD, upper=0.4)
    assert found.frames == 3
    assert found.changed == pytest.approx([48 / 800, 16 / 800])
    assert found.largest == pytest.approx([32 / 800, 16 / 800])
    assert found.above == pytest.approx([0, 0, 16 / 320])


def test_it_says_so(tool, maps, capsys):
    tool.main(str(maps), str(ROAD))
    told = capsys.readouterr().out
    assert "3 frames: 4.0% of the pixels change" in told
    assert "4.0% at most\n" in told
    assert "5.0% at most; more than 0.5% in 1 frames" in told


def test_what_is_no_film_of_label_maps_is_refused(tool, maps):
    (maps / "000002.segmentation.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000002.*damaged"):
        tool.measure(maps)
    cv2.imwrite(str(maps / "000001.segmentation.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"000001.* one film"):
        tool.measure(maps)
    with pytest.raises(DataError, match="two or more"):
        tool.measure(maps / "nowhere")
