"""perception bench MODEL: the pieces are the whole, forms take turns, and the table and the JSON say the same."""

import json
import time

import numpy as np
import onnx
import onnxruntime
import pytest

from perception import cli
from perception.bench import latency, partition, variants
from perception.bench.backends import build_variants
from perception.export import embedded_preprocessing
from perception.export import graph as passes
from perception.types import PerceptionError

TASKS = ("detection", "segmentation", "depth", "classification")


@pytest.fixture(scope="module")
def plain(small_graph):
    names = [entry.name for entry in small_graph.graph.output if ".raw." not in entry.name]
    return passes.keep_outputs(small_graph, names)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), np.uint8)


def run_pieces(parts, images) -> dict[str, np.ndarray]:
    values = {"images": images}
    for part in parts:
        onnx.checker.check_model(part.model)
        session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_outputs()]
        given = {entry.name: values[entry.name] for entry in session.get_inputs()}
        values |= dict(zip(names, session.run(names, given), strict=True))
    return values


def named(model, head: str = "tasks."):
    """The small network's nodes under the names that a real one's have: heads are modules of ``tasks``."""
    heads = {"boxes": "detection", "scores": "detection", "pixels": "segmentation", "distance": "depth"}
    heads |= {"label": "classification"}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for node in found.graph.node:
        path, _, rest = node.name.partition("/")
        node.name = f"{head}{heads[path]}.{path}/{rest}" if path in heads else f"trunk.{path}/{rest}"
        if path == "graph":
            node.name = f"graph/{rest}"
    return found


@pytest.mark.parametrize("kind", ["plain", "embedded", "int8", "fp16"])
def test_the_pieces_are_the_whole(small_graph, small_network, images, kind):
    from perception.export.fp16 import convert_to_fp16
    from perception.export.int8 import quantize_all

    model = named(small_graph)
    if kind == "embedded":
        model = embedded_preprocessing.embed_letterbox(model, small_network.specs, (64, 96))
        images = np.random.default_rng(0).integers(0, 256, (2, 70, 80, 3), np.uint8)
    elif kind != "plain":
        model = convert_to_fp16(model) if kind == "fp16" else quantize_all(model, [images])
    names = [f"{name}.{output}" for name, spec in small_network.specs.items() for output in spec.outputs]
    model = passes.keep_outputs(model, names)
    parts = partition.partition_graph(model, TASKS)
    labels = [part.label for part in parts]
    assert labels[: 1 + (kind == "embedded")] == [*(["letterbox"] if kind == "embedded" else []), "trunk"]
    assert {f"{task} head" for task in TASKS} <= set(labels)
    assert {f"{task} decoding" for task in TASKS} <= set(labels)
    values = run_pieces(parts, images)
    whole = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, wanted in zip(names, whole.run(names, {"images": images}), strict=True):
        if kind == "fp16":  # the whole skips roundings between float32 and float16 that pieces make at their ends
            if name in ("depth.depth", "classification.probabilities"):
                np.testing.assert_allclose(values[name], wanted, rtol=2e-2)
        elif wanted.dtype == np.float32:
            np.testing.assert_allclose(values[name], wanted, rtol=1e-4, atol=1e-3)
        else:
            assert (values[name] != wanted).mean() < 1e-3
    if kind == "int8":  # each piece still multiplies whole numbers
        heads = [part.model for part in parts if part.stage == "trunk"]
        assert any(node.op_type == "QuantizeLinear" for node in heads[0].graph.node)


def test_a_graph_of_unknown_names_is_one_piece_and_its_task_selections_are_smaller(plain, images):
    one = onnx.ModelProto()
    one.CopyFrom(plain)
    for number, node in enumerate(one.graph.node):
        node.name = f"n{number}"
    assert [part.label for part in partition.partition_graph(one, TASKS)] == ["trunk"]
    depth = variants.OnnxVariant("depth", passes.keep_outputs(named(plain), ["depth.depth"]), ["depth"])
    assert [name for name, _ in depth.build_stages(images)] == ["trunk", "depth head", "depth decoding", latency.TOTAL]


class Sleeper:
    """A form of known cost, which notes when it runs."""

    embeds_preprocessing = False

    def __init__(self, name: str, seconds: float, log: list) -> None:
        self.name, self.seconds, self.log, self.threads = name, seconds, log, 0

    def build_stages(self, images):
        return [("trunk", self.work), (latency.TOTAL, self.work)]

    def work(self) -> None:
        self.log.append((self.name, self.threads))
        end = time.process_time() + self.seconds
        while time.process_time() < end:
            pass

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def measure_memory(self, images):
        return 12.0


def test_forms_take_turns_and_ratios_are_of_processor_time():
    log: list = []
    slow, quick = Sleeper("slow", 0.01, log), Sleeper("quick", 0.002, log)
    found = latency.measure_latency([slow, quick], (64, 64), rounds=5, batch_sizes=(1, 2), thread_counts=(1, 3))
    assert [name for name, _ in log[:8]] == ["slow", "slow", "quick", "quick"] * 2
    assert {threads for _, threads in log} == {1, 3}
    assert found.speedups["quick"] == pytest.approx(5, rel=0.4)
    assert 0.01 <= found.costs["slow"]["trunk"].cpu < 0.02
    assert found.costs["slow"]["trunk"].wall >= found.costs["slow"]["trunk"].cpu * 0.9
    assert found.costs["slow"]["trunk"].wall_p99 >= found.costs["slow"]["trunk"].wall
    assert set(found.throughput["quick"]) == {(1, 1), (2, 1), (1, 3), (2, 3)}
    assert found.throughput["quick"][2, 1][1] == pytest.approx(2 / 0.002, rel=0.4)
    found.notes["quick"] = "made up"
    text = "\n".join(found.format_lines())
    for part in ("slow", "quick", "trunk", "batch 2, 3 threads", "peak memory of slow: 12 MB", "quick: made up"):
        assert part in text
    assert json.loads(json.dumps(found.to_json()))["costs"]["slow"]["trunk"]["cpu"] > 0


def test_the_command_on_files(exported, exported_with_preprocessing, tmp_path, capsys):
    """The letterbox inside is a stage of its own file; the other's is timed beside it."""
    out = tmp_path / "bench.json"
    arguments = [
        "--against",
        str(exported_with_preprocessing),
        "--rounds",
        "2",
        "--batch-sizes",
        "1",
        "--json",
        str(out),
    ]
    assert cli.main(["bench", str(exported), *arguments]) == 0
    text, numbers = capsys.readouterr().out, json.loads(out.read_text("utf-8"))
    assert "letterbox of 720x1280" in text
    assert "against small.onnx" in text
    assert numbers["costs"]["against small.onnx"]["letterbox"]["cpu"] > 0
    assert numbers["costs"]["small.onnx"][latency.TOTAL]["wall"] > 0
    assert numbers["memory_mb"]["small.onnx"] is not None
    assert numbers["size"] == [96, 160]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "rust"], "--backends rust: unknown. Known: torch, compiled"),
        (["--tasks", "lidar"], "No task lidar"),
        (["--against", "absent.onnx"], "No file at absent.onnx"),
    ],
)
def test_what_it_cannot_do(exported, capsys, arguments, message):
    assert cli.main(["bench", str(exported), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("error", "told"), [(RuntimeError("no g++\nat line 3"), "no g++"), (OSError(), "OSError")])
def test_where_torch_cannot_compile_a_line_says_so_and_the_other_forms_are_measured(
    small_network, tmp_path, monkeypatch, error, told
):
    def failing(*_):
        raise error

    monkeypatch.setattr(variants.torch, "compile", lambda forward: failing)
    notes: dict[str, str] = {}
    found = build_variants(tmp_path, small_network, (64, 96), ("torch", "compiled"), notes)
    assert [form.name for form in found] == ["torch"]
    assert notes == {"compiled": f"torch cannot compile the network here: {told}"}


def test_sizes_that_do_not_fit_are_told(exported, exported_with_preprocessing, capsys):
    assert cli.main(["bench", str(exported), "--size", "64x64", "--against", str(exported_with_preprocessing)]) == 2
    assert "only accepts input size 96x160" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", str(exported), "--threads", "0"])
    capsys.readouterr()
    with pytest.raises(PerceptionError):
        variants.load_variant("x", exported.with_suffix(".json"))


@pytest.mark.parametrize("tasks", [("segmentation", "depth"), ("depth",)])
def test_what_two_heads_compute_alike_is_there_for_either_alone(tasks):
    """The exporter merges it under the first head's name."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Relu", ["images"], ["x"], "trunk/Relu"),
        node("Exp", ["x"], ["mean"], "tasks.segmentation.project/Exp"),
        node("Neg", ["mean"], ["segmentation.mask"], "tasks.segmentation/Neg"),
        node("Abs", ["mean"], ["depth.depth"], "tasks.depth/Abs"),
    ]
    ends = [value(name, onnx.TensorProto.FLOAT, [2]) for name in ("segmentation.mask", "depth.depth")]
    graph = onnx.helper.make_graph(nodes, "g", [value("images", onnx.TensorProto.FLOAT, [2])], ends)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    model = passes.keep_outputs(model, [entry.name for entry in ends if entry.name.split(".")[0] in tasks])
    parts = partition.partition_graph(model, tasks)
    assert [part.label for part in parts] == ["trunk", *(f"{task} head" for task in tasks)]
    found = run_pieces(parts, np.array([-1, 2], np.float32))
    np.testing.assert_allclose(found["depth.depth"], np.exp([0, 2]), rtol=1e-6)
