"""Files that letterbox inside: the same predictions as with the letterbox outside, in the pixels of the images."""

import dataclasses

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from perception.export import embedded_preprocessing, graph, letterbox_operators
from perception.export.parity import ParityError, draw_rectangles
from perception.ops import image as geometry
from perception.runtime.manifest import extract_manifest
from perception.runtime.predictor import Predictor
from perception.types import Camera, PerceptionError, TaskSpec

SIZES = ((96, 160), (90, 150), (61, 97), (240, 320), (333, 210), (500, 40))


@pytest.fixture(scope="module")
def session(exported_with_preprocessing):
    return onnxruntime.InferenceSession(exported_with_preprocessing, providers=["CPUExecutionProvider"])


def picture(height: int, width: int) -> np.ndarray:
    return cv2.GaussianBlur(draw_rectangles(np.random.default_rng(height), height, width), (0, 0), 1.5)


def test_the_manifest_says_so(exported_with_preprocessing):
    manifest = extract_manifest(exported_with_preprocessing.read_bytes(), "")
    assert manifest.input.embeds_preprocessing
    assert not manifest.input.dynamic
    assert (manifest.input.layout, manifest.input.size) == ("NHWC", (96, 160))
    assert "pixels of the image" in manifest.outputs["detection.boxes"].description
    assert {"letterbox", "detection.boxes", "detection.boxes (embedded)"} <= set(manifest.parity)
    assert manifest.parity["letterbox"] <= embedded_preprocessing.LETTERBOX_TOLERANCE
    assert "letterboxed" not in manifest.outputs


@pytest.mark.parametrize("size", SIZES)
def test_the_frame_is_that_of_the_package(exported_with_preprocessing, session, size):
    """Outputs are in the image's pixels, and the image lies where the package would have put it."""
    found = dict(
        zip(
            [entry.name for entry in session.get_outputs()],
            session.run(None, {"images": picture(*size)[None]}),
            strict=True,
        )
    )
    assert found["segmentation.mask"].shape == found["depth.depth"].shape == (1, *size)
    boxes = found["detection.boxes"][found["detection.scores"] > 0]
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= (size[1], size[0]) * 2).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("size", SIZES)
def test_inside_says_what_outside_says(exported, exported_with_preprocessing, size):
    """But for the rounding of the letterbox to whole levels, which this network with its steep scores shows."""
    image, camera = picture(*size), Camera(100, 100, size[1] / 2, size[0] / 2)
    here, there = (Predictor(path, threads=1)(image, camera) for path in (exported, exported_with_preprocessing))
    assert there.size == size
    maps = [side.annotations["segmentation"].values for side in (here, there)]
    assert (maps[0] != maps[1]).mean() < 0.03
    depths = [side.annotations["depth"].values for side in (here, there)]
    assert np.median(np.abs(np.log(depths[0] / depths[1]))) < 0.02
    probabilities = [side.annotations["classification"].values for side in (here, there)]
    np.testing.assert_allclose(*probabilities, atol=0.01)
    best = [side.annotations["detection"].boxes[:5] for side in (here, there)]
    assert (np.abs(best[0][:, None] - best[1][None]).max(2).min(1) < 0.02 * max(size)).mean() >= 0.6


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.0, 1.3, 1.7, 2.0, 2.5, 3.0, 4.0, 5.3])
def test_the_letterbox_is_that_of_the_package(small_graph, small_network, scale):
    """Within rounding up to a shrinkage of 2.8 and at whole ones; nearly beyond, where the package averages areas."""
    whole = embedded_preprocessing.embed_letterbox(small_graph, small_network.specs, (96, 160))
    run = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    image = picture(round(90 * scale), round(160 * scale))
    (placed,) = run.run([embedded_preprocessing.LETTERBOXED], {"images": image[None]})
    frame = geometry.compute_letterbox(image.shape[:2], (96, 160))
    wanted = geometry.warp_image(image, frame).transpose(2, 0, 1)
    away = np.abs(placed[0] - wanted)
    assert placed.shape == (1, 3, 96, 160)
    assert (placed[0][:, 95:] == geometry.PAD_VALUE).all() or frame.placement[3] == 96
    assert away.max() <= (embedded_preprocessing.LETTERBOX_TOLERANCE if scale < 2.8 or scale == round(scale) else 12)
    assert away.mean() < 0.5


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (96, 160)])
def test_every_image_lies_where_the_package_puts_it_ties_too(small_graph, small_network, size):
    """By whole numbers: of 1,600 sizes, some are placed at exact halves."""
    whole = embedded_preprocessing.embed_letterbox(small_graph, small_network.specs, size)
    value = onnx.helper.make_tensor_value_info("place/place", onnx.TensorProto.INT64, [2])
    whole.graph.output.append(value)
    alone = graph.keep_outputs(whole, ["place/place"])
    run = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    wrong = []
    for height in range(1, 80, 2):
        for width in range(1, 120, 3):
            (found,) = run.run(None, {"images": np.zeros((1, height, width, 3), np.uint8)})
            if tuple(found) != geometry.compute_letterbox((height, width), size).placement[:1:-1]:
                wrong.append((height, width))
    assert wrong == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_is_its_images(session, count):
    images = np.stack([picture(120 + i, 200)[:120] for i in range(count)])
    together = session.run(None, {"images": images})
    for i in range(count):
        for whole, alone in zip(together, session.run(None, {"images": images[i : i + 1]}), strict=True):
            np.testing.assert_allclose(whole[i], alone[0], rtol=1e-4, atol=1e-2)


def test_images_of_unlike_sizes_and_the_runtimes_own_sizes(exported_with_preprocessing):
    perceiver = Predictor(exported_with_preprocessing, threads=1).warm_up()
    found = perceiver([picture(*size) for size in SIZES[:3]])
    assert [one.size for one in found] == list(SIZES[:3])
    assert perceiver(picture(50, 50), size=(96, 160)).size == (50, 50)
    with pytest.raises(PerceptionError, match=r"Wrong input size 64x64\. This file was exported for 96x160 alone"):
        perceiver(picture(50, 50), size=(64, 64))
    assert set(Predictor(exported_with_preprocessing, tasks=["depth"])(picture(50, 50)).annotations) == {"depth"}


@pytest.mark.fault("X1")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gray = Constant <value_float = {pad}.0>", "gray = Constant <value_float = 0.0>", "levels away"),
        ("{name}_above = Add ({name}_twice, {below})", "{name}_above = Identity ({name}_twice)", "levels away|gives"),
        ("clipped = Min (low, border)", "clipped = Identity (low)", "detection"),
        ("flat = Squeeze (resized, axis)", "twice = Add (resized, resized)\n  flat = Squeeze (twice, axis)", "depth"),
        ("order = Constant <value_ints = [1, 0, 1, 0]>", "order = Constant <value_ints = [0, 1, 0, 1]>", "detection"),
        ("{name}_middle = Add ({name}_twice, {name}_one)", "{name}_middle = Identity ({name}_twice)", "mask"),
    ],
)
def test_a_wrong_letterbox_or_way_back_is_seen(small_graph, small_network, monkeypatch, old, new, message):
    names = (
        "LETTERBOX",
        "ROUNDED_RATIO",
        "SCALE_FACTORS",
        "RESTORE_BOXES",
        "RESTORE_CLASS_IDS",
        "NEAREST_INDICES",
        "RESTORE_VALUES",
    )
    (name,) = [name for name in names if old in getattr(letterbox_operators, name)]
    monkeypatch.setattr(letterbox_operators, name, getattr(letterbox_operators, name).replace(old, new))
    specs = small_network.specs
    with pytest.raises(ParityError, match=message):
        embedded_preprocessing.verify_embedding(
            embedded_preprocessing.embed_letterbox(small_graph, specs, (96, 160)),
            small_graph,
            specs,
            {"detection": 0.6},
        )


def test_the_further_maps_of_a_quantity_are_resized_and_no_lens_scales_them(small_graph, small_network):
    """A depth with its expected error: both lie in the image, only the first is through a canonical lens."""
    core = onnx.ModelProto()
    core.CopyFrom(small_graph)
    depth = next(entry for entry in core.graph.output if entry.name == "depth.depth")
    core.graph.node.append(onnx.helper.make_node("Identity", ["depth.depth"], ["depth.error"], "graph/error"))
    error = core.graph.output.add()
    error.CopyFrom(depth)
    error.name = "depth.error"
    spec = dataclasses.replace(small_network.specs["depth"], outputs=("depth", "error"))
    specs = small_network.specs | {"depth": spec}
    whole = embedded_preprocessing.embed_letterbox(core, specs, (96, 160))
    embedded_preprocessing.verify_embedding(whole, core, specs, {"detection": 0.6})
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    metres, share = session.run(["depth.depth", "depth.error"], {"images": picture(180, 320)[None]})
    assert metres.shape == share.shape == (1, 180, 320)
    np.testing.assert_allclose(metres, share / 2, rtol=1e-5)  # the image is shrunk to a half


def test_a_task_of_unknown_geometry_is_refused(small_graph, small_network):
    spec = TaskSpec("detection", "instances", ("boxes", "scores", "labels", "masks"), ("car",))
    with pytest.raises(PerceptionError, match=r"detection: outputs boxes, scores, labels, masks cannot be brought"):
        embedded_preprocessing.embed_letterbox(small_graph, small_network.specs | {"detection": spec}, (96, 160))
