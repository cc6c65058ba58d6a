"""The decoder architecture of the dense heads. Each head has its own weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, separable_conv, upsample_to
from perception.nn.pyramid_pooling import PyramidPooling


class DenseDecoder(nn.Module):
    """From a pyramid to a map at its finest level, coarse to fine (Panoptic FPN, Kirillov et al. 2019, cascaded).

    Most of the computation runs at ``refine_stride``. The finer levels have most of the pixels, so they are narrow and
    only sharpen the result. The output is [B, out_channels, H / finest, W / finest].

    Args:
        in_channels: {stride: channels} of the levels to read.
        channels: channels at ``refine_stride`` and coarser.
        out_channels: number of output channels.
        fine_channels: channels at finer strides.
        refine_stride: stride of the main refinement.
        pyramid_pooling: whether to add global context at the coarsest level, see `PyramidPooling`.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: int,
        out_channels: int,
        fine_channels: int = 32,
        refine_stride: int = 8,
        pyramid_pooling: bool = True,
    ) -> None:
        super().__init__()
        strides = sorted(in_channels, reverse=True)
        self.coarse_strides = [s for s in strides if s >= refine_stride] or strides[:1]
        self.fine_strides = [s for s in strides if s not in self.coarse_strides]
        self.project = nn.ModuleDict(
            {str(s): conv_norm_act(in_channels[s], channels, act=False) for s in self.coarse_strides}
        )
        if pyramid_pooling:
            self.project[str(strides[0])] = PyramidPooling(in_channels[strides[0]], channels)
        self.refine = separable_conv(channels, channels)
        widths = [channels, *(fine_channels for _ in self.fine_strides)]
        self.reduce = nn.ModuleDict()
        self.refine_fine = nn.ModuleDict()
        for stride, above in zip(self.fine_strides, widths, strict=False):
            self.reduce[str(stride)] = conv_norm_act(above, fine_channels, act=False)
            self.project[str(stride)] = conv_norm_act(in_channels[stride], fine_channels, act=False)
            self.refine_fine[str(stride)] = separable_conv(fine_channels, fine_channels, kernel_size=3)
        self.channels = widths[-1]
        self.output = nn.Conv2d(self.channels, out_channels, 1)
        # A direct path for the output at ``refine_stride``, so that the narrow levels only add detail to it.
        self.coarse_output = nn.Conv2d(channels, out_channels, 1, bias=False) if self.fine_strides else None

    def forward(self, pyramid: Mapping[int, Tensor]) -> Tensor:
        """Return the output map [B, out_channels, H / finest, W / finest]."""
        return self.forward_with_features(pyramid)[0]

    def forward_with_features(self, pyramid: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the output map and the finest features [B, self.channels, H / finest, W / finest] below it."""
        fused: Tensor | None = None
        for stride in self.coarse_strides:
            level = self.project[str(stride)](pyramid[stride])
            fused = level if fused is None else level + upsample_to(fused, level)
        assert fused is not None
        refined: Tensor = self.refine(fused)
        features = refined
        for stride in self.fine_strides:
            level = self.project[str(stride)](pyramid[stride])
            features = self.refine_fine[str(stride)](level + upsample_to(self.reduce[str(stride)](features), level))
        found = self.output(features)
        if self.coarse_output is not None:
            found = found + upsample_to(self.coarse_output(refined), found)
        return found, features
