"""Growing: frozen, old outputs stay bit for bit; distilled, they are held. Dropping a task changes none."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from perception import cli, runs
from perception import recipe as recipes
from perception.studies.grow import _locate_validation_data, drop_tasks, grow, merge_recipes, open_grow_sources
from perception.studies.grown_model import GrownModel
from perception.types import CheckpointError, ConfigError, DataError

OLD = """
data:
  size: [64, 64]
  workers: 0
  train: [{name: all, labels: [{format: cityscapes, root: ., split: train, ignore: rest},
    {format: image_labels, images: leftImg8bit/train, csv: annotations/scenes_train.csv}]}]
  validation: [{name: all, labels: [{format: cityscapes, root: ., split: val, ignore: rest},
    {format: image_labels, images: leftImg8bit/val, csv: annotations/scenes_val.csv}]}]
tasks:
  segmentation: {classes: [road, building, sky, vegetation, car]}
  classification: {classes: [clear, overcast, rain, fog, dusk, night]}
model: {backbone: {name: test_efficientnet, weights: none}}
train: {steps: 8, batch_size: 4, warmup_steps: 1, threads: 1, tensorboard: false, checkpoint_every: 2}
"""
NEW = OLD.replace(
    "  segmentation: {classes: [road, building, sky, vegetation, car]}\n", "  depth: {limits: [1, 80]}\n"
).replace("  classification: {classes: [clear, overcast, rain, fog, dusk, night]}\n", "")


@pytest.fixture(scope="module")
def old(street, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "old"
    runs.train(recipes.parse(OLD, [f"data.root={street}"]), folder)
    return folder


@pytest.fixture(scope="module")
def new(street):
    return recipes.parse(NEW, [f"data.root={street}", "train.weight_decay=0.5"])


def predictions(run: Path, tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    _, network = runs.open_run(run)
    picture = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return {k: v for k, v in network.predict(picture).items() if k.partition(".")[0] in tasks}


def test_a_frozen_network_forgets_nothing_and_learns_the_new_task(old, new, tmp_path):
    result = grow(old, new, tmp_path / "grown")
    tasks = ("segmentation", "classification")
    before, after = predictions(old, tasks), predictions(tmp_path / "grown", tasks)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {its["change"] for its in result["old"].values()} <= {0.0, None}
    assert all("all metrics are unchanged" in its["verdict"] for its in result["old"].values())
    assert result["new"]["depth/abs_rel"] > 0
    assert list(recipes.load(tmp_path / "grown" / "recipe.yaml").tasks) == [*tasks, "depth"]
    assert predictions(tmp_path / "grown", ("depth",))
    assert "depth" in (tmp_path / "grown" / "grow.html").read_text()


@pytest.fixture(scope="module")
def moved(street, tmp_path_factory):
    """A run whose data are no longer where they were: a folder that they were moved to, and the run."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(street, folder / "before")
    runs.train(recipes.parse(OLD, [f"data.root={folder / 'before'}", "train.steps=2"]), folder / "run")
    (folder / "before").rename(folder / "now")
    return folder / "now", folder / "run"


def test_the_old_tasks_are_measured_where_their_images_are_now(moved, tmp_path, capsys):
    """data.root=... of the command line is where the run's images are too, unless they are where they were."""
    root, run = moved
    file = tmp_path / "new.yaml"
    file.write_text(f"name: new{NEW}")
    command = ["grow", str(run), str(file), "train.steps=2", "--out", str(tmp_path / "out")]
    assert cli.main([*command, f"data.root={root}"]) == 0
    result = json.loads((tmp_path / "out" / "grow.json").read_text())
    assert all("all metrics are unchanged" in its["verdict"] for its in result["old"].values())
    assert recipes.load(tmp_path / "out" / "recipe.yaml").data.root == str(root)
    (tmp_path / "empty").mkdir()
    assert cli.main([*command[:-1], str(tmp_path / "other"), f"data.root={tmp_path / 'empty'}"]) == 2
    said = capsys.readouterr().err
    assert "which are missing" in said
    assert str(root.with_name("before")) in said
    assert str(tmp_path / "empty") in said


def test_the_runs_own_root_comes_first(old, street, tmp_path):
    """The new tasks' data may lie elsewhere, without the old ones'."""
    recipe = runs.open_run(old)[0]
    assert _locate_validation_data(recipe, str(tmp_path)).data.root == str(street)


def growing(old: Path, new, method):
    recipe, teacher = runs.open_run(old)
    merged, added = merge_recipes(new, recipe, old)
    return merged, added, teacher, GrownModel(merged, teacher, method)


def test_only_what_is_new_is_trained(old, new):
    _, _, teacher, network = growing(old, new, "frozen")
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained
    assert not trained & set(teacher.state_dict())
    assert all(not name.startswith(("tasks.segmentation", "tasks.classification")) for name in trained)
    assert network.state_dict().keys() > teacher.state_dict().keys()  # the teacher itself is no part of it


def test_distillation_holds_the_old_heads_to_what_they_said(old, new):
    """At the start there is nothing to hold; the further the trunk has moved, the more there is, and it pulls back."""
    from perception.data.loader import make_train_loader

    merged, added, _, network = growing(old, new, "distill")
    mixture = recipes.build_mixture(merged, open_grow_sources(merged, added, "distill"))
    batch = next(iter(make_train_loader(mixture, tuple(merged.tasks), 4, 1)))
    network.eval()
    found = network.compute_loss_terms(batch)
    assert found.penalties.keys() == {"distill_segmentation", "distill_classification"}
    assert all(float(value.detach()) == pytest.approx(0, abs=1e-5) for value in found.penalties.values())
    with torch.no_grad():
        for parameter in network.sharing.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    pull = torch.stack(list(network.compute_loss_terms(batch).penalties.values())).sum()
    pull.backward()
    gradient = [p.grad for p in network.sharing.parameters() if p.grad is not None]
    length = torch.nn.utils.get_total_norm(gradient)
    with torch.no_grad():
        for parameter in network.sharing.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad * 1e-3 / length)
        again = torch.stack(list(network.compute_loss_terms(batch).penalties.values())).sum()
    assert 0 < float(again) < float(pull.detach())


def test_distillation_trains_everything_but_the_statistics_and_goes_on(old, new, tmp_path, monkeypatch):
    """An interrupted growth ends where an undisturbed one does, bit for bit."""
    whole = grow(old, new, tmp_path / "whole", method="distill")
    assert {its["change"] for its in whole["old"].values()} != {None}
    losses = GrownModel.compute_loss_terms
    calls = []

    def stumble(self, batch, tasks, cut_graph=False):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return losses(self, batch, tasks, cut_graph)

    monkeypatch.setattr(GrownModel, "compute_loss_terms", stumble)
    with pytest.raises(KeyboardInterrupt):
        grow(old, new, tmp_path / "broken", method="distill")
    monkeypatch.undo()
    mended = grow(old, new, tmp_path / "broken", method="distill")
    assert mended["old"] == whole["old"]
    first, second = (runs.open_run(tmp_path / name)[1].state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    before = runs.open_run(old)[1].state_dict()
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(before[key], first[key]) for key in statistics)
    assert any(not torch.equal(before[key], first[key]) for key in before if key.startswith("sharing"))


@pytest.fixture(scope="module")
def taking_turns(street, tmp_path_factory) -> Path:
    """A run whose tasks took turns, on a trunk of their own group."""
    folder = tmp_path_factory.mktemp("runs") / "turns"
    groups = "{name: groups, groups: [[segmentation, classification]]}"
    lines = [f"data.root={street}", "data.validation=[]", "schedule.mode=alternating", f"model.sharing={groups}"]
    runs.train(recipes.parse(OLD, [*lines, "train.steps=2"]), folder)
    return folder


@pytest.mark.parametrize("method", ["frozen", "distill"])
def test_a_network_of_turns_and_trunks_grows_by_a_schedule_that_names_the_new_task_alone(
    taking_turns, street, tmp_path, monkeypatch, method
):
    schedule = "{mode: alternating, groups: [[depth]], start_steps: {depth: 2}, freeze: [{part: depth, stop: 3}]}"
    new = recipes.parse(NEW, [f"data.root={street}", "data.validation=[]", f"schedule={schedule}", "train.steps=5"])
    losses, steps = GrownModel.compute_loss_terms, []

    def noted(self, batch, tasks=None, cut_graph=False):
        before = {key: value.clone() for key, value in self.tasks["depth"].state_dict().items()}
        found = losses(self, batch, tasks, cut_graph)
        steps.append((tuple(found.terms), before))
        return found

    monkeypatch.setattr(GrownModel, "compute_loss_terms", noted)
    grow(taking_turns, new, tmp_path / "grown", method=method)
    both, depth = ("segmentation", "classification"), ("depth",)
    assert [tasks for tasks, _ in steps] == ([depth] * 5 if method == "frozen" else [both, both, depth, both, depth])
    moved = [any(not torch.equal(x, b[k]) for k, x in a.items()) for (_, a), (_, b) in pairwise(steps)]
    assert moved == ([False, False, False, True] if method == "frozen" else [False] * 4)
    network = runs.open_run(tmp_path / "grown")[1]
    assert list(network.sharing.groups) == ["0", "depth"], "a trunk of its own, and the old one"
    before, after = predictions(taking_turns, both), predictions(tmp_path / "grown", both)
    assert all(torch.equal(value, after[key]) for key, value in before.items()) == (method == "frozen")


def test_a_trunk_of_the_new_tasks_own_begins_as_the_old_one(taking_turns, new):
    _, _, teacher, network = growing(taking_turns, new, "frozen")
    old, own = (list(one.sharing.backbones())[-1].state_dict() for one in (teacher, network))
    assert all(torch.equal(value, own[key]) for key, value in old.items())
    assert all(p.requires_grad for p in network.sharing.groups["depth"].parameters())


def test_a_new_task_may_share_the_trunk_of_a_group(taking_turns, street):
    def sharing(groups: str):
        return recipes.parse(NEW, [f"data.root={street}", f"model.sharing={{name: groups, groups: {groups}}}"])

    _, _, _, network = growing(taking_turns, sharing("[[classification, depth, segmentation]]"), "frozen")
    assert list(network.sharing.groups) == ["0"]
    learning = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert not [key for key in learning if "backbone" in key]
    _, _, _, network = growing(taking_turns, sharing("[[segmentation, classification], [depth]]"), "distill")
    assert list(network.sharing.groups) == ["0", "1"]
    for other in ("[[depth], [segmentation, classification]]", "[[segmentation, depth]]"):
        with pytest.raises(ConfigError, match=r"model\.sharing\.groups.*\[\['segmentation', 'classification'\]\]"):
            growing(taking_turns, sharing(other), "frozen")


def test_a_dropped_task_is_gone_and_the_others_say_the_same(old, tmp_path, capsys):
    assert cli.main(["drop", str(old), "classification", "--out", str(tmp_path / "less")]) == 0
    recipe, network = runs.open_run(tmp_path / "less")
    assert list(recipe.tasks) == list(network.tasks) == ["segmentation"]
    assert not [key for key in network.state_dict() if "classification" in key]
    before, after = predictions(old, ("segmentation",)), predictions(tmp_path / "less", ("segmentation",))
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    manifest = json.loads((tmp_path / "less" / "checkpoints" / "best" / "manifest.json").read_text())
    assert manifest["best"]
    with pytest.raises(CheckpointError, match="already holds"):
        drop_tasks(old, ["classification"], tmp_path / "less")
    assert cli.main(["drop", str(old), "segmentation,classification", "--out", str(tmp_path / "x")]) == 2
    assert cli.main(["drop", str(old), "depth", "--out", str(tmp_path / "x")]) == 2
    assert "no task 'depth'" in capsys.readouterr().err


def test_what_cannot_be_grown_is_said(old, new, street):
    recipe, _ = runs.open_run(old)
    with pytest.raises(ConfigError, match="no task that"):
        merge_recipes(recipe, recipe, old)
    other = recipes.parse(NEW.replace("tasks:\n", "tasks:\n  segmentation: {classes: [road]}\n"))
    with pytest.raises(ConfigError, match="other settings"):
        merge_recipes(other, recipe, old)
    merged, added = merge_recipes(new, recipe, old)
    unlabelled = recipes.parse(OLD, [f"data.root={street}"]).data
    only_scenes = dataclasses.replace(
        merged,
        data=dataclasses.replace(
            unlabelled,
            train=tuple(dataclasses.replace(s, labels=s.labels[1:]) for s in unlabelled.train),
        ),
    )
    with pytest.raises(DataError, match="labels any of the tasks depth"):
        open_grow_sources(only_scenes, added, "frozen")


def test_tasks_that_look_at_each_other_are_neither_frozen_nor_dropped_unnoticed(new, street, tmp_path):
    """With attention between tasks another task changes what the old ones say: refused, not done quietly."""
    from perception import checkpoint, config

    recipe = recipes.parse(OLD, [f"data.root={street}", "model.fusion.name=attention"])
    network = recipes.build_model(recipe)
    torch.manual_seed(0)
    with torch.no_grad():  # as after a training: a fusion may begin as the identity
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    checkpoint.save(
        tmp_path / "run", 1, model=network.state_dict(), train_state={}, recipe_text=config.dump_yaml(recipe), best=True
    )
    with pytest.raises(CheckpointError, match="cross-task connections"):
        drop_tasks(tmp_path / "run", ["classification"], tmp_path / "less")
    assert not (tmp_path / "less").exists()
    with pytest.raises(ConfigError, match="distill"):
        grow(tmp_path / "run", new, tmp_path / "grown")


@pytest.mark.parametrize("strength", ["-1", "0", "nan"])
def test_teaching_that_would_drive_the_old_tasks_away_is_refused(strength, capsys):
    with pytest.raises(SystemExit):
        cli.main(["grow", "run", "new.yaml", "--method", "distill", "--distillation-weight", strength])
    assert "expected a number > 0" in capsys.readouterr().err
