"""Depthwise convolutions whose backward pass is fast on CPUs.

Under bfloat16 autocast, oneDNN computes the weight gradient of a depthwise convolution four to seven times slower than
in float32, and the input gradient of a strided one twice as slow. Together this is more than half of a training step
of a mobile backbone. Here the forward pass stays in bfloat16, and these gradients are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FastDepthwise(TorchFunctionMode):
    """Context in which every depthwise `torch.conv2d` under autocast uses the faster backward pass."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_grad_enabled() and _is_depthwise(*args, **kwargs):
            return _apply_depthwise_conv(*args, **kwargs)
        return func(*args, **kwargs)


def _is_depthwise(input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> bool:
    groups = rest[4] if len(rest) > 4 else options.get("groups", 1)
    padding = rest[2] if len(rest) > 2 else options.get("padding", 0)
    return groups > 1 and groups == input.shape[1] == weight.shape[0] and not isinstance(padding, str)


def _apply_depthwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    pairs = [list(value) if isinstance(value, (tuple, list)) else [value] * 2 for value in (stride, padding, dilation)]
    kind = torch.get_autocast_dtype("cpu")
    output = _DepthwiseConv.apply(input.to(kind), weight.to(kind), *pairs)
    return output if bias is None else output + bias.to(kind)[:, None, None]


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: list, padding: list, dilation: list) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.settings = stride, padding, dilation
        return torch.ops.aten.convolution(input, weight, None, stride, padding, dilation, False, [0, 0], input.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> object:
        input, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.settings
        output = gradients[0]

        def gradient(kind: torch.dtype, mask: list[bool]) -> tuple:
            layout = torch.channels_last
            return torch.ops.aten.convolution_backward(
                output.to(kind, memory_format=layout),
                input.to(kind, memory_format=layout),
                weight.to(kind),
                None, stride, padding, dilation, False, [0, 0], input.shape[1], mask,
            )  # fmt: skip

        strided = max(stride) > 1
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = gradient(torch.float32 if strided else input.dtype, [True, False, False])[0].to(input.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = gradient(torch.float32, [False, True, False])[1].to(weight.dtype)
        return of_input, of_weight, None, None, None
