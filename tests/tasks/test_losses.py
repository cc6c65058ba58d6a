"""Losses against closed forms, scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt
from scipy.stats import laplace as laplace_distribution
from sklearn.metrics import jaccard_score
from sklearn.utils.class_weight import compute_class_weight

from perception.ops.losses import (
    border_mask,
    class_weights_by_frequency,
    dice_loss,
    gradient_matching,
    laplace_nll,
    lovasz_softmax,
    masked_mean,
    silog,
)


def test_fully_balanced_weights_are_scikit_learns_in_each_image():
    random = np.random.default_rng(0)
    labels = random.choice(4, (2, 30, 40), p=[0.7, 0.2, 0.09, 0.01])
    valid = random.random(labels.shape) < 0.8
    found = class_weights_by_frequency(torch.from_numpy(labels), torch.from_numpy(valid), 4, 1.0).numpy()
    for row, one, known in zip(found, labels, valid, strict=True):
        expected = compute_class_weight("balanced", classes=np.arange(4), y=one[known])
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_without_balance_all_classes_that_occur_weigh_one():
    labels, valid = torch.tensor([[[0, 0, 2]], [[3, 3, 3]]]), torch.tensor([[[True] * 3], [[False] * 3]])
    assert class_weights_by_frequency(labels, valid, 4, 0.0).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_means_are_those_of_what_is_valid_in_each_image():
    generator = torch.Generator().manual_seed(0)
    values, valid = torch.randn(3, 5, 7, generator=generator), torch.rand(3, 5, 7, generator=generator) < 0.5
    valid[2] = False
    expected = [values[0][valid[0]].mean(), values[1][valid[1]].mean(), torch.tensor(0.0)]
    torch.testing.assert_close(masked_mean(values, valid), torch.stack(expected))


def test_silog_with_full_focus_ignores_scale():
    generator = torch.Generator().manual_seed(0)
    error, valid = torch.randn(2, 10, 10, generator=generator), torch.rand(2, 10, 10, generator=generator) < 0.7
    torch.testing.assert_close(silog(error + 3, valid, variance_focus=1.0), silog(error, valid, variance_focus=1.0))
    spread = torch.stack([one[known].std(correction=0) for one, known in zip(error, valid, strict=True)])
    torch.testing.assert_close(silog(error, valid, variance_focus=1.0), spread)


def test_gradient_match_sees_edges_not_offsets():
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    error = torch.full((2, 16, 16), 0.7)
    error[1, :, 8:] += 1
    flat, edge = gradient_matching(error, valid)
    assert (flat == 0, edge > 0) == (True, True)
    valid[:, :, 7:9] = False
    assert gradient_matching(error, valid, scales=1).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_dice_of_a_perfect_map_is_zero_and_absent_classes_do_not_count():
    labels = torch.randint(0, 2, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    total, count = dice_loss(one_hot.log(), labels, valid)
    assert (total.item(), count.item()) == (pytest.approx(0, abs=1e-6), 2)
    assert dice_loss((1 - one_hot).log(), labels, valid)[0].item() > 1.8
    nothing, none = dice_loss(one_hot.log(), labels, ~valid)
    assert (nothing.item(), none.item()) == (0, 0)


def test_dice_is_twice_the_overlap_over_the_sizes():
    """Milletari et al. 2016, pixel by pixel, of the pixels that are labeled."""
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(2, 4, 5, 6, generator=generator).log_softmax(1)
    labels = torch.randint(0, 3, (2, 5, 6), generator=generator)
    valid = torch.rand(2, 5, 6, generator=generator) < 0.7
    expected, pairs = 0.0, 0
    for scores, truth, known in zip(logs.exp().flatten(2), labels.flatten(1), valid.flatten(1), strict=True):
        pixels = known.nonzero().flatten().tolist()
        for k in {int(truth[p]) for p in pixels}:
            inside = [float(scores[k, p]) for p in pixels if truth[p] == k]
            size = len(inside) + sum(float(scores[k, p]) for p in pixels)
            expected, pairs = expected + 1 - (2 * sum(inside) + 1) / (size + 1), pairs + 1
    total, count = dice_loss(logs, labels, valid)
    assert (total.item(), count.item()) == (pytest.approx(expected, abs=1e-5), pairs)


def test_lovasz_is_the_extension_of_one_minus_iou():
    """Berman et al. 2018, definition 1, with sets of pixels: each wrong pixel adds its error times what it takes off
    the IoU when the pixels are given up in the order of their errors."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 3, 4, 5, generator=generator).softmax(1)
    labels = torch.randint(0, 2, (2, 4, 5), generator=generator)
    valid = torch.rand(2, 4, 5, generator=generator) < 0.8
    expected, pairs = 0.0, 0
    for scores, truth, known in zip(probabilities.flatten(2), labels.flatten(1), valid.flatten(1), strict=True):
        pixels = known.nonzero().flatten().tolist()
        for k in {int(truth[p]) for p in pixels}:
            inside = {p for p in pixels if truth[p] == k}
            error = {p: float(1 - scores[k, p] if p in inside else scores[k, p]) for p in pixels}
            wrong, before = set(), 0.0
            for p in sorted(pixels, key=lambda p: -error[p]):
                wrong.add(p)
                loss = 1 - len(inside - wrong) / len(inside | wrong)
                expected += error[p] * (loss - before)
                before = loss
            pairs += 1
    total, count = lovasz_softmax(probabilities, labels, valid)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == pairs


def test_lovasz_of_a_certain_map_is_one_minus_iou():
    """scikit-learn's Jaccard index of what is labeled; classes that do not occur do not count."""
    generator = torch.Generator().manual_seed(1)
    truth, found = (torch.randint(0, 3, (1, 12, 9), generator=generator) for _ in range(2))
    valid = torch.rand(1, 12, 9, generator=generator) < 0.9
    one_hot = torch.nn.functional.one_hot(found, 5).movedim(-1, 1).float()
    total, count = lovasz_softmax(one_hot, truth, valid)
    ious = jaccard_score(truth[valid], found[valid], average=None)
    assert (total / count).item() == pytest.approx(1 - ious.mean(), rel=1e-5)


def test_lovasz_without_a_label_is_a_connected_zero():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    total, count = lovasz_softmax(logits.softmax(1), torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4) > 0)
    assert (total.item(), count.item()) == (0, 0)
    total.backward()
    assert logits.grad is not None


@pytest.mark.parametrize("distance", [1, 3])
def test_borders_are_as_wide_as_told(distance):
    """scipy's distance transform in chessboard distance; void makes no border and is none."""
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[0, 5:14, 8:21] = 2
    labels[0, 9:11, 12:14] = 1
    valid = torch.ones(1, 20, 30, dtype=torch.bool)
    found = border_mask(labels, valid, distance)[0].numpy()
    expected = np.zeros((20, 30), bool)
    for k in range(3):
        inside = (labels[0] == k).numpy()
        expected |= inside & (distance_transform_cdt(inside, "chessboard") <= distance)
    np.testing.assert_array_equal(found, expected)
    void = labels != 0
    assert not border_mask(labels, ~void, distance).any(), "one class and void: no border"


def test_the_laplace_likelihood_is_scipys_and_smallest_at_the_mean_error():
    error = torch.tensor([-0.3, 0.1, 0.02])
    scale = torch.tensor([0.2, 0.1, 0.5])
    expected = -laplace_distribution.logpdf(error.numpy(), scale=scale.numpy()) - np.log(2)
    np.testing.assert_allclose(laplace_nll(error, scale.log()).numpy(), expected, rtol=1e-5)
    errors = torch.from_numpy(np.random.default_rng(0).laplace(0, 0.1, 1000))
    losses = {
        scale: laplace_nll(errors, torch.tensor(scale).log()).mean()
        for scale in (0.05, float(errors.abs().mean()), 0.2)
    }
    assert min(losses, key=lambda scale: float(losses[scale])) == float(errors.abs().mean())
