"""`perception tune`: a study on disk that goes on, stops what is hopeless, and reports the front. Made-up trainings."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import optuna
import pytest
from fake_training import run_times

from perception import cli
from perception import recipe as recipes
from perception.report.tune_page import render_scatter
from perception.studies import job_runner
from perception.studies.job_runner import TrainingRun
from perception.studies.search import RecipeSearch
from perception.studies.search_space import Dimension
from perception.studies.tune import open_study, tune
from perception.types import ConfigError

RECIPE = """
data: {size: [64, 64], validation: [{name: made, labels: [{format: image_labels, images: .}]}]}
tasks: {depth: {}}
model: {backbone: {name: test_efficientnet, weights: none}}
train: {steps: 10, lr: 0.01}
"""
SPACE = {
    "train.lr": Dimension(log=(1e-5, 1e-1)),
    "model.neck": Dimension(choice=({"name": "auto"}, {"name": "fpn", "channels": 16, "fine_channels": 8})),
}


@pytest.fixture(scope="module")
def recipe():
    return recipes.parse(RECIPE)


def test_the_first_trial_is_the_recipe_and_the_front_is_the_best_of_all(recipe, fake_trainings):
    space = {**SPACE, "model.neck": Dimension(choice=({"name": "auto"},))}
    plain = recipes.parse(RECIPE, ["model.neck={name: auto}"])
    result = tune(plain, space, fake_trainings / "out", num_trials=4, jobs=2)
    first = result["trials"][0]
    assert first["values"] == {"train.lr": pytest.approx(0.01), "model.neck": {"name": "auto"}}
    assert (first["score"], first["time"], first["step"]) == (pytest.approx(0.5), 1.0, 10)
    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    best = max(complete, key=lambda trial: trial["score"])
    assert result["pareto_front"] == [best["number"]]
    assert recipes.load(f"{best['folder']}/recipe.yaml").train.lr == pytest.approx(best["values"]["train.lr"])
    assert json.loads((fake_trainings / "out" / "tune.json").read_text()) == result


def test_a_study_goes_on_with_more_trials_and_draws_no_trial_twice(recipe, fake_trainings):
    tune(recipe, SPACE, fake_trainings / "out", num_trials=2)
    result = tune(recipe, SPACE, fake_trainings / "out", num_trials=4)
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3]
    assert all(len(run_times(fake_trainings / "out" / f"trial_{n:04d}")) == 2 for n in range(4))
    assert len({trial["values"]["train.lr"] for trial in result["trials"]}) == 4
    with pytest.raises(ConfigError, match="another recipe"):
        tune(recipes.parse(RECIPE, ["train.steps=5"]), SPACE, fake_trainings / "out", num_trials=4)
    with pytest.raises(ConfigError, match="another space"):
        tune(recipe, {"train.lr": Dimension(log=(1e-5, 1.0))}, fake_trainings / "out", num_trials=4)


def test_an_interrupted_study_resumes_the_very_trial(recipe, fake_trainings, monkeypatch):
    monkeypatch.setattr(job_runner, "build_command", lambda run, c=job_runner.build_command: [*c(run)[:-1], "slow"])
    out = fake_trainings / "out"

    def interrupt():
        while not job_runner.read_step(TrainingRun("", recipe, out / "trial_0000")) >= 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit):
        tune(recipe, SPACE, out, num_trials=1)
    thread.join()
    result = tune(recipe, SPACE, out, num_trials=1)
    assert [trial["state"] for trial in result["trials"]] == ["complete"]
    starts = [int(step) for kind, step, _ in run_times(out / "trial_0000") if kind == "start"]
    assert starts[0] == 0
    assert 2 <= starts[1] < 10


def test_a_trial_that_breaks_is_told_and_the_study_goes_on(recipe, fake_trainings):
    space = {"train.lr": Dimension(choice=(1.0, 0.01)), "train.steps": Dimension(choice=(10, -1))}
    result = tune(recipe, space, fake_trainings / "out", num_trials=6)
    states = {(t["values"].get("train.lr"), t["state"]) for t in result["trials"]}
    assert (0.01, "complete") in states
    reasons = [trial["failure"] for trial in result["trials"] if trial["state"] == "failed"]
    assert any("no data" in reason for reason in reasons)
    assert any("train.steps" in reason for reason in reasons)


@pytest.mark.parametrize(("slower", "stopped"), [(False, True), (True, False)])
def test_only_trials_that_are_as_fast_can_make_one_hopeless(slower, stopped, recipe, tmp_path):
    """Six good trials; a bad one is stopped, unless it is faster than all of them."""

    def log(number: int, score: float) -> None:
        folder = tmp_path / f"trial_{number:04d}"
        folder.mkdir()
        event = {"step": 4, "kind": "evaluation", "score": score}
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")

    with open_study(tmp_path, recipe, SPACE) as study:
        for number in range(6):
            trial = study.ask()
            trial.set_user_attr("time", 2.0 if slower else 1.0)
            study.tell(trial.number, [0.9, 1.0])
            log(number, 0.5 + number / 100)
        trial = study.ask()
        trial.set_user_attr("time", 1.0)
        log(6, 0.1)
        search = RecipeSearch(recipe, SPACE, tmp_path, study)
        run = TrainingRun("trial 6", recipe, tmp_path / "trial_0006")
        assert search.should_prune(run) == stopped
        assert not search.should_prune(run)  # asked once for every evaluation
        assert (study.trials[6].state == optuna.trial.TrialState.PRUNED) == stopped
        assert ("trial 6" in search.abandoned) == stopped


def test_hopeless_trials_are_stopped_on_the_way(recipe, fake_trainings, monkeypatch):
    from perception.studies import search

    rates = iter((1e-3, 1e-3, 1e-5))
    monkeypatch.setattr(search, "suggest_values", lambda space, ask: {"train.lr": next(rates)})
    monkeypatch.setattr(search, "MIN_TRIALS_TO_PRUNE", 2)
    monkeypatch.setattr(job_runner, "build_command", lambda run, c=job_runner.build_command: [*c(run)[:-1], "slow"])
    result = tune(recipe, {"train.lr": Dimension(log=(1e-6, 1e-3))}, fake_trainings / "out", num_trials=3, jobs=1)
    assert [trial["state"] for trial in result["trials"]] == ["complete", "complete", "stopped early"]
    assert result["trials"][2]["step"] < 10
    assert result["pareto_front"] == [0]


def test_the_command_and_its_page(fake_trainings, capsys):
    file = fake_trainings / "recipe.yaml"
    file.write_text(RECIPE + "tune: {train.lr: {log: [1.0e-4, 1.0e-1]}}\n")
    assert cli.main(["tune", str(file), "--trials", "2", "--out", str(fake_trainings / "out")]) == 0
    text = capsys.readouterr().out
    assert "2 trials: 2 complete" in text
    assert "trial_0000" in text or "trial_0001" in text
    page = (fake_trainings / "out" / "tune.html").read_text()
    assert page.count("<circle") == 2
    assert render_scatter({"trials": [], "pareto_front": []}) == ""
    assert cli.main(["tune", str(file), "data.validation=[]"]) == 2
    assert "held-out" in capsys.readouterr().err


def test_architectures_are_timed_once(recipe, fake_trainings, monkeypatch):
    from perception.studies import search

    calls = []
    monkeypatch.setattr(search, "measure_costs", lambda *a, m=search.measure_costs: calls.append(1) or m(*a, rounds=3))
    result = tune(recipe, SPACE, fake_trainings / "out", num_trials=6, jobs=3)
    necks = {json.dumps(trial["values"]["model.neck"]) for trial in result["trials"]}
    times = {trial["time"] for trial in result["trials"]}
    assert len(times) == len(necks) <= len(calls) <= 3
    assert result["baseline_milliseconds"] > 0
