"""Exported files against torch in a bare ONNX Runtime session, and exports that must fail."""

import copy
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from perception.export import graph, parity
from perception.export.export import export
from perception.export.parity import ParityCheck, ParityError
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.runtime import onnx_file
from perception.runtime.manifest import extract_manifest, parse_manifest
from perception.runtime.predictor import Predictor
from perception.tasks import TASKS
from perception.types import PerceptionError, TaskSpec

SIZES = ((256, 512), (352, 480), (640, 640))


def agree(model, session: onnxruntime.InferenceSession, images: np.ndarray) -> int:
    """Compare every output plainly (X1), without the exporter's own comparison; returns the number of boxes."""
    names = [entry.name for entry in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    with torch.inference_mode():
        wanted = {name: value.numpy() for name, value in model.predict(torch.from_numpy(images)).items()}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.shape == wanted[name].shape
        assert value.dtype == wanted[name].dtype
    np.testing.assert_allclose(found["classification.probabilities"], wanted["classification.probabilities"], 0, 1e-4)
    np.testing.assert_allclose(np.log(found["depth.depth"]), np.log(wanted["depth.depth"]), 0, 1e-4)
    assert (found["segmentation.mask"] != wanted["segmentation.mask"]).mean() <= 1e-4
    for i in range(len(images)):
        same_boxes(
            *({key: side[f"detection.{key}"][i] for key in ("boxes", "scores", "labels")} for side in (wanted, found))
        )
    return int((found["detection.scores"] > 0).sum())


def same_boxes(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """The same kept set, in any order of equal scores: each box has its one counterpart."""
    live = wanted["scores"] > 0
    assert live.sum() == (found["scores"] > 0).sum()
    pairs = np.abs(wanted["boxes"][live][:, None] - found["boxes"][live][None]).max(2) <= 1e-2
    pairs &= np.abs(wanted["scores"][live][:, None] - found["scores"][live][None]) <= 1e-4
    pairs &= wanted["labels"][live][:, None] == found["labels"][live][None]
    assert (pairs.sum(0) == 1).all()
    assert (pairs.sum(1) == 1).all()
    np.testing.assert_allclose(wanted["scores"], found["scores"], 0, 1e-4)


def pictures(count: int, height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)


@pytest.mark.fault("X1")
@pytest.mark.parametrize("size", [*SIZES, (32, 32), (96, 800)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_size_and_batch_in_a_bare_session(small_network, exported, size, count):
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert agree(small_network, session, pictures(count, *size, seed=count)) > 0


def real_network(backbone: str = "lcnet_035"):
    """Backbone, neck and the four tasks, with spread-out scores."""
    torch.manual_seed(0)
    tasks = {
        "detection": TASKS["detection"].Config(classes=("car", "bike", "sign"), num_convs=1),  # type: ignore[call-arg]
        "segmentation": TASKS["segmentation"].Config(classes=tuple("abcde"), channels=16),  # type: ignore[call-arg]
        "depth": TASKS["depth"].Config(channels=16),  # type: ignore[call-arg]
        "classification": TASKS["classification"].Config(classes=("day", "night"), channels=32),  # type: ignore[call-arg]
    }
    model = MultiTaskModel(ModelConfig(backbone=BackboneConfig(name=backbone, weights="none")), tasks)
    with torch.no_grad():
        for _ in range(10):  # running statistics of real passes
            model(torch.from_numpy(pictures(4, 96, 96, seed=0)))
        model.tasks["detection"].heads[-1].class_output.weight.mul_(100)
        model.tasks["detection"].heads[-1].box_output.weight.mul_(10)
    return model.eval()


@pytest.mark.fault("X1")
def test_the_real_network_in_a_bare_session(tmp_path):
    """At every required size and batch; nothing of training is left in the file."""
    model = real_network()
    report = export(model, tmp_path / "real.onnx", size=(256, 512), parity_sizes=((256, 512),), parity_batch_sizes=(1,))
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert all(agree(model, session, pictures(count, *size, seed=9)) > 0 for size in SIZES for count in (1, 2, 3))
    nodes = onnx.load(report.path).graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert any(name.startswith("tasks.depth.decoder") for name in names)


def test_tensorflow_padding_written_out_is_the_same_network():
    from timm.layers import Conv2dSame

    from perception.export.trace import _use_static_padding

    torch.manual_seed(0)
    layers = [
        Conv2dSame(3, 8, 3, 2, bias=False),
        Conv2dSame(8, 8, 5, 2, groups=8),
        Conv2dSame(8, 4, 3, 1),
        Conv2dSame(4, 4, 1, 2),
    ]
    network = torch.nn.Sequential(*layers)
    plain = _use_static_padding(copy.deepcopy(network))
    assert not any(isinstance(layer, Conv2dSame) for layer in plain.modules())
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(plain(images), network(images), rtol=0, atol=1e-6)


def test_one_file_with_nms_and_argmax_inside_and_dynamic_axes(exported):
    model = onnx.load(exported, load_external_data=False)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("NonMaxSuppression") == 1
    assert "ArgMax" in kinds
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    axes = [[dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in model.graph.input]
    assert axes == [["batch", 3, "height", "width"]]
    assert sorted(path.name for path in exported.parent.iterdir()) == ["small.json", exported.name]
    assert b"/perception/" not in onnx_file.strip_metadata(exported.read_bytes())  # no paths of the machine


def test_the_manifest_says_what_a_runtime_needs(small_network, exported):
    manifest = extract_manifest(exported.read_bytes(), "small.onnx")
    assert manifest.tasks == small_network.specs
    assert manifest.input.size == (96, 160)
    assert manifest.input.size_divisor == 32
    assert manifest.input.mean == pytest.approx((0.485, 0.456, 0.406))
    assert manifest.input.std == pytest.approx((0.229, 0.224, 0.225))
    assert len(manifest.weights_sha256) == len(manifest.graph_sha256) == 64
    assert set(manifest.parity) >= {"detection.boxes", "detection.unmatched", "segmentation.mask", "depth.depth"}
    assert max(manifest.parity.values()) < 1e-2
    model = onnx.load(exported)
    assert [entry.name for entry in model.graph.output] == list(manifest.outputs)
    assert manifest.outputs["detection.boxes"].shape == ("batch", 300, 4)
    assert manifest.outputs["depth.depth"].shape == ("batch", "height", "width")
    assert manifest.outputs["segmentation.mask"].dtype == "uint8"
    assert "m of each pixel" in manifest.outputs["depth.depth"].description
    assert manifest.opset == model.opset_import[0].version
    assert (model.producer_name, model.producer_version) == tuple(manifest.producer.split())
    assert set(manifest.library_versions) == {"torch", "onnx", "onnxruntime"}


def test_the_manifest_lies_beside_the_file_too(exported):
    assert parse_manifest(exported.with_suffix(".json").read_text("utf-8"), "") == extract_manifest(
        exported.read_bytes(), ""
    )


def test_a_subset_of_tasks_is_a_smaller_file_without_dead_weights(small_network, export_small, exported, tmp_path):
    report = export_small(tmp_path / "d.onnx", size=(64, 64), tasks=["depth"])
    assert list(report.manifest.tasks) == ["depth"]
    assert report.size_bytes < exported.stat().st_size
    content = onnx.load(report.path).graph
    read = {name for node in content.node for name in node.input}
    assert all(tensor.name in read for tensor in content.initializer)
    needed = small_network.distance, *small_network.trunk[:2]
    kernels = sum(p.numel() for part in needed for p in part.parameters() if p.ndim == 4)
    found = sum(np.prod(tensor.dims) for tensor in content.initializer if len(tensor.dims) == 4)
    assert found == kernels + 6  # and the mean and deviation of the normalization
    with pytest.raises(PerceptionError, match="No task lidar"):
        export_small(tmp_path / "x.onnx", size=(64, 64), tasks=["lidar"])
    with pytest.raises(PerceptionError, match=r"Wrong input size 100x64\. Expected multiples of 32\. Use 96x64"):
        export_small(tmp_path / "x.onnx", size=(100, 64))


def test_the_network_is_not_touched(small_network, tmp_path):
    model = copy.deepcopy(small_network).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "d.onnx", size=(64, 64), parity_batch_sizes=(1,), tasks=["classification"], dynamic=False)
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx", providers=["CPUExecutionProvider"])
    assert [entry.shape for entry in session.get_inputs()] == [["batch", 3, 64, 64]]
    perceiver = Predictor(tmp_path / "d.onnx")
    assert not perceiver.manifest.input.dynamic
    with pytest.raises(PerceptionError, match=r"Wrong input size 96x96\. This file was exported for 64x64 alone"):
        perceiver(np.zeros((9, 9, 3), np.uint8), size=(96, 96))


@pytest.mark.fault("X1")
@pytest.mark.parametrize("task", ["detection", "segmentation", "depth", "classification"])
def test_a_disagreement_leaves_what_was_there(small_network, export_small, tmp_path, task):
    """The graph's last layer is nudged; the check must see it in every task."""
    layer = {"detection": "boxes", "segmentation": "pixels", "depth": "distance", "classification": "label"}[task]

    def nudge(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(f"{layer}.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values.flat[0] += 2e-3
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    out = tmp_path / "small.onnx"
    out.write_bytes(b"the file of yesterday")
    with pytest.raises(ParityError, match=f"disagree.*{task}"):
        export_small(
            out, nudge, size=(64, 96), parity_sizes=((64, 96), (256, 512)), parity_batch_sizes=(2,), tasks=[task]
        )
    assert out.read_bytes() == b"the file of yesterday"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.fault("X1")
@pytest.mark.parametrize("change", ["iou", "order"])
def test_a_disagreement_of_the_decoding_alone_is_seen(export_small, tmp_path, change):
    """Raw outputs agree, boxes after suppression do not: by made-up scores, whatever images bring."""

    def nudge(model):
        suppression = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
        if change == "iou":
            threshold = graph.initializers(model)[suppression.input[3]]
            threshold.CopyFrom(onnx.numpy_helper.from_array(np.float32([0.4]), threshold.name))
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([3]), "three"))
            suppression.input[2] = "three"

    with pytest.raises(ParityError, match=r"disagree.*detection"):
        export_small(tmp_path / "x.onnx", nudge, size=(64, 64), tasks=["detection"])
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("X1")
@pytest.mark.parametrize("count", [1, 5])
def test_nothing_three_hundred_boxes_and_one_class_alone(small_network, small_graph, count):
    """Decoded by the graph from raw outputs as by torch; the crowd fills all 300 places."""
    ends = {entry.name: entry for entry in small_graph.graph.output}
    names = [f"detection.{key}" for key in ("boxes", "scores", "labels")]
    piece = graph.extract_subgraph(small_graph, [ends["detection.raw.logits"], ends["detection.raw.boxes"]], names)
    session = onnxruntime.InferenceSession(piece.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        raw = small_network(torch.from_numpy(pictures(count, 256, 320, seed=1)), ["detection"])["detection"]
    corners = raw.boxes[..., :2].repeat(1, 1, 2) + torch.tensor([0.0, 0, 6, 6])  # so small that few are suppressed
    totals = {}
    for where, logits in parity.generate_edge_cases(raw.logits.numpy()):
        given = {"detection.raw.logits": logits, "detection.raw.boxes": corners.numpy()}
        found = dict(zip(names, session.run(names, given), strict=True))
        wanted = small_network.decode({"detection": raw._replace(logits=torch.from_numpy(logits), boxes=corners)}, ())
        comparison = ParityCheck({"detection": small_network.specs["detection"]}, {"detection": 0.6})
        comparison.update(where, {key: value.numpy() for key, value in wanted.items()}, found)
        comparison.compute()
        totals[where] = (found["detection.scores"] > 0).sum(1)
        if where == "class 2 alone":
            assert (found["detection.labels"][found["detection.scores"] > 0] == 2).all()
    assert (totals["no detections"] == 0).all()
    assert (totals["a crowd"] == 300).all()
    assert (totals["class 0 alone"] > 0).all()


def test_a_network_that_cannot_be_traced_is_a_clear_error(small_network, tmp_path):
    class Untraceable(type(small_network)):
        def forward(self, images, tasks=None):
            return super().forward(images if images.sum() > 5 else images + 1, tasks)

    model = copy.deepcopy(small_network)
    model.__class__ = Untraceable
    with pytest.raises(PerceptionError, match="cannot be exported"):
        export(model, tmp_path / "x.onnx", size=(64, 64), dynamic=False)
    assert not list(tmp_path.iterdir())


SPEC = TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("car", "bike"))


def batch(boxes, scores, labels, places: int = 4) -> dict[str, np.ndarray]:
    room = places - len(scores)
    return {
        "detection.boxes": np.float32([[*boxes, *[[0, 0, 0, 0]] * room]]),
        "detection.scores": np.float32([[*scores, *[0] * room]]),
        "detection.labels": np.int64([[*labels, *[0] * room]]),
    }


def compare(wanted, found) -> dict[str, float]:
    comparison = ParityCheck({"detection": SPEC}, {"detection": 0.5})
    comparison.update("a batch", wanted, found)
    return comparison.compute()


A, B = [0, 0, 10, 10], [50, 50, 80, 90]


def test_comparison_ignores_the_order_of_equal_scores():
    assert compare(batch([A, B], [0.5, 0.5], [0, 1]), batch([B, A], [0.5, 0.5], [1, 0])) == {
        "detection.boxes": 0,
        "detection.scores": 0,
        "detection.unmatched": 0,
    }


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        ([A], [0.5], [0]),  # one is missing
        ([A, B, [20, 20, 30, 30]], [0.5, 0.4, 0.3], [0, 1, 0]),  # one too many
        ([A, [50, 50, 80, 90.1]], [0.5, 0.4], [0, 1]),  # moved
        ([A, B], [0.5, 0.41], [0, 1]),  # another score
        ([A, B], [0.5, 0.4], [0, 0]),  # another class
        ([A, B], [0.5, np.nan], [0, 1]),
        ([A, [50, 50, np.inf, 90]], [0.5, 0.4], [0, 1]),
    ],
)
def test_comparison_sees_what_is_wrong(boxes, scores, labels):
    with pytest.raises(ParityError):
        compare(batch([A, B], [0.5, 0.4], [0, 1]), batch(boxes, scores, labels))


def test_a_network_that_gives_no_numbers_is_said_to_be_ruined():
    """Whichever side it is: more training does not help."""
    specs = {"depth": TaskSpec("depth", "dense", ("depth",), unit="m")}
    sides = [{"depth.depth": np.full((1, 2, 2), value, np.float32)} for value in (np.nan, 1.0)]
    for wanted, found in (sides, sides[::-1], sides[:1] * 2):
        with pytest.raises(ParityError, match=r"no number .* training diverged"):
            ParityCheck(specs, {}).update("noise", wanted, found)


def test_comparison_excuses_ties_but_not_many():
    full = [[i * 100, 0, i * 100 + 10, 10] for i in range(200)]
    one = [[-50, 0, -40, 10], *full[1:]]  # another candidate took the last place, with the same score
    scores = [0.1, *[0.5] * 199]
    result = compare(batch(full, scores, [0] * 200, 200), batch(one, scores, [0] * 200, 200))
    assert result["detection.unmatched"] == pytest.approx(1 / 200)
    few = [batch(boxes, [0.5, 0.1], [0, 0], 2) for boxes in ([A, B], [A, [1, 1, 5, 5]])]
    with pytest.raises(ParityError, match="unmatched"):
        compare(*few)


def test_real_images_are_letterboxed_for_the_check():
    image = cv2.cvtColor(np.full((50, 100, 3), 200, np.uint8), cv2.COLOR_BGR2RGB)
    described = list(parity.generate_batches(((64, 64),), (2,), [image]))
    assert [where for where, _ in described] == ["noise 2x3x64x64", "images 2x3x64x64"]
    assert described[1][1].shape == (2, 3, 64, 64)
    assert (described[1][1][:, :, :32] == 200).all()
    assert (described[1][1][:, :, 32:] == 114).all()


def test_the_report_names_the_file(exported):
    assert isinstance(exported, Path)
    assert Predictor(exported).manifest.producer.startswith("perception ")


def test_a_place_that_cannot_be_written_is_told(export_small, tmp_path):
    (tmp_path / "file").write_text("kept", "utf-8")
    with pytest.raises(PerceptionError, match="cannot be written"):
        export_small(tmp_path / "file" / "model.onnx", size=(64, 64))
    assert (tmp_path / "file").read_text("utf-8") == "kept"
