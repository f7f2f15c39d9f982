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

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        outputs, inputs, self.taps, kernel, _ = weight.shape
        self.beside = inputs <= outputs
        if self.beside:
            plane = weight.transpose(1, 2).flatten(1, 2)
        else:
            plane = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
            bias = F.pad(bias, (self.taps // 2 * outputs,) * 2)  # with the middle tap: no slice is without it
        self.conv = plain_conv(plane, bias, (kernel // 2, kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        depth, beyond = x.shape[1], self.taps // 2
        x = beside(x, self.taps) if self.beside else x
        y = self.conv(x.flatten(0, 1)).unflatten(0, (-1, depth))
        if self.beside:
            return y
        taps = F.pad(y, (0, 0, 0, 0, 0, 0, beyond, beyond)).chunk(self.taps, dim=2)
        total = taps[0].narrow(1, 0, depth)
        for i in range(1, self.taps):
            total = total + taps[i].narrow(1, i, depth)
        return total


class DoubledSliceConv(nn.Module):
    """A 3x3x3 convolution of slices whose rows and columns are doubled (nearest) before, and ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.taps = weight.shape[2]
        self.conv = EnlargedConv(weight.transpose(1, 2).flatten(1, 2), bias, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(beside(x, self.taps).flatten(0, 1)).unflatten(0, (-1, x.shape[1]))


class EnlargedConv(nn.Module):
    """A 3x3 convolution of a picture whose rows and columns are repeated `scale` times before, and ReLU; without repeating them.

    Along an axis the first and the last position within an enlarged pixel see two source pixels, the others only their own. So each
    position is a smaller convolution of the source: 16 taps for 4 pixels instead of 36, or 25 for 16 (inner ones are equal) instead
    of 144.
    """

    # per position along an axis: how the taps of source pixels are sums of the three, and how many source pixels come before and after
    _POSITIONS = (([[1, 0, 0], [0, 1, 1]], (1, 0)), ([[1, 1, 1]], (0, 0)), ([[1, 1, 0], [0, 0, 1]], (0, 1)))

    def __init__(self, weight: Tensor, bias: Tensor, scale: int) -> None:
        super().__init__()
        assert scale >= 2
        positions = self._POSITIONS if scale > 2 else self._POSITIONS[::2]
        self.order = [0, *[1] * (scale - 2), len(positions) - 1]
        # cuDNN knows no padding on one side only: ONNX Runtime computes one more row and column there and cuts them off
        self.convs = nn.ModuleList()
        for rows, (above, below) in positions:
            for columns, (left, right) in positions:
                taps = torch.einsum("tk,ul,oikl->oitu", weight.new_tensor(rows), weight.new_tensor(columns), weight)
                self.convs.append(nn.Sequential(nn.ZeroPad2d((left, right, above, below)), plain_conv(taps, bias, (0, 0)), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        made = [conv(x) for conv in self.convs]
        side = max(self.order) + 1
        rows = [torch.stack([made[side * i + j] for j in self.order], dim=-1).flatten(-2) for i in range(side)]
        return torch.stack([rows[i] for i in self.order], dim=-2).flatten(-3, -2)


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


def beside(x: Tensor, taps: int) -> Tensor:
    """Each slice with its neighbours, `taps` in all, zeros beyond the ends: (B, D, C, H, W) to (B, D, taps * C, H, W)."""
    depth, beyond = x.shape[1], taps // 2
    x = F.pad(x, (0, 0, 0, 0, 0, 0, beyond, beyond))
    return torch.cat([x.narrow(1, i, depth) for i in range(taps)], dim=2)


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
