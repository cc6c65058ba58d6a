"""Measuring the loader: every source has its line, the parts make the whole, and the command says what is wrong."""

import math
import os
import time

import pytest
from data_trees import coco_tree, label_maps_tree, open_tree

from perception import cli
from perception.bench.data import cpu_seconds, measure_loading
from perception.config import validate_config
from perception.data import AugmentConfig
from perception.data.mixture import Mixture

TASKS = ("detection", "segmentation")


@pytest.fixture
def sources(tmp_path):
    trees = {"boxes": coco_tree, "maps": label_maps_tree}
    return [open_tree(tmp_path, tree(tmp_path), name=name) for name, tree in trees.items()]


@pytest.mark.parametrize("mosaic", [0, 1])
def test_the_parts_make_the_whole(sources, mosaic):
    mixture = Mixture(sources, (64, 96), validate_config(AugmentConfig, {"degrade": 0, "mosaic": mosaic}))
    speed = measure_loading(mixture, TASKS, 4, workers=0, seconds=0.5)
    assert [source.name for source in speed.sources] == ["boxes", "maps"]
    for source in speed.sources:
        assert 0 < source.decode_seconds < source.total_seconds
        assert 0 < source.read_seconds < source.total_seconds
    assert 1 < speed.images_per_second < 1e5
    assert 0 < speed.cpu_seconds_per_image < 1 or math.isnan(speed.cpu_seconds_per_image)
    text = str(speed)
    assert "in the main process" in text
    assert all(source.name in text for source in speed.sources)


def test_measuring_changes_nothing_and_workers_end(sources):
    mixture = Mixture(sources, (64, 96))
    before = mixture.load_sample(3).image.tobytes()
    speed = measure_loading(mixture, TASKS, 4, workers=1, seconds=0.2)
    assert "1 workers" in str(speed)
    assert mixture.load_sample(3).image.tobytes() == before
    assert not mixture.skipped


def test_processor_time_counts():
    begun = cpu_seconds()
    if math.isnan(begun):
        pytest.skip("no /proc")
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        sum(range(1000))
    assert 0.05 <= cpu_seconds() - begun < 5


def recipe(root) -> str:
    coco_tree(root)
    path = root / "recipe.yaml"
    path.write_text(
        f"data: {{root: {root}, size: [64, 96], train: [{{name: boxes, labels: [{{format: coco, images: coco/images, "
        "annotations: coco/boxes.json}]}]}\ntasks: {detection: {classes: [vehicle, pedestrian]}}\n"
    )
    return str(path)


def test_the_command(tmp_path, capsys):
    assert cli.main(["bench", "data", recipe(tmp_path), "--seconds", "0.2", "data.workers=0"]) == 0
    output = capsys.readouterr().out
    assert "boxes" in output
    assert "share of decode" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "{}"], "cannot be measured. Expected: perception bench MODEL, or perception bench data CONFIG"),
        (["data"], "'data' with no recipe cannot be measured"),
        (["data", "{}", "--seconds", "0"], "expected 0 to 3600 seconds"),
        (["data", "{}", "--seconds", "nan"], "expected 0 to 3600 seconds"),
        (["data", "{}", "--workers", "-1"], "0 to 256 processes"),
        (["data", "absent.yaml"], "No recipe at absent.yaml"),
        (["data", "{}", "data.root=/absent"], "No data folder at /absent"),
    ],
)
def test_what_the_command_cannot_do(tmp_path, capsys, arguments, message):
    path = recipe(tmp_path)
    assert cli.main(["bench", *(path if text == "{}" else text for text in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.fault("D1")
def test_a_damaged_source_is_an_error_here_too(tmp_path, capsys):
    path = recipe(tmp_path)
    for picture in (tmp_path / "coco/images").iterdir():
        os.truncate(picture, 100)
    assert cli.main(["bench", "data", path, "--seconds", "0.2", "data.workers=0"]) == 2
    assert "images in a row cannot be read" in capsys.readouterr().err
