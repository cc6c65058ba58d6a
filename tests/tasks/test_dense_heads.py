"""Every option of segmentation, depth and classification: its loss, its gradient, perfect in and perfect out, ONNX."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from perception.checkpoint import Checkpoint, load_into_model
from perception.engine.evaluate import evaluate
from perception.export.export import export
from perception.metrics.segmentation import SegmentationMetric
from perception.nn.decoder import DenseDecoder
from perception.nn.pyramid_pooling import PyramidPooling
from perception.ops.image import compute_letterbox
from perception.ops.postprocess import restore_annotations
from perception.tasks import TASKS, sum_loss_terms
from perception.tasks.classification import ClassificationTask, StatsPooling
from perception.tasks.classification import Raw as LabelRaw
from perception.tasks.depth import DepthConfig, DepthTask
from perception.tasks.depth import Raw as DepthRaw
from perception.tasks.segmentation import Raw as SegmentationRaw
from perception.tasks.segmentation import SegmentationConfig, SegmentationTask
from perception.types import Batch, Camera, CheckpointError, ConfigError, DenseMap, ImageLabel

SIZE = (64, 96)
CLASSES = ("road", "car", "tree")
CHANNELS = {4: 8, 8: 16, 16: 16, 32: 16}

SEGMENTATION = {
    "default": {},
    "lovasz": {"dice_weight": 0.0, "lovasz_weight": 1.0},
    "all of it": {
        "lovasz_weight": 0.5,
        "class_weights": {"car": 3.0},
        "boundary_weight": 2.0,
        "logit_adjustment": True,
    },
    "coarse": {"strides": (8, 16, 32), "pyramid_pooling": False},
    "one level": {"strides": (32,)},
    "finest only": {"strides": (4,)},
}
DEPTH = {
    "default": {},
    "bins": {"bins": 16},
    "coarse": {"strides": (8, 16, 32), "pyramid_pooling": False, "bins": 8},
    "no focal length": {"canonical_focal": 0.0},
}
every_segmentation = pytest.mark.parametrize("options", SEGMENTATION.values(), ids=SEGMENTATION.keys())
every_depth = pytest.mark.parametrize("options", DEPTH.values(), ids=DEPTH.keys())


def features(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    sizes = {stride: (SIZE[0] // stride, SIZE[1] // stride) for stride in CHANNELS}
    return {s: torch.randn(count, CHANNELS[s], *sizes[s], generator=generator) for s in CHANNELS}


def label_map(seed=0):
    """Rectangles of whole cells of stride 4, with a strip of void."""
    cells = np.zeros((SIZE[0] // 4, SIZE[1] // 4), np.int64)
    random = np.random.default_rng(seed)
    for k in (1, 2, 1):
        y, x = random.integers(0, 8, 2)
        cells[y : y + 8, x : x + 12] = k
    values = torch.from_numpy(cells.repeat(4, 0).repeat(4, 1))
    valid = torch.ones(SIZE, dtype=torch.bool)
    valid[:5] = False
    values[:5] = 255
    return DenseMap(values, valid)


def ramp():
    rows = torch.linspace(math.log(3.0), math.log(30.0), SIZE[0]).exp()
    return DenseMap(rows[:, None].repeat(1, SIZE[1]), torch.ones(SIZE, dtype=torch.bool))


def learnt(task, targets, steps=50):
    """The losses while the head learns two feature maps by heart, and the shares of its parameters without gradient."""
    pyramid, losses = features(), []
    optimizer = torch.optim.AdamW(task.parameters(), 1e-2)
    for _ in range(steps):
        parts = task.compute_loss_terms(task(pyramid), targets, [None, None])
        assert tuple(parts) == task.loss_names
        loss = torch.stack([part.total / part.count.clamp(min=1) for part in parts.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    silent = [name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()]
    return losses, silent


@every_segmentation
def test_segmentation_learns_by_heart_with_every_option(options):
    torch.manual_seed(0)
    task = SegmentationTask("s", SegmentationConfig(classes=CLASSES, channels=16, fine_channels=8, **options), CHANNELS)
    losses, silent = learnt(task, [label_map(0), label_map(1)])
    assert losses[-1] < 0.5 * losses[0]
    assert not silent


@every_depth
def test_depth_learns_by_heart_with_every_option(options):
    torch.manual_seed(0)
    task = DepthTask("d", DepthConfig(channels=16, fine_channels=8, **options), CHANNELS)
    losses, silent = learnt(task, [ramp(), ramp()])
    assert losses[-1] < 0.3 * losses[0]
    assert not silent


def bands():
    """Upright bands of whole cells of stride 4, the first two of them void."""
    values = torch.arange(SIZE[1] // 4).mul(7).remainder(3).repeat_interleave(4).expand(SIZE).clone()
    valid = torch.ones(SIZE, dtype=torch.bool)
    valid[:, :8] = False
    return DenseMap(torch.where(valid, values, 255), valid)


def test_a_certain_label_map_comes_out_as_it_went_in():
    task = SegmentationTask("s", SegmentationConfig(classes=CLASSES, lovasz_weight=0.5), CHANNELS)
    target = bands()
    cells = torch.where(target.valid, target.values, 0)[2::4, 2::4]
    logits = torch.nn.functional.one_hot(cells, 3).movedim(-1, 0)[None].float() * 200
    found = task.decode(SegmentationRaw(logits), SIZE)["mask"][0]
    assert found.dtype == torch.uint8
    metric = SegmentationMetric(CLASSES)
    prediction = DenseMap(found.numpy(), np.ones(SIZE, bool))
    metric.update("a", prediction, DenseMap(target.values.numpy(), target.valid.numpy()))
    assert metric.compute() == {"miou": 1, "pixel_accuracy": 1}
    for name, part in task.compute_loss_terms(SegmentationRaw(logits), [target], [None]).items():
        assert part.total / part.count < 1e-3, name


@pytest.mark.parametrize("focal", [250.0, 500.0])
def test_perfect_depth_comes_out_as_it_went_in(focal):
    """Through any lens: the network's canonical metres, times the focal length, are the target's."""
    task = DepthTask("d", DepthConfig(channels=16, fine_channels=8), CHANNELS)
    target, camera = ramp(), Camera(focal, focal, 48, 32)
    canonical = (target.values * 500 / focal).log()[None, None]
    raw = DepthRaw(torch.nn.functional.avg_pool2d(canonical, 4), torch.full((1, 1, 16, 24), math.log(0.01)))
    parts = task.compute_loss_terms(raw, [target], [camera])
    assert all(parts[name].total < 0.02 for name in ("silog", "log", "gradient"))
    outputs = {f"d.{key}": value[0].numpy() for key, value in task.decode(raw, SIZE).items()}
    found = restore_annotations(outputs, {"d": task.spec}, compute_letterbox(SIZE, SIZE), camera)["d"]
    assert isinstance(found, DenseMap)
    metric = task.create_metric()
    metric.update("a", found, DenseMap(target.values.numpy(), target.valid.numpy()))
    assert metric.compute()["abs_rel"] < 0.01
    np.testing.assert_allclose(found.relative_error, 0.01, rtol=1e-5)


def test_bins_reach_every_distance_and_are_a_mean():
    config = DepthConfig(limits=(1.0, 50.0), bins=12)
    task = DepthTask("d", config, CHANNELS)
    assert task.bin_centers.exp().min() == pytest.approx(0.5)
    assert task.bin_centers.exp().max() == pytest.approx(100)
    steps = task.bin_centers.flatten().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    with torch.no_grad():
        task.decoder.output.weight.zero_()
        task.decoder.coarse_output.weight.zero_()  # type: ignore[union-attr]
        for k in range(12):
            task.decoder.output.bias.copy_(100.0 * torch.eye(12)[k])
            torch.testing.assert_close(task(features()).log_depth.mean(), task.bin_centers.flatten()[k])
        task.decoder.output.bias.zero_()
        assert task(features()).log_depth.mean().item() == pytest.approx(0.5 * math.log(50), abs=1e-5)
    with pytest.raises(ConfigError, match="bins is 1"):
        DepthConfig(bins=1)


def test_the_expected_error_trains_nothing_but_itself():
    task = DepthTask("d", DepthConfig(channels=16, fine_channels=8), CHANNELS)
    parts = task.compute_loss_terms(task(features()), [ramp(), ramp()], [None, None])
    parts["error"].total.backward()
    assert {name for name, value in task.named_parameters() if value.grad is not None and value.grad.any()} == {
        "error_output.weight",
        "error_output.bias",
    }
    assert parts["error"].total.item() >= 0, "no likelihood is so large that the loss turns negative"


def test_the_expected_error_becomes_the_mean_error():
    """Half of the image is off by 3 %, the other by 20 %: the head learns which, from features that tell."""
    task = DepthTask("d", DepthConfig(channels=16, fine_channels=8, canonical_focal=0.0), CHANNELS)
    truth = ramp()
    made = torch.full(SIZE, 0.03)
    made[:, 48:] = 0.2
    log_depth = torch.nn.functional.avg_pool2d((truth.values.log() + made)[None, None], 4)
    log_error = torch.nn.Parameter(torch.full_like(log_depth, math.log(0.5)))
    optimizer = torch.optim.Adam([log_error], 0.1)
    for _ in range(120):
        optimizer.zero_grad()
        task.compute_loss_terms(DepthRaw(log_depth, log_error), [truth], [None])["error"].total.backward()
        optimizer.step()
    found = task.decode(DepthRaw(log_depth, log_error.detach()), SIZE)["error"][0]
    assert found[16:48, 8:40].mean().item() == pytest.approx(0.03, rel=0.1)
    assert found[16:48, 56:88].mean().item() == pytest.approx(0.2, rel=0.1)


def test_class_weights_count_pixels_several_times():
    """A class that weighs 3 counts as if each of its pixels stood there three times."""
    plain, weighted = (
        SegmentationTask("s", SegmentationConfig(classes=CLASSES, class_weighting=0.0, class_weights=weights), CHANNELS)
        for weights in ({}, {"car": 3.0})
    )
    target, raw = label_map(), SegmentationRaw(torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)))
    one, three = (task.compute_loss_terms(raw, [target], [None])["cross_entropy"] for task in (plain, weighted))
    cars = DenseMap(target.values, target.valid & (target.values == 1))
    only = plain.compute_loss_terms(raw, [cars], [None])["cross_entropy"]
    torch.testing.assert_close(three.total, one.total + 2 * only.total)
    torch.testing.assert_close(three.count, one.count + 2 * only.count)
    with pytest.raises(ConfigError, match=r"'bus'.*road, car, tree"):
        SegmentationConfig(classes=CLASSES, class_weights={"bus": 2.0})


def test_prior_correction_gives_back_what_the_balance_takes():
    """Where an image tells nothing, the classes are as likely as they are common, however they were weighted."""
    maps = [label_map(seed) for seed in range(3)]
    common = torch.stack([target.values[target.valid].bincount(minlength=3) for target in maps]).sum(0)
    options = {"class_weighting": 0.7, "class_weights": {"car": 3.0}, "dice_weight": 0.0, "loss_stride": 1}
    for corrects in (True, False):
        task = SegmentationTask(
            "s", SegmentationConfig(classes=CLASSES, logit_adjustment=corrects, **options), CHANNELS
        )
        logits = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.Adam([logits], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            raw = SegmentationRaw(logits.view(1, 3, 1, 1).expand(3, 3, 16, 24))
            part = task.compute_loss_terms(raw, maps, [None] * 3)["cross_entropy"]
            (part.total / part.count).backward()
            optimizer.step()
        offset = task.eval().correct_prior(logits.detach().view(1, 3, 1, 1)).flatten()
        found = offset.softmax(0)
        assert torch.allclose(found, common / common.sum(), atol=5e-3) == corrects, found


def test_prior_correction_leaves_alone_what_was_never_seen_or_taught():
    config = SegmentationConfig(classes=CLASSES, logit_adjustment=True, class_weights={"car": 0.0})
    task = SegmentationTask("s", config, CHANNELS)
    fresh = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(task.correct_prior(fresh), fresh)
    target = DenseMap(torch.where(label_map().values == 2, 1, label_map().values), label_map().valid)
    raw = SegmentationRaw(torch.zeros(1, 3, 16, 24))
    before = task.eval().compute_loss_terms(raw, [target], [None])
    assert not task.class_priors.any()
    after = task.train().compute_loss_terms(raw, [target], [None])
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))
    assert (task.class_priors[:, 2] == 0).all()
    assert (task.class_priors[1, 1], task.class_priors[0, 1] > 0) == (0, True)
    assert torch.equal(task.correct_prior(fresh)[:, 1:], fresh[:, 1:])


def test_borders_weigh_more():
    raw = SegmentationRaw(torch.zeros(1, 3, 16, 24))
    counts = [
        SegmentationTask("s", SegmentationConfig(classes=CLASSES, class_weighting=0.0, **options), CHANNELS)
        .compute_loss_terms(raw, [label_map()], [None])["cross_entropy"]
        .count
        for options in (
            {},
            {"boundary_weight": 1.0, "boundary_width": 2},
            {"boundary_weight": 1.0, "boundary_width": 8},
        )
    ]
    assert counts[0] < counts[1] < counts[2] < 2 * counts[0]


def test_context_sees_the_whole_image_and_means_the_same_at_every_size():
    torch.manual_seed(0)
    context = PyramidPooling(4, 8).eval()
    picture = torch.randn(1, 4, 9, 12)
    moved = picture.clone()
    moved[..., 0, 0] += 5
    assert (context(picture) != context(moved))[..., -1, -1].any()
    flat = torch.ones(1, 4, 1, 1) * torch.randn(4)[:, None, None]
    outputs = [context(flat.expand(1, 4, *size)) for size in ((1, 1), (7, 3), (16, 24))]
    for output in outputs:
        torch.testing.assert_close(output, outputs[0].expand_as(output))


def test_the_fine_levels_are_narrow_and_only_sharpen():
    decoder = DenseDecoder(CHANNELS, 16, 3, fine_channels=8)
    assert decoder.coarse_strides == [32, 16, 8]
    assert decoder.fine_strides == [4]
    assert decoder(features()).shape == (2, 3, SIZE[0] // 4, SIZE[1] // 4)
    finer = DenseDecoder({2: 4, **CHANNELS}, 16, 3, fine_channels=8)
    assert finer({2: torch.randn(2, 4, 32, 48), **features()}).shape == (2, 3, 32, 48)


class Heads(torch.nn.Module):
    """Heads on patches of the image: the interface of `perception.model.MultiTaskModel` without its backbone."""

    def __init__(self, tasks):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.register_buffer("mean", torch.full((1, 3, 1, 1), 128.0))
        self.backbone.register_buffer("std", torch.full((1, 3, 1, 1), 64.0))
        self.patches = torch.nn.ModuleDict({str(s): torch.nn.Conv2d(3, CHANNELS[s], s, s) for s in CHANNELS})
        self.tasks = torch.nn.ModuleDict(tasks)

    @property
    def specs(self):
        return {name: task.spec for name, task in self.tasks.items()}

    def keep_tasks(self, tasks):
        self.tasks = torch.nn.ModuleDict({name: self.tasks[name] for name in tasks})
        return self

    def forward(self, images, tasks=None):
        pixels = (images.float() - self.backbone.mean) / self.backbone.std
        pyramid = {stride: self.patches[str(stride)](pixels) for stride in CHANNELS}
        return {name: task(pyramid) for name, task in self.tasks.items()}

    def decode(self, raws, size):
        found = {name: self.tasks[name].decode(raw, size) for name, raw in raws.items()}
        return {f"{name}.{key}": value for name, outputs in found.items() for key, value in outputs.items()}

    def predict(self, images, tasks=None):
        return self.decode(self(images), images.shape[-2:])


@pytest.mark.fault("X1")
def test_options_that_change_the_graph_are_the_same_in_onnx(tmp_path):
    """The defaults are exported in other tests."""
    torch.manual_seed(0)
    coarse = SegmentationConfig(
        classes=CLASSES, channels=16, strides=(8, 16, 32), pyramid_pooling=False, logit_adjustment=True
    )
    label = TASKS["classification"].Config(classes=CLASSES, channels=16, multi_label=True, strides=(4, 16, 32))
    tasks = {
        "coarse": SegmentationTask("coarse", coarse, CHANNELS),
        "bins": DepthTask("bins", DepthConfig(channels=16, fine_channels=8, bins=8), CHANNELS),
        "tags": ClassificationTask("tags", label, CHANNELS),
    }
    model = Heads(tasks).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        tasks["tags"].temperature.fill_(2.5)
        tasks["coarse"].decoder.output.weight.normal_()
        tasks["coarse"].class_priors.copy_(torch.tensor([[0.7, 0.1, 0.2], [0.4, 0.35, 0.25]]))
        for module in model.modules():  # activations with a spread, as those of a trained network
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    report = export(
        model, tmp_path / "options.onnx", size=(64, 96), parity_sizes=((64, 96), (32, 32)), parity_batch_sizes=(1, 2)
    )
    assert report.tensorrt_problems == ()  # TensorRT's
    session = onnxruntime.InferenceSession(tmp_path / "options.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 160), np.uint8)
    names = [entry.name for entry in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    with torch.inference_mode():
        wanted = {name: value.numpy() for name, value in model.predict(torch.from_numpy(images)).items()}
    assert found.keys() == wanted.keys()
    assert (found["coarse.mask"] != wanted["coarse.mask"]).mean() <= 1e-4
    assert len(np.unique(wanted["coarse.mask"])) > 1
    for name in ("bins.depth", "bins.error", "tags.probabilities"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, err_msg=name)
        assert wanted[name].std() > 0


def test_textures_are_the_mean_and_spread_of_each_channel():
    texture = StatsPooling(CHANNELS[8], 6).eval()
    maps = texture.conv(features()[8])
    expected = torch.cat([maps.mean((2, 3)), maps.std((2, 3), correction=0)], 1)
    torch.testing.assert_close(texture(features()[8]), expected, atol=1e-2, rtol=1e-3)


def test_a_scene_that_shows_in_fine_textures_alone_is_learned_from_them():
    """The same image but for the grain of its finest level: rain, say."""
    torch.manual_seed(0)
    grain = torch.tensor([0.5, 1.0, 2.0]).repeat(4)
    truths = [ImageLabel(torch.eye(3)[i % 3]) for i in range(12)]
    pyramid = {s: torch.randn(1, CHANNELS[s], 64 // s, 96 // s).expand(12, -1, -1, -1) for s in CHANNELS}
    pyramid[8] = pyramid[8] * grain.view(-1, 1, 1, 1)
    for strides, learns in (((32,), False), ((8, 32), True)):
        config = TASKS["classification"].Config(classes=CLASSES, channels=16, strides=strides, label_smoothing=0.0)
        task = ClassificationTask("scene", config, CHANNELS)
        optimizer = torch.optim.Adam(task.parameters(), 0.05)
        for _ in range(30):
            optimizer.zero_grad()
            loss = sum_loss_terms(task.compute_loss_terms(task(pyramid), truths, [None] * 12))
            loss.backward()
            optimizer.step()
        assert (loss.item() < 0.1) == learns


def test_a_label_of_the_image_needs_the_coarsest_level():
    with pytest.raises(ConfigError, match=r"strides is .8, 16.. Expected strides that include 32"):
        TASKS["classification"].Config(classes=CLASSES, strides=(8, 16))


class Pixels(torch.nn.Module):
    """A classifier whose logits are the first pixel's colors."""

    def __init__(self, multi_label):
        super().__init__()
        config = TASKS["classification"].Config(classes=CLASSES, multi_label=multi_label)
        self.tasks = torch.nn.ModuleDict({"scene": ClassificationTask("scene", config, CHANNELS)})
        self.specs = {"scene": self.tasks["scene"].spec}

    def predict(self, images):
        found = self.tasks["scene"].decode(LabelRaw(images[:, :, 0, 0] / 25.0 - 5.0), (32, 32))
        return {f"scene.{key}": value for key, value in found.items()}


@pytest.mark.parametrize("multi_label", [False, True])
def test_calibration_is_fitted_by_evaluation_and_travels_with_the_weights(multi_label):
    """Labels are drawn from a third of the logits: the scores are three times too sure."""
    random, count = np.random.default_rng(0), 500
    images = torch.from_numpy(random.integers(0, 256, (count, 3, 32, 32), np.uint8))
    honest = (images[:, :, 0, 0] / 25.0 - 5.0).double() / 3
    if multi_label:
        truths = [ImageLabel((random.random(3) < row.sigmoid().numpy()).astype(np.float32)) for row in honest]
    else:
        truths = [ImageLabel(np.eye(3, dtype=np.float32)[random.choice(3, p=row.softmax(0).numpy())]) for row in honest]
    frames = [compute_letterbox((32, 32), (32, 32))] * count
    batches = [Batch(images, {"scene": truths}, [None] * count, frames, list(map(str, range(count))), ["s"] * count)]
    model = Pixels(multi_label)
    before = evaluate(model, batches)
    assert model.tasks["scene"].temperature == 1, "only where it is asked for"
    calibrated = evaluate(model, batches, calibrate=True)
    assert model.tasks["scene"].temperature.item() == pytest.approx(3, rel=0.2)
    assert calibrated.metrics["scene/ece"] < 0.5 * before.metrics["scene/ece"]
    other = Pixels(multi_label)
    other.load_state_dict(model.state_dict())
    after = evaluate(other, batches)
    assert after.metrics == pytest.approx(calibrated.metrics, abs=1e-5)
    assert {**after.metrics, "scene/ece": 0} == pytest.approx({**before.metrics, "scene/ece": 0}, abs=1e-6)


def test_a_wrong_range_is_refused():
    with pytest.raises(ConfigError, match="nearest < farthest"):
        DepthConfig(limits=(80.0, 0.5))
    with pytest.raises(ConfigError, match="254"):
        SegmentationConfig(classes=tuple(map(str, range(255))))


AUXILIARY = {
    "segmentation": lambda a: SegmentationTask(
        "s",
        SegmentationConfig(
            classes=CLASSES, channels=16, fine_channels=8, lovasz_weight=0.3, logit_adjustment=True, auxiliary_weight=a
        ),
        CHANNELS,
    ),
    "depth": lambda a: DepthTask("d", DepthConfig(channels=16, fine_channels=8, auxiliary_weight=a), CHANNELS),
    "depth in bins": lambda a: DepthTask(
        "d", DepthConfig(channels=16, fine_channels=8, bins=8, auxiliary_weight=a), CHANNELS
    ),
}
every_auxiliary = pytest.mark.parametrize("kind", AUXILIARY)


def targets_of(kind):
    return [label_map(0), None] if kind == "segmentation" else [ramp(), None]


@every_auxiliary
def test_an_initial_prediction_leaves_its_tasks_total_weight_as_it_is(kind):
    """Where it says what the head says, the loss is that of a head without one; what it says otherwise, weighs a of
    1 + a parts."""
    torch.manual_seed(0)
    plain, task = AUXILIARY[kind](0.0), AUXILIARY[kind](0.4)
    raw, other = task(features(0)), task(features(1))
    targets, cameras = targets_of(kind), [None, None]
    wanted = plain.total_loss_terms(raw, targets, cameras, plain.forward_auxiliary(features()))
    equal = task.total_loss_terms(raw, targets, cameras, raw)
    assert tuple(equal) == task.loss_names
    assert tuple(wanted) == plain.loss_names
    torch.testing.assert_close(sum_loss_terms(equal), sum_loss_terms(wanted))
    apart = sum_loss_terms(task.total_loss_terms(raw, targets, cameras, other)) - sum_loss_terms(equal)
    own = {name: part for name, part in plain.compute_loss_terms(other, targets, cameras).items() if name != "error"}
    mine = {name: part for name, part in plain.compute_loss_terms(raw, targets, cameras).items() if name != "error"}
    torch.testing.assert_close(apart, (sum_loss_terms(own) - sum_loss_terms(mine)) * 0.4 / 1.4)


@every_auxiliary
def test_an_initial_prediction_learns_and_is_for_the_loss_alone(kind):
    torch.manual_seed(0)
    plain = AUXILIARY[kind](0.0)
    torch.manual_seed(0)
    task = AUXILIARY[kind](0.4)
    state, own = plain.state_dict(), task.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state.items()), "the rest starts alike"
    assert {name.partition(".")[0] for name in own.keys() - state.keys()} == {"auxiliary_head"}
    assert plain.forward_auxiliary(features()) is None
    optimizer, losses = torch.optim.AdamW(task.parameters(), 1e-2), []
    for _ in range(40):
        parts = task.total_loss_terms(
            task(features()), targets_of(kind), [None, None], task.forward_auxiliary(features())
        )
        losses.append([part.total.item() for name, part in parts.items() if name.startswith("auxiliary_")])
        optimizer.zero_grad()
        sum_loss_terms(parts).backward()
        optimizer.step()
    assert sum(losses[-1]) < 0.9 * sum(losses[0])
    assert not [name for name, value in task.named_parameters() if value.grad is None or not value.grad.any()]
    ran = []
    task.auxiliary_head.register_forward_hook(lambda *_: ran.append(1))
    task.decode(task(features()), SIZE)
    assert not ran


@every_auxiliary
def test_an_initial_prediction_that_is_not_labeled_is_a_connected_zero(kind):
    task = AUXILIARY[kind](0.4)
    parts = task.total_loss_terms(task(features()), [None, None], [None, None], task.forward_auxiliary(features()))
    assert tuple(parts) == task.loss_names
    sum_loss_terms(parts).backward()
    assert all(p.grad is not None and not p.grad.any() for p in task.auxiliary_head.parameters())


def test_an_initial_prediction_is_not_counted_among_the_classes():
    """The running shares of the classes see each batch once."""
    tasks = [AUXILIARY["segmentation"](a).train() for a in (0.0, 0.4)]
    for task in tasks:
        task.total_loss_terms(
            task(features()), targets_of("segmentation"), [None, None], task.forward_auxiliary(features())
        )
    assert tasks[0].class_priors.any()
    assert torch.equal(tasks[0].class_priors, tasks[1].class_priors)


@every_auxiliary
def test_a_checkpoint_with_an_initial_prediction_fits_a_network_without_one(kind):
    plain, task = AUXILIARY[kind](0.0), AUXILIARY[kind](0.4)
    load_into_model(plain, Checkpoint(Path("run"), task.state_dict(), "", 1))
    assert all(torch.equal(value, task.state_dict()[name]) for name, value in plain.state_dict().items())
    with pytest.raises(CheckpointError, match=r"lacks auxiliary_head\.output\.32\.weight"):
        load_into_model(task, Checkpoint(Path("run"), plain.state_dict(), "", 1))
