"""Schedules: which tasks a step trains, what rests, and that a resumed run keeps to them bit for bit."""

from __future__ import annotations

import copy
from collections import Counter

import engine_stub
import pytest
import torch
from sharing_networks import CONFIGS, batch, network
from test_engine import Died, dying, fit, flat, same

from perception import checkpoint, config
from perception.engine.freezing import Following
from perception.mtl.schedule import Schedule, ScheduleConfig
from perception.nn.sharing import SHARINGS
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
    late = schedule(join={"a": 2, "b": 4, "c": 2})
    assert taken(late, 5) == [("a", "c")] * 4 + [TASKS]
    assert not schedule(("a",), turns="alternating", join={"a": 7}).partial


def test_a_task_that_would_join_after_the_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"depth begins at step 6, but train.steps is 6"):
        watched(tmp_path, join={"depth": 6})


def test_the_task_that_lags_comes_more_often_and_none_starves():
    one, seen = schedule(turns="progress"), Counter()
    for step in range(400):
        (task,) = one.tasks(step, TASKS)
        seen[task] += step >= 100
        one.observe({task: 1.0 if task == "a" or task not in one.first else 0.25})
    # its loss is left whole, the others' to a quarter: 4 : 1 : 1
    assert [seen[task] for task in TASKS] == pytest.approx([200, 50, 50], abs=5)


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
        ({"every": 0}, "every"),
        ({"groups": [["a", "b"]]}, "every task of the recipe in one group.*a, b, c"),
        ({"groups": [["a", "b"], ["b", "c"]]}, "every task of the recipe in one group"),
        ({"groups": [["a", "b"], [], ["c"]]}, "none empty"),
        ({"groups": [["a"], ["b"], ["d"]]}, "schedule.groups: this recipe has no 'd'. Expected one of: a, b, c"),
        ({"join": {"d": 3}}, "schedule.join: this recipe has no 'd'"),
        ({"join": {"a": -3}}, "join.a"),
        ({"freeze": [{"part": "trunk"}]}, "schedule.freeze.*a, b, c, backbone, neck"),
        ({"freeze": [{"part": "backbon"}]}, "Did you mean 'backbone'"),
        ({"freeze": [{"part": "a", "start": -1}]}, "start"),
        ({"turn": "joint"}, "turn: unknown key. Did you mean 'turns'"),
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

    def loss_parts(self, batch, tasks=None, divided=False):
        self.states.append(copy.deepcopy(self.state_dict()))
        found = super().loss_parts(batch, tasks, divided)
        self.ran.append(tuple(found.parts))
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
        assert changed(model, key) == [False] * 3 + [True] * 3, key
    assert all(changed(model, "tasks.depth.output.weight"))


def test_a_frozen_head_rests_while_its_loss_still_teaches_the_rest(tmp_path):
    model = watched(tmp_path, freeze=[{"part": "depth", "start": 2, "stop": 4}])
    assert changed(model, "tasks.depth.output.weight") == [True, True, False, False, True, True]
    assert all(changed(model, "backbone.0.weight"))


def test_a_part_that_the_network_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="this network's neck has no weights"):
        watched(tmp_path, freeze=[{"part": "neck"}])
    assert not list(tmp_path.iterdir())


def test_what_did_not_learn_before_does_not_after(tmp_path):
    """As in a network that grows: the schedule neither wakes weights nor statistics."""
    torch.manual_seed(0)
    model = Watched()
    model.backbone[3].weight.requires_grad_(False)
    model.backbone[1].train = lambda mode: model.backbone[1]
    model.backbone[1].training = False
    made = schedule(engine_stub.TASKS, freeze=[{"part": "backbone", "stop": 2}])
    fit(tmp_path, model, steps=5, evaluate_every=0, schedule=made)
    assert not any(changed(model, "backbone.3.weight") + changed(model, "backbone.1.running_mean"))
    assert changed(model, "backbone.0.weight")[2:] == [True, True]


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_architecture_has_the_parts_that_can_rest_and_runs_only_what_is_in_turn(sharing):
    model, labelled = network(sharing).train(), batch()
    rest = [{"part": part} for part in ("backbone", "neck", *CONFIGS)]
    follow = Following(schedule(tuple(CONFIGS), turns="alternating", freeze=rest), model)
    for step, task in enumerate(CONFIGS):
        losses_of, tasks = follow(step, labelled)
        assert tuple(losses_of(labelled, tasks).parts) == tasks == (task,)
    learning = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning <= {"sharing"}  # what architectures have between trunk and heads
    assert not [name for name, module in model.named_modules() if module.training and name.startswith("tasks.")]


SCHEDULES = {
    "alternating": {"turns": "alternating"},
    "progress": {"turns": "progress", "every": 2},
    "join": {"join": {"depth": 5}},
    "freeze": {"freeze": [{"part": "backbone", "start": 1, "stop": 6}, {"part": "depth", "start": 4}]},
}


@pytest.mark.parametrize(
    ("name", "balance"), [*zip(SCHEDULES, ("upgrad", "famo", "gradnorm", "upgrad"), strict=True), ("freeze", "famo")]
)
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
