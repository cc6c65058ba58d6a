"""The faster backward pass of depthwise convolutions is the ordinary one."""

from __future__ import annotations

import pytest
import torch

from perception.engine.depthwise import FastDepthwise


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_ordinary_gradient(stride, kernel, bias):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 16, kernel, stride=stride, padding=kernel // 2, groups=16, bias=bias)
    images = torch.randn(2, 16, 24, 32).to(memory_format=torch.channels_last)
    results = []
    for fast in (False, True):
        picture = images.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if fast:
                with FastDepthwise():
                    output = layer(picture)
            else:
                output = layer(picture)
        output.float().square().sum().backward()
        results.append([output.detach().float(), picture.grad, *(value.grad for value in layer.parameters())])
        assert output.dtype == torch.bfloat16
    for ordinary, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, ordinary, rtol=3e-2, atol=3e-2 * float(ordinary.abs().max()))


def test_other_convolutions_are_left_alone():
    layer = torch.nn.Conv2d(16, 16, 3, groups=4)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        output = layer(torch.randn(1, 16, 8, 8))
    assert "_Depthwise" not in type(output.grad_fn).__name__


def test_no_gradient_is_prepared_where_none_is_wanted():
    layer = torch.nn.Conv2d(16, 16, 3, groups=16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        assert layer(torch.randn(1, 16, 8, 8)).grad_fn is None
