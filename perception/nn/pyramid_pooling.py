"""What surrounds a place, up to the whole picture: the view that tells road from roof and near from far."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, upsample_to


class PyramidContext(nn.Module):
    """Features beside averages of their surroundings over ever larger windows, and over the whole picture.

    As PSPNet (Zhao et al. 2017) in the overlapping form of DDRNet (Hong et al. 2021): the windows have fixed sizes in
    cells, so it means the same at every size of the picture and is plain pooling when exported.

    [B, inputs, H, W] to [B, outputs, H, W]. steps: distance of the windows in cells; each is ``2 * step + 1`` wide.
    """

    def __init__(self, inputs: int, outputs: int, steps: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.steps = steps
        self.here = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.around = nn.ModuleList(nn.Conv2d(inputs, outputs, 1, bias=False) for _ in steps)
        self.everywhere = nn.Conv2d(inputs, outputs, 1, bias=False)
        # One normalisation, of the sum: that of one average per picture would be noise.
        self.mix = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True), *conv_norm_act(outputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.here(features) + self.everywhere(features.mean((2, 3), keepdim=True))
        for step, around in zip(self.steps, self.around, strict=True):
            pooled = F.avg_pool2d(features, 2 * step + 1, step, step, count_include_pad=False)
            mixed = mixed + upsample_to(around(pooled), mixed)
        return self.mix(mixed)
