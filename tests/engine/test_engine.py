"""The training loop: what it does in a step, what it refuses, what it writes."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import tiny_network
import torch
from checkpoint_files import rewrite
from tiny_network import build_network, make_balancer, make_batches, train_config
from torch import nn
from training_runs import Died, dying, events, fit, flat, same

from perception import checkpoint
from perception.engine import distributed, optim
from perception.engine.log import TrainLog, truncate_log
from perception.engine.precision import autocast, has_bfloat16
from perception.engine.run_start import build_train_state
from perception.engine.step import seed_step, take_step
from perception.model import LossOutput
from perception.mtl.balancers import BALANCERS
from perception.tasks import LossTerm
from perception.types import CheckpointError, ConfigError, DataError, DenseMap, PerceptionError

NAN = float("nan")


def spoil(first: int, steps: set[int], value: float = NAN, **options):
    """The stream of the stub, with the first depth map of some steps replaced."""
    for step, batch in enumerate(make_batches(first, **options), first):
        if step in steps:
            maps = list(batch.annotations["depth"])
            place = next(i for i, item in enumerate(maps) if item is not None)
            maps[place] = DenseMap(torch.full_like(maps[place].values, value), maps[place].valid)
            batch = dataclasses.replace(batch, annotations={**batch.annotations, "depth": maps})
        yield batch


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_its_folder(tmp_path):
    result = fit(tmp_path, steps=60, evaluate=tiny_network.evaluate_network, tensorboard=True)
    assert (result.step, result.skipped_steps) == (60, 0)
    lines = events(tmp_path, "train")
    assert [line["step"] for line in lines] == list(range(3, 61, 3))
    assert lines[-1]["loss/depth"] < 0.6 * lines[0]["loss/depth"]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss/depth"] + lines[-1]["loss/classification"])
    assert {"time", "lr", "weight/depth", "gradient_norm", "images_per_second"} <= lines[0].keys()
    assert sum(line["labeled_fraction/depth"] for line in lines) / len(lines) == pytest.approx(2 / 3, abs=0.02)
    assert sum(line["labeled_fraction/classification"] for line in lines) / len(lines) == pytest.approx(4 / 5, abs=0.02)
    measured = events(tmp_path, "evaluation")
    assert [line["step"] for line in measured] == [*range(8, 60, 8), 60]
    assert measured[-1]["depth/abs_rel"] == result.evaluation.metrics["depth/abs_rel"]
    best = max(measured, key=lambda line: line["score"])
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == best["step"]
    assert checkpoint.load(tmp_path, "best").step == best["step"]
    assert checkpoint.load(tmp_path).step == 60
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_the_saved_weights_are_the_average_batch_norm_included(tmp_path):
    model = build_network()
    states = []

    def recorded(first: int):
        for batch in make_batches(first):
            states.append(copy.deepcopy(model.state_dict()))
            yield batch

    fit(tmp_path, model, recorded, steps=6, ema_decay=0.7)
    states = [*states[1:], model.state_dict()]
    expected = {name: value.double() for name, value in states[0].items()}
    for step, state in enumerate(states[1:], 1):
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3))
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    saved = checkpoint.load(tmp_path).weights
    assert saved["backbone.1.num_batches_tracked"] == 6
    for name, value in expected.items():
        if value.is_floating_point() and not name.endswith("tracked"):
            torch.testing.assert_close(saved[name].double(), value, rtol=1e-5, atol=1e-6)


def test_the_log_of_a_crash_is_cut_to_the_checkpoint(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "kind": "train"}) + "\n" for step in (3, 6, 9)]
    log.write_text("".join(lines) + '{"step": 12, "ki')
    with TrainLog(tmp_path, 6, 20, tensorboard=False) as opened:
        opened.write_event(7, "evaluation", {"depth/abs_rel": NAN, "score": 0.5})
    assert log.read_text().startswith("".join(lines[:2]))
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["step"], last["depth/abs_rel"], last["score"]) == (7, None, 0.5)


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BALANCERS)
def test_steps_in_two_runs_equal_those_in_one_bit_for_bit(tmp_path, name):
    def balance():
        return make_balancer(name, **({"window": 2} if name == "dwa" else {}))

    options = {"steps": 7, "checkpoint_every": 4, "evaluate_every": 0}
    whole, parts = build_network(), build_network()
    fit(tmp_path / "whole", whole, balancer=balance(), **options)
    with pytest.raises(Died):
        fit(tmp_path / "parts", build_network(), dying(5), balancer=balance(), **options)
    torch.manual_seed(99)
    fit(tmp_path / "parts", parts, balancer=balance(), resume=True, **options)
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())
    one, other = (checkpoint.load_train_state(tmp_path / folder / "checkpoints/last") for folder in ("whole", "parts"))
    for times in ("seconds", "window_sums"):
        one.pop(times), other.pop(times)
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    assert [key for key in one if not same(one[key], other[key])] == []


def test_twenty_steps_equal_ten_and_ten_more_with_evaluations_between(tmp_path):
    whole, parts = build_network(), build_network()
    fit(tmp_path / "whole", whole, evaluate=tiny_network.evaluate_network)
    with pytest.raises(Died):
        fit(tmp_path / "parts", build_network(), dying(10), evaluate=tiny_network.evaluate_network)
    torch.manual_seed(99)
    fit(tmp_path / "parts", parts, evaluate=tiny_network.evaluate_network, resume=True)
    one, other = (checkpoint.load(tmp_path / folder).weights for folder in ("whole", "parts"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_randomness_is_a_function_of_seed_and_step():
    draws = []
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        seed_step(seed, step)
        draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.fault("T4")
def test_resume_from_the_checkpoint_before_a_damaged_one(tmp_path):
    whole = build_network()
    fit(tmp_path / "whole", whole)
    with pytest.raises(Died):
        fit(tmp_path / "run", build_network(), dying(10))
    (tmp_path / "run/checkpoints/step_00000008/model.safetensors").write_bytes(b"")
    model = build_network()
    with pytest.warns(UserWarning, match="step_00000004"):
        fit(tmp_path / "run", model, resume=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in whole.state_dict().items())


@pytest.mark.fault("T5")
def test_another_recipe_is_refused_unless_forced(tmp_path):
    fit(tmp_path, steps=4)
    with pytest.raises(CheckpointError, match=r"(?s)-name: a.*\+name: b"):
        fit(tmp_path, steps=8, recipe_text="name: b\n", resume=True)
    assert fit(tmp_path, steps=8, recipe_text="name: b\n", resume=True, force=True).step == 8
    assert (tmp_path / "recipe.yaml").read_text() == "name: b\n"


@pytest.mark.fault("T5")
def test_data_that_changed_on_disk_is_refused_unless_forced(tmp_path):
    before = {"train.street": {"labels": "1a"}, "train.rooms": {"labels": "2b", "images": "3c"}}
    after = {**before, "train.rooms": {"labels": "2c", "images": "3c"}}
    fit(tmp_path, steps=4, data_fingerprints=before)
    with pytest.raises(CheckpointError, match=r"changed on disk since: data\.train\.rooms has other labels\."):
        fit(tmp_path, steps=8, data_fingerprints=after, resume=True)
    assert fit(tmp_path, steps=6, data_fingerprints=after, resume=True, force=True).step == 6
    assert fit(tmp_path, steps=8, data_fingerprints=after, resume=True).step == 8


@pytest.mark.fault("T5")
@pytest.mark.parametrize(
    ("before", "version", "told"),
    [
        ("1a", "0.1", "by perception 0.1, so changes in the images, labels of its data"),
        ({"labels": "1a", "images": "2b"}, "0.1", "by perception 0.1, so changes in the labels of its data"),
        ({"images": "2b"}, None, "by another version, so changes in the labels of its data"),
    ],
)
def test_what_a_resume_cannot_compare_of_a_run_of_another_version_is_told(tmp_path, before, version, told):
    fit(tmp_path, steps=4)
    newest = checkpoint.load(tmp_path).path
    state = checkpoint.load_train_state(newest)
    torch.save({**state, "data_fingerprints": {"train.street": before}}, newest / "train_state.pt")
    rewrite(newest, versions={"perception": version} if version else {})
    data = {"train.street": {"labels": "other", "images": "2b"}}
    with pytest.warns(UserWarning, match=f"was written {told} cannot be detected"):
        fit(tmp_path, steps=8, data_fingerprints=data, resume=True)


def test_the_log_of_a_resume_drops_damaged_lines_and_says_so(tmp_path, capsys):
    fit(tmp_path, steps=8)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_bytes()
    odd = [b"\xff\xfe", b"[1,2]", b'{"kind": "train"}', b'{"step": "9"}', b"{" * 100_000, b"null", b'{"step": true}']
    for line in odd:
        log.write_bytes(line + b"\n" + whole)
        capsys.readouterr()
        fit(tmp_path, steps=8, resume=True)
        assert log.read_bytes() == whole
        assert "line 1 is damaged" in capsys.readouterr().err
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == b"".join(line + b"\n" for line in odd)


def test_no_flipped_bit_of_a_log_blocks_a_resume(tmp_path):
    line = json.dumps({"step": 3, "kind": "train", "loss": 0.5}).encode() + b"\n"
    path = tmp_path / "metrics.jsonl"
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(line + bytes(flipped) + line)
        truncate_log(path, 5)
        assert path.read_bytes().startswith(line)


STATES = {
    "step": ["7", -1, True, None, 1],
    "best_score": [[1], None, "x"],
    "skipped_steps": [None, -1, 0.5],
    "window_sums": [{"loss": 5}, 3, {"loss": [1.0]}, {3: [1.0, 2]}],
    "task_scores": [[1], {"depth": 1.0}],
    "first_losses": [3, {"depth": "x"}],
    "cosines": [{"a": "bc"}],
    "optimizer": [{"state": 3, "param_groups": []}, None, {}, {"state": {}, "param_groups": [{"params": [0]}]}],
    "balancer": [5, [1], {"x": torch.zeros(1)}],
    "schedule": [5, ["x"]],
    "model": [[1], {}, {"backbone.0.weight": 3}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in STATES.items() for value in values])
def test_a_train_state_of_other_types_is_refused_with_the_mend(tmp_path, key, value):
    fit(tmp_path, steps=2)
    folder = tmp_path / "checkpoints/step_00000002"
    state = checkpoint.load_train_state(folder)
    torch.save({**state, key: value}, folder / "train_state.pt")
    rewrite(folder)
    with pytest.raises(CheckpointError, match=r"(?s)train_state\.pt .*this checkpoint"):
        fit(tmp_path, steps=4, resume=True)
    torch.save({name: kept for name, kept in state.items() if name != key}, folder / "train_state.pt")
    rewrite(folder)
    with pytest.raises(CheckpointError, match=r"train_state\.pt") if key != "schedule" else nullcontext():
        fit(tmp_path, steps=4, resume=True)


def test_two_trainings_of_one_run_at_once_are_refused(tmp_path):
    """By a lock that ends with its process; a fresh one into a running one, too."""
    fit(tmp_path, steps=2)
    code = (
        "import sys, pathlib\n"
        "from perception.engine.run_start import lock_run_folder\n"
        "with lock_run_folder(pathlib.Path(sys.argv[1]), False):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=f"is being trained by process {holder.pid} on "):
            fit(tmp_path, steps=4, resume=resume)
    holder.kill()
    holder.communicate()
    assert fit(tmp_path, steps=4, resume=True).step == 4


def test_a_training_outlives_the_terminal_that_shows_it(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    with TrainLog(tmp_path, 0, 5, tensorboard=False) as opened:
        opened._console.file = broken
        for step in range(3):
            opened.write_event(step, "evaluation", {"score": 0.5})
    with suppress(BrokenPipeError):
        broken.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_names_reach_the_terminal_as_text(tmp_path, capsys):
    with TrainLog(tmp_path, 0, 5, tensorboard=False) as opened:
        opened.print_message("Warning: \x1b]0;title\x07 \u202e.jpg\nsecond line")
    said = capsys.readouterr().err
    assert said == "Warning: \\x1b]0;title\\x07 \\u202e.jpg\nsecond line\n"


def test_a_used_folder_is_not_overwritten_and_an_empty_one_not_resumed(tmp_path):
    fit(tmp_path / "a", steps=1)
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        fit(tmp_path / "a", steps=1)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        fit(tmp_path / "b", steps=1, resume=True)


def test_a_finished_run_resumes_to_nothing(tmp_path):
    fit(tmp_path, steps=2)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert fit(tmp_path, steps=2, resume=True).step == 2
    assert (tmp_path / "metrics.jsonl").read_text() == before


# --- what goes wrong -------------------------------------------------------------------------------------------------


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):  # type: ignore[override]
        return gradient * NAN


def with_depth(losses: LossOutput, change) -> LossOutput:
    error = losses.terms["depth"]["error"]
    return losses._replace(terms={**losses.terms, "depth": {"error": LossTerm(change(error.total), error.count)}})


def break_loss(model):
    return lambda losses: with_depth(losses, lambda total: total * math.inf)


def break_gradient(model):
    return lambda losses: with_depth(losses, BadGradient.apply)


def break_penalty(model):
    return lambda losses: losses._replace(penalties={"l2_distance": torch.tensor(NAN)})


def break_batch_norm(model):
    def breaks(losses):
        model.backbone[1].running_var.data.fill_(NAN)
        return losses

    return breaks


@pytest.mark.fault("T6")
@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (break_loss, "loss of depth is inf"),
        (break_penalty, "penalty l2_distance is nan"),
        (break_gradient, "gradient of depth is not finite"),
        (break_batch_norm, "BatchNorm statistics are not finite"),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(breaks, problem):
    model = build_network()
    training = build_train_state(model, make_balancer("uncertainty"), train_config())
    step = {"lr": 0.1, "clip_norm": 1.0, "precision": "float32", "flags": {}, "with_weights": False}
    stream = make_batches(0)
    assert not take_step(training, distributed.LossFunction(model), next(stream), **step).problem
    before = copy.deepcopy((training.state_dict(), training.ema.module.state_dict()))
    normal, broken = model.compute_loss_terms, breaks(model)
    model.compute_loss_terms = lambda *given, **options: broken(normal(*given, **options))
    batch = next(stream)
    found = take_step(training, distributed.LossFunction(model), batch, **step)
    assert re.search(problem, found.problem)
    after = (training.state_dict(), training.ema.module.state_dict())
    one, other = flat(before), flat(after)
    assert one.keys() == other.keys()
    assert [key for key in one if not same(one[key], other[key])] == ["/0/step"]
    model.compute_loss_terms = normal
    assert not take_step(training, distributed.LossFunction(model), batch, **step).problem


@pytest.mark.fault("T6")
def test_a_bad_target_is_skipped_and_named(tmp_path, capsys):
    result = fit(tmp_path, stream=lambda first: spoil(first, {4, 7}))
    assert (result.step, result.skipped_steps) == (20, 2)
    skipped = events(tmp_path, "skipped")
    assert [line["step"] for line in skipped] == [5, 8]
    assert skipped[0]["reason"] == "loss of depth is nan"
    assert skipped[0]["ids"] == ["16", "17", "18", "19"]
    assert "step 5 was skipped: loss of depth is nan. Images: 16, 17, 18, 19." in capsys.readouterr().err
    assert all(value.isfinite().all() for value in checkpoint.load(tmp_path).weights.values())


@pytest.mark.fault("T6")
def test_too_many_in_a_row_end_the_training(tmp_path):
    with pytest.raises(PerceptionError, match=r"3 steps in a row.*step 9.*loss of depth is nan.*32"):
        fit(tmp_path, stream=lambda first: spoil(first, {2, 6, 7, 8}), max_skipped_steps=3)
    assert checkpoint.load(tmp_path).step == 8


@pytest.mark.fault("T7")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), None])
def test_out_of_memory_says_what_to_make_smaller(tmp_path, error):
    model = build_network()

    def losses(batch, tasks, cut_graph):
        if error is None:
            torch.empty(1 << 60)
        raise error

    model.compute_loss_terms = losses
    with pytest.raises(PerceptionError, match=r"batch_size 4 for images of \(4, 3, 16, 24\).*train\.batch_size=2"):
        fit(tmp_path, model)


@pytest.mark.fault("T7")
def test_other_errors_are_not_taken_for_it(tmp_path):
    model = build_network()
    model.compute_loss_terms = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, model)


def test_data_that_end_early_say_so(tmp_path):
    with pytest.raises(DataError, match="after 5 steps, expected 20"):
        fit(tmp_path, stream=lambda first: make_batches(first, steps=5))


def test_the_stream_is_closed_whatever_happens(tmp_path):
    closed = []

    def stream(first: int):
        try:
            yield from make_batches(first)
        finally:
            closed.append(first)

    fit(tmp_path / "a", steps=3, stream=stream)
    model = build_network()
    model.compute_loss_terms = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "b", model, stream=stream)
    assert closed == [0, 0]


def test_a_batch_size_that_the_ranks_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch_size 4 is not a multiple of the 3 processes"):
        fit(tmp_path)


# --- optimizer, precision --------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_to_its_floor():
    rates = [optim.lr_factor(step, 100, 10, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == max(rates) == 1
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10:] == pytest.approx([0.55 + 0.45 * math.cos(math.pi * i / 89) for i in range(90)])
    assert optim.lr_factor(0, 1, 0, 0.1) == 1


def test_parameter_groups():
    model = build_network()
    frozen = model.tasks["depth"].output.weight
    frozen.requires_grad_(False)
    extra = nn.Parameter(torch.zeros(2, 2))
    optimizer = optim.build_optimizer("adamw", model, [extra], lr=1.0, weight_decay=0.5, backbone_lr_scale=0.1)
    optim.set_learning_rate(optimizer, 2.0)
    placed = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert id(frozen) not in placed
    assert placed[id(extra)]["weight_decay"] == 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = placed[id(parameter)]
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0), name
            assert group["lr"] == pytest.approx(0.2 if name.startswith("backbone") else 2.0), name


@pytest.mark.parametrize("name", ["sgd", "lamb", "adopt", "muon"])
def test_a_run_with_another_optimizer_resumes_bit_for_bit(tmp_path, name):
    options = {"steps": 7, "optimizer": name, "evaluate_every": 0, "backbone_lr_scale": 0.1, "lr": 1e-3}
    whole, parts = build_network(), build_network()
    start = copy.deepcopy(whole.state_dict())
    fit(tmp_path / "whole", whole, balancer=make_balancer("uncertainty"), **options)
    with pytest.raises(Died):
        fit(tmp_path / "parts", build_network(), dying(5), balancer=make_balancer("uncertainty"), **options)
    fit(tmp_path / "parts", parts, balancer=make_balancer("uncertainty"), resume=True, **options)
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())
    assert not torch.equal(whole.state_dict()["backbone.0.weight"], start["backbone.0.weight"])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_keeps_the_groups_and_goes_on_from_its_state(name):
    """A head without a gradient, as where tasks take turns, does not move."""

    def made():
        model, extra = build_network(), nn.Parameter(torch.zeros(2, 2))
        return model, optim.build_optimizer(name, model, [extra], lr=1e-3, weight_decay=0.05, backbone_lr_scale=0.1)

    def learn(model, optimizer, steps):
        for step in range(steps):
            optim.set_learning_rate(optimizer, 1e-3)
            model.backbone(torch.linspace(-1, 1, 3 * 36).view(1, 3, 6, 6) * (step + 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    model, optimizer = made()
    before = copy.deepcopy(model.state_dict())
    assert {(group["scale"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.1, 0.05), (0.1, 0.0), (1.0, 0.05), (1.0, 0.0)
    }  # fmt: skip
    learn(model, optimizer, 2)
    other, following = made()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    following.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (other, following)):
        learn(one, its, 3)
    after = model.state_dict()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in after.items())
    assert torch.equal(after["tasks.depth.output.weight"], before["tasks.depth.output.weight"])
    assert not torch.equal(after["backbone.0.weight"], before["backbone.0.weight"])
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize(("name", "hint"), [("adamv", "adam, "), ("adahessian", ""), ("bnblion", "lion")])
def test_an_unknown_optimizer_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ConfigError, match=rf"train.optimizer: no optimizer '{name}'.*{hint}"):
        train_config(optimizer=name)


def test_bfloat16_is_taken_where_asked_or_where_the_device_has_it():
    model, cpu = build_network(), torch.device("cpu")
    images = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    for precision, expected in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.bfloat16 if has_bfloat16(cpu) else torch.float32),
    ):
        with autocast(precision, cpu):
            assert model.backbone(images.float()).dtype == expected


def test_training_in_bfloat16_keeps_weights_in_float32(tmp_path):
    fit(tmp_path, steps=30, precision="bfloat16")
    assert checkpoint.load(tmp_path).weights["backbone.0.weight"].dtype == torch.float32
    lines = events(tmp_path, "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
