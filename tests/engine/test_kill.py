"""T1, T2: a run that dies and is resumed equals one that was left alone, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_network
import torch
from command_line import python_path

from perception import checkpoint, runs

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tiny_network"])


@pytest.fixture(scope="module", autouse=True)
def _server():
    """The server, which imports everything once, finds the stub (it does not inherit sys.path)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", python_path(Path(tiny_network.__file__).parent))
    CONTEXT.Process(target=int).start()
    patch.undo()


def start(run: Path, **options):
    process = CONTEXT.Process(target=tiny_network.train_network, args=(run,), kwargs=options)
    process.start()
    return process


def finish(run: Path, **options) -> None:
    process = start(run, **options)
    process.join(60)
    assert process.exitcode == 0


def outcome(run: Path):
    """Every tensor and number of the newest checkpoint, and the log; without times."""
    newest = checkpoint.load(run)
    state = checkpoint.load_train_state(newest.path)
    state.pop("seconds")
    state["window_sums"].pop("seconds_per_step", None)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("time")
        event.pop("images_per_second", None)
    return {"weights": newest.weights, "state": state, "step": newest.step, "log": events}


def flatten(value, path=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{path}/{i}").items()}
    return {path: value}


def assert_same(a, b) -> None:
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    unlike = [
        key for key in a if not (torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key])
    ]
    assert not unlike


def kill_until_done(run: Path, kills: int, seed: int, longest: float, **options) -> tuple[int, int]:
    """Kill a run at random moments, then let it end. Returns the kills, and how many left a half-written checkpoint."""
    chance, done, half = random.Random(seed), 0, 0
    while done < kills:
        process = start(run, **options)
        folder = run / "checkpoints"
        before = sorted(folder.glob("step_*"))
        deadline = time.monotonic() + 30
        while not before and not list(folder.glob("step_*")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, longest))
        process.kill()
        process.join(10)
        if process.exitcode != -signal.SIGKILL:
            break
        done += 1
        half += bool(list(folder.glob(".writing-*")))
        newest = checkpoint.load(run)
        assert newest.step >= (int(before[-1].name[5:]) if before else 1)
    finish(run, **options)
    return done, half


@pytest.mark.fault("T1")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, workers):
    finish(tmp_path / "whole", workers=0)
    done, _ = kill_until_done(tmp_path / "killed", 2, seed=workers, longest=0.3, workers=workers, batch_seconds=0.05)
    assert done
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.mark.fault("T1")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_in_training_and_in_saving(tmp_path, workers):
    options = {"steps": 300, "every": 1}
    finish(tmp_path / "whole", **options)
    done, half = kill_until_done(
        tmp_path / "killed", 24, seed=workers, longest=0.4, workers=workers, batch_seconds=0.01, **options
    )
    assert done >= 20
    assert half >= 3
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.mark.fault("T2")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path, number, code):
    finish(tmp_path / "whole")
    run = tmp_path / "stopped"
    process = start(run, every=0, batch_seconds=0.1, workers=2)
    deadline = time.monotonic() + 30
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    assert 0 < checkpoint.load(run).step < 20
    finish(run)
    assert_same(outcome(run), outcome(tmp_path / "whole"))


@pytest.mark.fault("T2")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_during_an_evaluation_is_heard_at_once(tmp_path, number):
    """The steps before it are saved, the evaluation is done again: the run equals one that was left alone."""
    finish(tmp_path / "whole")
    run = tmp_path / "stopped"
    process = start(run, every=0, evaluation_seconds=60)
    wait_for(run / "looking", process)
    if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
        process.kill()
        pytest.skip("who runs the tests ignores SIGHUP (nohup), and so do its children, as they should")
    began = time.monotonic()
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # a launcher passes on what the scheduler sent already
    process.join(30)
    assert process.exitcode == 128 + number
    assert time.monotonic() - began < 10
    assert checkpoint.load(run).step == 8
    finish(run)
    assert_same(outcome(run), outcome(tmp_path / "whole"))


@pytest.mark.fault("T2")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_after_the_training_is_heard_at_once_and_says_that_all_is_saved(capsys, number, code):
    def measured() -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(SystemExit) as ended, runs.exit_on_signal("All is saved."):
        measured()
    assert ended.value.code == code
    assert time.monotonic() - began < 20
    assert capsys.readouterr().err == "Stopped by a signal. All is saved.\n"


@pytest.mark.fault("T2")
@pytest.mark.parametrize("batch_seconds", [60.0])
def test_a_signal_is_heard_at_once_while_a_training_waits_for_its_data(tmp_path, batch_seconds):
    run = tmp_path / "stopped"
    process = start(run, batch_seconds=batch_seconds)
    wait_for(run / "metrics.jsonl", process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 143
    assert checkpoint.load(run).step == 0
    finish(run)
    finish(tmp_path / "whole")
    assert_same(outcome(run), outcome(tmp_path / "whole"))


def wait_for(path: Path, process) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
