"""Two ranks under torchrun do what one process does."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_network
import torch

from perception import checkpoint
from perception.engine import distributed
from perception.engine.evaluate import evaluate
from perception.model import LossOutput
from perception.tasks import LossTerm


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What `tiny_network.main` saved on each of two ranks. Rank 1's images never have a depth label."""
    run = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [tiny_network.__file__, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    return run, [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_stay_equal_although_one_never_sees_a_label(ranks):
    _, (first, second) = ranks
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    start = tiny_network.build_network().state_dict()
    for learned in ("tasks.depth.output.weight", "tasks.depth.usual"):
        assert not torch.equal(first["model"][learned], start[learned])


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[dict]:
    """The updates of each of three ranks. Rank 0's images never have a depth label."""
    return tiny_network.run_on_ranks(tiny_network.save_updates, 3, tmp_path_factory.mktemp("three"))


@pytest.mark.parametrize(("name", "space"), tiny_network.VARIANTS)
def test_the_update_is_that_of_one_process_on_the_joint_batch(ranks, three, name, space):
    expected = tiny_network.train_updates(name, space)
    for found in (*(rank["updates"] for rank in ranks[1]), *three):
        found = found[f"{name} {space}"]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=0, atol=1e-6, check_dtype=False, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_schedule_trains_as_in_one_process(three, tmp_path):
    """Turns, late tasks and resting parts are the same choice on every rank, whose labels are unlike."""
    expected = tiny_network.train_scheduled(tmp_path)
    del expected["tasks.depth.usual"]  # a mean of the ranks' means, not of their images
    assert all(
        torch.equal(value, rank["schedule"][key]) for rank in three for key, value in three[0]["schedule"].items()
    )
    for key, value in expected.items():
        torch.testing.assert_close(three[0]["schedule"][key], value, rtol=0, atol=1e-9)


def test_ranks_that_normalize_apart_stay_equal_and_are_no_one_process(three):
    """train.sync_batchnorm: false"""
    one, *others = (rank["apart"] for rank in three)
    assert all(torch.equal(value, other[key]) for other in others for key, value in one.items())
    away = [float((one[key] - value).abs().max()) for key, value in three[0]["schedule"].items() if "running" in key]
    assert min(away) > 1e-4


def test_all_ranks_decide_alike_to_the_last_bit(ranks, three):
    for several in ([rank["updates"] for rank in ranks[1]], three):
        for name, space in tiny_network.VARIANTS:
            one, *others = (found[f"{name} {space}"] for found in several)
            assert all(torch.equal(one[key], other[key]) for other in others for key in one), name


@pytest.mark.fault("E3")
def test_an_uneven_last_batch_over_ranks_equals_one_process(ranks, three):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun gives each rank: the last bits of a sum depend on it
    try:
        expected = tiny_network.evaluate_network(tiny_network.build_network())
    finally:
        torch.set_num_threads(threads)
    assert expected.num_images == 7
    for rank in ranks[1]:
        assert rank["images"] == 7
    for rank in (*ranks[1], *three):
        assert rank["metrics"] == pytest.approx(expected.metrics, rel=1e-9, nan_ok=True)


def test_the_saved_average_gives_the_logged_metrics(ranks):
    run, _ = ranks
    model = tiny_network.build_network()
    checkpoint.load_into_model(model, checkpoint.load(run))
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "evaluation"] == [8, 16, 20]
    logged = {key: value for key, value in events[-1].items() if "/" in key}
    found = evaluate(model, tiny_network.validation_batches()).metrics
    assert {key: value for key, value in found.items() if not math.isnan(value)} == pytest.approx(logged, rel=1e-6)


def test_without_torchrun_nothing_is_started():
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not torch.distributed.is_initialized()
    assert distributed.gather("a") == distributed.all_gather("a") == ["a"]
    assert distributed.broadcast("a") == "a"
    total = torch.tensor(6.0, requires_grad=True)
    found = LossOutput({"depth": {"error": LossTerm(total, torch.tensor(3.0))}}, (), {"l2_distance": torch.tensor(0.5)})
    joint = distributed.reduce_losses(found, {"depth": 3}, {"interrupt": 0})
    joint.losses["depth"].backward()
    assert (joint.losses["depth"].item(), total.grad.item()) == (2.0, pytest.approx(1 / 3))
    assert (joint.penalties["l2_distance"].item(), joint.terms) == (0.5, {"depth/error": 2.0})
    assert (joint.num_labeled, joint.flags) == ({"depth": 3}, {"interrupt": 0})
