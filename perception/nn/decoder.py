"""The decoder that dense heads share in kind, not in weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, separable_conv, upsample_to


class DenseDecoder(nn.Module):
    """From a pyramid to a map at its finest level, coarse to fine (Panoptic FPN, Kirillov et al. 2019, cascaded).

    channels: {stride: channels} of the levels to read.
    Returns [B, outputs, H / finest, W / finest].
    """

    def __init__(self, channels: Mapping[int, int], width: int, outputs: int) -> None:
        super().__init__()
        self.strides = sorted(channels, reverse=True)
        self.project = nn.ModuleDict({str(s): conv_norm_act(channels[s], width, act=False) for s in self.strides})
        self.refine = separable_conv(width, width)
        self.output = nn.Conv2d(width, outputs, 1)

    def forward(self, pyramid: Mapping[int, Tensor]) -> Tensor:
        fused: Tensor | None = None
        for stride in self.strides:
            level = self.project[str(stride)](pyramid[stride])
            fused = level if fused is None else level + upsample_to(fused, level)
        assert fused is not None
        return self.output(self.refine(fused))
