"""Exported files in OpenVINO, where it is installed: the same outputs as ONNX Runtime's."""

import numpy as np
import onnxruntime
import pytest

from perception.export.parity import Comparison
from perception.runtime.manifest import extract

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)


@pytest.mark.parametrize(("file", "count"), [("exported", 1), ("exported", 3), ("exported_inside", 1)])
def test_x1_openvino_says_the_same(request, small_network, file, count):
    path = request.getfixturevalue(file)
    manifest = extract(path.read_bytes(), "")
    shape = (count, 90, 150, 3) if manifest.input.inside else (count, 3, 96, 160)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    answer = compiled({manifest.input.name: images})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = dict(zip(manifest.outputs, session.run(None, {manifest.input.name: images}), strict=True))
    found = {name: np.asarray(answer[name]) for name in manifest.outputs}
    comparison = Comparison(small_network.specs, {"detection": 0.6})
    comparison.add(file, wanted, {name: value.astype(wanted[name].dtype) for name, value in found.items()})
    comparison.finish()
    assert (wanted["detection.scores"] > 0).any()
