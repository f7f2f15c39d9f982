"""LivePortrait's generator as it runs; see model/liveportrait_inference.py.

The features that steer the normalisations are never enlarged: a 3x3 convolution of the enlarged ones is a few 2x2 convolutions of
the small ones, one per position within an enlarged pixel. And where a block's shortcut is learned, its 1x1 convolution goes into the
convolution that makes the offset before it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait_generator import Spade, SpadeBlock, SpadeGenerator
from model.liveportrait_inference_layers import doubled, interleave, plain_conv


class GeneratorInference(nn.Module):
    """Warped features (B, C, H, W) to what becomes the picture by sigmoid and pixel shuffle: (B, 3 upscale^2, 4 H, 4 W)."""

    def __init__(self, net: SpadeGenerator, working: torch.dtype) -> None:
        super().__init__()
        exact = net.fc.weight.dtype
        middle = [net.get_submodule(f"G_middle_{i}") for i in range(net.config.middle_blocks)]
        self.fc, self.conv_img = copy.deepcopy(net.fc), copy.deepcopy(net.conv_img[0])
        self.middle = nn.ModuleList(SpadeBlockInference(block, 1, exact) for block in middle)  # type: ignore[arg-type]
        self.up_0, self.up_1 = SpadeBlockInference(net.up_0, 2, exact), SpadeBlockInference(net.up_1, 4, exact)
        self.to(working)

    def forward(self, feature: Tensor) -> Tensor:
        x = self.fc(feature)
        for block in self.middle:
            x = block(x, feature)
        x = self.up_0(F.interpolate(x, scale_factor=2, mode="nearest"), feature)
        x = self.up_1(F.interpolate(x, scale_factor=2, mode="nearest"), feature)
        return self.conv_img(F.leaky_relu(x, 0.2))


class SpadeBlockInference(nn.Module):
    """A residual block on pictures `scale` times as large as the features."""

    def __init__(self, block: SpadeBlock, scale: int, exact: torch.dtype) -> None:
        super().__init__()
        self.exact = exact
        self.conv_0, self.conv_1, self.conv_s = copy.deepcopy(block.conv_0), copy.deepcopy(block.conv_1), copy.deepcopy(block.conv_s)
        norms = [norm for norm in (block.norm_0, block.norm_1, block.norm_s) if norm is not None]
        first = [norm.mlp_shared[0] for norm in norms]
        shared = plain_conv(torch.cat([c.weight for c in first]), torch.cat([c.bias for c in first]), (1, 1))  # type: ignore[misc]
        self.shared: nn.Module = shared if scale == 1 else EnlargedConv(shared, scale)
        before = [None, None, block.conv_s]
        self.spades = nn.ModuleList(SpadeInference(norm, conv) for norm, conv in zip(norms, before, strict=False))  # type: ignore[arg-type]

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        shared = F.relu(self.shared(feature)).chunk(len(self.spades), dim=1)
        (scale_0, offset_0), (scale_1, offset_1), *last = (spade(s) for spade, s in zip(self.spades, shared, strict=True))
        normal, shortcut = self._normal(x), x
        if self.conv_s is not None:
            ((scale_s, offset_s),) = last
            shortcut = self.conv_s(normal * scale_s) + offset_s
        y = self.conv_0(F.leaky_relu(normal * scale_0 + offset_0, 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self._normal(y) * scale_1 + offset_1, 0.2))

    def _normal(self, x: Tensor) -> Tensor:
        return F.instance_norm(x.to(self.exact)).to(x.dtype)


class SpadeInference(nn.Module):
    """Of the hidden features the scale (1 + gamma) and the offset (beta) of a normalisation; with `before`, the offset after that
    1x1 convolution."""

    def __init__(self, norm: Spade, before: nn.Conv2d | None = None) -> None:
        super().__init__()
        self.gamma, self.beta = copy.deepcopy(norm.mlp_gamma), copy.deepcopy(norm.mlp_beta)
        assert self.gamma.bias is not None and self.beta.bias is not None
        self.gamma.bias = nn.Parameter(self.gamma.bias + 1)
        if before is not None:
            assert before.bias is None
            mix = before.weight[:, :, 0, 0]
            self.beta.weight = nn.Parameter(torch.einsum("om,mikl->oikl", mix, self.beta.weight))
            self.beta.bias = nn.Parameter(mix @ self.beta.bias)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        return self.gamma(shared), self.beta(shared)


class EnlargedConv(nn.Module):
    """A 3x3 convolution of a picture whose rows and columns are repeated `scale` times (even), without repeating them first.

    Along an axis the first and the last position within an enlarged pixel see two source pixels, the others only their own.
    """

    def __init__(self, conv: nn.Conv2d, scale: int) -> None:
        super().__init__()
        assert scale % 2 == 0 and conv.bias is not None
        self.inner = scale - 2  # positions along an axis that see their own pixel only
        ends = doubled(conv.weight)  # (2, 2, O, C, 2, 2)
        self.corners = plain_conv(ends.flatten(0, 2), conv.bias.repeat(4), (1, 1))
        if self.inner:
            self.rows = plain_conv(ends[:, 0].sum(-1, keepdim=True).flatten(0, 1), conv.bias.repeat(2), (1, 0))
            self.columns = plain_conv(ends[0].sum(-2, keepdim=True).flatten(0, 1), conv.bias.repeat(2), (0, 1))
            self.centre = plain_conv(conv.weight.sum((-2, -1), keepdim=True), conv.bias, (0, 0))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        y = self.corners(x).chunk(4, dim=1)
        grid = [[y[2 * i + j].narrow(-2, i, h).narrow(-1, j, w) for j in (0, 1)] for i in (0, 1)]
        if self.inner:
            rows, columns, centre = self.rows(x).chunk(2, dim=1), self.columns(x).chunk(2, dim=1), self.centre(x)
            for i in (0, 1):
                grid[i][1:1] = [rows[i].narrow(-2, i, h)] * self.inner
            grid.insert(1, [columns[0].narrow(-1, 0, w), *[centre] * self.inner, columns[1].narrow(-1, 1, w)])
            return interleave([grid[0], *[grid[1]] * self.inner, grid[2]])
        return interleave(grid)
