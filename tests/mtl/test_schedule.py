"""Schedules: which tasks a step trains, what rests, and that a resumed run keeps to them bit for bit."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import tiny_network
import torch
from sharing_networks import CONFIGS, build_network, make_batch
from training_runs import Died, dying, fit, flat, same

from perception import checkpoint, config
from perception.engine.freezing import FreezeSchedule
from perception.mtl.schedule import TaskSchedule, TaskScheduleConfig
from perception.nn.sharing import SHARINGS
from perception.types import ConfigError

TASKS = ("a", "b", "c")


def schedule(tasks=TASKS, **settings) -> TaskSchedule:
    return TaskSchedule(config.validate_config(TaskScheduleConfig, settings), tasks)


def taken(one: TaskSchedule, steps: int, labelled=TASKS) -> list[tuple[str, ...]]:
    return [one.choose_tasks(step, labelled) for step in range(steps)]


def test_joint_trains_all_tasks_in_every_step():
    assert taken(schedule(), 3) == [TASKS] * 3
    assert not schedule().is_partial


def test_tasks_take_turns_and_groups_together():
    assert taken(schedule(mode="alternating"), 4) == [("a",), ("b",), ("c",), ("a",)]
    assert taken(schedule(mode="alternating", turn_steps=2), 4) == [("a",), ("a",), ("b",), ("b",)]
    assert taken(schedule(mode="alternating", groups=[["c", "a"], ["b"]]), 3) == [("a", "c"), ("b",), ("a", "c")]


def test_a_turn_whose_task_is_not_labeled_is_passed_on():
    assert taken(schedule(mode="alternating"), 3, {"c"}) == [("c",)] * 3
    assert taken(schedule(mode="progress"), 3, {"c"}) == [("c",)] * 3
    assert taken(schedule(mode="alternating"), 2, set()) == [("a",), ("b",)]


def test_a_task_joins_later():
    one = schedule(start_steps={"b": 2})
    assert taken(one, 4) == [("a", "c"), ("a", "c"), TASKS, TASKS]
    assert one.is_partial
    assert ("b",) not in taken(schedule(mode="alternating", start_steps={"b": 9}), 9)
    late = schedule(start_steps={"a": 2, "b": 4, "c": 2})
    assert taken(late, 5) == [("a", "c")] * 4 + [TASKS]
    assert not schedule(("a",), mode="alternating", start_steps={"a": 7}).is_partial


def test_a_task_that_would_join_after_the_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"depth begins at step 6, but train.steps is 6"):
        watched(tmp_path, start_steps={"depth": 6})


def test_the_task_that_lags_comes_more_often_and_none_starves():
    one, seen = schedule(mode="progress"), Counter()
    for step in range(400):
        (task,) = one.choose_tasks(step, TASKS)
        seen[task] += step >= 100
        one.observe({task: 1.0 if task == "a" or task not in one.initial_losses else 0.25})
    # its loss is left whole, the others' to a quarter: 4 : 1 : 1
    assert [seen[task] for task in TASKS] == pytest.approx([200, 50, 50], abs=5)


def test_progress_goes_on_from_its_state():
    one = schedule(mode="progress", turn_steps=2)
    for step in range(7):
        (task,) = one.choose_tasks(step, TASKS)
        one.observe({task: 1.0 / (step + 1)})
    other = schedule(mode="progress", turn_steps=2)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for step in range(7, 30):
        assert one.choose_tasks(step, TASKS) == other.choose_tasks(step, TASKS)
        for each in (one, other):
            each.observe({"a": 0.3, "c": 0.1 * step})


def test_freezing_has_a_first_and_a_last_step():
    one = schedule(freeze=[{"part": "backbone", "stop": 2}, {"part": "a", "start": 1}])
    assert [one.frozen_parts(step) for step in range(4)] == [{"backbone"}, {"backbone", "a"}, {"a"}, {"a"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "random"}, "mode"),
        ({"turn_steps": 0}, "turn_steps"),
        ({"groups": [["a", "b"]]}, "every task of the recipe in exactly one group.*a, b, c"),
        ({"groups": [["a", "b"], ["b", "c"]]}, "every task of the recipe in exactly one group"),
        ({"groups": [["a", "b"], [], ["c"]]}, "no empty group"),
        ({"groups": [["a"], ["b"], ["d"]]}, "schedule.groups: this recipe has no 'd'. Expected one of: a, b, c"),
        ({"start_steps": {"d": 3}}, "schedule.start_steps: this recipe has no 'd'"),
        ({"start_steps": {"a": -3}}, "start_steps.a"),
        ({"freeze": [{"part": "trunk"}]}, "schedule.freeze.*a, b, c, backbone, neck"),
        ({"freeze": [{"part": "backbon"}]}, "Did you mean 'backbone'"),
        ({"freeze": [{"part": "a", "start": -1}]}, "start"),
        ({"mod": "joint"}, "mod: unknown key. Did you mean 'mode'"),
    ],
)
def test_a_wrong_schedule_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        schedule(**settings)


# --- in training -----------------------------------------------------------------------------------------------------


class Watched(tiny_network.Network):
    """Notes which heads ran, and the weights before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.ran, self.states = [], []

    def compute_loss_terms(self, batch, tasks=None, cut_graph=False):
        self.states.append(copy.deepcopy(self.state_dict()))
        found = super().compute_loss_terms(batch, tasks, cut_graph)
        self.ran.append(tuple(found.terms))
        return found


def watched(tmp_path, steps: int = 6, **settings) -> Watched:
    torch.manual_seed(0)
    model = Watched()
    made = schedule(tiny_network.TASKS, **settings)
    fit(tmp_path, model, steps=steps, evaluate_every=0, schedule=made)
    model.states.append(copy.deepcopy(model.state_dict()))
    return model


def changed(model: Watched, key: str) -> list[bool]:
    return [not torch.equal(one[key], other[key]) for one, other in zip(model.states, model.states[1:], strict=False)]


def test_heads_that_are_not_in_turn_neither_run_nor_move(tmp_path):
    model = watched(tmp_path, mode="alternating")
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
    with pytest.raises(ConfigError, match="part 'neck' of this network has no weights"):
        watched(tmp_path, freeze=[{"part": "neck"}])
    assert not list(tmp_path.iterdir())


def test_what_did_not_learn_before_does_not_after(tmp_path):
    """As in a network that grows: the schedule neither wakes weights nor statistics."""
    torch.manual_seed(0)
    model = Watched()
    model.backbone[3].weight.requires_grad_(False)
    model.backbone[1].train = lambda mode: model.backbone[1]
    model.backbone[1].training = False
    made = schedule(tiny_network.TASKS, freeze=[{"part": "backbone", "stop": 2}])
    fit(tmp_path, model, steps=5, evaluate_every=0, schedule=made)
    assert not any(changed(model, "backbone.3.weight") + changed(model, "backbone.1.running_mean"))
    assert changed(model, "backbone.0.weight")[2:] == [True, True]


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_architecture_has_the_parts_that_can_rest_and_runs_only_what_is_in_turn(sharing):
    model, labelled = build_network(sharing).train(), make_batch()
    rest = [{"part": part} for part in ("backbone", "neck", *CONFIGS)]
    follow = FreezeSchedule(schedule(tuple(CONFIGS), mode="alternating", freeze=rest), model)
    for step, task in enumerate(CONFIGS):
        losses_of, tasks = follow(step, labelled)
        assert tuple(losses_of(labelled, tasks).terms) == tasks == (task,)
    learning = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning <= {"sharing"}  # what architectures have between trunk and heads
    assert not [name for name, module in model.named_modules() if module.training and name.startswith("tasks.")]


SCHEDULES = {
    "alternating": {"mode": "alternating"},
    "progress": {"mode": "progress", "turn_steps": 2},
    "join": {"start_steps": {"depth": 5}},
    "freeze": {"freeze": [{"part": "backbone", "start": 1, "stop": 6}, {"part": "depth", "start": 4}]},
}


@pytest.mark.parametrize(
    ("name", "balance"), [*zip(SCHEDULES, ("upgrad", "famo", "gradnorm", "upgrad"), strict=True), ("freeze", "famo")]
)
def test_a_resumed_schedule_equals_an_uninterrupted_one_bit_for_bit(tmp_path, name, balance):
    def options() -> dict:
        made = schedule(tiny_network.TASKS, **SCHEDULES[name])
        return {"schedule": made, "balancer": tiny_network.make_balancer(balance), "steps": 9, "evaluate_every": 0}

    whole, parts = tiny_network.build_network(), tiny_network.build_network()
    fit(tmp_path / "whole", whole, **options())
    with pytest.raises(Died):
        fit(tmp_path / "parts", tiny_network.build_network(), dying(6), **options())
    torch.manual_seed(99)
    fit(tmp_path / "parts", parts, resume=True, **options())
    states = []
    for folder in ("whole", "parts"):
        state = checkpoint.load_train_state(tmp_path / folder / "checkpoints/last")
        states.append(flat({key: value for key, value in state.items() if key not in ("seconds", "window")}))
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not same(states[0][key], states[1][key])] == []
