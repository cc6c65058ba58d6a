"""Arithmetic of boxes and the losses of detectors: torchvision's, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.ops as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.ops import boxes as geometry
from perception.ops.detection_losses import distribution_focal_loss, expected_bin, quality_focal_loss


@st.composite
def pairs(draw, count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Two lists of boxes [count, 4] of all sizes, with equal, nested, touching and distant ones among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = rng.uniform(-50, 200, (2, count, 2))
    boxes = np.concatenate([low, low + np.exp(rng.uniform(np.log(0.5), np.log(300), low.shape))], 2)
    boxes[1, :3] = boxes[0, :3]
    boxes[1, 3:6] = boxes[0, 3:6] + np.tile(boxes[0, 3:6, 2:] - boxes[0, 3:6, :2], 2) * [0.1, 0.2, -0.3, -0.1]
    boxes[1, 6:9, :2], boxes[1, 6:9, 2:] = boxes[0, 6:9, 2:], boxes[0, 6:9, 2:] + 5
    first, second = torch.from_numpy(boxes)
    return first, second


LOSSES = {
    "giou": oracle.generalized_box_iou_loss,
    "diou": oracle.distance_box_iou_loss,
    "ciou": oracle.complete_box_iou_loss,
}


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_overlaps_and_their_gradients_are_torchvisions(boxes):
    torch.testing.assert_close(
        geometry.iou(boxes[0][:, None], boxes[1][None]), oracle.box_iou(*boxes), atol=1e-9, rtol=1e-9
    )
    for name, loss in LOSSES.items():
        mine, theirs = (box.clone().requires_grad_() for box in (boxes[0], boxes[0]))
        found, wanted = 1 - getattr(geometry, name)(mine, boxes[1]), loss(theirs, boxes[1])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
        for tensor, value in ((mine, found), (theirs, wanted)):
            (tensor.grad,) = torch.autograd.grad(value.sum(), tensor)
        different = (boxes[0] != boxes[1]).any(1)  # a maximum of equal numbers has no one gradient
        torch.testing.assert_close(mine.grad[different], theirs.grad[different], atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_overlaps_are_symmetric_and_one_for_equal_boxes_and_ordered(boxes):
    first, second = boxes
    for name in ("iou", *LOSSES):
        overlap = getattr(geometry, name)
        torch.testing.assert_close(overlap(first, second), overlap(second, first))
        torch.testing.assert_close(overlap(first, first), torch.ones(len(first), dtype=first.dtype))
    iou, giou, diou, ciou = (getattr(geometry, name)(first, second) for name in ("iou", "giou", "diou", "ciou"))
    for smaller in (giou, diou, ciou):
        assert (smaller <= iou + 1e-9).all()
    assert (giou > -1).all()
    assert (diou > -1).all()
    assert (ciou > -2).all()


@pytest.mark.parametrize("name", ["iou", *LOSSES])
def test_degenerate_boxes_give_finite_overlaps_and_gradients(name):
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 9, 4, 2], [0, 0, 0, 7], [0, 0, 1e5, 1e5]])
    first = boxes.repeat_interleave(4, 0).requires_grad_()
    value = getattr(geometry, name)(first, boxes.repeat(4, 1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(first.grad).all()


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_distances_and_back(boxes):
    points = boxes[1][:, :2]
    torch.testing.assert_close(
        geometry.distances_to_boxes(points, geometry.boxes_to_distances(points, boxes[0])), boxes[0]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.floats(-3, 25), st.integers(0, 2**31))
def test_distribution_focal_is_the_cross_entropy_with_the_two_bins_beside(bins, target, seed):
    """Li et al. 2020, equation 6: -((y_right - y) log S_left + (y - y_left) log S_right)."""
    logits = torch.randn(bins, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    held = min(max(target, 0), bins - 1)
    weights = torch.zeros(bins, dtype=torch.float64)
    left = min(math.floor(held), bins - 2)
    weights[left], weights[left + 1] = left + 1 - held, held - left
    expected = -(weights * logits.softmax(0).log()).sum()
    found = distribution_focal_loss(logits, torch.tensor(target, dtype=torch.float64))
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.floats(0, 1))
def test_a_distance_written_as_a_distribution_reads_back(bins, share):
    """The distribution with the least loss has the target as its mean; that loss is the entropy of the two weights."""
    target = torch.tensor(share * (bins - 1), dtype=torch.float64)
    low = min(int(target), bins - 2)
    weights = torch.zeros(bins, dtype=torch.float64)
    weights[low], weights[low + 1] = low + 1 - target, target - low
    logits = weights.clamp(min=1e-12).log().requires_grad_()
    assert expected_bin(logits).item() == pytest.approx(target.item(), abs=1e-6)
    loss = distribution_focal_loss(logits, target)
    entropy = -sum(float(w) * math.log(w) for w in weights.tolist() if w > 0)
    assert loss.item() == pytest.approx(entropy, abs=1e-6)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_equal_logits_expect_the_middle():
    assert expected_bin(torch.zeros(3, 4, 16)).tolist() == [[7.5] * 4] * 3


def test_quality_focal_vanishes_where_the_score_is_the_target():
    targets = torch.tensor([0.0, 0.3, 0.9])
    right = torch.logit(targets, eps=1e-7)
    assert quality_focal_loss(right, targets).max() < 1e-6
    assert (quality_focal_loss(right + 2, targets)[1:] > 0).all()


def test_quality_focal_is_focal_loss_without_its_balance_where_targets_are_hard():
    logits = torch.linspace(-5, 5, 21)
    for target in (0.0, 1.0):
        targets = torch.full_like(logits, target)
        torch.testing.assert_close(
            quality_focal_loss(logits, targets), oracle.sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2)
        )
