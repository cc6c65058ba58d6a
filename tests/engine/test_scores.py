"""Which checkpoint is the best: the score, evaluations on fewer images, and tasks that are not scored."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from compare_recipe import RECIPE
from hypothesis import given
from hypothesis import strategies as st
from training_runs import Died, dying, events, fit

from perception import checkpoint, runs
from perception import recipe as recipes
from perception.engine.evaluate import Evaluation, compute_score, compute_task_scores
from perception.engine.train_config import TrainConfig
from perception.export import from_run
from perception.studies.compare import plan_comparison
from perception.types import ConfigError

MODEL = SimpleNamespace(
    tasks={
        "detection": SimpleNamespace(main_metric="ap", main_metric_sign=1, is_auxiliary=False),
        "depth": SimpleNamespace(main_metric="rmse", main_metric_sign=-1, is_auxiliary=False),
        "hints": SimpleNamespace(main_metric="miou", main_metric_sign=1, is_auxiliary=True),
    }
)
values = st.floats(0.11, 10)
candidates = st.lists(st.tuples(values, values), min_size=2, max_size=6)
"""Above the floors by the smallest factor below."""


def metrics(ap: float, rmse: float, miou: float = 0.5) -> dict[str, float]:
    return {"detection/ap": ap, "depth/rmse": rmse, "hints/miou": miou}


@given(candidates, st.sampled_from([0.1, 10.0, 1000.0]), st.booleans())
def test_the_unit_of_a_metric_changes_no_choice(found, factor, first):
    """Metres or millimetres, 0.3 or 30: the order of evaluations is the same, up to ties."""
    plain = np.log([compute_score(MODEL, metrics(*pair)) for pair in found])
    scaled = np.log(
        [
            compute_score(MODEL, metrics(*(x * factor if (k == 0) == first else x for k, x in enumerate(pair))))
            for pair in found
        ]
    )
    assert np.diff(scaled) == pytest.approx(np.diff(plain), abs=1e-9)


def test_the_order_is_that_of_the_means_relative_to_the_best_of_each_task():
    """The best of each task may be any: here both that of the run and another."""
    found = [(0.2, 3.0), (0.3, 4.0), (0.35, 5.5)]
    for best in ((0.35, 3.0), (7.0, 0.01)):
        relative = [(math.log(ap / best[0]) + math.log(best[1] / rmse)) / 2 for ap, rmse in found]
        assert (
            np.argsort(relative).tolist()
            == np.argsort([compute_score(MODEL, metrics(*pair)) for pair in found]).tolist()
        )


def test_a_task_that_leaves_zero_wins_and_two_at_zero_are_told_by_the_others():
    assert compute_score(MODEL, metrics(0.05, 4.0)) > compute_score(MODEL, metrics(0.0, 3.0))
    assert compute_score(MODEL, metrics(0.003, 4.0)) < compute_score(MODEL, metrics(0.001, 3.9)), (
        "noise near zero decides nothing"
    )
    assert compute_score(MODEL, metrics(0.0, 3.0)) > compute_score(MODEL, metrics(0.0, 4.0)) > 0
    assert compute_score(MODEL, metrics(0.3, 0.0)) > compute_score(MODEL, metrics(0.3, 0.1))


def test_what_was_not_measured_and_what_is_auxiliary_is_left_out():
    assert compute_score(MODEL, metrics(math.nan, 4.0)) == pytest.approx(0.25)
    assert math.isnan(compute_score(MODEL, {}))
    assert math.isnan(compute_score(MODEL, {"hints/miou": 0.5}))
    assert compute_score(MODEL, metrics(0.3, 4.0, 0.1)) == compute_score(MODEL, metrics(0.3, 4.0, 0.9))
    assert list(compute_task_scores(MODEL, metrics(0.3, 4.0))) == ["detection", "depth"]


@pytest.mark.parametrize(
    ("steps", "every", "interval"),
    [(1200, None, 100), (1000, None, 84), (90_000, None, 7500), (50, None, 10), (6, None, 10), (500, 0, 0), (9, 4, 4)],
)
def test_a_run_is_evaluated_about_twelve_times(steps, every, interval):
    assert TrainConfig(steps=steps, evaluate_every=every).evaluation_interval == interval


# --- evaluations on fewer images -----------------------------------------------------------------------------------


def scripted(scores: list[float], pictures: int):
    """Evaluations one after the other; depth falls while the other rises."""
    left = iter(scores)

    def evaluate(model) -> Evaluation:
        value = next(left)
        found = {"depth/abs_rel": 1 - value, "classification/top1": value}
        return Evaluation(found, {}, {}, value, pictures)

    return evaluate


def test_quick_scores_are_compared_with_quick_ones_alone(tmp_path):
    """The last one on all images is far higher than all quick ones, and picks nothing."""
    options = {"evaluate": scripted([0.9], 100), "quick_evaluate": scripted([0.2, 0.5, 0.4], 8)}
    result = fit(tmp_path, steps=20, **options)
    assert [(e["step"], e["score"]) for e in events(tmp_path, "quick_evaluation")] == [(8, 0.2), (16, 0.5), (20, 0.4)]
    assert [(e["step"], e["score"]) for e in events(tmp_path, "evaluation")] == [(20, 0.9)]
    assert checkpoint.load(tmp_path, "best").step == 16
    assert (result.evaluation.score, result.evaluation.num_images) == (0.9, 100)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert (kept["step"], kept["score"], kept["quick_images"]) == (16, 0.5, 8)


def test_what_evaluations_found_is_resumed(tmp_path):
    """A see-saw in the fifth evaluation, two before and three after a crash; the best one was before it."""
    rising = [0.5, 0.49, 0.48, 0.47, 0.46]
    settings = {"evaluate_every": 4, "checkpoint_every": 4}
    fit(tmp_path / "whole", quick_evaluate=scripted(rising, 8), evaluate=scripted([0.1], 9), **settings)
    with pytest.raises(Died):
        fit(
            tmp_path / "parts",
            stream=dying(10),
            quick_evaluate=scripted(rising, 8),
            evaluate=scripted([0.1], 9),
            **settings,
        )
    options = {"quick_evaluate": scripted(rising[2:], 8), "evaluate": scripted([0.1], 9), **settings}
    fit(tmp_path / "parts", resume=True, **options)
    one, other = (checkpoint.load_train_state(checkpoint.load(tmp_path / name).path) for name in ("whole", "parts"))
    assert (one["best_score"], one["task_scores"]) == (other["best_score"], other["task_scores"])
    assert one["best_score"] == 0.5
    assert checkpoint.load(tmp_path / "parts", "best").step == 4
    alarms = [
        [(e["step"], e["falling"]) for e in events(tmp_path / name, "negative_transfer")] for name in ("whole", "parts")
    ]
    assert alarms[0] == alarms[1]


@pytest.mark.parametrize(("steps", "said"), [(20, True), (40, False)])
def test_too_few_evaluations_for_a_see_saw_are_named_at_the_start(tmp_path, capsys, steps, said):
    fit(tmp_path, steps=steps, evaluate=scripted([0.5] * 9, 8), evaluate_every=8)
    text = "3 evaluations in this run: detecting negative transfer needs at least 5"
    assert (text in capsys.readouterr().err) == said


def opened(name: str, count: int) -> SimpleNamespace:
    found = type("Opened", (SimpleNamespace,), {"__len__": lambda self: len(self.records)})
    return found(name=name, records=[f"{name}{i}" for i in range(count)])


def test_fewer_images_are_shared_by_sources_and_spread_over_each():
    whole = [opened("a", 1000), opened("b", 5), opened("c", 100)]
    thin = recipes.subsample_sources(whole, 65)
    assert [len(source) for source in thin] == [30, 5, 30]
    assert thin[0].records == [f"a{i * 1000 // 30}" for i in range(30)]
    assert [len(source) for source in whole] == [1000, 5, 100]
    assert [source.records for source in recipes.subsample_sources(whole, 10_000)] == [
        source.records for source in whole
    ]
    assert [len(source) for source in recipes.subsample_sources(whole, 1)] == [1, 1, 1]


# --- of real runs ----------------------------------------------------------------------------------------------------

HINTS = "  hints: {type: segmentation, classes: [road, sky, car], auxiliary: true}\n"
WITH_HINTS = RECIPE.replace("tasks:\n", f"tasks:\n{HINTS}").replace(
    "split: train, ignore: rest}", "split: train, ignore: rest, segmentation_task: hints}"
).replace("split: val, ignore: rest}", "split: val, ignore: rest, segmentation_task: hints}")  # fmt: skip
FEW = ["train.evaluate_every=2", "train.quick_images=3", "train.checkpoint_every=0"]


@pytest.fixture(scope="module")
def run(street, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "run"
    recipe = recipes.parse(WITH_HINTS, [f"data.root={street}", *FEW])
    evaluation = runs.train(recipe, folder)
    assert evaluation is not None
    return folder, recipe, evaluation


def test_the_numbers_of_a_run_are_those_of_all_images_and_of_the_weights_it_keeps(run):
    folder, recipe, evaluation = run
    whole = sum(map(len, recipes.open_validation_sources(recipe)))
    quick = events(folder, "quick_evaluation")
    assert [e["step"] for e in quick] == [2, 4, 6]
    assert [e["step"] for e in events(folder, "evaluation")] == [6]
    assert evaluation.num_images == whole > 3
    kept = json.loads((folder / "metrics.json").read_text())
    best = checkpoint.load(folder, "best").step
    assert best == max(quick, key=lambda e: e["score"])["step"] == kept["step"]
    assert "quick_images" not in kept
    again = runs.evaluate(folder).metrics
    assert {key: kept[key] for key in again} == pytest.approx(again, nan_ok=True)


def test_an_auxiliary_task_is_trained_and_measured_but_neither_scored_nor_exported(run, tmp_path, monkeypatch):
    folder, recipe, evaluation = run
    assert recipe.scored_tasks == ("depth", "classification")
    assert "hints/miou" in evaluation.metrics
    assert any("loss/hints" in e for e in events(folder, "train"))
    for number in (evaluation, runs.evaluate(folder)):
        expected = [1 / number.metrics["depth/abs_rel"], max(0.01, number.metrics["classification/top1"])]
        assert number.score == pytest.approx(math.prod(expected) ** 0.5)
    assert (
        "Auxiliary: trained and evaluated, but not part of the score and not exported."
        in (folder / "report.html").read_text()
    )
    assert list(runs.open_run(folder)[1].tasks) == ["hints", "depth", "classification"]
    assert list(runs.open_inference_model(folder)[1].tasks) == ["depth", "classification"]
    assert list(runs.open_inference_model(folder, ["hints"])[1].tasks) == ["hints"], "asked for by name"
    written = []
    monkeypatch.setattr(from_run, "write", lambda model, *_, **__: written.append(list(model.tasks)))
    from_run.export(folder, tmp_path / "model.onnx")
    from_run.export(folder, tmp_path / "model.onnx", tasks=["hints", "depth"])
    assert written == [["depth", "classification"], ["hints", "depth"]]


def test_an_auxiliary_task_has_no_control(street, tmp_path):
    plan = plan_comparison(recipes.parse(WITH_HINTS, [f"data.root={street}"]), tmp_path, 1, ("images",))
    assert list(plan.joint[0].recipe.tasks) == ["hints", "depth", "classification"]
    assert list(plan.controls["images"]) == ["depth", "classification"]


def test_a_recipe_scores_something_and_exports_what_it_measures(street):
    with pytest.raises(ConfigError, match=r"depth\.auxiliary: all tasks are auxiliary"):
        recipes.parse(RECIPE, ["tasks.depth.auxiliary=true", "tasks.classification.auxiliary=true"])
    with pytest.raises(ConfigError, match=r"depth\.auxiliary with model\.fusion\.name=attention"):
        recipes.parse(RECIPE, ["tasks.depth.auxiliary=true", "model.fusion.name=attention"])
    assert recipes.parse(RECIPE, ["tasks.depth.auxiliary=true"]).scored_tasks == ("classification",)
