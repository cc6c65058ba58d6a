"""Tasks of one type under several names: what a recipe with drivable areas beside segmentation masks needs."""

import re

import pytest
import torch
from data_trees import label_maps_tree, write_noise_images

from perception import recipe as recipes
from perception.config import dump_yaml
from perception.data.loader import make_evaluation_loader, make_train_loader
from perception.engine.evaluate import evaluate
from perception.mtl.schedule import TaskSchedule
from perception.types import ConfigError, DataError

TEXT = """
name: two
data:
  root: ROOT
  size: [64, 64]
  workers: 0
  train:
    - name: maps
      labels: [MAPS, SECOND]
  validation:
    - name: maps
      labels: [MAPS, SECOND]
tasks:
  segmentation: {classes: [sky, road, car], channels: 8}
  drivable: {type: segmentation, classes: [road, other], channels: 8}
model:
  backbone: {name: test_efficientnet, weights: none}
train: {steps: 1, batch_size: 2}
"""


@pytest.fixture
def recipe(tmp_path):
    maps = label_maps_tree(tmp_path)
    write_noise_images(tmp_path / "maps" / "images", 3)
    second = {**maps, "task": "drivable", "rename": {"sky": "other", "car": "other"}}
    text = TEXT.replace("ROOT", str(tmp_path)).replace("MAPS", str(maps)).replace("SECOND", str(second))
    return recipes.parse(text)


def test_two_tasks_of_one_type_are_trained_measured_and_exported_apart(recipe):
    model = recipes.build_model(recipe)
    assert {name: spec.classes for name, spec in model.specs.items()} == {
        "segmentation": ("sky", "road", "car"),
        "drivable": ("road", "other"),
    }
    batch = next(iter(make_train_loader(recipes.build_mixture(recipe), tuple(recipe.tasks), 2, steps=1)))
    losses = model.compute_losses(batch)
    assert set(losses) == {"segmentation", "drivable"}
    sum(losses.values()).backward()
    assert set(model.eval().predict(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))) == {
        "segmentation.mask",
        "drivable.mask",
    }
    held_out = make_evaluation_loader(recipes.open_validation_sources(recipe), tuple(recipe.tasks), (64, 64), 2)
    metrics = evaluate(model, held_out).metrics
    assert {"segmentation/miou", "drivable/miou"} <= metrics.keys()


def test_the_type_survives_the_resolved_recipe(recipe):
    again = recipes.parse(dump_yaml(recipe))
    assert again == recipe
    assert type(again.tasks["drivable"]) is type(again.tasks["segmentation"])


def test_a_subset_of_the_tasks_keeps_its_own_part_of_the_schedule(recipe):
    rests = "[{part: drivable}, {part: segmentation, stop: 2}, {part: neck, start: 1}]"
    whole = recipes.parse(
        dump_yaml(recipe),
        [
            "schedule.mode=alternating",
            "schedule.groups=[[segmentation], [drivable]]",
            "schedule.start_steps={drivable: 5}",
            f"schedule.freeze={rests}",
        ],
    )
    assert recipes.select_tasks(whole, list(whole.tasks)) == whole
    schedule = recipes.select_tasks(whole, ["segmentation"]).schedule
    assert (schedule.mode, schedule.groups, schedule.start_steps) == ("alternating", (("segmentation",),), {})
    assert [item.part for item in schedule.freeze] == ["segmentation", "neck"]
    TaskSchedule(schedule, ["segmentation"])
    other = recipes.select_tasks(whole, ["drivable"])
    TaskSchedule(other.schedule, ["drivable"]).require_steps(1)  # it has nobody to wait for
    with pytest.raises(ConfigError, match=r"schedule\.groups"):
        recipes.parse(dump_yaml(recipe), ["schedule.groups=3"])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("{lanes: {classes: [a]}}", "unknown task 'lanes'.*lanes: {type: segmentation"),
        ("{lanes: {type: os.system, classes: [a]}}", "unknown task 'os.system'"),
        ("{lanes: {type: [segmentation]}}", "unknown task"),
        ("{segmentation: {type: detection, classes: [a], strides: 3}}", "tasks.segmentation"),
        ("{'a/b': {type: segmentation, classes: [a]}}", "lower-case"),
        ("{7: {type: segmentation, classes: [a]}}", "lower-case"),
        ("{lanes: 3}", "unknown task"),
        (
            f"{{segmentation: {{classes: [{', '.join(f'c{i}' for i in range(255))}]}}}}",
            "tasks.segmentation.classes has 255 names. Expected 1 to 254",
        ),
        ("{segmentation: 3}", "tasks.segmentation"),
    ],
)
def test_what_is_no_task_is_told(tasks, message):
    with pytest.raises(ConfigError, match=message):
        recipes.parse(f"data: {{}}\ntasks: {tasks}\n")


@pytest.mark.parametrize(
    "wrong",
    [
        *("strides=[]", "strides=[16, 8]", "strides=[8, 8]", "strides=[2, 4]", "width=-1"),
        *("depth.channels=0", "segmentation.fine_width=0", "segmentation.loss_stride=0", "depth.loss_stride=0"),
        *("classes=[]", "segmentation.classes=[]", "segmentation.classes=[a, a]", "scene.classes=[a, a]"),
        *("box_weight=-1", "class_weight=.nan", "depth.silog_weight=-1", "depth.gradient_weight=.inf"),
        *("bins=2", "depth.bins=1", "depth.limits=[9, 1]", "depth.canonical_focal=-1", "depth.default_focal=0"),
        *(
            "depth.strides=[]",
            "segmentation.strides=[]",
            "segmentation.strides=[4, 7]",
            "max_detections=0",
            "score_threshold=2",
        ),
        *(
            "scene.label_smoothing=1",
            "scene.score_threshold=3",
            "scene.channels=0",
            "segmentation.class_weights={b: 1}",
        ),
    ],
)
def test_a_setting_of_a_task_that_cannot_work_is_refused_by_its_key(wrong):
    """By the name that the recipe gives the task, not by its type."""
    tasks = "{boxes: {type: detection, classes: [a]}, segmentation: {classes: [a]}, depth: {}, "
    tasks += "scene: {type: classification, classes: [a, b]}}"
    key, _, value = wrong.partition("=")
    place = f"tasks.{key if '.' in key else f'boxes.{key}'}"
    recipes.parse(f"data: {{}}\ntasks: {tasks}\n")
    with pytest.raises(ConfigError, match=re.escape(place)):
        recipes.parse(f"data: {{}}\ntasks: {tasks}\n", [f"{place}={value}"])


def test_a_reader_of_several_labels_wants_a_task_of_several():
    text = (
        "data: {train: [{name: a, labels: [{format: image_labels, images: a, multi_label: true, task: scene}]}]}\n"
        "tasks: {scene: {type: classification, classes: [a, b], multi_label: %s}, depth: {}}\n"
    )
    recipe = recipes.parse(text % "true")
    assert "scene" not in recipes.select_tasks(recipe, ["depth"]).tasks
    with pytest.raises(
        ConfigError, match=r"data\.train\.0\.labels\.0\.multi_label is true, .*tasks\.scene\.multi_label"
    ):
        recipes.parse(text % "false")


@pytest.mark.fault("T5")
def test_the_fingerprint_changes_with_the_images_and_the_classes(recipe, tmp_path):
    before = recipes.build_mixture(recipe).sources[0].compute_fingerprints()
    assert recipes.build_mixture(recipe).sources[0].compute_fingerprints() == before
    write_noise_images(tmp_path / "maps" / "images", 3, suffix=".png")
    for path in (tmp_path / "maps" / "images").glob("*.jpg"):
        path.unlink()
    other = recipes.build_mixture(recipe).sources[0].compute_fingerprints()
    assert other != before
    (tmp_path / "maps" / "classes.txt").write_text("road\nsky\ncar\n")
    assert recipes.build_mixture(recipe).sources[0].compute_fingerprints() != other


def test_a_class_that_no_source_labels_is_told_with_the_nearest_names(recipe):
    wrong = recipes.parse(dump_yaml(recipe), ["tasks.segmentation.classes=[sky, road, car, cart]"])
    with pytest.raises(DataError, match=r"Class 'cart' of task 'segmentation' is labeled by none .*'car'"):
        recipes.build_mixture(wrong)
    assert recipes.open_validation_sources(wrong)  # a test set need not have all
    lacking = recipes.parse(dump_yaml(recipe), ["tasks.depth={}"])
    with pytest.raises(DataError, match="No source labels task 'depth'"):
        recipes.build_mixture(lacking)


def test_a_subset_of_the_tasks_keeps_its_own_trunks_and_their_names(recipe):
    """What other tasks there are renames no weights: those of the whole network fit."""
    whole = recipes.parse(dump_yaml(recipe), ["model.sharing={name: groups, groups: [[segmentation], [drivable]]}"])
    assert recipes.select_tasks(whole, list(whole.tasks)) == whole
    weights = recipes.build_model(whole).state_dict()
    for task, trunk in (("segmentation", "0"), ("drivable", "1")):
        part = recipes.build_model(recipes.select_tasks(whole, [task]))
        mine = (f"sharing.groups.{trunk}.", f"tasks.{task}.")
        assert part.state_dict().keys() == {key for key in weights if key.startswith(mine)}
    with pytest.raises(ConfigError, match=r"model\.sharing\.groups: missing"):
        recipes.parse(dump_yaml(recipe), ["model.sharing.name=groups"])
