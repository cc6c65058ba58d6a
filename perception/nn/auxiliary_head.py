"""Auxiliary prediction heads: deep supervision of the features before fusion."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from perception.nn.blocks import upsample_to


class AuxiliaryHead(nn.Module):
    """Linear predictions from the coarse pyramid levels, summed coarse to fine (FCN, Long et al. 2015).

    It has no hidden layer, so its loss trains the features and not the head. PAD-Net (Xu et al. 2018) and MTI-Net
    (Vandenhende et al. 2020) make features task-specific in this way before tasks exchange them. Only a loss reads the
    output.

    Args:
        channels: {stride: channels} of the levels that the main head reads.
        out_channels: number of output channels.
        finest_input: levels of this stride and coarser are used. If there are none, only the coarsest level is used.
    """

    def __init__(self, channels: Mapping[int, int], out_channels: int, finest_input: int = 8) -> None:
        super().__init__()
        strides = sorted(channels, reverse=True)
        self.finest = strides[-1]
        self.strides = [s for s in strides if s >= finest_input] or strides[:1]
        self.output = nn.ModuleDict({str(s): nn.Conv2d(channels[s], out_channels, 1) for s in self.strides})

    def forward(self, pyramid: Mapping[int, Tensor]) -> Tensor:
        """Return [B, out_channels, H / finest, W / finest], the size of the main head's output."""
        coarsest, *finer = self.strides
        found: Tensor = self.output[str(coarsest)](pyramid[coarsest])
        for stride in finer:
            level = self.output[str(stride)](pyramid[stride])
            found = level + upsample_to(found, level)
        return upsample_to(found, pyramid[self.finest])
