"""What TensorRT's parser lays down holds for every file that is written; where it cannot, the export says so."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perception.export import embedded_preprocessing, int8, tensorrt
from perception.export.fp16 import convert_to_fp16
from perception.export.trace import trace_to_onnx
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.tasks import TASKS
from perception.types import PerceptionError

IMAGES = [np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), np.uint8)]


def network(**detection) -> MultiTaskModel:
    """One with all four tasks, untrained."""
    tasks = {
        "detection": TASKS["detection"].Config(classes=("car", "bike"), num_convs=1, channels=16, **detection),
        "segmentation": TASKS["segmentation"].Config(classes=tuple("abcde"), channels=16),
        "depth": TASKS["depth"].Config(channels=16),
        "classification": TASKS["classification"].Config(classes=("day", "night"), channels=16),
    }
    return MultiTaskModel(ModelConfig(backbone=BackboneConfig(name="lcnet_035", weights="none")), tasks).eval()


@pytest.mark.slow
@pytest.mark.parametrize("detection", [{}, {"one_to_one": True}, {"bins": 8}], ids=["plain", "one to one", "bins"])
@pytest.mark.parametrize("size", [None, (352, 544), (640, 640), (1088, 1920)])
def test_every_kind_of_file_passes(detection, size):
    model = network(**detection)
    core = trace_to_onnx(model, model.specs, size)
    forms = {"fp32": core, "fp16": convert_to_fp16(core)}
    if size:
        forms["inside"] = embedded_preprocessing.embed_letterbox(core, model.specs, size)
        forms["inside fp16"] = embedded_preprocessing.embed_letterbox(forms["fp16"], model.specs, size)
    assert {name: tensorrt.find_problems(form) for name, form in forms.items()} == {name: [] for name in forms}
    assert core.ir_version == 8
    assert [(entry.domain, entry.version) for entry in core.opset_import] == [("", 18)]


def test_int8_for_tensorrt_is_symmetric_and_int8_for_processors_is_told_apart(small_graph, small_network):
    for symmetric in (True, False):
        ready = onnx.shape_inference.infer_shapes(small_graph)
        nodes = [name for names in int8.find_blocks(ready).values() for name in names]
        form = int8.quantize(ready, nodes, int8.calibrate_ranges(ready, IMAGES), symmetric)
        kinds = [node.op_type for node in form.graph.node]
        assert kinds.count("QuantizeLinear") >= 2
        for whole in (form, embedded_preprocessing.embed_letterbox(form, small_network.specs, (64, 96))):
            found = tensorrt.find_problems(whole)
            assert bool(found) is not symmetric
            assert all("not symmetric in int8" in problem for problem in found)


def test_the_report_tells_and_the_target_refuses(export_small, tmp_path, monkeypatch):
    monkeypatch.setattr("perception.export.export.tensorrt.find_problems", lambda model: ["float64 (graph/Cast_1)"])
    report = export_small(tmp_path / "a.onnx", size=(64, 64))
    assert "TensorRT would refuse this file: float64 (graph/Cast_1)." in str(report)
    with pytest.raises(PerceptionError, match=r"TensorRT would refuse this file: float64 .* Nothing is written"):
        export_small(tmp_path / "b.onnx", size=(64, 64), target="tensorrt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.onnx"]


@pytest.mark.slow  # a whole export; the rule itself is tested below
def test_too_many_candidates_for_tensorrt_are_told():
    model = network(candidates=4000)
    found = tensorrt.find_problems(trace_to_onnx(model, model.specs, (64, 64)))
    assert [problem.partition(" (")[0] for problem in found] == [
        "TopK of 4000: it takes a fixed number under 3840, sorted"
    ]


def model_of(nodes, inputs, outputs, held=(), opset=18):
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in part] for part in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held]
    graph = helper.make_graph(nodes, "g", *values, initializer=tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


F, B, D, INT = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.DOUBLE, TensorProto.INT64
NODE = helper.make_node


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            model_of(
                [NODE("Cast", ["x"], ["b"], to=B), NODE("Identity", ["b"], ["c"]), NODE("Cast", ["c"], ["y"], to=F)],
                [("x", F, [2])],
                [("y", F, [2])],
            ),
            "bytes .* between operators",
        ),
        (model_of([NODE("Identity", ["x"], ["y"])], [("x", B, [2])], [("y", B, [2])]), "bytes .* is read by"),
        (model_of([NODE("Cast", ["x"], ["y"], to=B)], [("x", INT, [2])], [("y", B, [2])]), "not cast from float32"),
        (
            model_of(
                [NODE("Cast", ["x"], ["d"], to=D), NODE("Cast", ["d"], ["y"], to=F)], [("x", F, [2])], [("y", F, [2])]
            ),
            "float64",
        ),
        (
            model_of([NODE("TopK", ["x", "k"], ["y", "i"])], [("x", F, [5000])], [("y", F, [None])], [("k", [3840])]),
            "TopK of 3840",
        ),
        (
            model_of(
                [NODE("Shape", ["x"], ["k"]), NODE("TopK", ["x", "k"], ["y", "i"])],
                [("x", F, ["n"])],
                [("y", F, [None])],
            ),
            "TopK of computed",
        ),
        (model_of([NODE("Det", ["x"], ["y"])], [("x", F, [2, 2])], [("y", F, [])]), "operator Det"),
        (
            model_of(
                [NODE("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)],
                [("x", F, [1, 1, 8, 8])],
                [("y", F, [1, 1, 4, 4])],
                [("s", np.float32([1, 1, 0.5, 0.5]))],
            ),
            "Resize with antialias 1",
        ),
        (model_of([NODE("Relu", ["x"], ["y"])], [("x", F, [2])], [("y", F, [2])], opset=23), "operator set 23"),
    ],
)
def test_each_rule_sees_what_it_is_for(model, message):
    found = tensorrt.find_problems(model)
    assert any(re.search(message, problem) for problem in found), found


def test_a_plain_graph_has_nothing_against_it():
    model = model_of(
        [NODE("Cast", ["x"], ["f"], to=F), NODE("Relu", ["f"], ["r"]), NODE("Cast", ["r"], ["y"], to=B)],
        [("x", B, [2])],
        [("y", B, [2])],
    )
    assert tensorrt.find_problems(model) == []
