"""`perception group`: measuring leaves the training alone, goes on where it stopped, and finds a task made of noise."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perception import cli, config, runs
from perception import recipe as recipes
from perception.studies import group as studies
from perception.studies.group import AffinityMeasurement, group_tasks, read_affinity
from perception.types import ConfigError, PerceptionError

RECIPE = """
data:
  size: [32, 32]
  workers: 0
  augment: {scale: [1, 1], flip: 0, color: 0, degrade: 0}
  train: [{name: made, labels: &labels}]
tasks:
  one: {type: classification, classes: [red, blue]}
  twin: {type: classification, classes: [red, blue]}
  noise: {type: classification, classes: [red, blue]}
model: {backbone: {name: test_efficientnet, weights: none}}
train: {steps: 40, batch_size: 16, warmup_steps: 5, lr: 3.0e-3, threads: 1, tensorboard: false, checkpoint_every: 5}
""".replace(
    "[{name: made, labels: &labels}]",
    "[{name: made, labels: ["
    + ", ".join(
        f"{{format: image_labels, images: ., csv: {name}.csv, task: {name}}}" for name in ("one", "twin", "noise")
    )
    + "]}]",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Reddish and bluish images. Two tasks ask which, a third one asks a coin."""
    folder, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    rows = {"one": [], "twin": [], "noise": []}
    for number in range(96):
        picture = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        blue = number % 2
        picture[..., 2 - 2 * blue] += 60
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        for name, value in (("one", blue), ("twin", blue), ("noise", random.integers(2))):
            rows[name].append((f"{number}.png", ("red", "blue")[value]))
    for name, lines in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *lines])
    return folder


@pytest.fixture(scope="module")
def recipe(made):
    return recipes.parse(RECIPE, [f"data.root={made}"])


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("group")
    return out, group_tasks(recipe, out, interval=4)


def test_noise_is_set_apart(done):
    out, result = done
    assert result["groups"] == [["one", "twin"], ["noise"]]
    assert result["gain"]["one"] > 0 < result["gain"]["twin"]
    assert result["num_measurements"] == 10
    assert result["margin"]["mean"] > 0
    assert "one + twin | noise" in result["verdict"]
    assert json.loads((out / "group.json").read_text()) == result
    page = (out / "group.html").read_text()
    assert page.count("<td style=") == 9


def test_the_recipes_of_the_networks_can_be_trained(done):
    out, result = done
    assert [list(recipes.load(path).tasks) for path in result["recipes"]] == [["one", "twin"], ["noise"]]
    assert (out / "network_1.yaml").is_file()


def test_the_grouping_is_also_one_network_with_a_trunk_for_each_group(done, recipe):
    out, result = done
    line = "model.sharing={name: groups, groups: [[one, twin], [noise]]}"
    assert result["trunk_recipe"] == {"recipe": str(out / "one_network.yaml"), "override": line}
    one = recipes.load(out / "one_network.yaml")
    assert one.model == recipes.parse(config.dump_yaml(recipe), [line]).model
    assert one.tasks == recipe.tasks
    assert len(list(recipes.build_model(one).sharing.backbones())) == 2
    assert line in (out / "group.html").read_text()


def test_another_number_of_networks_needs_no_training(done, recipe, monkeypatch):
    out, _ = done
    monkeypatch.setattr(runs, "train", None)
    together = group_tasks(recipe, out, max_networks=1)
    assert together["groups"] == [["one", "twin", "noise"]]
    assert together["trunk_recipe"] is None
    assert not (out / "one_network.yaml").exists()
    assert len(group_tasks(recipe, out, max_networks=3)["recipes"]) <= 3


def test_looking_ahead_does_not_touch_the_training_and_goes_on_after_an_interruption(recipe, tmp_path, monkeypatch):
    """Bit for bit: the weights of a plain training, and the affinities of a study that nothing disturbed."""
    short = recipes.parse(RECIPE, [f"data.root={recipe.data.root}", "train.steps=12"])
    whole = group_tasks(short, tmp_path / "whole", interval=3)

    class Interrupted(AffinityMeasurement):
        def before_step(self, run, batch, tasks):
            super().before_step(run, batch, tasks)
            if run.state.step == 9:
                raise KeyboardInterrupt
            return {}

    monkeypatch.setattr(studies, "AffinityMeasurement", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        group_tasks(short, tmp_path / "broken", interval=3)
    monkeypatch.undo()
    mended = group_tasks(short, tmp_path / "broken", interval=3)
    runs.train(short, tmp_path / "plain" / "joint")
    assert (mended["affinity"], mended["num_measurements"]) == (whole["affinity"], 4)
    path = Path("joint", "checkpoints", "last", "model.safetensors")
    plain = load_file(tmp_path / "plain" / path)
    for folder in ("whole", "broken"):
        mine = load_file(tmp_path / folder / path)
        assert all(torch.equal(value, plain[key]) for key, value in mine.items())


def test_the_command(done, recipe, made, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    arguments = ["group", str(file), f"data.root={made}", "--out", str(done[0])]
    assert cli.main([*arguments, "--networks", "2"]) == 0
    text = capsys.readouterr().out
    assert "one + twin | noise" in text
    assert "network_2.yaml" in text
    assert f"{done[0] / 'one_network.yaml'} (model.sharing={{name: groups, groups: [[one, twin], [noise]]}})" in text
    assert cli.main([*arguments, "--tasks", "one"]) == 2
    assert "2 to 12" in capsys.readouterr().err
    assert cli.main([*arguments, "train.lr=1"]) == 2
    assert "a recipe that differs" in capsys.readouterr().err


def test_damaged_looks_are_passed_over(tmp_path):
    look = b'{"step": 1, "affinity": {"a": {"b": 0.5}, "b": {"a": 0.25}}}\n'
    damaged = (b"\xff", b"[1]", b'{"step": "1"}', b'{"step": 1}', b'{"step": 1, "affinity": {"a": [1]}}', b'{"step": 1')
    path = tmp_path / "looks"
    path.write_bytes(look + b"\n".join(damaged))
    assert len(read_affinity(path, ("a", "b")).values) == 1


def test_errors(recipe, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="1 tasks"):
        group_tasks(recipes.select_tasks(recipe, ["one"]), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PerceptionError, match="torchrun"):
        group_tasks(recipe, tmp_path / "out")
