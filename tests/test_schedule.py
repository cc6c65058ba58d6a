"""Schedules: which tasks a step trains, what rests, and that a resumed run keeps to them bit for bit."""

from __future__ import annotations

import copy
from collections import Counter

import engine_stub
import pytest
import torch
from test_engine import Died, dying, fit, flat, same

from perception import checkpoint, config
from perception.mtl.schedule import Schedule, ScheduleConfig
from perception.types import ConfigError

TASKS = ("a", "b", "c")


def schedule(tasks=TASKS, **settings) -> Schedule:
    return Schedule(config.build(ScheduleConfig, settings), tasks)


def taken(one: Schedule, steps: int, labelled=TASKS) -> list[tuple[str, ...]]:
    return [one.tasks(step, labelled) for step in range(steps)]


def test_joint_trains_all_tasks_in_every_step():
    assert taken(schedule(), 3) == [TASKS] * 3
    assert not schedule().partial


def test_tasks_take_turns_and_groups_together():
    assert taken(schedule(turns="alternating"), 4) == [("a",), ("b",), ("c",), ("a",)]
    assert taken(schedule(turns="alternating", every=2), 4) == [("a",), ("a",), ("b",), ("b",)]
    assert taken(schedule(turns="alternating", groups=[["c", "a"], ["b"]]), 3) == [("a", "c"), ("b",), ("a", "c")]


def test_a_turn_whose_task_is_not_labelled_is_passed_on():
    assert taken(schedule(turns="alternating"), 3, {"c"}) == [("c",)] * 3
    assert taken(schedule(turns="progress"), 3, {"c"}) == [("c",)] * 3
    assert taken(schedule(turns="alternating"), 2, set()) == [("a",), ("b",)]


def test_a_task_joins_later():
    one = schedule(join={"b": 2})
    assert taken(one, 4) == [("a", "c"), ("a", "c"), TASKS, TASKS]
    assert one.partial
    assert ("b",) not in taken(schedule(turns="alternating", join={"b": 9}), 9)


def test_the_task_that_lags_comes_more_often_and_none_starves():
    one, seen = schedule(turns="progress"), Counter()
    for step in range(300):
        (task,) = one.tasks(step, TASKS)
        seen[task] += 1
        one.observe(
            {task: {"a": 1.0, "b": 1.0 if seen["b"] == 1 else 0.25, "c": 1.0 if seen["c"] == 1 else 0.25}[task]}
        )
    assert seen["a"] == pytest.approx(200, abs=15)  # its loss is left whole, the others' to a quarter: 4 : 1 : 1
    assert min(seen["b"], seen["c"]) > 35


def test_progress_goes_on_from_its_state():
    one = schedule(turns="progress", every=2)
    for step in range(7):
        (task,) = one.tasks(step, TASKS)
        one.observe({task: 1.0 / (step + 1)})
    other = schedule(turns="progress", every=2)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in range(7, 30):
        assert one.tasks(step, TASKS) == other.tasks(step, TASKS)
        for each in (one, other):
            each.observe({"a": 0.3, "c": 0.1 * step})


def test_freezing_has_a_first_and_a_last_step():
    one = schedule(freeze=[{"part": "backbone", "stop": 2}, {"part": "a", "start": 1}])
    assert [one.frozen(step) for step in range(4)] == [{"backbone"}, {"backbone", "a"}, {"a"}, {"a"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turns": "random"}, "turns"),
        ({"groups": [["a", "b"]]}, "every task of the recipe once"),
        ({"groups": [["a", "b"], ["b", "c"]]}, "every task of the recipe once"),
        ({"groups": [["a"], ["b"], ["d"]]}, "groups: d: no such task"),
        ({"join": {"d": 3}}, "join: d: no such task"),
        ({"freeze": [{"part": "trunk"}]}, "freeze: trunk.*backbone, neck"),
        ({"freeze": [{"part": "a", "start": -1}]}, "start"),
    ],
)
def test_a_wrong_schedule_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        schedule(**settings)


# --- in training -----------------------------------------------------------------------------------------------------


class Watched(engine_stub.Network):
    """Notes which heads ran, and the weights before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.ran, self.states = [], []

    def loss_parts(self, batch, tasks=None):
        found = super().loss_parts(batch, tasks)
        self.ran.append(tuple(found.parts))
        self.states.append(copy.deepcopy(self.state_dict()))
        return found


def watched(tmp_path, steps: int = 6, **settings) -> Watched:
    torch.manual_seed(0)
    model = Watched()
    made = schedule(engine_stub.TASKS, **settings)
    fit(tmp_path, model, steps=steps, evaluate_every=0, schedule=made)
    model.states.append(copy.deepcopy(model.state_dict()))
    return model


def changed(model: Watched, key: str) -> list[bool]:
    return [not torch.equal(one[key], other[key]) for one, other in zip(model.states, model.states[1:], strict=False)]


def test_heads_that_are_not_in_turn_neither_run_nor_move(tmp_path):
    model = watched(tmp_path, turns="alternating")
    assert model.ran == [("depth",), ("classification",)] * 3
    assert changed(model, "tasks.depth.output.weight") == [True, False] * 3
    assert changed(model, "tasks.classification.output.weight") == [False, True] * 3
    assert all(changed(model, "backbone.0.weight"))


def test_a_frozen_backbone_keeps_weights_and_statistics_and_then_learns(tmp_path):
    model = watched(tmp_path, freeze=[{"part": "backbone", "stop": 3}])
    for key in ("backbone.0.weight", "backbone.1.running_mean", "backbone.1.weight"):
        # statistics move in the pass, weights after it
        assert changed(model, key)[:2] == [False, False], key
        assert all(changed(model, key)[3:]), key
    assert all(changed(model, "tasks.depth.output.weight"))


def test_a_frozen_head_rests_while_its_loss_still_teaches_the_rest(tmp_path):
    model = watched(tmp_path, freeze=[{"part": "depth", "start": 2, "stop": 4}])
    assert changed(model, "tasks.depth.output.weight") == [True, True, False, False, True, True]
    assert all(changed(model, "backbone.0.weight"))


SCHEDULES = {
    "alternating": {"turns": "alternating"},
    "progress": {"turns": "progress", "every": 2},
    "join": {"join": {"depth": 5}},
    "freeze": {"freeze": [{"part": "backbone", "start": 1, "stop": 6}, {"part": "depth", "start": 4}]},
}


@pytest.mark.parametrize("balance", ["static", "upgrad", "famo"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_schedule_equals_an_uninterrupted_one_bit_for_bit(tmp_path, name, balance):
    def options() -> dict:
        made = schedule(engine_stub.TASKS, **SCHEDULES[name])
        return {"schedule": made, "balancer": engine_stub.balancer(balance), "steps": 9, "evaluate_every": 0}

    whole, parts = engine_stub.network(), engine_stub.network()
    fit(tmp_path / "whole", whole, **options())
    with pytest.raises(Died):
        fit(tmp_path / "parts", engine_stub.network(), dying(6), **options())
    torch.manual_seed(99)
    fit(tmp_path / "parts", parts, resume=True, **options())
    states = []
    for folder in ("whole", "parts"):
        state = checkpoint.load_train_state(tmp_path / folder / "checkpoints/last")
        states.append(flat({key: value for key, value in state.items() if key not in ("seconds", "window")}))
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not same(states[0][key], states[1][key])] == []
