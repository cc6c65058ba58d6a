"""A source may know only some classes, or super-classes: its segmentation masks teach what they know, and its
negatives."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from data_trees import label_maps_tree, open_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_images import LOOKS, shapes

from perception import config, recipe, runs
from perception.data import check_label_coverage
from perception.data.collate import collate
from perception.data.mosaic import join_samples
from perception.data.rotate import roll_sample
from perception.data.transforms import prepare_for_evaluation
from perception.doctor import diagnose
from perception.engine.precision import move_to_device
from perception.ops.draw import draw_segmentation_mask
from perception.ops.image import compute_letterbox, warp_annotation
from perception.ops.losses import expected_class_pixels, merge_classes
from perception.ops.palette import class_palette, resolve_label_space
from perception.report.examples import ReportExample, render_gallery
from perception.tasks import segmentation as segmentation_task
from perception.tasks import sum_loss_terms
from perception.tasks.segmentation import Raw, SegmentationConfig, SegmentationTask
from perception.types import DataError, DenseMap, LabelSpace, Sample, TaskSpec

CLASSES = ("road", "car", "truck", "tree", "sky")
VEHICLES = LabelSpace(("ground", "vehicle", "far"), ((0,), (1, 2), (3, 4)))
CARS = LabelSpace(("car", ""), ((1,), (0, 2, 3, 4)))
IDENTITY = LabelSpace(CLASSES, tuple((k,) for k in range(5)))
SIZE = (24, 32)
EVERYTHING: dict[str, Any] = {
    "lovasz_weight": 0.3, "boundary_weight": 1.0, "boundary_width": 2, "class_weights": {"car": 3.0}, "loss_stride": 1,
}  # fmt: skip


def segmentation(classes: tuple[str, ...] = CLASSES, **options: Any) -> SegmentationTask:
    settings = SegmentationConfig(classes=classes, channels=8, fine_channels=8, **options)
    return SegmentationTask("s", settings, {4: 8, 8: 8, 16: 8, 32: 8})


def logits_of(seed: int, pictures: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(pictures, len(CLASSES), SIZE[0] // 4, SIZE[1] // 4, generator=random) * 3).requires_grad_()


def map_of(seed: int, ids: int, space: LabelSpace | None) -> DenseMap:
    """Random blocks of ids, a tenth of the pixels void."""
    random = np.random.default_rng(seed)
    values = random.integers(0, ids, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1)
    valid = torch.from_numpy(random.random(SIZE) < 0.9)
    return DenseMap(torch.where(valid, torch.from_numpy(values), 255), valid, label_space=space)


def parts_of(task: SegmentationTask, logits: torch.Tensor, maps: list[DenseMap | None]) -> dict[str, torch.Tensor]:
    parts = task.compute_loss_terms(Raw(logits), maps, [None] * len(maps))
    return {f"{name} {k}": value for name, part in parts.items() for k, value in part._asdict().items()}


@st.composite
def partitions(draw: Any) -> LabelSpace:
    """The classes shared out among one to five ids."""
    owner = np.array(draw(st.lists(st.integers(0, 4), min_size=5, max_size=5)))
    sets = tuple(tuple(np.flatnonzero(owner == k).tolist()) for k in np.unique(owner))
    return LabelSpace(tuple(f"set {k}" for k in range(len(sets))), sets)


@settings(max_examples=60, deadline=None)
@given(partitions(), st.integers(0, 2**31))
def test_the_probability_of_a_set_is_the_sum_over_its_classes(space, seed):
    logs = logits_of(seed).detach().double().log_softmax(1)
    found = merge_classes(logs, space.class_sets, torch.zeros(2, 6, 8, dtype=torch.long))
    expected = torch.stack([logs.exp()[:, list(each)].sum(1) for each in space.class_sets], 1)
    torch.testing.assert_close(found.exp(), expected)
    for k, each in enumerate(space.class_sets):
        assert len(each) > 1 or torch.equal(found[:, k], logs[:, each[0]]), "one class keeps its number exactly"


@settings(max_examples=30, deadline=None)
@given(partitions(), st.integers(0, 2**31))
def test_every_loss_is_that_of_a_network_of_the_merged_classes(space, seed):
    """Cross-entropy with balance and borders, Dice and Lovasz: as if the source's classes were the recipe's, and the
    logits theirs."""
    logits = torch.randn(2, 5, *SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    maps = [map_of(seed + i, len(space.class_sets), space) for i in range(2)]
    if len(space.class_sets) == 1:  # any class: it says nothing
        maps = [dataclasses.replace(one, valid=one.valid & False) for one in maps]
    options = {**EVERYTHING, "class_weights": {}}
    own = torch.stack([logits[:, list(each)].logsumexp(1) for each in space.class_sets], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_task, "upsample_to_pixels", lambda logits, stride, step: logits)
        among = parts_of(segmentation(**options), logits, maps)
        alone = parts_of(
            segmentation(space.names, **options), own, [dataclasses.replace(one, label_space=None) for one in maps]
        )
    for name, value in among.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{}, EVERYTHING, {**EVERYTHING, "logit_adjustment": True}])
def test_ids_that_are_the_classes_give_bit_for_bit_the_same_losses(options):
    """Whichever way the map says it: without a word, as sets of one class, or as such in another order."""
    order = (3, 0, 4, 2, 1)
    place = torch.tensor([order.index(k) for k in range(5)])
    plain = [map_of(i, 5, None) for i in range(2)]
    stated = [dataclasses.replace(one, label_space=IDENTITY) for one in plain]
    shuffled = LabelSpace(tuple(CLASSES[k] for k in order), tuple((k,) for k in order))
    moved = [
        DenseMap(
            torch.where(one.valid, place[torch.where(one.valid, one.values, 0)], 255), one.valid, label_space=shuffled
        )
        for one in plain
    ]
    tasks = [segmentation(**options) for _ in range(3)]
    found = [parts_of(task, logits_of(0), maps) for task, maps in zip(tasks, (plain, stated, moved), strict=True)]
    assert {name: value.item() for name, value in found[0].items()} == {n: v.item() for n, v in found[1].items()}
    for name, value in found[0].items():
        torch.testing.assert_close(found[2][name], value)
    if options.get("logit_adjustment"):
        assert tasks[0].class_priors.any()
        torch.testing.assert_close(tasks[1].class_priors, tasks[0].class_priors)
        torch.testing.assert_close(tasks[2].class_priors, tasks[0].class_priors)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([VEHICLES, CARS, IDENTITY]), st.integers(0, 2**31))
def test_the_gradient_of_the_marginal_loss_is_its_closed_form(space, seed):
    """d/dz_c of -log sum_S p is p_c, less p_c / sum_S p inside the set: what the softmax says, less what it would say
    if it knew the set."""
    task = segmentation(loss_stride=1, dice_weight=0.0, class_weighting=0.0)
    logits = torch.randn(1, 5, *SIZE, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    target = map_of(seed, len(space.class_sets), space)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_task, "upsample_to_pixels", lambda logits, stride, step: logits)
        part = task.compute_loss_terms(Raw(logits), [target], [None])["cross_entropy"]
    (found,) = torch.autograd.grad(part.total, logits)
    inside = torch.zeros(5, *SIZE)
    for k, each in enumerate(space.class_sets):
        inside[list(each)] += (target.values == k).float()
    said = logits.detach()[0].softmax(0)
    posterior = said * inside / (said * inside).sum(0).clamp(min=1e-30)
    torch.testing.assert_close(found[0], (said - posterior) * target.valid, rtol=1e-4, atol=1e-6)


def test_a_pixel_that_may_be_anything_costs_nothing_and_teaches_nothing():
    everything = LabelSpace(("car", "thing"), ((1,), (0, 1, 2, 3, 4)))
    target, logits = map_of(0, 2, everything), logits_of(0, 1)
    task = segmentation(**EVERYTHING, logit_adjustment=True)
    found = parts_of(task, logits, [target])
    cars = DenseMap(target.values, target.valid & (target.values == 0), label_space=everything)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in parts_of(task, logits, [cars]).items()}
    nothing = DenseMap(torch.ones(SIZE, dtype=torch.long), torch.ones(SIZE, dtype=torch.bool), label_space=everything)
    loss = sum_loss_terms(task.compute_loss_terms(Raw(logits), [nothing], [None]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


def test_sources_of_unlike_label_spaces_add_up_in_one_batch():
    maps = [map_of(0, 5, None), map_of(1, 3, VEHICLES), None, map_of(2, 2, CARS), map_of(3, 3, VEHICLES)]
    task, logits = segmentation(**EVERYTHING), logits_of(0, 5)
    whole = parts_of(task, logits, maps)
    assert tuple(task.compute_loss_terms(Raw(logits), maps, [None] * 5)) == task.loss_names
    single = [parts_of(task, logits[i : i + 1], [one]) for i, one in enumerate(maps) if one is not None]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(part[name] for part in single))


def test_what_another_label_allows_is_no_mistake_where_sets_overlap():
    """A rider is a living thing here and a vehicle there: whoever says rider at either is right in every loss."""
    overlapping = LabelSpace(("living", "vehicle"), ((1, 2), (2, 3)))
    target = map_of(0, 2, overlapping)
    sure = torch.full((1, 5, 6, 8), -30.0)
    sure[:, 2] = 30
    for name, value in segmentation(**EVERYTHING).compute_loss_terms(Raw(sure), [target], [None]).items():
        assert value.count > 0
        assert value.total.item() == pytest.approx(0, abs=1e-3), name
    sure = sure.clone()
    sure[:, 2], sure[:, 1] = -30, 30  # living everywhere: wrong at the vehicles
    wrong = segmentation(**EVERYTHING).compute_loss_terms(Raw(sure.requires_grad_()), [target], [None])
    assert all(part.total > 0.05 * part.count for part in wrong.values())
    (gradient,) = torch.autograd.grad(sum_loss_terms(wrong), sure)
    assert torch.isfinite(gradient).all()


def test_pixels_of_a_set_are_shared_out_as_the_network_sees_them():
    logs = logits_of(3).detach().log_softmax(1)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 6, 8)))
    pixels = torch.rand(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    found = expected_class_pixels(logs, VEHICLES.class_sets, labels, pixels)
    for k, each in enumerate(VEHICLES.class_sets):
        torch.testing.assert_close(found[:, list(each)].sum(1), (pixels * (labels == k)).sum((1, 2, 3)))
    even = expected_class_pixels(torch.zeros(2, 5, 6, 8).log_softmax(1), VEHICLES.class_sets, labels, pixels)
    torch.testing.assert_close(even[:, 1], even[:, 2])


def sample_of(space: LabelSpace | None) -> Sample:
    values = np.random.default_rng(0).integers(0, 2, (48, 64)).astype(np.uint8)
    image = np.zeros((48, 64, 3), np.uint8)
    return Sample(image, {"s": DenseMap(values, values < 2, label_space=space)}, id="a/1", source="a")


def test_what_the_ids_mean_travels_with_the_map():
    """Through every geometry, into a batch and onto a device: otherwise a vehicle would become a car on the way."""
    sample = sample_of(CARS)
    for size in ((32, 32), (96, 160)):
        assert warp_annotation(sample.annotations["s"], compute_letterbox((48, 64), size)).label_space is CARS
    assert roll_sample(sample, 10.0, 0.25, np.random.default_rng(0)).annotations["s"].label_space is CARS
    tiles = [(0, 0, 64, 48), (64, 0, 64, 48), (0, 48, 64, 48), (64, 48, 64, 48)]
    assert join_samples([sample] * 4, tiles, (96, 128)).annotations["s"].label_space is CARS
    batch = collate([sample, sample_of(None), sample_of(VEHICLES)], ["s"])
    assert [one.label_space for one in batch.annotations["s"]] == [CARS, None, VEHICLES]
    assert [one.label_space for one in move_to_device(batch, torch.device("meta")).annotations["s"]] == [
        CARS,
        None,
        VEHICLES,
    ]
    evaluation = collate([prepare_for_evaluation(sample, (64, 64))], ["s"])
    assert evaluation.annotations["s"][0].label_space is CARS


def test_sets_have_colors_of_their_own_and_single_classes_the_tasks():
    values = np.array([[0, 1, 2, 255]], np.uint8)
    drawn = draw_segmentation_mask(DenseMap(values, values < 3, label_space=VEHICLES), CLASSES)[0].tolist()
    assert drawn[0] == class_palette(CLASSES)[0].tolist()
    assert len({tuple(color) for color in drawn}) == 4
    moved, names = resolve_label_space(DenseMap(values, values < 3, label_space=VEHICLES), CLASSES)
    assert [names[k] for k in moved.values[0, :3]] == ["road", "vehicle", "far"]


def test_the_report_names_the_super_classes_of_the_truth():
    space = LabelSpace(("ground", "vehicle", "<far>"), ((0,), (1, 2), (3, 4)))
    values = np.array([[0, 1], [2, 255]], np.uint8).repeat(40, 0).repeat(40, 1)
    truth = DenseMap(values, values < 3, label_space=space)
    said = DenseMap(np.zeros(values.shape, np.uint8), np.ones(values.shape, bool))
    shown = ReportExample("a/1", "s", 0.5, np.full((*values.shape, 3), 90, np.uint8), {"s": said}, {"s": truth})
    page = render_gallery([shown], TaskSpec("s", "dense", ("mask",), classes=CLASSES))
    color = ",".join(map(str, class_palette([*CLASSES, "vehicle"])[-1].tolist()))
    assert f'<i style="background:rgb({color})"></i>vehicle' in page
    assert "&lt;far&gt;" in page
    assert page.count(">road<") == 1


TREE = ("road", "sky", "car")


def test_a_reader_says_what_its_ids_may_be(tmp_path):
    given = label_maps_tree(tmp_path)  # left half sky, right half road, a corner of cars, a row void
    classes = ("road", "car", "truck", "sky")
    label_map = opened(tmp_path, {**given, "superclasses": {"car": ["truck", "car"]}}, classes)
    assert sets_at(label_map, (10, 10), (10, 40), (45, 60)) == [(3,), (0,), (1, 2)]
    assert label_map.label_space.names == ("sky", "road", "car")
    assert not label_map.valid[0].any()
    assert opened(tmp_path, {**given, "superclasses": {"car": ["truck"]}}, TREE[:2] + ("truck",)).label_space is None
    named = opened(tmp_path, {**given, "superclasses": {"car": ["truck"], "sky": ["sky", "car"]}}, classes).label_space
    assert named == LabelSpace(("sky", "road", "car"), ((1, 3), (0,), (2,))), "super-classes keep the source's names"
    label_map = opened(tmp_path, {**given, "labels_only": ["car"]}, classes)
    assert sets_at(label_map, (10, 10), (10, 40), (45, 60)) == [(0, 2, 3), (0, 2, 3), (1,)]
    assert (label_map.label_space.names, label_map.valid[1:].all()) == (("", "car"), True)
    label_map = opened(tmp_path, {**given, "superclasses": {"sky": "rest"}, "ignore": ["road"]}, classes)
    assert sets_at(label_map, (10, 10), (45, 60)) == [(0, 2, 3), (1,)]
    assert not label_map.valid[10, 40], "what is ignored stays void"
    stated = opened(tmp_path, {**given, "labels_only": ["road", "sky", "car"]}, classes)
    assert stated.label_space is None, "all that it has, as it is"
    with pytest.raises(DataError, match="the other names use all classes"):
        opened(tmp_path, {**given, "superclasses": {"sky": "rest", "road": ["road", "truck", "sky"]}}, classes)
    with pytest.raises(DataError, match="both superclasses and rename or ignore name 'car'"):
        opened(tmp_path, {**given, "superclasses": {"car": ["car"]}, "ignore": ["car"]}, classes)


def opened(root: Path, given: dict[str, Any], classes: tuple[str, ...]) -> DenseMap:
    return open_tree(root, given, segmentation=classes).load_sample(0).annotations["segmentation"]


def sets_at(label_map: DenseMap, *pixels: tuple[int, int]) -> list[tuple[int, ...]]:
    return [label_map.label_space.class_sets[label_map.values[pixel]] for pixel in pixels]


def test_two_readers_of_a_source_mean_the_same_by_their_ids(tmp_path):
    given = label_maps_tree(tmp_path)
    with pytest.raises(DataError, match=r"Source 'source'.*make two sources"):
        open_tree(tmp_path, {**given, "labels_only": ["car"]}, {**given, "labels_only": ["sky"]})
    open_tree(tmp_path, {**given, "labels_only": ["car"]}, {**given, "labels_only": ["car"]})


def test_the_fingerprint_of_a_source_changes_with_what_its_ids_mean(tmp_path):
    given = label_maps_tree(tmp_path)
    options = ({}, {"labels_only": ["car"]}, {"superclasses": {"car": ["car", "road"]}})
    assert len({open_tree(tmp_path, {**given, **more}).compute_fingerprints()["classes"] for more in options}) == 3


def test_a_class_that_nobody_names_is_learned_by_exclusion_and_one_that_nothing_tells_is_not(tmp_path):
    given = label_maps_tree(tmp_path)
    sources = [open_tree(tmp_path, {**given, "labels_only": [name]}) for name in ("car", "sky")]
    check_label_coverage("segmentation", TREE, sources)
    with pytest.raises(DataError, match="is labeled by none of the sources"):
        check_label_coverage("segmentation", TREE, sources[:1])


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The doctor's findings on one source of segmentation masks with the given options and classes: {kind: finding}."""

    def examine(classes: list[str], **options: Any) -> dict[str, Any]:
        root = tmp_path_factory.mktemp("data")
        source = {"name": "maps", "labels": [{**label_maps_tree(root), **options}]}
        mapping = {
            "data": {"root": str(root), "size": [64, 64], "train": [source], "workers": 0},
            "tasks": {"segmentation": {"classes": classes}},
        }
        path = root / "recipe.yaml"
        path.write_text(yaml.safe_dump(mapping))
        return {one.code: one for one in diagnose(path, workers=0, include_environment=False).findings}

    return examine


def test_the_doctor_asks_how_to_take_the_classes_that_a_source_lacks(examined):
    found = examined(["road", "sky", "car", "truck"])
    assert found["partial_classes"].severity == "warning"
    assert "a negative for the others: truck" in found["partial_classes"].message
    assert "partial_classes" not in examined(["road", "sky", "car"])


def test_the_doctor_tells_what_each_source_labels_and_what_nobody_tells_apart(examined):
    found = examined(["road", "sky", "car", "truck"], superclasses={"car": ["car", "truck"]})
    assert "partial_classes" not in found
    assert "Super-classes: car (car, truck)" in found["labeled_classes"].message
    assert found["labeled_classes"].severity == "note"
    assert "of 'segmentation': car, truck" in found["inseparable_classes"].message
    only = examined(["road", "sky", "car"], labels_only=["car"])
    assert "label 1 of 3 classes of 'segmentation': car." in only["labeled_classes"].message
    assert "one_class_masks" not in only


CAST = ("ground", "disc", "square")


def write_maps(root: Path, name: str, look: str, count: int, seed: int, kind: str) -> dict[str, Any]:
    """Images of one camera with segmentation masks. Returns the source's mapping in a recipe.

    kind: "all", or the one shape that the source knows, told as "partial", "void" or "background"
    """
    known, _, way = kind.partition(" ")
    rng = np.random.default_rng(seed)
    for n in range(count):
        image, drawn = _drawn(rng)
        image = (image * LOOKS[look]).astype(np.uint8)
        if known != "all":
            drawn[drawn != CAST.index(known)] = 255 if way == "void" else 0
        for folder, content in (("images", image[..., ::-1]), ("masks", drawn)):
            (root / name / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / name / folder / f"{n:04d}.png"), content)
    (root / f"{name}.txt").write_text("\n".join(CAST) + "\n")
    options = {"labels_only": [known]} if way == "partial" else {}
    reader = {
        "format": "segmentation_masks",
        "images": f"{name}/images",
        "masks": f"{name}/masks",
        "classes": f"{name}.txt",
    }
    return {"name": name, "labels": [{**reader, **options}]}


def _drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image of `shapes` and its segmentation mask: triangles, which nobody labels, are ground."""
    image, boxes = shapes(rng)
    label_map = np.zeros(image.shape[:2], np.uint8)
    for kind, (x, y, width, _) in boxes:
        radius = width // 2
        if kind == 0:
            cv2.circle(label_map, (x + radius, y + radius), radius, 1, cv2.FILLED)
        else:
            label_map[y : y + width, x : x + width] = 2
    return image, label_map


def trained(folder: Path, labels: str, seed: int = 0, steps: int = 300) -> dict[str, float]:
    """IoU of the classes on fully labeled images of both cameras, after a training whose segmentation masks are

    full:       all classes on all images
    partial:    discs on the plain images, squares on the warm ones, and the sources say so
    void:       the same, all other pixels void
    background: the same, all other pixels ground
    """
    folder.mkdir()
    train, validation = [], []
    for i, (look, shape) in enumerate(zip(LOOKS, CAST[1:], strict=True)):
        kind = "all" if labels == "full" else f"{shape} {labels}"
        train.append(write_maps(folder, look, look, 200, 10 * seed + i, kind))
        validation.append(write_maps(folder, f"{look}-held-out", look, 40, 10 * seed + 5 + i, "all"))
    mapping = {
        "seed": seed,
        "data": {
            "root": str(folder), "size": [96, 128], "workers": 0, "train": train, "validation": validation,
            "augment": {"scale": [1.0, 1.0], "flip": 0.5, "color": 0.0, "degrade": 0.0},
        },
        "tasks": {"segmentation": {"classes": list(CAST)}},
        "train": {
            "steps": steps, "batch_size": 4, "lr": 2e-3, "warmup_steps": 30, "ema_decay": 0.98, "tensorboard": False,
            "checkpoint_every": 0, "threads": 1,
        },
    }  # fmt: skip
    evaluation = runs.train(
        recipe.parse(config.dump_yaml(config.validate_config(recipe.Recipe, mapping))), folder / "run"
    )
    assert evaluation is not None
    return {name: row["iou"] for name, row in evaluation.tables["segmentation"].items()}


@pytest.mark.slow
def test_two_sources_that_label_one_class_each_teach_both(tmp_path):
    """On images of all classes: nearly what full labels teach. As void, the ground is lost, which no source names; as
    ground, each class is lost on the images of the source that does not know it."""
    found = {way: trained(tmp_path / way, way) for way in ("full", "partial", "void", "background")}
    means = {way: float(np.mean([iou for iou in row.values() if not math.isnan(iou)])) for way, row in found.items()}
    print(found)
    assert means["partial"] >= 0.9 * means["full"], found
    assert means["void"] <= 0.7 * means["partial"], found
    assert means["background"] <= 0.9 * means["partial"], found
