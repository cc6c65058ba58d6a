"""Two ranks under torchrun do what one process does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import engine_stub
import pytest
import torch

from perception import checkpoint
from perception.engine import distributed
from perception.engine.evaluate import evaluate
from perception.model import Losses
from perception.tasks import Part


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What `engine_stub.main` saved on each of two ranks. Rank 1's pictures never have a depth label."""
    run = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [engine_stub.__file__, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    return run, [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_stay_equal_although_one_never_sees_a_label(ranks):
    _, (first, second) = ranks
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    start = engine_stub.network().state_dict()
    for learned in ("tasks.depth.output.weight", "tasks.depth.usual"):
        assert not torch.equal(first["model"][learned], start[learned])


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[dict]:
    """The updates of each of three ranks. Rank 0's pictures never have a depth label."""
    return engine_stub.on_ranks(engine_stub.share, 3, tmp_path_factory.mktemp("three"))


@pytest.mark.parametrize(("name", "space"), engine_stub.VARIANTS)
def test_the_update_is_that_of_one_process_on_the_joint_batch(ranks, three, name, space):
    expected = engine_stub.updates(name, space)
    for found in (*(rank["updates"] for rank in ranks[1]), *three):
        found = found[f"{name} {space}"]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=0, atol=1e-6, check_dtype=False, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_schedule_trains_as_in_one_process(three, tmp_path):
    """Turns, late tasks and resting parts are the same choice on every rank, whose labels are unlike."""
    expected = engine_stub.scheduled(tmp_path)
    del expected["tasks.depth.usual"]  # a mean of the ranks' means, not of their pictures
    assert all(
        torch.equal(value, rank["schedule"][key]) for rank in three for key, value in three[0]["schedule"].items()
    )
    for key, value in expected.items():
        torch.testing.assert_close(three[0]["schedule"][key], value, rtol=0, atol=1e-9)


def test_ranks_that_normalise_apart_stay_equal_and_are_no_one_process(three):
    """train.sync_batchnorm: false"""
    one, *others = (rank["apart"] for rank in three)
    assert all(torch.equal(value, other[key]) for other in others for key, value in one.items())
    away = [float((one[key] - value).abs().max()) for key, value in three[0]["schedule"].items() if "running" in key]
    assert min(away) > 1e-4


def test_all_ranks_decide_alike_to_the_last_bit(ranks, three):
    for several in ([rank["updates"] for rank in ranks[1]], three):
        for name, space in engine_stub.VARIANTS:
            one, *others = (found[f"{name} {space}"] for found in several)
            assert all(torch.equal(one[key], other[key]) for other in others for key in one), name


def test_E3_an_uneven_last_batch_over_ranks_equals_one_process(ranks, three):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun gives each rank: the last bits of a sum depend on it
    try:
        expected = engine_stub.measure(engine_stub.network())
    finally:
        torch.set_num_threads(threads)
    assert expected.pictures == 7
    for rank in ranks[1]:
        assert rank["pictures"] == 7
    for rank in (*ranks[1], *three):
        assert rank["metrics"] == pytest.approx(expected.metrics, rel=1e-9, nan_ok=True)


def test_the_saved_average_gives_the_logged_metrics(ranks):
    run, _ = ranks
    model = engine_stub.network()
    checkpoint.fit(model, checkpoint.load(run))
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "evaluation"] == [8, 16, 20]
    logged = {key: value for key, value in events[-1].items() if "/" in key}
    found = evaluate(model, engine_stub.validation()).metrics
    assert {key: value for key, value in found.items() if not math.isnan(value)} == pytest.approx(logged, rel=1e-6)


def test_without_torchrun_nothing_is_started():
    assert distributed.rank() == 0
    assert distributed.world() == 1
    with distributed.session("cpu") as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()
    assert distributed.gather("a") == distributed.everywhere("a") == ["a"]
    assert distributed.from_main("a") == "a"
    total = torch.tensor(6.0, requires_grad=True)
    found = Losses({"depth": {"error": Part(total, torch.tensor(3.0))}}, (), {"pull": torch.tensor(0.5)})
    joint = distributed.joint_losses(found, {"depth": 3}, {"interrupt": 0})
    joint.losses["depth"].backward()
    assert (joint.losses["depth"].item(), total.grad.item()) == (2.0, pytest.approx(1 / 3))
    assert (joint.penalties["pull"].item(), joint.parts) == (0.5, {"depth/error": 2.0})
    assert (joint.labelled, joint.flags) == ({"depth": 3}, {"interrupt": 0})
