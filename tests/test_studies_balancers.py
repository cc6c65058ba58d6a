"""The benchmark of balancers: the same recipe for each, what is said of it, and that it goes on after a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from studies_stub import lives
from test_studies_compare import RECIPE

from perception import recipe as recipes
from perception.mtl.balancers import BALANCERS
from perception.mtl.compare import estimate
from perception.studies import balancers as study
from perception.studies.step_cost import StepCost, measure_steps
from perception.types import ConfigError, PerceptionError

TOOL = Path(__file__).parent.parent / "tools/benchmark_balancers.py"


@pytest.fixture
def recipe(street):
    return recipes.parse(RECIPE, [f"data.root={street}"])


def test_every_balancer_trains_by_the_same_recipe(recipe, tmp_path):
    plan = study.make_plan(recipe, tmp_path, (), 2)
    assert list(plan) == list(BALANCERS)
    assert all(list(its) == [recipe.seed, recipe.seed + 1] for its in plan.values())
    for name, its in plan.items():
        for seed, run in its.items():
            assert run.recipe.balance.name == name
            assert dataclasses.replace(run.recipe, balance=recipe.balance, seed=recipe.seed) == recipe
            assert run.recipe.seed == seed
    assert len({run.folder for its in plan.values() for run in its.values()}) == 2 * len(BALANCERS)


def test_static_weights_are_the_recipes_and_always_there(recipe, tmp_path):
    weighted = recipes.parse(RECIPE, ["balance.weights={depth: 0.3}"])
    plan = study.make_plan(weighted, tmp_path, ["famo"], 1)
    assert list(plan) == ["static", "famo"]
    assert plan["static"][0].recipe.balance.weights == {"depth": 0.3}
    with pytest.raises(ConfigError, match=r"(?s)balance.*famous"):
        study.make_plan(recipe, tmp_path, ["famous"], 1)
    with pytest.raises(ConfigError, match=r"no data\.validation"):
        study.benchmark(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=())), tmp_path)


def test_what_is_finished_is_not_trained_again(recipe, made_up):
    out = made_up / "study"
    study.benchmark(recipe, out, balancers=["famo"], seeds=1, jobs=2, turns=0)
    result = study.benchmark(recipe, out, balancers=["famo", "rlw"], seeds=2, jobs=2, turns=0)
    runs = sorted(out.glob("*/seed_*"))
    assert [str(run.relative_to(out)) for run in runs] == [
        f"{name}/seed_{k}" for name in ("famo", "rlw", "static") for k in (0, 1)
    ]
    assert all([line[0] for line in lives(run)] == ["start", "end"] for run in runs)
    row = result["balancers"]["famo"]
    assert row["by_seed"] == {"depth/abs_rel": [0.25, 0.25], "classification/top1": [None, None]}
    assert (row["delta_m"]["mean"], result["balancers"]["static"]["delta_m"]) == (0, None)
    assert json.loads((out / study.RESULT).read_text()) == json.loads(json.dumps(result))
    assert "| famo | 0.2500 | – | +0.0% (+0.0% to +0.0%) | – | – | – |" in (out / study.TABLE).read_text()


def test_a_balancer_that_fails_does_not_stop_the_others(recipe, made_up, monkeypatch):
    real = study._with_balancer

    def spoil(recipe, name):
        its = real(recipe, name)
        return dataclasses.replace(its, train=dataclasses.replace(its.train, lr=0.95)) if name == "famo" else its

    monkeypatch.setattr(study, "_with_balancer", spoil)
    with pytest.raises(PerceptionError, match=r"famo, seed 0: no data"):  # before its first step: it is the recipe's
        study.benchmark(recipe, made_up / "a", balancers=["famo"], seeds=1, jobs=1, turns=0)
    plan = study.make_plan(recipe, made_up / "b", ["famo"], 1)
    study.train_all([plan["static"][0]], 1, os.open(os.devnull, os.O_RDONLY))
    found = study.conclude(plan, {"famo, seed 0": "it diverged"}, {})
    assert "| famo | failed: it diverged |" in study.table(found)


def rows(**gains: list[float]):
    found = {name: {"delta_m": dataclasses.asdict(estimate(values))} for name, values in gains.items()}
    return {"static": {"delta_m": None}, **found}


@pytest.mark.parametrize(
    ("gains", "seeds", "said"),
    [
        ({"famo": [0.101, 0.1, 0.099], "rlw": [-0.1, -0.101, -0.099]}, 3, r"famo: Delta_m \+10.0%.*a gain.*noise: rlw"),
        ({"famo": [0.2, 0.0, 0.1], "rlw": [0.0, 0.1, -0.1]}, 3, "famo: Delta_m .*no gain .*is proven.*noise: none"),
        ({"famo": [0.2]}, 1, "one seed, which nothing tells from noise"),
        ({}, 3, "Nothing to compare"),
    ],
)
def test_the_best_of_many_is_only_called_better_beyond_noise(gains, seeds, said):
    assert re.search(said, study.conclusion(rows(**gains), seeds))


def test_the_more_are_compared_the_more_is_asked_of_the_best():
    alone, many = (
        rows(famo=[0.05, 0.1, 0.075]),
        rows(famo=[0.05, 0.1, 0.075], **{f"n{k}": [0.0, 0.01, 0.02] for k in range(18)}),
    )
    assert "a gain beyond noise" in study.conclusion(alone, 3)
    assert "no gain" in study.conclusion(many, 3)


def test_steps_are_measured_in_turns():
    order = []

    def work(name: str, size: int):
        def step() -> None:
            order.append(name)
            torch.zeros(size << 18).sum()

        return step

    found = measure_steps({"small": work("small", 1), "large": work("large", 64)}, 3)
    assert order == ["small", "large"] * 4 + ["small", "large"]  # one to warm up, one for memory
    assert found["large"].over(found["small"]) > 1
    assert math.isnan(found["large"].memory) or found["large"].memory == pytest.approx(64, abs=2)
    assert StepCost((2.0, 3.0), 0).over(StepCost((1.0, 3.0), 0)) == 1.5


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_and_fills_the_page(street, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(f"name: small{RECIPE}".replace("data:", f"data:\n  root: {street}", 1))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin small -->\nold\n<!-- end small -->\nafter\n")
    command = [sys.executable, str(TOOL), str(config), "--steps", "12", "--seeds", "1", "--balancers", "upgrad"]
    command += ["--out", str(tmp_path / "out"), "--turns", "1", "--jobs", "1", "--page", str(page)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "out").glob("static/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(240) == 143
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out" / study.RESULT).read_text())
    assert result["steps"] == 12
    assert set(result["balancers"]) == set(result["cost"]) == {"static", "upgrad"}
    assert all(its["milliseconds"] > 0 for its in result["cost"].values())
    text = page.read_text()
    assert text.startswith("before\n<!-- begin small -->\n")
    assert text.endswith("<!-- end small -->\nafter\n")
    assert "old" not in text
    assert "| upgrad | " in text
