"""Losses against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from perception.ops.losses import balanced_weights, dice, gradient_match, quality_focal, silog


def test_fully_balanced_weights_are_scikit_learns():
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.7, 0.2, 0.09, 0.01])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    found = balanced_weights(torch.from_numpy(labels), 4, 1.0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_balance_all_classes_that_occur_weigh_one():
    assert balanced_weights(torch.tensor([0, 0, 2]), 4, 0.0).tolist() == [1, 0, 1, 0]
    assert balanced_weights(torch.zeros(0, dtype=torch.int64), 2, 0.5).tolist() == [0, 0]


def test_quality_focal_vanishes_where_the_score_is_the_target():
    targets = torch.tensor([0.0, 0.3, 0.9])
    right = torch.logit(targets, eps=1e-7)
    assert quality_focal(right, targets).max() < 1e-6
    assert (quality_focal(right + 2, targets)[1:] > 0).all()


def test_silog_with_full_focus_ignores_scale():
    error = torch.randn(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(silog(error + 3, focus=1.0), silog(error, focus=1.0))
    torch.testing.assert_close(silog(error, focus=1.0), error.std(correction=0))


def test_gradient_match_sees_edges_not_offsets():
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    flat = torch.full((1, 16, 16), 0.7)
    assert gradient_match(flat, valid).item() == 0
    edge = flat.clone()
    edge[:, :, 8:] += 1
    assert gradient_match(edge, valid).item() > 0
    valid[:, :, 7:9] = False
    assert gradient_match(edge, valid, scales=1).item() == pytest.approx(0, abs=1e-6)


def test_dice_of_a_perfect_map_is_zero_and_absent_classes_do_not_count():
    labels = torch.randint(0, 2, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    total, count = dice(one_hot, one_hot, valid)
    assert (total.item(), count.item()) == (pytest.approx(0, abs=1e-6), 2)
    assert dice(1 - one_hot, one_hot, valid)[0].item() > 1.8
