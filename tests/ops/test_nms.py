"""Non-maximum suppression against torchvision, and torch against ONNX Runtime."""

import io
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from perception.ops.nms import nms_mask, onnx_translations, select_detections

LIMIT = 100
THRESHOLD = float(np.float32(0.55))  # as ONNX holds it: boxes on whole pixels do have an IoU of exactly 0.55


def candidates(pictures: int, count: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random boxes on whole pixels (exact IoU ties), with coarse scores (score ties) of which some are 0 (padding)."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(pictures, count, 2, generator=generator) * 150 - 20
    size = torch.rand(pictures, count, 2, generator=generator) * 80 + 1
    scores = (torch.rand(pictures, count, generator=generator) * 50).round() / 50
    labels = torch.randint(0, classes, (pictures, count), generator=generator)
    return torch.cat([corner, corner + size], 2).round(), scores, labels


def oracle(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> set[int]:
    """torchvision's own per-class loop over one image."""
    kept = set()
    for label in labels.unique():
        members = ((labels == label) & (scores > 0)).nonzero().squeeze(1)
        kept |= set(members[torchvision.ops.nms(boxes[members], scores[members], iou_threshold)].tolist())
    return kept


@pytest.mark.parametrize("classes", [1, 2, 80])
@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_keep_equals_torchvision_class_by_class(count, classes):
    boxes, scores, labels = candidates(3, count, classes)
    kept = nms_mask(boxes, scores, labels, THRESHOLD)
    assert kept.shape == (3, count)
    assert kept.dtype == torch.bool
    for b in range(3):
        assert set(kept[b].nonzero().squeeze(1).tolist()) == oracle(boxes[b], scores[b], labels[b], THRESHOLD)


def test_keep_equals_batched_nms():
    boxes, scores, labels = candidates(1, 200)
    scores = scores + 0.01
    wanted = torchvision.ops.batched_nms(boxes[0], scores[0], labels[0], 0.5)
    assert sorted(wanted.tolist()) == nms_mask(boxes, scores, labels, 0.5)[0].nonzero().squeeze(1).tolist()


def test_of_duplicates_the_first_survives():
    boxes = torch.tensor([[[0, 0, 10, 10]] * 4]).float()
    scores = torch.tensor([[0.5, 0.9, 0.9, 0.9]])
    labels = torch.tensor([[0, 0, 0, 1]])
    assert nms_mask(boxes, scores, labels, 0.5).tolist() == [[False, True, False, True]]


def test_a_box_of_another_class_suppresses_nothing_even_at_negative_coordinates():
    boxes = torch.tensor([[[-50, -50, 10, 10], [-50, -50, 10, 10], [-20, 0, 5, 30]]]).float()
    kept = nms_mask(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 2]]), 0.1)
    assert kept.all()


def test_padding_is_never_kept_and_nothing_is_found_in_nothing():
    boxes, _, labels = candidates(2, 7)
    assert not nms_mask(boxes, torch.zeros(2, 7), labels, 0.5).any()
    assert nms_mask(boxes[:, :0], torch.zeros(2, 0), labels[:, :0], 0.5).shape == (2, 0)
    found = select_detections(boxes[:, :0], torch.zeros(2, 0), labels[:, :0], 0.5, 4)
    assert [tuple(x.shape) for x in found] == [(2, 4, 4), (2, 4), (2, 4)]
    assert not any(x.any() for x in found)


@pytest.mark.parametrize("pictures", [1, 2, 3, 4, 5])
def test_an_image_does_not_see_its_batch(pictures):
    boxes, scores, labels = candidates(pictures, 120, seed=pictures)
    boxes[0] *= 37.3  # an image with other coordinates, hence another offset
    together = select_detections(boxes, scores, labels, 0.5, LIMIT)
    for b in range(pictures):
        alone = select_detections(boxes[b : b + 1], scores[b : b + 1], labels[b : b + 1], 0.5, LIMIT)
        assert all(torch.equal(x[b], y[0]) for x, y in zip(together, alone, strict=True))


def test_select_is_sorted_padded_and_made_of_kept_candidates():
    boxes, scores, labels = candidates(2, 50)
    kept = nms_mask(boxes, scores, labels, 0.5)
    found = select_detections(boxes, scores, labels, 0.5, 80)
    for b in range(2):
        count = int(kept[b].sum())
        order = np.argsort(-scores[b][kept[b]].numpy(), kind="stable")
        assert torch.equal(found[1][b, :count], scores[b][kept[b]][order])
        assert torch.equal(found[0][b, :count], boxes[b][kept[b]][order])
        assert torch.equal(found[2][b, :count], labels[b][kept[b]][order])
        assert not any(x[b, count:].any() for x in found)


def test_select_cuts_to_the_limit():
    boxes, scores, labels = candidates(2, 300)
    few, many = (select_detections(boxes, scores, labels, 0.5, limit) for limit in (10, 300))
    assert all(torch.equal(x, y[:, :10]) for x, y in zip(few, many, strict=True))


def test_select_stays_in_float32_under_autocast():
    boxes, scores, labels = candidates(1, 40)
    wanted = select_detections(boxes, scores, labels, 0.5, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = select_detections(boxes, scores, labels, 0.5, 20)
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, wanted, strict=True))
    assert found[1].dtype == torch.float32


def test_the_operator_is_well_formed():
    torch.library.opcheck(nms_mask, (*candidates(2, 9), 0.5), test_utils=("test_schema", "test_faketensor"))


class Suppression(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor):
        return nms_mask(boxes, scores, labels, 0.6), *select_detections(boxes, scores, labels, 0.6, LIMIT)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    dynamic = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own library calls
        program = torch.onnx.export(
            Suppression().eval(),
            candidates(2, 50),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(dynamic,) * 3,
            custom_translation_table=onnx_translations(),
        )
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("pictures", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 7, 300, 1200])
def test_onnx_keeps_the_same_set(session, pictures, count):
    for classes in (1, 5, 80):
        given = candidates(pictures, count, classes, seed=count)
        wanted = Suppression()(*given)
        names = [entry.name for entry in session.get_inputs()]
        found = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
        assert all(np.array_equal(x.numpy(), y) for x, y in zip(wanted, found, strict=True))


def test_onnx_finds_nothing_where_all_scores_are_zero(session):
    boxes, scores, labels = (x.numpy() for x in candidates(2, 20))
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, dict(zip(names, (boxes, scores * 0, labels), strict=True)))
    assert not any(x.any() for x in found)
