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
from compare_recipe import RECIPE
from fake_training import run_times

from perception import checkpoint, runs
from perception import recipe as recipes
from perception.bench.step_cost import StepCost, measure_steps
from perception.engine import optim
from perception.engine.optim import lr_factor
from perception.mtl.adaptive import DWAConfig
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.mtl.delta_m import estimate_change
from perception.mtl.loss_balancers import UncertaintyConfig
from perception.studies import balancer_benchmark as study
from perception.types import ConfigError, PerceptionError

TOOL = Path(__file__).parents[2] / "tools/benchmark_balancers.py"


@pytest.fixture
def recipe(street):
    return recipes.parse(RECIPE, [f"data.root={street}"])


def test_every_balancer_trains_by_the_same_recipe(recipe, tmp_path):
    plan = study.plan_benchmark(recipe, tmp_path, (), 2)
    assert list(plan) == ["static", "static_repeat", *(name for name in BALANCERS if name != "static")]
    assert all(list(its) == [recipe.seed, recipe.seed + 1] for its in plan.values())
    for name, its in plan.items():
        for seed, run in its.items():
            assert run.recipe.balance.name == name.removesuffix("_repeat")
            alike = dataclasses.replace(run.recipe, balance=recipe.balance, seed=recipe.seed, train=recipe.train)
            assert alike == recipe
            assert run.recipe.train == plan["static"][seed].recipe.train
            assert run.recipe.seed == seed
    assert len({run.folder for its in plan.values() for run in its.values()}) == 2 * len(BALANCERS) + 2


def test_static_weights_are_the_recipes_and_always_there(recipe, tmp_path):
    weighted = recipes.parse(RECIPE, ["balance.weights={depth: 0.3}"])
    plan = study.plan_benchmark(weighted, tmp_path, ["famo"], 1)
    assert list(plan) == ["static", "static_repeat", "famo"]
    assert plan["static"][0].recipe.balance.weights == {"depth": 0.3}
    with pytest.raises(ConfigError, match=r"(?s)balance.*famous"):
        study.plan_benchmark(recipe, tmp_path, ["famous"], 1)
    with pytest.raises(ConfigError, match=r"no data\.validation"):
        study.run_benchmark(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, validation=())), tmp_path)


def test_what_is_finished_is_not_trained_again(recipe, fake_trainings):
    out = fake_trainings / "study"
    study.run_benchmark(recipe, out, balancers=["famo"], num_seeds=1, jobs=2, repeats=0)
    result = study.run_benchmark(recipe, out, balancers=["famo", "rlw"], num_seeds=2, jobs=2, repeats=0)
    runs = sorted(out.glob("*/seed_*"))
    assert [str(run.relative_to(out)) for run in runs] == [
        f"{name}/seed_{k}" for name in ("famo", "rlw", "static", "static_repeat") for k in (0, 1)
    ]
    assert all([line[0] for line in run_times(run)] == ["start", "end"] for run in runs)
    row = result["balancers"]["famo"]
    assert row["by_seed"] == {"depth/abs_rel": [0.25, 0.25], "classification/top1": [None, None]}
    assert (row["delta_m"]["mean"], result["balancers"]["static"]["delta_m"]) == (0, None)
    assert json.loads((out / study.RESULT).read_text()) == json.loads(json.dumps(result))
    text = (out / study.TABLE).read_text()
    assert "| famo | 0.2500 | – | +0.0% (+0.0% to +0.0%) | inconclusive | – | – | – |" in text
    assert "| static_repeat | 0.2500 | – | +0.0% (+0.0% to +0.0%) | noise floor | – | – | – |" in text
    assert "| static | 0.2500 | – | – | – | – | – | – |" in text


def test_a_balancer_that_fails_does_not_stop_the_others(recipe, fake_trainings, monkeypatch):
    real = study._set_balancer

    def spoil(recipe, name, *options):
        its = real(recipe, name, *options)
        return dataclasses.replace(its, train=dataclasses.replace(its.train, lr=0.95)) if name == "famo" else its

    monkeypatch.setattr(study, "_set_balancer", spoil)
    with pytest.raises(PerceptionError, match=r"famo, seed 0: no data"):  # before its first step: it is the recipe's
        study.run_benchmark(recipe, fake_trainings / "a", balancers=["famo"], num_seeds=1, jobs=1, repeats=0)
    plan = study.plan_benchmark(recipe, fake_trainings / "b", ["famo"], 1)
    study.train_all([plan["static"][0], plan["static_repeat"][0]], 1, os.open(os.devnull, os.O_RDONLY))
    found = study.summarize_benchmark(plan, {"famo, seed 0": "it diverged"}, {})
    assert "| famo | failed: it diverged |" in study.format_markdown(found)


def test_every_method_can_act_within_the_run(recipe, tmp_path):
    """DWA has ten windows; a learned log-variance can move by log 100, by Adam's steps under the schedule."""
    long = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=120, lr=3e-3, warmup_steps=20))
    plan = study.plan_benchmark(long, tmp_path, ("dwa", "uncertainty"), 1)
    assert plan["dwa"][0].recipe.balance.window == 12
    train = plan["uncertainty"][0].recipe.train
    rates = [train.lr * train.balance_lr_scale * lr_factor(k, 120, 20, train.lr_floor) for k in range(120)]
    assert math.exp(sum(rates)) == pytest.approx(100)
    own = dataclasses.replace(long, balance=DWAConfig(window=7))
    assert study.plan_benchmark(own, tmp_path, ("dwa",), 1)["dwa"][0].recipe.balance.window == 7
    fast = dataclasses.replace(long, train=dataclasses.replace(long.train, balance_lr_scale=1e3))
    assert study.plan_benchmark(fast, tmp_path, ("dwa",), 1)["dwa"][0].recipe.train.balance_lr_scale == 1e3


def test_what_a_balancer_learns_moves_by_its_own_rate(recipe):
    """By Adam on a slope: ``lr * balance_lr_scale`` a step, of the network by ``lr``."""
    network, balancer = torch.nn.Linear(1, 1), build_balancer(UncertaintyConfig(), ("depth",))
    optimizer = optim.build_optimizer(
        "adamw", network, balancer.parameters(), lr=0.01, weight_decay=0, backbone_lr_scale=1, extra_lr_scale=30
    )
    optim.set_learning_rate(optimizer, 0.01)
    (own,) = balancer.parameters()
    before = own.detach().clone()
    for parameter in (*network.parameters(), own):
        parameter.grad = torch.ones_like(parameter)
    weight = network.weight.detach().clone()
    optimizer.step()
    assert (before - own.detach()).item() == pytest.approx(0.3, rel=1e-4)
    assert (weight - network.weight.detach()).item() == pytest.approx(0.01, rel=1e-4)


def test_weights_and_space_go_to_all_that_take_them(tmp_path):
    weighted = recipes.parse(RECIPE, ["balance.weights={depth: 0.3}"])
    plan = study.plan_benchmark(weighted, tmp_path, (), 1, "last_shared")
    for its in plan.values():
        balance = its[0].recipe.balance
        assert getattr(balance, "space", "last_shared") == "last_shared"
        if hasattr(balance, "weights"):
            assert balance.weights["depth"] == pytest.approx(0.3, rel=1e-5)
    assert plan["pcgrad"][0].recipe.balance.space == "last_shared"
    bare = study.plan_benchmark(weighted, tmp_path, ("rlw",), 1, None, "none")
    assert bare["static"][0].recipe.balance.weights == {}
    with pytest.raises(ConfigError, match="space"):
        study.plan_benchmark(weighted, tmp_path, ("upgrad",), 1, "nowhere")


def test_the_second_static_training_differs_by_rounding(recipe, tmp_path):
    """Not by nothing, or there would be no noise floor; not by more than rounding in the first steps."""
    plan = study.plan_benchmark(recipe, tmp_path, ("rlw",), 1)
    states = []
    for name in ("static", "static_repeat"):
        short = dataclasses.replace(plan[name][0].recipe.train, steps=3, precision="float32")
        runs.train(dataclasses.replace(plan[name][0].recipe, train=short), tmp_path / name)
        states.append(checkpoint.load(tmp_path / name, "last").weights)
    one, other = (torch.cat([t.double().flatten() for t in state.values()]) for state in states)
    assert 0 < float((one - other).norm() / one.norm()) < 1e-2


def rows(**gains: list[float]):
    """Of relative changes, one a seed; the static weights trained again differ by 0.1 %."""
    gains = {"static": [], "static_repeat": [0.001, -0.001, 0.0], **gains}
    found: dict = {}
    for name, values in gains.items():
        logs = [math.log1p(value) for value in values]
        found[name] = {"log_gains": logs, "delta_m": dataclasses.asdict(estimate_change(logs)) if logs else None}
    study.set_verdicts(found)
    return found


@pytest.mark.parametrize(
    ("gains", "seeds", "said"),
    [
        ({"famo": [0.101, 0.1, 0.099], "rlw": [-0.1, -0.101, -0.099]}, 3, r"better: famo; worse: rlw;.*length: none"),
        ({"famo": [0.2, 0.0, 0.1], "rlw": [0.0, 0.1, -0.1]}, 3, "better: none; worse: none;.*length: famo, rlw"),
        ({"famo": [0.2], "static_repeat": [0.1]}, 1, "length: famo.*One seed cannot separate an effect from noise"),
        ({}, 3, r"trained twice, differ by [+-]0.0% \(-0.2% to \+0.2%\)"),
    ],
)
def test_only_what_is_beyond_noise_is_told(gains, seeds, said):
    assert re.search(said, study.format_conclusion(rows(**gains), seeds, 120))


def test_the_more_are_compared_the_more_is_asked_of_each():
    alone, many = (
        rows(famo=[0.05, 0.1, 0.075]),
        rows(famo=[0.05, 0.1, 0.075], **{f"n{k}": [0.0, 0.01, 0.02] for k in range(18)}),
    )
    assert alone["famo"]["verdict"] == "better"
    assert many["famo"]["verdict"] == "inconclusive"


def test_it_says_how_many_seeds_two_per_cent_take():
    """A spread of twice the effect: 34 pairs (the paired t-test's power, as G*Power has it)."""
    spread = math.log1p(0.02) / 0.5
    found = study.estimate_power({"famo": {"log_gains": [spread, 0.0, -spread]}, "static": {"log_gains": []}})
    assert found["std"] == pytest.approx(spread)
    assert found["required_seeds"] == 34
    assert found["detectable_change"] > 0.1  # with three
    changes = [math.expm1(value) for value in (spread, 0.0, -spread)]
    text = study.format_conclusion(rows(famo=changes, static_repeat=changes), 3, 120)
    assert "Detecting 2% needs 34 seeds of this length" in text


def test_steps_are_measured_in_turns():
    order = []

    def work(name: str, size: int):
        def step() -> None:
            order.append(name)
            torch.zeros(size << 18).sum()

        return step

    found = measure_steps({"small": work("small", 1), "large": work("large", 64)}, 3)
    assert order == ["small", "large"] * 4 + ["small", "large"]  # one to warm up, one for memory
    assert found["large"].ratio_to(found["small"]) > 1
    assert math.isnan(found["large"].peak_memory) or found["large"].peak_memory == pytest.approx(64, abs=2)
    assert StepCost((2.0, 3.0), 0).ratio_to(StepCost((1.0, 3.0), 0)) == 1.5


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_and_fills_the_page(street, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(f"name: small{RECIPE}".replace("data:", f"data:\n  root: {street}", 1))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin small -->\nold\n<!-- end small -->\nafter\n")
    command = [sys.executable, str(TOOL), str(config), "--steps", "12", "--seeds", "1", "--balancers", "upgrad"]
    command += ["--out", str(tmp_path / "out"), "--rounds", "1", "--jobs", "1", "--page", str(page)]
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
    assert set(result["balancers"]) == {"static", "static_repeat", "upgrad"}
    assert set(result["cost"]) == {"static", "upgrad"}
    assert all(its["milliseconds"] > 0 for its in result["cost"].values())
    text = page.read_text()
    assert text.startswith("before\n<!-- begin small -->\n")
    assert text.endswith("<!-- end small -->\nafter\n")
    assert "old" not in text
    assert "| upgrad | " in text
