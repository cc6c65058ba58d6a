"""The comparison with single-task controls: what is held equal, what comes out, how it goes on."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from compare_recipe import RECIPE

from perception import cli
from perception import recipe as recipes
from perception.bench.cost import measure_costs, time_ratio
from perception.mtl.delta_m import estimate_change
from perception.mtl.schedule import FreezeConfig, TaskScheduleConfig
from perception.report.compare_page import render_forest_plot
from perception.studies.baselines import count_step_flops, make_control, match_controls, scale_steps
from perception.studies.compare import plan_comparison
from perception.studies.format import format_delta_m, format_task_verdict


@pytest.fixture(scope="module")
def recipe(street):
    return recipes.parse(RECIPE, [f"data.root={street}"])


def source(name: str, weight: float, pictures: int = 10, **coverage: float):
    found = SimpleNamespace(name=name, weight=weight, coverage=coverage)
    return type("Opened", (SimpleNamespace,), {"__len__": lambda self: pictures})(**vars(found))


@pytest.mark.parametrize(
    ("sources", "task", "pictures", "weights"),
    [
        ([source("scenes", 3, classification=1.0), source("maps", 1, depth=1.0)], "depth", 2, {"maps": 1.0}),
        ([source("scenes", 3, classification=1.0), source("maps", 1, depth=1.0)], "classification", 6, {"scenes": 1.0}),
        ([source("scenes", 1, depth=1.0), source("maps", 1, depth=0.5)], "depth", 6, {"scenes": 2 / 3, "maps": 1 / 3}),
        ([source("scenes", 9, classification=1.0), source("maps", 1, depth=1.0)], "depth", 1, {"maps": 1.0}),
        ([source("scenes", 2, classification=1.0), source("maps", 1, depth=1.0)], "depth", 3, {"maps": 1.0}),
    ],
)
def test_a_control_sees_as_many_of_its_images_in_a_step_as_the_joint_run(recipe, sources, task, pictures, weights):
    """Of batches of eight, on average; a third of an image more where that is no whole number."""
    joint = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=8))
    alone = make_control(joint, task, sources)
    assert alone.train.batch_size == pictures
    assert list(alone.tasks) == [task]
    total = sum(each.weight for each in alone.data.train)
    assert {each.name: pytest.approx(each.weight / total) for each in alone.data.train} == weights
    assert alone.train == dataclasses.replace(joint.train, batch_size=pictures)
    assert (alone.model, alone.seed, alone.data.augment) == (joint.model, joint.seed, joint.data.augment)


def test_a_control_sees_the_very_images_that_the_joint_run_sees(recipe):
    """Three of four images of a joint batch show scenes: the control has batches of three, in the same order."""
    sources = recipes.open_training_sources(recipe)
    joint = recipes.build_mixture(recipe).sampler
    alone = make_control(recipe, "classification", sources)
    assert alone.train.batch_size == 3
    order = recipes.build_mixture(alone).sampler
    own = [index for name, index in map(joint.locate_image, range(24)) if sources[name].name == "scenes"]
    assert [order.locate_image(position)[1] for position in range(18)] == own


def test_a_static_weight_of_the_own_task_is_kept(recipe):
    weighted = recipes.parse(RECIPE, [f"data.root={recipe.data.root}", "balance.weights={depth: 0.3}"])
    sources = recipes.open_training_sources(recipe)
    assert make_control(weighted, "depth", sources).balance.weights == {"depth": 0.3}
    assert make_control(weighted, "classification", sources).balance.weights == {}


def test_compute_is_matched(recipe):
    """The steps of each control, times the multiplications of one, are the joint run's."""
    sources = recipes.open_training_sources(recipe)
    whole = count_step_flops(recipe) * 1000
    for task in recipe.tasks:
        alone = make_control(
            dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=1000)), task, sources
        )
        longer = scale_steps(alone, whole / count_step_flops(alone) / 1000)
        assert count_step_flops(longer) * longer.train.steps == pytest.approx(whole, rel=0.002)
        assert longer.train.steps > 1000


def test_a_budget_is_shared(recipe):
    """All controls together take the joint run's multiplications, each the same part of its training."""
    train = dataclasses.replace(recipe.train, steps=1000, warmup_steps=100, evaluate_every=200)
    joint = dataclasses.replace(recipe, train=train)
    sources = recipes.open_training_sources(recipe)
    alone = {task: make_control(joint, task, sources) for task in recipe.tasks}
    shared = match_controls("budget", joint, alone)
    spent = sum(count_step_flops(its) * its.train.steps for its in shared.values())
    assert spent == pytest.approx(count_step_flops(joint) * 1000, rel=0.003)
    assert len({its.train.steps for its in shared.values()}) == 1
    assert match_controls("images", joint, alone) == alone
    longer = match_controls("compute", joint, alone)
    assert all(its.train.steps > 1000 and its.train.warmup_steps == 100 for its in longer.values())


def test_a_shorter_training_warms_up_for_the_same_share_of_it(recipe):
    train = dataclasses.replace(recipe.train, steps=1000, warmup_steps=100, evaluate_every=200)
    shorter = scale_steps(dataclasses.replace(recipe, train=train), 0.3).train
    assert (shorter.steps, shorter.warmup_steps, shorter.evaluate_every) == (300, 30, 60)


def with_schedule(recipe, **settings):
    return dataclasses.replace(recipe, schedule=TaskScheduleConfig(**settings))


def test_compute_counts_only_what_runs(recipe):
    """Six steps: where each task joins half-way, and where they take turns, every step has its own cost."""
    joint, turns = count_step_flops(recipe), count_step_flops(with_schedule(recipe, mode="alternating"))
    late = [count_step_flops(with_schedule(recipe, start_steps={task: 3})) for task in recipe.tasks]
    assert turns < min(late) < max(late) < joint
    assert sum(late) == pytest.approx(turns + joint, rel=1e-6)


def test_a_control_waits_for_nobody_but_rests_where_the_joint_run_does(recipe):
    rests = (FreezeConfig(part="backbone", start=1, stop=3), FreezeConfig(part="classification"))
    joint = with_schedule(recipe, mode="alternating", start_steps={"depth": 2}, freeze=rests)
    alone = make_control(joint, "depth", recipes.open_training_sources(recipe))
    assert alone.schedule == TaskScheduleConfig(freeze=rests[:1])
    assert scale_steps(alone, 2.5).schedule.freeze == (FreezeConfig(part="backbone", start=2, stop=8),)


def test_runs_of_a_seed_come_together(recipe, tmp_path):
    plan = plan_comparison(recipe, tmp_path, 2, ("images",))
    assert [run.name for run in plan.runs] == [
        f"{name}, seed {seed}" for seed in (0, 1) for name in ("joint", "depth_images", "classification_images")
    ]
    assert len({run.folder for run in plan.runs}) == 6


def test_costs_are_measured_in_turns(recipe):
    joint = recipes.build_model(recipe, pretrained=False).eval()
    alone = recipes.build_model(recipes.select_tasks(recipe, ["depth"]), pretrained=False).eval()
    costs = measure_costs({"joint": joint, "alone": alone}, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), rounds=5)
    assert costs["joint"].parameters > costs["alone"].parameters
    assert len(costs["joint"].seconds) == 5
    assert time_ratio(costs["joint"], [costs["alone"], costs["alone"]]) < 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-0.1, -0.11, -0.09), "negative transfer, 9.5% worse than alone"),
        ((0.1, 0.11, 0.09), "positive transfer, 10.5% better than alone"),
        ((0.1, -0.2, 0.05), "within the noise"),
        ((0.1,), "one seed"),
        ((math.nan, 0.1), "the baseline has no score"),
    ],
)
def test_negative_transfer_is_named_only_where_the_seeds_bear_it_out(values, said):
    assert said in format_task_verdict("depth", estimate_change(values))


def test_delta_m_is_told_with_both_intervals():
    assert "Student -3.2% to +5.4%, bootstrap +0.0%" in format_delta_m(estimate_change((0.0, 0.03, 0.0)))
    assert "at least two" in format_delta_m(estimate_change((0.1,)))


def test_the_forest_draws_every_known_estimate():
    def change(*values):
        return dataclasses.asdict(estimate_change(values))

    drawn = render_forest_plot([("a", change(0.1, 0.12)), ("b<", change(-0.2, -0.21)), ("c", change(math.nan))])
    assert drawn.count("<circle class=seed") == 4
    assert "b&lt;" in drawn
    assert ">c<" not in drawn


def test_the_command_trains_compares_and_goes_on(street, tmp_path, capsys):
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(RECIPE)
    arguments = ["compare", str(file), f"data.root={street}", "--seeds", "1", "--jobs", "2", "--out", str(out)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "depth/abs_rel (lower is better)" in text
    assert "negative transfer" not in text  # of one seed nothing can be told
    result = json.loads((out / "compare.json").read_text())
    tasks = result["controls"]["images"]["tasks"]
    for name, its in tasks.items():
        runs = [out / folder / "seed_0" for folder in ("joint", f"{name}_images")]
        logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
        assert [log[-1][its["metric"]] for log in logs] == [its["joint"][0], its["control"][0]]
    assert tasks["depth"]["control_batch_size"] == 1
    changes = [its["change"]["mean"] for its in tasks.values() if its["change"]["mean"] is not None]
    assert result["controls"]["images"]["delta_m"]["mean"] == pytest.approx(
        math.prod(1 + change for change in changes) ** (1 / len(changes)) - 1
    )
    assert len(changes) + len(result["controls"]["images"]["excluded_tasks"]) == 2
    assert 0 < result["cost"]["ratio"]["parameters"] < 1
    assert "Delta_m" in (out / "compare.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert cli.main(arguments) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before
    assert cli.main([*arguments, "train.lr=0.5"]) == 2
    assert "a recipe that differs" in capsys.readouterr().err


def test_errors_name_the_mend(street, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    alone = ["compare", str(file), f"data.root={street}", "--out", str(tmp_path / "out")]
    assert cli.main([*alone, "--tasks", "depth"]) == 2
    assert "at least two" in capsys.readouterr().err
    assert cli.main([*alone, "data.validation=[]"]) == 2
    assert "held-out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*alone, "--controls", "time"])
    assert "images, compute, budget" in capsys.readouterr().err
