"""The decoder that dense heads share in kind, not in weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, separable_conv, upsample_to
from perception.nn.pyramid_pooling import PyramidContext


class DenseDecoder(nn.Module):
    """From a pyramid to a map at its finest level, coarse to fine (Panoptic FPN, Kirillov et al. 2019, cascaded).

    The thinking is done at ``refine_stride``; the finer levels, which have most of the pixels, only sharpen its result
    and are narrow.

    channels: {stride: channels} of the levels to read.
    width, fine_width: channels at ``refine_stride`` and coarser, and at finer strides.
    context: whether the coarsest level sees the whole picture, see `PyramidContext`.
    Returns [B, outputs, H / finest, W / finest].
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        width: int,
        outputs: int,
        fine_width: int = 32,
        refine_stride: int = 8,
        context: bool = True,
    ) -> None:
        super().__init__()
        strides = sorted(channels, reverse=True)
        self.coarse = [s for s in strides if s >= refine_stride] or strides[:1]
        self.fine = [s for s in strides if s not in self.coarse]
        self.project = nn.ModuleDict({str(s): conv_norm_act(channels[s], width, act=False) for s in self.coarse})
        if context:
            self.project[str(strides[0])] = PyramidContext(channels[strides[0]], width)
        self.refine = separable_conv(width, width)
        widths = [width, *(fine_width for _ in self.fine)]
        self.narrow = nn.ModuleDict()
        self.lift = nn.ModuleDict()
        for stride, above in zip(self.fine, widths, strict=False):
            self.narrow[str(stride)] = conv_norm_act(above, fine_width, act=False)
            self.project[str(stride)] = conv_norm_act(channels[stride], fine_width, act=False)
            self.lift[str(stride)] = separable_conv(fine_width, fine_width, kernel=3)
        self.width = widths[-1]
        self.output = nn.Conv2d(self.width, outputs, 1)
        # What is known at ``refine_stride`` does not have to pass through the narrow levels: they only add to it.
        self.coarse_output = nn.Conv2d(width, outputs, 1, bias=False) if self.fine else None

    def forward(self, pyramid: Mapping[int, Tensor]) -> Tensor:
        return self.both(pyramid)[0]

    def both(self, pyramid: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs, and the finest features that they are read from: [B, self.width, H / finest, W / finest]."""
        fused: Tensor | None = None
        for stride in self.coarse:
            level = self.project[str(stride)](pyramid[stride])
            fused = level if fused is None else level + upsample_to(fused, level)
        assert fused is not None
        refined: Tensor = self.refine(fused)
        features = refined
        for stride in self.fine:
            level = self.project[str(stride)](pyramid[stride])
            features = self.lift[str(stride)](level + upsample_to(self.narrow[str(stride)](features), level))
        found = self.output(features)
        if self.coarse_output is not None:
            found = found + upsample_to(self.coarse_output(refined), found)
        return found, features
