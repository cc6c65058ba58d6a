"""Callbacks of a user: when they are called, what they may return, and that a resume calls them again."""

from __future__ import annotations

import pytest
import tiny_network
from training_runs import Died, dying, events, fit

from perception import checkpoint
from perception.engine.callbacks import Callback


class Recorder(Callback):
    """Records the calls as (name, step), and counts the images of each step over the ranks."""

    def __init__(self) -> None:
        self.calls, self.images, self.scores = [], [], []

    def on_start(self, run):
        self.calls.append(("on_start", run.state.step))

    def before_step(self, run, batch, tasks):
        assert batch.images.device.type == "cpu"
        self.calls.append(("before_step", run.state.step))
        return {"my images": len(batch)}

    def after_step(self, run, result):
        self.calls.append(("after_step", run.state.step))
        self.images.append(result.flags["my images"])

    def before_evaluation(self, run):
        self.calls.append(("before_evaluation", run.state.step))

    def after_evaluation(self, run, evaluation):
        self.calls.append(("after_evaluation", run.state.step))
        self.scores.append(evaluation.score)


def test_a_callback_sees_every_step_and_evaluation_in_order(tmp_path):
    mine = Recorder()
    fit(tmp_path, steps=4, evaluate_every=2, evaluate=tiny_network.evaluate_network, callbacks=[mine])
    steps = {n: [("before_step", n - 1), ("after_step", n)] for n in range(1, 5)}
    evaluations = {n: [("before_evaluation", n), ("after_evaluation", n)] for n in (2, 4)}
    expected = [call for n in range(1, 5) for call in (*steps[n], *evaluations.get(n, ()))]
    assert mine.calls == [("on_start", 0), *expected]
    assert mine.images == [4] * 4
    assert mine.scores == [event["score"] for event in events(tmp_path, "evaluation")]


def test_a_resume_starts_a_callback_at_the_step_of_the_checkpoint(tmp_path):
    with pytest.raises(Died):
        fit(tmp_path, stream=dying(6), steps=8, callbacks=[Recorder()])
    mine = Recorder()
    fit(tmp_path, steps=8, resume=True, callbacks=[mine])
    assert mine.calls[:2] == [("on_start", 4), ("before_step", 4)]


def test_what_a_callback_changes_after_a_step_is_evaluated_and_saved(tmp_path):
    class Zero(Callback):
        def after_step(self, run, result):
            if run.state.step == run.config.steps:
                for parameter in run.state.ema.module.parameters():
                    parameter.data.zero_()

    def evaluate(model):
        seen.append(sum(float(parameter.detach().abs().sum()) for parameter in model.parameters()))
        return tiny_network.evaluate_network(model)

    seen: list[float] = []
    fit(tmp_path, steps=4, evaluate_every=0, evaluate=evaluate, callbacks=[Zero()])
    assert seen == [0.0]
    weights = checkpoint.load(tmp_path).weights
    assert not any(weights[name].any() for name, _ in tiny_network.build_network().named_parameters())


def test_a_plain_callback_changes_nothing(tmp_path):
    fit(tmp_path / "plain", steps=6)
    fit(tmp_path / "watched", steps=6, callbacks=[Callback(), Recorder()])
    one, other = (checkpoint.load(tmp_path / name).weights for name in ("plain", "watched"))
    assert all(one[name].equal(other[name]) for name in one)
