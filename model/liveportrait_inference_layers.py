"""Layers of LivePortrait's networks as they run; see model/liveportrait_inference.py.

Shapes: B frames, D depth, C channels, H rows, W columns. A volume is kept as depth slices (B, D, C, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class SliceConv(nn.Module):
    """A 3-D convolution of depth slices (B, D, C, H, W), which keeps their number, as a 2-D one.

    The taps along the depth are channels: of the input (neighbouring slices beside each other) or of the output (summed with a shift),
    whichever are fewer.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, padding: int | None = None) -> None:
        super().__init__()
        self.outputs, inputs, self.taps, kernel, _ = weight.shape
        self.gather = inputs <= self.outputs
        if self.gather:
            plane = weight.transpose(1, 2).flatten(1, 2)
        else:
            plane = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
            bias = F.pad(bias, (self.taps // 2 * self.outputs,) * 2)  # with the middle tap: no slice is without it
        self.weight, self.bias = nn.Parameter(plane.detach().clone()), nn.Parameter(bias.detach().clone())
        self.pad = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        depth, beyond = x.shape[1], self.taps // 2
        if self.gather:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, beyond, beyond))
            x = torch.cat([x.narrow(1, i, depth) for i in range(self.taps)], dim=2)
        y = F.conv2d(x.flatten(0, 1), self.weight, self.bias, padding=self.pad).unflatten(0, (-1, depth))
        if self.gather:
            return y
        taps = F.pad(y, (0, 0, 0, 0, 0, 0, beyond, beyond)).chunk(self.taps, dim=2)
        total = taps[0].narrow(1, 0, depth)
        for i in range(1, self.taps):
            total = total + taps[i].narrow(1, i, depth)
        return total


class DoubledSliceConv(nn.Module):
    """A 3x3x3 convolution of slices whose rows and columns are doubled (nearest), without doubling them first: 4/9 of the work.

    A doubled pixel sees two source pixels per axis. The four positions in a doubled pixel are four 2x2 convolutions of the source.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.conv = SliceConv(doubled(weight).flatten(0, 2), bias.repeat(4), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y = self.conv(x).chunk(4, dim=2)
        return interleave([[y[2 * i + j].narrow(-2, i, h).narrow(-1, j, w) for j in (0, 1)] for i in (0, 1)])


class ManyInputsConv(nn.Module):
    """A convolution to one channel: first every tap by itself, as a 1x1 convolution to as many channels, then their shifted sum."""

    shift: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        assert weight.shape[0] == 1
        kernel = weight.shape[-1]
        self.taps = nn.Parameter(weight[0].flatten(1).T[:, :, None, None].detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.register_buffer("shift", torch.eye(kernel**2, dtype=weight.dtype).view(1, -1, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.taps), self.shift, self.bias, padding=self.shift.shape[-1] // 2)


def interleave(grid: list[list[Tensor]]) -> Tensor:
    """Position (i, j) within each enlarged pixel from grid[i][j] (..., H, W): (..., I H, J W)."""
    rows = [torch.stack(row, dim=-1).flatten(-2) for row in grid]
    return torch.stack(rows, dim=-2).flatten(-3, -2)


def plain_conv(weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> nn.Conv2d:
    kernel = (weight.shape[2], weight.shape[3])
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, padding=padding)
    conv.weight, conv.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return conv


def folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm behind it in one."""
    fused = fuse_conv_bn_eval(conv, norm)
    return fused.weight, fused.bias


def pick(weight: Tensor, dim: int, order: list[int]) -> Tensor:
    """Channels along `dim` in this order, zeros for -1."""
    index = torch.tensor(order)
    shape = [-1 if i == dim else 1 for i in range(weight.ndim)]
    return weight.index_select(dim, index.clamp(min=0)) * (index >= 0).view(shape)


def doubled(weight: Tensor) -> Tensor:
    """Of a 3x3 convolution (O, ..., 3, 3) over a doubled picture, the four 2x2 ones over the picture itself: (2, 2, O, ..., 2, 2).

    Position 0 of a doubled pixel i sees pixels i - 1, i, i and position 1 sees i, i, i + 1.
    """
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    return torch.einsum("itk,jul,o...kl->ijo...tu", taps, taps, weight)
