"""The doctor: subtler faults, parts of a recipe, files that are no recipe, and trees spoiled at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_trees import CLASSES, all_trees, noise_image, write_image
from doctor_cases import (
    build_recipe,
    check_findings,
    constant_depth,
    finding_kinds,
    image_path,
    run_doctor,
    truncate_file,
)
from PIL import Image

from perception.doctor import diagnose, environment
from perception.types import ConfigError


@pytest.fixture
def case(tmp_path) -> tuple[Path, dict[str, Any]]:
    """The folder of healthy data, and its recipe."""
    return tmp_path, build_recipe(tmp_path)


def test_images_that_carry_an_exif_rotation_are_named(case):
    root, mapping = case
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise_image(4, (64, 48))).save(image_path(root), quality=95, exif=exif)
    found = run_doctor(root, mapping)
    assert "rotated_images" in finding_kinds(found, "warning")
    assert found.exit_code == 0
    exif[0x0112] = 3
    Image.fromarray(noise_image(4, (64, 48))).save(image_path(root), quality=95, exif=exif)
    assert "size_mismatch" in finding_kinds(run_doctor(root, mapping))


def test_masks_resized_with_interpolation_are_suspicious(case):
    root, mapping = case
    noise = np.random.default_rng(0)
    for part in ("train", "validation"):
        for path in (root / part / "maps/masks").glob("*.png"):
            coarse = noise.integers(0, 2, (24, 32), np.uint8) * 2
            write_image(path, cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_LINEAR if part == "train" else 0))
    found = run_doctor(root, mapping)
    assert [f.where for f in found.findings if f.code == "interpolated_masks"] == ["train/maps"]


def test_label_ids_read_as_training_ids_are_named_though_they_pass(case):
    root, mapping = case
    names = ("road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation", "terrain", "sky")
    (root / "train/maps/classes.txt").write_text("\n".join(names))
    for path in (root / "train/maps/masks").glob("*.png"):
        write_image(path, np.full((48, 64), 7, np.uint8)).rename(path.with_name(f"{path.stem}_labelIds.png"))
        path.unlink(missing_ok=True)
    mapping["data"]["train"][1]["labels"][0] |= {"suffix": "_labelIds", "rename": {"light": "road"}, "ignore": "rest"}
    assert "label_ids" in finding_kinds(run_doctor(root, mapping))


def test_two_units_of_depth_in_one_source(case):
    root, mapping = case
    folder = root / "train/depth"
    for number in range(3, 8):
        write_image(folder / f"images/{number:03d}.jpg", noise_image(50 + number))
        write_image(folder / f"depths/{number:03d}.png", constant_depth(value=2 + number))
    mapping["data"]["train"][2]["labels"][0]["scale"] = 0.1
    assert "mixed_depth_units" in finding_kinds(run_doctor(root, mapping))


def test_a_quick_look_says_so_and_does_not_call_absent_what_it_did_not_look_for(case):
    root, mapping = case
    found = run_doctor(root, mapping, max_images=1)
    assert {"partial_examination"} <= finding_kinds(found, "note")
    assert all(state.num_examined == 1 for state in found.states)
    assert found.exit_code == 0
    assert not finding_kinds(found, "warning")
    assert "1 of them examined" in found.summaries[0].properties["images"]


def test_only_some_tasks(case):
    found = run_doctor(*case, tasks=["depth"])
    assert [state.where for state in found.states] == ["train/depth", "validation/depth"]
    assert finding_kinds(found, "warning") == {"unused_source"}
    with pytest.raises(ConfigError, match="has no task 'pose'"):
        run_doctor(*case, tasks=["pose"])


def test_worker_processes_find_the_same(case):
    root, mapping = case
    for name in ("coco/images/000.jpg", "maps/masks/001.png"):
        truncate_file(f"train/{name}")(root, mapping)
    alone, together = run_doctor(root, mapping), run_doctor(root, mapping, workers=2)
    assert alone.findings == together.findings
    assert alone.summaries == together.summaries


def check_recipe(state: None, mapping: dict[str, Any]) -> Any:
    """Stands for the recipe's own check, in a worker: finds fault with "wrong", says the tasks' defaults."""
    return "train is wrong. Fix it." if "wrong" in mapping else {"depth": {"limits": [20.0, 80.0]}}


def test_packages_and_the_rest_of_the_recipe_are_looked_at_meanwhile(case, monkeypatch):
    root, mapping = case
    monkeypatch.setattr(environment, "IMPORTED_MODULES", ("json",))
    found = run_doctor(root, {**mapping, "wrong": 1}, include_environment=True, check_rest=check_recipe)
    assert [f.message for f in found.findings if f.code == "recipe"] == ["train is wrong. Fix it."]
    assert "Python" in found.environment
    del mapping["tasks"]["depth"]["limits"]
    found = run_doctor(root, mapping, include_environment=True, check_rest=check_recipe)
    assert "depth_limits" in finding_kinds(found)  # by the defaults, which only the recipe itself knows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No recipe at"),
        ("", "Expected a mapping"),
        ("[1, 2]", "Expected a mapping"),
        ("data: {train: [", "not valid YAML"),
        ("a: 1", "section 'data' is missing"),
        ("data: {train: []}", "section 'tasks' is missing"),
        ("data: 5\ntasks: {depth: {}}", "section 'data' is missing"),
        ("? [a]\n: 1", "recipe.yaml"),
        ("a: 2020-99-99", "recipe.yaml"),
        ("a: &x 1\nb: *x", "aliases"),
        ("!!python/object:os.system {}", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        diagnose(path, workers=0, include_environment=False)


@pytest.mark.parametrize("seed", range(20))
def test_spoiled_trees_never_make_it_fail(tmp_path, seed):
    trees = all_trees()
    name = sorted(trees)[seed % len(trees)]
    config = trees[name](tmp_path / "data")
    chance = random.Random(1000 + seed)
    for path in [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and chance.random() < 0.3]:
        damage = bytearray(path.read_bytes()[: chance.randrange(4000)])
        for _ in range(chance.randrange(4) if damage else 0):
            damage[chance.randrange(len(damage))] = chance.randrange(256)
        path.write_bytes(damage)
    sources = [{"name": "one", "labels": [config]}]
    tasks = {task: {"classes": list(names)} if names else {} for task, names in CLASSES.items()}
    data = {"root": str(tmp_path / "data"), "size": [64, 96], "train": sources, "validation": sources}
    found = run_doctor(tmp_path, {"data": data, "tasks": tasks})
    check_findings(found)
    assert not finding_kinds(found) & {"internal_error", "crashed", "timeout"}
    assert found.exit_code == 1
