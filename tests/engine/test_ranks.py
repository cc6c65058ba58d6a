"""Several processes: one that is killed, stopped, failing or elsewhere is named by the others, within seconds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import tiny_network
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from perception import checkpoint
from perception.engine import distributed
from perception.engine.interrupt import catch_stop_signals

CONTEXT = multiprocessing.get_context("forkserver")
WORLD = 3


def rank(number: int, port: int, run: Path, deed: str) -> None:
    """Train as one of the ranks; the last one does something at its tenth batch. What is said goes to a file."""
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"PERCEPTION_RANK_TIMEOUT": "5"}
    said = os.open(run.parent / f"rank{number}.err", os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 2)
    destroy = dist.destroy_process_group

    def destroy_last() -> None:
        """A network that outlives its process group may keep the process from ending, by a deadlock inside of torch."""
        if any(isinstance(each, DistributedDataParallel) for each in gc.get_objects()):
            os.write(2, b"outlived\n")
        destroy()

    dist.destroy_process_group = destroy_last
    own = run if deed != "elsewhere" or number < WORLD - 1 else run.parent / "elsewhere"

    def stream(first: int):
        for step, batch in enumerate(tiny_network.make_batches(first, batch_size=6), first):
            if step == 10 and number == WORLD - 1:
                (run.parent / "reached").touch()
                if deed == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if deed == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if deed == "fail":
                    raise ValueError("a file is gone")
                if deed == "signal":
                    os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def evaluate(model):
        def slowly():
            for batch in tiny_network.validation_batches(30, 1):
                if deed == "signal in evaluation":
                    (run.parent / "reached").touch()
                    time.sleep(6)
                yield batch

        return tiny_network.evaluate(model, slowly())

    with distributed.process_group("cpu"):
        settings = tiny_network.train_config(steps=20, batch_size=6, threads=1)
        options = {
            "run_folder": own,
            "recipe_text": tiny_network.RECIPE,
            "balancer": tiny_network.make_balancer(),
            "evaluate": evaluate,
        }
        tiny_network.train(tiny_network.build_network(), stream, settings, **options)


def ended(folder: Path, deed: str, send: int = 0) -> tuple[list[int | None], list[str], float]:
    """Exit codes of the ranks, what each said, and the seconds after the deed."""
    CONTEXT.set_forkserver_preload(["tiny_network"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [CONTEXT.Process(target=rank, args=(number, port, folder / "run", deed)) for number in range(WORLD)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + 90
    while not (folder / "reached").exists() and any(p.is_alive() for p in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    if send:
        os.kill(ranks[-1].pid or 0, send)
    for process in ranks[:-1] if deed == "stop" else ranks:
        process.join(60)
    seconds = time.monotonic() - began
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes, [(folder / f"rank{number}.err").read_text() for number in range(WORLD)], seconds


@pytest.mark.parametrize("deed", ["stop", "kill", "fail"])
def test_a_rank_that_is_lost_is_named_by_the_others_within_seconds(tmp_path, deed):
    codes, said, seconds = ended(tmp_path, deed)
    assert seconds < 40
    for code, text in zip(codes[:-1], said[:-1], strict=True):
        assert code not in (0, None), text
        assert f"Rank {WORLD - 1} on {socket.gethostname()}" in text
        words = {"fail": "ended: ValueError: a file is gone"}.get(deed, "sent its last heartbeat")
        assert words in text
        assert "--resume" in text
        assert "outlived" not in text
    assert checkpoint.load(tmp_path / "run").step == 8


def test_a_run_folder_that_the_ranks_do_not_share_is_told_at_the_start(tmp_path, monkeypatch):
    codes, said, _ = ended(tmp_path, "elsewhere")
    assert 0 not in codes
    assert all("cannot see the run folder" in text for text in said), said
    assert not checkpoint.has_checkpoints(tmp_path / "run")


@pytest.mark.fault("T2")
@pytest.mark.parametrize("deed", ["signal", "signal in evaluation"])
def test_a_signal_to_one_rank_stops_all_of_them_with_the_state_saved(tmp_path, deed):
    codes, said, seconds = ended(tmp_path, deed, signal.SIGTERM if "evaluation" in deed else 0)
    assert codes == [143] * WORLD, said
    assert "outlived" not in "".join(said)
    assert seconds < 40
    assert checkpoint.load(tmp_path / "run").step == (11 if deed == "signal" else 8)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_stop_signals() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.signal_number
    finally:
        signal.signal(signal.SIGHUP, before)
