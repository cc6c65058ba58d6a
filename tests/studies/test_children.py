"""Trainings as child processes: several at a time, resumed, interrupted, failed. The trainings here are made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_training import run_times

from perception import config
from perception import recipe as recipes
from perception.studies import job_runner
from perception.studies.job_runner import TrainingRun, is_finished, lock_folder, read_last_metrics, train_all
from perception.types import CheckpointError, PerceptionError


@pytest.fixture
def study(fake_trainings):
    """A function that makes runs; what they do is in their names."""

    def make(*names: str, steps: int = 3) -> list[TrainingRun]:
        text = f"data: {{}}\ntasks: {{depth: {{}}}}\ntrain: {{steps: {steps}, threads: 1, lr: 1.0e-3}}"
        return [
            TrainingRun(name, recipes.parse(text, [f"name=run_{i}"]), fake_trainings / "study" / f"{i}")
            for i, name in enumerate(names)
        ]

    return make


def train(runs, jobs=1, **options):
    with lock_folder(runs[0].folder.parent) as lock:
        return train_all(runs, jobs, lock, **options)


def test_runs_are_trained_side_by_side_and_never_twice(study):
    runs, told = study("slow a", "slow b", "slow c"), []
    assert train(runs, jobs=2, on_finished=lambda run: told.append(run.name)) == {}
    assert sorted(told) == ["slow a", "slow b", "slow c"]
    assert float(run_times(runs[1].folder)[0][2]) < float(run_times(runs[0].folder)[1][2])  # b began before a had ended
    assert float(run_times(runs[2].folder)[0][2]) > min(
        float(run_times(run.folder)[1][2]) for run in runs[:2]
    )  # c waited
    assert read_last_metrics(runs[0]) == {"depth/abs_rel": 0.25, "score": 1.0}
    assert train(runs, jobs=2) == {}
    assert all(len(run_times(run.folder)) == 2 for run in runs)


def test_a_run_of_another_recipe_is_no_run_of_this_study(study):
    runs = study("a")
    train(runs)
    other = recipes.parse(config.dump_yaml(runs[0].recipe), ["train.lr=0.5"])
    with pytest.raises(CheckpointError, match="a recipe that differs"):
        is_finished(TrainingRun("a", other, runs[0].folder))


def test_what_is_damaged_in_a_run_is_no_traceback(study):
    (run,) = runs = study("a")
    train(runs)
    with (run.folder / "metrics.jsonl").open("ab") as log:
        log.write(b'[1]\n{"step": "x"}\n{"step": 1e999}\n\xff\xfe\n{"kind": 3}\n')
    assert (job_runner.read_step(run), is_finished(run)) == (run.steps, True)
    (run.folder / "recipe.yaml").write_bytes(b"name: \xff")
    with pytest.raises(CheckpointError, match=r"recipe\.yaml cannot be read: .* Restore the recipe"):
        is_finished(run)


def test_a_failure_before_the_first_step_ends_the_study_at_once(study):
    runs = study("broken a", "b")
    with pytest.raises(PerceptionError, match=r"broken a: no data.*output\.txt"):
        train(runs)
    assert not runs[1].folder.exists()


def test_a_run_that_dies_later_leaves_the_others_alone_and_is_tried_again(study):
    runs = study("dies a", "b")
    failures = train(runs)
    assert list(failures) == ["dies a"]
    assert "no finite loss" in failures["dies a"]
    assert is_finished(runs[1])
    assert train(runs) == {}  # it went on from step 2
    assert run_times(runs[0].folder)[1][:2] == ["start", "2"]


def test_a_run_that_is_not_worth_going_on_with_is_stopped(study):
    runs, told = study("slow a", "b", steps=50), []
    stopped = train(
        runs,
        on_finished=lambda run: told.append(run.name),
        should_stop=lambda run: run.name == "slow a" and job_runner.read_step(run) >= 2,
    )
    assert stopped == {}
    assert told == ["b"]
    assert 2 <= job_runner.read_step(runs[0]) < 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_every_child_save_and_the_next_call_goes_on(study, number, capsys):
    runs = study("slow a", "slow b", steps=8)

    def interrupt():
        while not all(job_runner.read_step(run) >= 2 for run in runs):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        train(runs, jobs=2)
    thread.join()
    assert stopped.value.code == 128 + number
    assert "Run the same command to continue" in capsys.readouterr().err
    steps = [job_runner.read_step(run) for run in runs]
    assert all(2 <= step < 8 for step in steps)
    assert train(runs, jobs=2) == {}
    for run, step in zip(runs, steps, strict=True):
        assert run_times(run.folder)[1][:2] == ["start", str(step)]
        assert [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()] == list(
            range(1, 9)
        )


def test_the_folder_stays_locked_while_an_orphan_lives(tmp_path):
    """A study that was killed leaves its trainings behind: a second one must not write beside them."""
    with lock_folder(tmp_path) as lock:
        orphan = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(PerceptionError, match="in use"), lock_folder(tmp_path):
        pass
    orphan.communicate(b"\n")
    with lock_folder(tmp_path):
        pass
