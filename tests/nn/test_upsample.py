"""Values at pixels against torch's interpolation of the whole image."""

import pytest
import torch
import torch.nn.functional as F

from perception.ops import upsample
from perception.ops.upsample import upsample_argmax, upsample_to_pixels


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_values_are_those_of_the_pixels_they_stand_for(stride, step):
    maps = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_to_pixels(maps, stride, step), whole[..., ::step, ::step], rtol=0, atol=1e-6)


def test_a_ramp_is_told_where_it_is():
    """A smaller interpolation would be half a step off: 0.5 pixels at every second pixel."""
    ramp = (torch.arange(16) * 4 + 1.5).view(1, 1, 1, 16).expand(1, 1, 16, 16)  # the mean place of each cell's pixels
    inside = upsample_to_pixels(ramp, 4, 2)[0, 0, 8, 1:-1]
    torch.testing.assert_close(inside, torch.arange(2.0, 62.0, 2))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_both_forms_of_the_label_map_are_one(stride, classes, monkeypatch):
    """The form for export is torch's interpolation too; the first class wins where several are equal."""
    logits = torch.randn(2, classes, 6, 9, generator=torch.Generator().manual_seed(0))
    logits[1, :, :3] = 0.5
    expected = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False).argmax(1)
    plain = upsample_argmax(logits, stride)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    exported = upsample_argmax(logits, stride)
    assert plain.dtype == exported.dtype == torch.uint8
    torch.testing.assert_close(plain.long(), expected)
    torch.testing.assert_close(exported[0].long(), expected[0])
    assert (exported[1, : 2 * stride] == 0).all()


def test_the_mixtures_are_shares():
    for stride in (1, 2, 4, 8):
        torch.testing.assert_close(upsample._bilinear_weights(stride).sum(1), torch.ones(stride * stride))
