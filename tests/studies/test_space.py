"""What `perception tune` searches: how it is written, which values it holds, what a recipe becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception import config
from perception import recipe as recipes
from perception.mtl.balancers import BALANCERS, StaticConfig
from perception.studies.search_space import (
    Dimension,
    apply_values,
    build_default_space,
    find_pareto_front,
    find_recipe_point,
    load_space,
    suggest_values,
)
from perception.types import ConfigError

RECIPE = "data: {}\ntasks: {depth: {}, classification: {classes: [a, b]}}\ntrain: {lr: 0.001}\n" + (
    "model: {backbone: {name: test_efficientnet, weights: none}}\n"
)
TUNE = """
tune:
  train.lr: {log: [1.0e-4, 1.0e-2]}
  balance.name: {choice: [static, uncertainty]}
  balance.weights.depth: {uniform: [0.5, 2], when: {balance.name: static}}
  train.batch_size: {integer: [4, 16]}
"""


@pytest.fixture(scope="module")
def recipe():
    return recipes.parse(RECIPE)


def test_a_space_is_read_from_the_recipe_or_from_a_file_of_its_own(tmp_path):
    both, bare, plain = tmp_path / "both.yaml", tmp_path / "bare.yaml", tmp_path / "plain.yaml"
    both.write_text(RECIPE + TUNE)
    bare.write_text("train.lr: {log: [1, 2]}")
    plain.write_text(RECIPE)
    space = load_space(None, both)
    assert space is not None
    assert list(space) == ["train.lr", "balance.name", "balance.weights.depth", "train.batch_size"]
    assert space["train.batch_size"].values == (4, 16)
    assert list(load_space(bare, both) or {}) == ["train.lr"]
    assert load_space(None, plain) is None
    assert recipes.load(both) == recipes.load(plain)  # training passes the section over


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{choice: [1], log: [1, 2]}", "exactly one"),
        ("{when: {}}", "exactly one"),
        ("{choice: []}", "at least one value"),
        ("{log: [0, 1]}", "low > 0"),
        ("{uniform: [2, 1]}", "low < high"),
        ("{integer: [1.5, 2]}", "integer"),
        ("{logarithmic: [1, 2]}", "unknown key"),
        ("{choice: [1], when: {balance.name: static}}", "listed before it"),
    ],
)
def test_a_wrong_space_says_what_is_wrong(text, message, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(f"train.lr: {text}")
    with pytest.raises(ConfigError, match=message):
        load_space(file, file)


def test_values_are_asked_for_only_where_their_conditions_hold(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(TUNE)
    space = load_space(file, file)
    assert space is not None
    for name in ("static", "uncertainty"):
        asked = suggest_values(space, lambda key, dimension: name if key == "balance.name" else dimension.values[0])  # noqa: B023 - called at once
        assert ("balance.weights.depth" in asked) == (name == "static")


def test_a_section_of_another_name_begins_anew(recipe):
    weighted = recipes.parse(RECIPE, ["balance.weights={depth: 2}"])
    assert apply_values(weighted, {"balance.name": "uncertainty"}).balance.name == "uncertainty"
    both = {"balance.name": "static", "balance.weights.classification": 3.0}
    assert apply_values(weighted, both).balance == StaticConfig(weights={"depth": 2.0, "classification": 3.0})
    assert apply_values(recipe, {"train.lr": 1e-5}).train.lr == 1e-5
    assert apply_values(recipe, {"data.augment": {"flip": 0.0}}).data.augment.flip == 0
    with pytest.raises(ConfigError, match=r"train\.learning"):
        apply_values(recipe, {"train.learning": 1})


def test_the_default_space_holds_the_recipe_itself(recipe):
    space = build_default_space(recipe)
    values = find_recipe_point(space, recipe)
    assert values is not None
    assert apply_values(recipe, values) == recipes.parse(RECIPE, ["balance.weights={classification: 1.0}"])
    assert set(space["balance.name"].values) <= set(BALANCERS)
    assert "balance.weights.depth" not in space  # only proportions count
    assert {"model.sharing.name", "model.fusion.name"} < set(space)
    assert "groups" not in space["model.sharing.name"].values  # which ones is not known
    assert "soft" not in space["model.sharing.name"].values  # nothing shared, where some balancers cannot run
    for name in space["balance.name"].values:
        assert apply_values(recipe, {"balance.name": name}).balance.name == name


def test_task_groups_are_tried_where_the_recipe_says_which(recipe):
    key, line = "model.sharing.name", "model.sharing={name: groups, groups: [[depth], [classification]]}"
    grouped = recipes.parse(RECIPE, [line])
    whole = build_default_space(grouped)
    assert whole[key].values[:2] == ("groups", "hard")
    assert (find_recipe_point(whole, grouped) or {})[key] == "groups"
    assert apply_values(grouped, {key: "groups"}) == grouped
    assert apply_values(grouped, {key: "hard"}).model == recipe.model
    space = {"model.sharing": Dimension(choice=({"name": "hard"}, {"name": "groups", "groups": [["depth"]]}))}
    assert find_recipe_point(space, recipe) == {"model.sharing": {"name": "hard"}}
    assert apply_values(recipe, {"model.sharing": space["model.sharing"].values[1]}).model.sharing.groups == (
        ("depth",),
    )


def test_a_recipe_outside_of_the_space_is_none_of_its_points(recipe):
    assert find_recipe_point({"train.lr": Dimension(log=(0.1, 1.0))}, recipe) is None
    assert find_recipe_point({"train.lr": Dimension(log=(1e-4, 1.0))}, recipe) == {"train.lr": 1e-3}
    assert find_recipe_point({"model.neck": Dimension(choice=({"name": "fpn"},))}, recipe) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_no_other_beats(points):
    chosen = [points[i] for i in find_pareto_front(points)]

    def beaten(point):
        return any(o != point and o[0] >= point[0] and o[1] <= point[1] for o in points)

    assert set(chosen) == {point for point in points if not beaten(point)}
    assert chosen == sorted(set(chosen), key=lambda point: point[1])


def test_a_space_survives_its_own_text(recipe):
    from perception.studies.search_space import dump_space

    space = build_default_space(recipe)
    plain = config.parse_yaml(dump_space(space))
    assert config.validate_config(dict[str, Dimension], plain) == space
