"""The torch-free runtime: what it refuses (S3, X3), what it mends (M4), and that it needs nothing but its base."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch_free import without_torch

from perception.runtime import onnx_file
from perception.runtime.manifest import (
    DIGEST_KEY,
    MANIFEST_KEY,
    Manifest,
    _sha256,
    embed_manifest,
    extract_manifest,
    parse_manifest,
)
from perception.runtime.predictor import Predictor, sanitize_outputs
from perception.runtime.result import Result
from perception.types import Camera, DenseMap, ImageLabel, Instances, PerceptionError, Prediction


def picture(height: int = 90, width: int = 150, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def perceiver(exported) -> Predictor:
    return Predictor(exported, threads=1)


def test_without_torch_the_result_is_the_same(exported, perceiver, tmp_path):
    np.save(tmp_path / "image.npy", picture())
    code = """
import json, numpy, perception, perception.video.predict
from perception.runtime.predictor import Predictor
found = Predictor(sys.argv[1], threads=1)(numpy.load(sys.argv[2]))
boxes, depth = (found.annotations[name] for name in ("detection", "depth"))
said = {"boxes": boxes.boxes.tolist(), "mean": float(depth.values.mean()), "torch": "torch" in sys.modules}
found.plot(), found.points(4), found.to_dict()
said["foreign"] = sorted({m.split(".")[0] for m in sys.modules} - set(sys.stdlib_module_names) - set(sys.argv[3:]))
print(json.dumps(said))
"""
    own = ("perception", "numpy", "cv2", "onnxruntime", "simplejpeg", "yaml", "_yaml", "sitecustomize")
    said = json.loads(without_torch(code, str(exported), str(tmp_path / "image.npy"), *own))
    here = perceiver(picture())
    assert not said["torch"]
    assert [name for name in said["foreign"] if not name.startswith(("_", "cython"))] == []
    assert said["boxes"] == here.annotations["detection"].boxes.tolist()
    assert said["mean"] == pytest.approx(float(here.annotations["depth"].values.mean()))


def test_importing_the_package_is_quick_and_light():
    code = "import time; t = time.perf_counter(); import perception; print(time.perf_counter() - t, len(sys.modules))"
    seconds, _ = without_torch(code).split()
    assert float(seconds) < 0.5


def test_annotations_are_in_source_pixels(perceiver):
    found = perceiver(picture(90, 150))
    assert found.size == (90, 150)
    boxes, depth, labels = (found.annotations[name] for name in ("detection", "depth", "segmentation"))
    assert isinstance(boxes, Instances)
    assert len(boxes.boxes) > 0
    assert (boxes.boxes >= 0).all()
    assert (boxes.boxes <= (150, 90, 150, 90)).all()
    assert isinstance(depth, DenseMap)
    assert depth.values.shape == labels.values.shape == (90, 150)
    assert isinstance(found.annotations["classification"], ImageLabel)
    assert found.annotations["classification"].values.sum() == pytest.approx(1, abs=1e-5)
    assert found.distances is not None
    assert len(found.distances) == len(boxes.boxes)
    assert found.flags == ()


def test_images_of_unlike_sizes_in_one_batch_do_not_see_one_another(perceiver):
    pictures = [picture(90, 150), picture(64, 64, 1), picture(200, 40, 2)]
    together = perceiver(pictures)
    for one, alone in zip(together, map(perceiver, pictures), strict=True):
        assert one.size == alone.size
        np.testing.assert_allclose(one.annotations["detection"].boxes, alone.annotations["detection"].boxes, atol=1e-2)
        np.testing.assert_allclose(one.annotations["depth"].values, alone.annotations["depth"].values, rtol=1e-4)
    assert perceiver([]) == []


def test_depth_follows_the_focal_length(perceiver):
    near, far = (perceiver(picture(), Camera(f, f, 75, 45)).annotations["depth"].values for f in (400, 800))
    unclipped = (near > 0.5) & (far < 80) & (near < 80) & (far > 0.5)
    np.testing.assert_allclose(far[unclipped], 2 * near[unclipped], rtol=1e-5)


def test_only_the_tasks_that_were_asked_for(exported):
    some = Predictor(exported, threads=1, tasks=["depth", "classification"])
    assert set(some(picture()).annotations) == {"depth", "classification"}
    assert set(some.run(np.zeros((1, 3, 64, 64), np.uint8))) == {"depth.depth", "classification.probabilities"}
    with pytest.raises(PerceptionError, match=r"No task lidar\. The network has: detection"):
        Predictor(exported, tasks=["lidar"])


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((9, 9, 3), np.float32), r"float32 \[9, 9, 3\]. Expected uint8 RGB"),
        (np.zeros((3, 9, 9), np.uint8), r"uint8 \[3, 9, 9\]"),
        (np.zeros((9, 9), np.uint8), r"uint8 \[9, 9\]"),
        (np.zeros((9, 9, 4), np.uint8), r"uint8 \[9, 9, 4\]"),
        (np.zeros((0, 9, 3), np.uint8), "Empty image"),
        (["image.jpg"], "Wrong image: str"),
        (None, "Wrong image: NoneType"),  # what cv2.imread gives for a missing file
    ],
)
def test_wrong_images(perceiver, wrong, message):
    with pytest.raises(PerceptionError, match=message):
        perceiver(wrong)


def test_a_result_is_a_view_of_its_prediction_over_the_threshold(perceiver):
    image, camera = picture(), Camera(140, 140, 75, 45)
    found = perceiver(image, camera)
    everything, spec = found.annotations["detection"], perceiver.specs["detection"]
    shown = everything.scores >= spec.score_threshold
    assert shown.sum() > 0
    np.testing.assert_array_equal(found.boxes, everything.boxes[shown])
    np.testing.assert_array_equal(found.scores, everything.scores[shown])
    np.testing.assert_array_equal(found.distances, found.prediction.distances[shown])
    assert found.labels == [spec.classes[k] for k in found.label_ids]
    assert found.segmentation_mask.dtype == np.uint8
    np.testing.assert_array_equal(found.segmentation_mask, found.annotations["segmentation"].values)
    np.testing.assert_array_equal(found.depth, found.annotations["depth"].values)
    assert list(found.scene_probabilities.values()) == sorted(found.scene_probabilities.values(), reverse=True)
    assert set(found.scene_probabilities) == {"day", "night"}
    assert found.tracks is found.closing_speeds is found.times_to_contact is None
    assert (found.size, found.valid, found.flags) == ((90, 150), True, ())
    assert [item["label"] for item in found.to_dict()["detection"]] == found.labels
    assert found.plot("image").shape == (90, 150, 3)
    assert found.plot().shape[1] > 3 * 150


def test_a_threshold_hides_boxes_and_their_distances_alike(perceiver):
    found = perceiver(picture())
    spec = dataclasses.replace(perceiver.specs["detection"], score_threshold=float(np.median(found.scores)) + 1e-6)
    strict = Result(found.prediction, {**perceiver.specs, "detection": spec}, found.image)
    assert 0 < len(strict.boxes) < len(found.boxes)
    assert len(strict.boxes) == len(strict.labels) == len(strict.scores) == len(strict.distances)
    assert len(strict.to_dict()["detection"]) == len(strict.boxes)


def test_points_go_back_through_the_lens_to_their_pixels(perceiver):
    image, camera = picture(), Camera(140, 130, 70, 41)
    found = perceiver(image, camera)
    cloud = found.point_cloud(stride=3)
    points = cloud.points.astype(np.float64)
    assert cloud.points.dtype == np.float32
    assert len(points) == 30 * 50
    columns = points[:, 0] / points[:, 2] * camera.fx + camera.cx - 0.5
    rows = points[:, 1] / points[:, 2] * camera.fy + camera.cy - 0.5
    x, y = np.rint(columns).astype(int), np.rint(rows).astype(int)
    np.testing.assert_allclose(columns, x, atol=1e-3)
    np.testing.assert_allclose(rows, y, atol=1e-3)
    np.testing.assert_allclose(points[:, 2], found.depth[y, x], rtol=1e-6)
    np.testing.assert_array_equal(cloud.colors, image[y, x])
    np.testing.assert_array_equal(cloud.labels, found.segmentation_mask[y, x])
    np.testing.assert_array_equal(found.points(), found.point_cloud().points)


def test_pixels_that_are_not_valid_are_no_points_and_have_no_label(perceiver):
    found = perceiver(picture())
    depth, labels = found.annotations["depth"], found.annotations["segmentation"]
    known = np.zeros((90, 150), bool)
    known[:10] = True
    parts = {"depth": DenseMap(depth.values, known), "segmentation": DenseMap(labels.values, ~known)}
    some = Result(Prediction(parts, (90, 150)), perceiver.specs, found.image)
    cloud = some.point_cloud()
    assert len(cloud.points) == known.sum()
    assert (cloud.labels == -1).all()
    assert np.isnan(some.depth[~known]).all()
    assert (some.segmentation_mask[known] == 255).all()


def test_views_of_what_the_network_lacks_are_none(exported):
    found = Predictor(exported, threads=1, tasks=["classification"])(picture())
    missing = (
        found.boxes,
        found.labels,
        found.scores,
        found.distances,
        found.segmentation_mask,
        found.depth,
        found.tracks,
    )
    assert missing == (None,) * 7
    with pytest.raises(PerceptionError, match=r"No points without depth\. The tasks are: classification"):
        found.points()


def test_threads_providers_and_warm_up(exported):
    options = {"arena_extend_strategy": "kSameAsRequested"}
    one = Predictor(exported, threads=1, providers=[("CPUExecutionProvider", options)], allow_spinning=False)
    assert one.warm_up(batch_size=2, size=(64, 64)) is one
    two = Predictor(exported, threads=2, providers="CPUExecutionProvider", tasks="depth")
    np.testing.assert_allclose(one(picture()).depth, two(picture()).depth, rtol=1e-5)


def test_a_provider_that_does_not_start_is_told(exported, monkeypatch):
    """ONNX Runtime takes the CPU instead and says so only in its log."""
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(PerceptionError, match="does not start"),
    ):
        Predictor(exported, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize("task", ["detection", "segmentation", "depth", "classification"])
def test_the_graph_is_cut_down_to_the_tasks_that_are_asked_for(exported, task):
    """ONNX Runtime would run all of it, whatever it is asked for."""
    whole = exported.read_bytes()
    names = [name for name in onnx_file.read_output_names(whole) if name.startswith(f"{task}.")]
    cut = onnx_file.prune_to_outputs(whole, names)
    before, after = onnx.load_from_string(whole).graph, onnx.load_from_string(cut).graph
    onnx.checker.check_model(cut)
    assert [value.name for value in after.output] == names
    share = {"detection": 0.9, "segmentation": 0.4, "depth": 0.4, "classification": 0.3}[task]
    assert len(after.node) < share * len(before.node)
    assert {tensor.name for tensor in after.initializer} < {tensor.name for tensor in before.initializer}
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 160), np.uint8)
    alone, together = Predictor(exported, threads=1, tasks=[task]).run(image), Predictor(exported, threads=1).run(image)
    assert list(alone) == names
    for name, values in alone.items():
        np.testing.assert_allclose(values, together[name], rtol=1e-5, atol=1e-6)


def test_what_the_branches_of_a_node_read_from_outside_is_kept():
    entries = {
        name: helper.make_tensor_value_info(name, kind, [1])
        for name, kind in (("x", TensorProto.FLOAT), ("c", TensorProto.BOOL), ("y", TensorProto.FLOAT))
    }
    branch = helper.make_graph(
        [helper.make_node("Neg", ["outer"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["outer"]),
        helper.make_node("Exp", ["x"], ["unused"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(nodes, "g", [entries["x"], entries["c"]], [entries["y"]])
    cut = onnx_file.prune_to_outputs(helper.make_model(graph).SerializeToString(), ["y"])
    assert [node.op_type for node in onnx.load_from_string(cut).graph.node] == ["Abs", "If"]


@pytest.mark.fault("X3")
@pytest.mark.parametrize("camera", [Camera(0, 140, 75, 45), Camera(140, -1, 75, 45), Camera(140, 140, float("nan"), 4)])
def test_wrong_cameras(perceiver, camera):
    with pytest.raises(PerceptionError, match=r"Wrong Camera.*fx and fy over 0"):
        perceiver(picture(), camera)


def test_one_perceiver_serves_many_threads(perceiver):
    pictures = [picture(seed=seed) for seed in range(4)]
    alone = [perceiver(image).boxes for image in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: perceiver(image).boxes, pictures * 3))
    for found, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.fault("X3")
def test_wrong_sizes_cameras_and_providers(perceiver, exported):
    with pytest.raises(PerceptionError, match=r"Wrong input size 250x333\. Expected multiples of 32\. Use 256x352"):
        perceiver(picture(), size=(250, 333))
    for wrong in (64, (64,), "64x64", (64.0, 64.0)):
        with pytest.raises(PerceptionError, match=r"Wrong input size.*\(height, width\)"):
            perceiver(picture(), size=wrong)
    with pytest.raises(PerceptionError, match="Wrong camera 'front'"):
        perceiver([picture()], ["front"])
    for wrong in ({"batch_size": 0}, {"size": (100, 100)}):
        with pytest.raises(PerceptionError, match="Wrong"):
            perceiver.warm_up(**wrong)
    for threads in (0, -3):
        with pytest.raises(PerceptionError, match="Wrong number of threads"):
            Predictor(exported, threads=threads)
    with pytest.raises(PerceptionError, match="2 cameras for 1 images"):
        perceiver([picture()], [None, None])
    with pytest.raises(PerceptionError, match="No execution provider NoSuch"):
        Predictor(exported, providers=["NoSuch"])
    assert perceiver(picture(), size=(64, 64)).size == (90, 150)


@pytest.mark.fault("S3")
def test_missing_empty_truncated_and_flipped_files(exported, tmp_path):
    whole = exported.read_bytes()
    path = tmp_path / "model.onnx"
    with pytest.raises(PerceptionError, match="No file at"):
        Predictor(path)
    for share in (0, 0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(PerceptionError, match=r"model\.onnx"):
            Predictor(path)
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(whole), 60):
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << int(generator.integers(8))]) + whole[position + 1 :]
        )
        with pytest.raises(PerceptionError):
            Predictor(path)


@pytest.mark.fault("S3")
@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "linked.bin", "hard.bin"])
def test_external_data_is_refused_before_a_session_is_made(exported, tmp_path, monkeypatch, location):
    model = onnx.load(exported)
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    values = tmp_path / "weights.bin"
    values.write_bytes(model.graph.initializer[0].raw_data)
    (path.parent / "linked.bin").symlink_to(values)
    os.link(values, path.parent / "hard.bin")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    manifest = extract_manifest(exported.read_bytes(), "")
    path.write_bytes(embed_manifest(model.SerializeToString(), manifest))
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("a session was made"))
    with pytest.raises(PerceptionError, match=r"model\.onnx: keeps weights in another file"):
        Predictor(path)


@pytest.mark.fault("S3")
def test_custom_operators_and_hidden_tensors_are_refused():
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("evil.ops", 1)]
    node = helper.make_node("Run", ["x"], ["y"], domain="evil.ops")
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", entries[:1], entries[1:])
    with pytest.raises(PerceptionError, match=r"operators of 'evil\.ops'"):
        onnx_file.check_model(helper.make_model(graph, opset_imports=opset).SerializeToString())
    with pytest.raises(PerceptionError, match=r"operators of 'evil\.ops'"):  # the node alone, without its import
        onnx_file.check_model(helper.make_model(graph, opset_imports=opset[:1]).SerializeToString())

    hidden = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="x.bin")
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "b", [], entries[1:])
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", entries[:1], entries[1:])
    with pytest.raises(PerceptionError, match="another file"):
        onnx_file.check_model(helper.make_model(graph, opset_imports=opset[:1]).SerializeToString())


def test_metadata_is_what_onnx_reads_and_the_rest_stays(exported):
    plain = onnx_file.strip_metadata(exported.read_bytes())
    data = onnx_file.replace_metadata(plain, {"a": "1", "ä": "x" * 300})
    assert {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props} == {
        "a": "1",
        "ä": "x" * 300,
    }
    assert onnx_file.read_metadata(data) == {"a": "1", "ä": "x" * 300}
    assert onnx_file.strip_metadata(data) == plain


@pytest.mark.fault("X3")
def test_missing_and_tampered_manifests(exported, tmp_path):
    whole, path = exported.read_bytes(), tmp_path / "model.onnx"
    plain, pairs = onnx_file.strip_metadata(whole), onnx_file.read_metadata(whole)
    changed = pairs[MANIFEST_KEY].replace('"car"', '"cat"')
    assert changed != pairs[MANIFEST_KEY]
    cases = {
        "has no manifest": {},
        "manifest was changed": {**pairs, MANIFEST_KEY: changed},
        "manifest was changed after": {MANIFEST_KEY: pairs[MANIFEST_KEY]},
        "format 9, expected 3": signed(pairs[MANIFEST_KEY].replace('"format": 3', '"format": 9')),
        "not valid": signed("[1, 2"),
    }
    for message, metadata in cases.items():
        path.write_bytes(onnx_file.replace_metadata(plain, metadata))
        with pytest.raises(PerceptionError, match=message):
            Predictor(path)
    model = onnx.load(exported)
    next(node for node in model.graph.node if node.op_type == "Div").op_type = "Mul"
    model_bytes = onnx_file.replace_metadata(model.SerializeToString(), pairs)
    path.write_bytes(model_bytes)
    with pytest.raises(PerceptionError, match="graph is not the one that was exported"):
        Predictor(path)


def signed(text: str) -> dict[str, str]:
    return {MANIFEST_KEY: text, DIGEST_KEY: _sha256(text)}


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("dtype", "float32", "input.dtype is 'float32', expected 'uint8'"),
        ("color_order", "BGR", "input.color_order is 'BGR', expected 'RGB'"),
        ("size", [100, 160], r"input.size \[100, 160\]"),
        ("size_divisor", 0, "input.size_divisor is 0"),
        ("pad_value", 0, "input.pad_value 0"),
    ],
)
def test_wrong_rules(exported, where, value, message):
    plain = dataclasses.asdict(extract_manifest(exported.read_bytes(), ""))
    plain["input"][where] = value
    with pytest.raises(PerceptionError, match=message):
        parse_manifest(json.dumps(plain), "model.onnx")


def test_manifest_round_trip(exported):
    manifest = extract_manifest(exported.read_bytes(), "")
    assert parse_manifest(json.dumps(dataclasses.asdict(manifest)), "") == manifest
    assert isinstance(manifest, Manifest)


@pytest.mark.fault("X3")
def test_outputs_that_the_graph_lacks(exported, tmp_path):
    model, manifest = onnx.load(exported), extract_manifest(exported.read_bytes(), "")
    del model.graph.output[-1]
    (tmp_path / "model.onnx").write_bytes(embed_manifest(model.SerializeToString(), manifest))
    with pytest.raises(PerceptionError, match=r"graph lacks: classification\.probabilities"):
        Predictor(tmp_path / "model.onnx")


@pytest.mark.fault("M4")
def test_what_no_consumer_should_see_is_flagged_and_gone(perceiver, monkeypatch):
    sound = perceiver.run(np.full((1, 3, 96, 160), 100, np.uint8))
    count = int((sound["detection.scores"] > 0).sum())
    assert count >= 5
    broken = {name: value.copy() for name, value in sound.items()}
    broken["detection.boxes"][0, 0, 0] = np.nan
    broken["detection.boxes"][0, 1] = (20, 20, 20, 40)  # no width
    broken["detection.scores"][0, 2] = np.inf
    broken["detection.labels"][0, 3] = 17
    broken["depth.depth"][0, :10, :10] = (-1, 0, np.nan, np.inf, 1, 1, 1, 1, 1, 1)
    broken["segmentation.mask"][0, 0, 0] = 200
    broken["classification.probabilities"][0] = np.nan
    monkeypatch.setattr(perceiver, "run", lambda images: broken)
    found = perceiver(np.full((96, 160, 3), 100, np.uint8))
    assert [flag.split(":")[0] for flag in found.flags] == ["detection", "segmentation", "depth", "classification"]
    assert "4 boxes" in found.flags[0]
    assert "40 of 15360 pixels" in found.flags[2]
    boxes = found.annotations["detection"]
    assert len(boxes.boxes) <= count - 4
    assert np.isfinite(boxes.boxes).all()
    assert np.isfinite(boxes.scores).all()
    assert (boxes.labels < 3).all()
    depth = found.annotations["depth"]
    assert (~depth.valid).sum() == 40
    assert (depth.values[depth.valid] > 0).all()
    assert np.isfinite(depth.values).all()
    assert not found.annotations["segmentation"].valid[0, 0]
    assert (found.annotations["classification"].values == 0).all()


@pytest.mark.fault("M4")
def test_sound_outputs_are_not_flagged(perceiver):
    outputs = {name: value[0] for name, value in perceiver.run(np.zeros((1, 3, 96, 160), np.uint8)).items()}
    mended, flags = sanitize_outputs(outputs, perceiver.specs)
    assert flags == []
    assert all(np.array_equal(mended[name], value) for name, value in outputs.items())
