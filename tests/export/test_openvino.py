"""Exported files in OpenVINO, where it is installed: the same outputs as ONNX Runtime's."""

import numpy as np
import onnxruntime
import pytest

from perception.export.parity import ParityCheck
from perception.runtime.manifest import extract_manifest

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)


@pytest.mark.fault("X1")
@pytest.mark.parametrize(("file", "count"), [("exported", 1), ("exported", 3), ("exported_with_preprocessing", 1)])
def test_openvino_says_the_same(request, small_network, file, count):
    path = request.getfixturevalue(file)
    manifest = extract_manifest(path.read_bytes(), "")
    shape = (count, 90, 150, 3) if manifest.input.embeds_preprocessing else (count, 3, 96, 160)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    answer = compiled({manifest.input.name: images})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = dict(zip(manifest.outputs, session.run(None, {manifest.input.name: images}), strict=True))
    found = {name: np.asarray(answer[name]) for name in manifest.outputs}
    comparison = ParityCheck(small_network.specs, {"detection": 0.6})
    comparison.update(file, wanted, {name: value.astype(wanted[name].dtype) for name, value in found.items()})
    comparison.compute()
    assert (wanted["detection.scores"] > 0).any()
