"""Initial predictions: deep supervision of features that a head has yet to read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from perception.nn.blocks import upsample_to


class AuxiliaryHead(nn.Module):
    """A linear prediction from each coarse level of a pyramid, added up coarse to fine (FCN, Long et al. 2015).

    It has no hidden layer, so that what it is taught is taught to the features. PAD-Net (Xu et al. 2018) and MTI-Net
    (Vandenhende et al. 2020) make features task-specific so, before tasks exchange them. Only a loss reads it.

    channels: {stride: channels} of the levels that the head reads; those from ``finest_read`` on are used, or the
    coarsest. Returns [B, outputs, H / finest, W / finest], the size of what the head returns.
    """

    def __init__(self, channels: Mapping[int, int], out_channels: int, finest_input: int = 8) -> None:
        super().__init__()
        strides = sorted(channels, reverse=True)
        self.finest = strides[-1]
        self.strides = [s for s in strides if s >= finest_input] or strides[:1]
        self.output = nn.ModuleDict({str(s): nn.Conv2d(channels[s], out_channels, 1) for s in self.strides})

    def forward(self, pyramid: Mapping[int, Tensor]) -> Tensor:
        coarsest, *finer = self.strides
        found: Tensor = self.output[str(coarsest)](pyramid[coarsest])
        for stride in finer:
            level = self.output[str(stride)](pyramid[stride])
            found = level + upsample_to(found, level)
        return upsample_to(found, pyramid[self.finest])
