"""YOLO's polygons as segmentation masks."""

from __future__ import annotations

import numpy as np
import pytest
from data_trees import CLASSES, open_tree
from trees_kitti import write_text
from trees_maps import yolo_masks_tree

from perception.types import DataError

SKY, ROAD, CAR = (CLASSES["segmentation"].index(name) for name in ("sky", "road", "car"))
LABEL = "seg/labels/000.txt"


def label_map(root, index=0, **keys):
    return open_tree(root, {**yolo_masks_tree(root), **keys}).load_sample(index).annotations["segmentation"]


def test_polygons_are_a_label_map_with_the_smaller_on_top(tmp_path):
    values = label_map(tmp_path).values
    assert values.shape == (48, 64)
    assert (values[:, :8] == SKY).all()
    assert (values[12:24, 8:16] == CAR).all()
    assert (values == CAR).sum() == 12 * 8
    assert (values[:, 32:] == 255).all()  # nothing, and a box of which no pixel is certain
    outside = label_map(tmp_path, unmasked_class="road").values
    assert (outside[24 + 12 + 1 :, 33:] == ROAD).all()
    assert (outside[13:35, 41:55] == 255).all()
    assert (label_map(tmp_path, 2, unmasked_class="road").values == ROAD).all()
    assert (label_map(tmp_path, 2).values == 255).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9 0 0 1 0 1 1", r"line 1: class '9'\. Expected 0 to 2"),
        ("0 0 0 1", "fewer than 6 numbers"),
        ("0 0 0 1 1 0 1 0.5", "odd number"),
        ("0 0 0 nan 0 1 1", "outside 0 to 1"),
        ("0 10 10 200 10 200 200", r"reach 199 outside 0 to 1\. Expected fractions"),
        ("a 0 0 1 0 1 1", "not all numbers"),
    ],
)
def test_a_line_that_is_no_polygon_is_named(line, message, tmp_path):
    config = yolo_masks_tree(tmp_path)
    write_text(tmp_path / LABEL, line)
    with pytest.raises(DataError, match=message):
        open_tree(tmp_path, config).load_sample(0)


def test_a_file_of_blank_lines_is_no_label(tmp_path):
    config = yolo_masks_tree(tmp_path)
    pictures = len(open_tree(tmp_path, config))
    path = min((tmp_path / "seg/labels").rglob("*.txt"))
    for blank in ("", "\n \n", "\ufeff\r\n"):
        path.write_text(blank)
        assert len(open_tree(tmp_path, {**config, "unlabeled": "skip"})) == pictures - 2


def test_a_label_that_links_to_itself_is_an_error_and_one_that_is_missing_is_told(tmp_path):
    config = yolo_masks_tree(tmp_path)
    path = tmp_path / "seg/labels/001.txt"
    path.unlink()
    assert open_tree(tmp_path, config).problems == {"images without a label file, taken as empty": 1}
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"001\.txt"):
        open_tree(tmp_path, config)


def test_outside_names_a_class_of_the_recipe(tmp_path):
    with pytest.raises(DataError, match="unmasked_class is 'moon'"):
        label_map(tmp_path, unmasked_class="moon")
    rest = label_map(tmp_path, unmasked_class="rest", rename={"road": "sky"}, ignore=["car"])
    assert rest.label_space is not None
    assert np.unique(rest.values).size >= 2
