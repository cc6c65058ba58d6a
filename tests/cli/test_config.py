"""Reading recipes: what is refused, and how it is said."""

from __future__ import annotations

import copy
import random
import sys
import time
from datetime import date, datetime
from pathlib import Path

import pytest
import torch
import yaml

from perception import config
from perception import recipe as recipes
from perception.engine import optim
from perception.types import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DEMO = Path(__file__).parents[2] / "perception" / "demo.yaml"


@pytest.mark.parametrize("path", [*CONFIGS, DEMO], ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_survives_being_saved(path):
    recipe = recipes.load(path)
    assert recipes.parse(config.dump_yaml(recipe)) == recipe
    assert config.dump_yaml(recipes.parse(config.dump_yaml(recipe))) == config.dump_yaml(recipe), (
        "a resume compares the text"
    )


def test_overrides_reach_into_lists_and_new_keys():
    recipe = recipes.load(DEMO, ["train.lr=3e-4", "data.train.0.weight=2", "balance.weights.depth=0.5", "data.root=/x"])
    assert recipe.train.lr == 3e-4
    assert recipe.data.train[0].weight == 2
    assert recipe.balance.weights == recipes.load(DEMO).balance.weights | {"depth": 0.5}
    assert recipe.data.root == "/x"


ODD = (
    *(None, True, -1, 2**70, 10**400, 1e308, float("nan"), float("inf"), "", "\u00b2", "\u0663", "x" * 5000, "../../x"),
    *(
        "/abs",
        "a/b",
        "\x1b[31m",
        "\u202e",
        [],
        {},
        [[]],
        {"a": {}},
        [{"a": [1]}],
        {1: 2},
        {None: 1},
        {"name": [1]},
        ["a"],
    ),
    *(b"x", {1, 2}, date(2020, 1, 1), datetime(2020, 1, 1)),
)
TEXTS = (
    *("*a", "&a [*a]", "!!python/object:os.system x", "!!set {a}", "!!binary aGk=", "2001-99-99", "[", "{a: b: c}"),
    *("? [a]\n: 1", "<<: {a: 1}", "0x", "1_000", "!!omap [a: 1]", "!!int x", "!!timestamp x", "[" * 3000, "9" * 5000),
)


def places(value, path=()):
    """The paths of everything in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


def mutated(chance: random.Random) -> tuple[dict, list[str]]:
    """A recipe of ours with some values of other kinds, or with an override that is odd."""
    recipe = config.load_yaml(chance.choice([*CONFIGS, DEMO]))
    overrides = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        *parents, last = chance.choice([path for path in places(recipe) if path])
        node = recipe
        for key in parents:
            node = node[key]
        if chance.random() < 0.5:
            wrapped = chance.choice((chance.choice(ODD), [node[last]], {chance.choice(("a", "name", 3)): node[last]}))
            node[last] = copy.deepcopy(wrapped)
        else:
            path = [*map(str, (*parents, last)), *chance.choice(((), ("x",), ("0", "y"), ("\u00b2",)))]
            if chance.random() < 0.3:
                path[chance.randrange(len(path))] = chance.choice(("\u00b2", "\u0663", "-1", "9" * 5000, "", "0"))
            overrides.append(f"{'.'.join(path)}={chance.choice((*TEXTS, *map(str, ODD)))}")
    return recipe, overrides


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_recipe_of_whatever_kinds_is_valid_or_told(tmp_path, count):
    """In bounded time and memory, with a sentence that fits on a screen; a valid one survives being saved."""
    chance = random.Random(count)
    valid = longest = 0
    for _ in range(count):
        mapping, overrides = mutated(chance)
        tasks = chance.choice((None, None, ["detection"], ["x"], []))
        began = time.process_time()
        try:
            text = yaml.safe_dump(mapping, allow_unicode=True)
        except UnicodeEncodeError:
            continue
        path = tmp_path / "recipe.yaml"
        path.write_text(text, "utf-8")
        try:
            recipe = recipes.load(path, overrides, tasks)
        except ConfigError as error:
            longest = max(longest, len(str(error)))
        else:
            valid += 1
            assert recipes.parse(config.dump_yaml(recipe)) == recipe or ".nan" in config.dump_yaml(recipe)
        assert time.process_time() - began < 10
    assert valid > count / 100
    assert longest < 20_000


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "a/b", "..", "", ".hidden", "a\x1b[31m", "con", "x" * 300])
def test_a_name_that_would_lead_out_of_the_folder_of_runs_is_refused(name):
    mapping = {**config.load_yaml(DEMO), "name": name}
    with pytest.raises(ConfigError, match=r"name: .* cannot be the name of a file"):
        recipes.parse(yaml.safe_dump(mapping))


def test_a_subset_of_the_tasks():
    recipe = recipes.load(DEMO, tasks=["depth", "detection"])
    assert set(recipe.tasks) == {"detection", "depth"}
    with pytest.raises(ConfigError, match="no task 'dept'"):
        recipes.load(DEMO, tasks=["dept"])
    for odd in ("groups=[[[depth]]]", "groups=[[{a: 1}]]", "freeze=[{part: [depth]}]", "join=[depth]"):
        with pytest.raises(ConfigError, match=r"schedule\."):
            recipes.load(DEMO, [f"schedule.{odd}"], tasks=["depth"])
    with pytest.raises(ConfigError, match=r"model\.sharing\.groups"):
        recipes.load(DEMO, ["model.sharing={name: groups, groups: [[[depth]]]}"], tasks=["depth"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: Input should be greater than or equal to 0, found -1"),
        ("seed=99999999999999999999", "seed: Input should be less than 9223372036854775808"),
        ("train.steps=10000000000", r"train\.steps: Input should be less than or equal to 1000000000"),
        ("train.batch_size=100000000000", r"train\.batch_size: Input should be less than or equal to 65536"),
        ("train.threads=100000", r"train\.threads: Input should be less than or equal to 1024"),
        ("data.size=[32,1000000000]", r"data\.size is \[32, 1000000000\]\. Expected at most 100,000,000 pixels"),
        ("train.stepz=3", r"train\.stepz: unknown key\. Did you mean 'steps'\?"),
        ("train.steps=many", r"train\.steps: .*found 'many'"),
        ("tasks.detection.clases=[a]", r"tasks\.detection\.clases: unknown key\. Did you mean 'classes'\?"),
        ("tasks.detektion={}", r"tasks\.detektion: unknown task 'detektion'\. Known: detection"),
        ("data.train.0.labels.0.imagess=x", r"imagess: unknown key\. Did you mean 'images'\?"),
        ("balance.weigths={}", r"weigths: unknown key\. Did you mean 'weights'\?"),
        ("data.train.0.labels.0.format=vox", r"'vox'"),
        ("data.train.7.weight=1", r"'7' is not a valid index into a list of 1"),
        ("data.size=[250,512]", r"multiples of 32"),
        ("data.train.\u00b2.weight=2", r"'\u00b2' is not a valid index"),
        ("data.train.0.labels.0=[a]", r"data\.train\.0\.labels\.0: expected a mapping"),
        ("data.size.0.x=1", r"data\.size\.0: .*found \{'x': 1\}"),
        ("data.size.0.x.y=1", r"data\.size\.0: .*found \{'x': \{'y': 1\}\}"),
        ("train.steps", r"not of the form key=value"),
        ("model.neck=fpn", r"model\.neck: expected a mapping, such as \{name: fpn\}, found 'fpn'"),
        ("model.neck={name: fpnn}", r"model\.neck\.name: found 'fpnn'\. Did you mean 'fpn'\?"),
        ("model.neck={name: bifpn, num_layers: 0}", r"model\.neck\.num_layers: .*found 0"),
        ("model.neck={name: pan, channels: 0}", r"model\.neck\.channels: .*found 0"),
        ("model.neck={name: pan, chanels: 8}", r"model\.neck\.chanels: unknown key. Did you mean 'channels'\?"),
        ("model.sharing={count: 3}", r"model\.sharing: expected a name: one of hard, soft, .*found \{'count': 3\}"),
        ("model.fusion={name: attention, strides: [7]}", r"model\.fusion\.strides is \[7\]\. Expected some of 4, 8,"),
        ("model.backbone=resnet18", r"model\.backbone: expected a mapping of name, weights, drop_path, found"),
        ("model.backbone.drop_path=1", r"model\.backbone\.drop_path: .*less than 1"),
        ("tasks.detection.classes=car", r"tasks\.detection\.classes: expected a list, such as \[a, b\], found 'car'"),
        ("data.train.0.labels.1.ignore=all", r"labels\.1\.ignore: expected a list, such as \[a, b\], found 'all'"),
        ("data.train.0.labels.1.ignore=all", r"labels\.1\.ignore: Input should be 'rest', found 'all'"),
        ("data.train.0.labels.1.ignore=[[a]]", r"labels\.1\.ignore\.0: "),
        ("balance.weights=3", r"balance\.weights: expected a mapping \(key: value\), found 3"),
        ("model.backbone.name={a: [", r"not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_with_its_path(override, message):
    with pytest.raises(ConfigError, match=message):
        recipes.load(DEMO, [override])


@pytest.mark.fault("S2")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: 1\na: 2\n", "given twice"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("- 1\n", "Expected a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply|not valid YAML"),
    ],
)
def test_yaml_that_could_harm_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.load_yaml(path)
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.fault("S2")
def test_a_huge_file_and_one_that_is_no_text_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"a: 1\n" * 500_000)
    with pytest.raises(ConfigError, match="at most"):
        config.load_yaml(path)
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load_yaml(path)
    with pytest.raises(ConfigError, match="No recipe at"):
        config.load_yaml(tmp_path / "absent.yaml")


CHOICES = (
    "tasks={{os: {{type: {}}}}}",
    "balance={{name: {}}}",
    "schedule.mode={}",
    "model.neck.name={}",
    "model.norm={{name: {}}}",
    "model.fusion.name={}",
    "model.sharing={{name: {}}}",
    "model.backbone.name={}",
    "train.optimizer={}",
    "train.precision={}",
    "data.train.0.labels.0={{format: {}, images: i, annotations: a}}",
    "tasks.detection.box_loss={}",
)
"""Every setting that chooses code by its name."""


@pytest.mark.fault("S4")
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["os.system", "hf-hub:someone/network", "local-dir:/tmp", "../x", "canary.Bird"])
def test_a_class_path_names_nothing(tmp_path, monkeypatch, choice, name):
    """Only names of the literals, timm's models and its optimizers: nothing is imported, fetched or read for others."""
    (tmp_path / "canary.py").write_text("class Bird: ...\n")
    monkeypatch.syspath_prepend(tmp_path)

    def build():
        recipe = recipes.load(DEMO, [choice.format(f"'{name}'")])
        recipes.build_model(recipe, pretrained=False)
        optim.build_optimizer(
            recipe.train.optimizer, torch.nn.Linear(1, 1), (), lr=1, weight_decay=0, backbone_lr_scale=1
        )

    with pytest.raises(ConfigError) as caught:
        build()
    assert name in str(caught.value)
    assert "canary" not in sys.modules


def test_other_data_for_an_evaluation(tmp_path):
    recipe = recipes.load(DEMO, ["data.root=/mine"])
    path = tmp_path / "other.yaml"
    source = "{name: s, labels: [{format: segmentation_masks, images: i, masks: m, class_file: c.txt}]}"
    for text in (f"data: {{validation: [{source}]}}", f"validation: [{source}]"):
        path.write_text(text)
        other = recipes.replace_validation_data(
            recipe, path, ["data.root=/theirs"] if "data:" in text else ["root=/theirs"]
        )
        assert other.data.root == "/theirs"
        assert other.data.size == recipe.data.size
        assert [one.name for one in other.data.validation] == ["s"]
        assert other.tasks == recipe.tasks
    path.write_text("data: {train: []}")
    with pytest.raises(ConfigError, match="no validation source"):
        recipes.replace_validation_data(recipe, path)


@pytest.mark.parametrize(
    "text", ["? [a, b]\n: 1", "when: 2001-99-99", "x: !!int abc", "x: " + "9" * 5000, "? {a: 1}\n: 2", "x: !!float x"]
)
def test_scalars_and_keys_that_are_none_are_told(text):
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.parse_yaml(text, "recipe.yaml")


def test_an_override_that_is_no_date_is_told():
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.apply_overrides({}, ["a=2001-99-99"])
