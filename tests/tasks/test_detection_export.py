"""Detection heads of every kind as ONNX: equal to torch, and with nothing in the file that only training needs."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch

from perception.export.export import export
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.tasks.detection import DetectionConfig

HEADS: dict[str, dict[str, Any]] = {
    "distribution": {"bins": 8},
    "one to one": {"one_to_one": True, "strides": (4, 8, 16, 32)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_exported_heads_equal_torch_and_hold_one_branch(name, tmp_path):
    """The export itself refuses a file that differs from torch, in raw outputs and after decoding."""
    torch.manual_seed(0)
    config = DetectionConfig(classes=("car", "bike", "sign"), num_convs=1, channels=16, **HEADS[name])
    model = MultiTaskModel(
        ModelConfig(backbone=BackboneConfig(name="lcnet_035", weights="none")), {"detection": config}
    )
    with torch.no_grad():
        for predictor in model.tasks["detection"].heads:
            predictor.class_output.weight.mul_(100)
            predictor.box_output.weight.mul_(10)
        for _ in range(5):  # running statistics of real passes
            model(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    report = export(
        model.eval(),
        tmp_path / "head.onnx",
        size=(96, 128),
        parity_sizes=((96, 128), (64, 64)),
        parity_batch_sizes=(1, 2),
    )
    assert report.tensorrt_problems == ()  # TensorRT's
    graph = onnx.load(report.path).graph
    suppressions = sum(node.op_type == "NonMaxSuppression" for node in graph.node)
    assert suppressions == (0 if config.one_to_one else 1)
    assert not any("raw" in entry.name for entry in graph.output)
    outputs = [node for node in graph.node if node.op_type == "Conv" and "class_output" in node.name]
    assert len(outputs) == len(config.strides), "of the decoded branch alone"
