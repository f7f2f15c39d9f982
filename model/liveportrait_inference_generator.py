"""LivePortrait's generator as it runs; see model/liveportrait_inference.py.

The features that steer the normalisations are never enlarged (`EnlargedConv`). Where the shortcut of a block is learned, its 1x1
convolution goes into the one that makes the offset before it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait_generator import Spade, SpadeBlock, SpadeGenerator
from model.liveportrait_inference_layers import EnlargedConv, plain_conv


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
        weight, bias = torch.cat([c.weight for c in first]), torch.cat([c.bias for c in first])  # type: ignore[misc]
        self.shared = nn.Sequential(plain_conv(weight, bias, (1, 1)), nn.ReLU()) if scale == 1 else EnlargedConv(weight, bias, scale)
        before = [None, None, block.conv_s]
        self.spades = nn.ModuleList(SpadeInference(norm, conv) for norm, conv in zip(norms, before, strict=False))  # type: ignore[arg-type]

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        shared = self.shared(feature).chunk(len(self.spades), dim=1)
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
