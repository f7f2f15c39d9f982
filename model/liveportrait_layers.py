"""Layers that several of LivePortrait's networks share. Attribute names are those of the official checkpoints."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU (or LeakyReLU with `slope`), in 2-D (B, C, H, W) or 3-D (B, C, D, H, W). Keeps the size."""

    def __init__(self, dims: Literal[2, 3], inputs: int, outputs: int, *, slope: float = 0.0) -> None:
        super().__init__()
        self.conv: nn.Module = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, 3, padding=1)
        self.norm: nn.Module = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d)(outputs)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)


class SpectralConv2d(nn.Module):
    """A convolution divided by the largest singular value of its weight (Miyato et al., 2018), as torch's `spectral_norm` stores it.

    A module of its own, not torch's hooks: it can be copied, traced and read. In training the pair (u, v) takes one step of
    power iteration per forward; in evaluation it is used as loaded.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel, bias=bias)  # for its initialisation
        self.padding = kernel // 2
        self.weight_orig = nn.Parameter(plain.weight.detach())
        self.bias = plain.bias
        self.register_buffer("weight_u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(inputs * kernel * kernel), dim=0))
        if not self.weight_orig.is_meta:
            for _ in range(15):  # (u, v) of a fresh weight start near its first singular pair
                self._power_iteration()

    @torch.no_grad()
    def _power_iteration(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0))

    def weight(self) -> Tensor:
        """weight_orig / (u^T W v), where W is weight_orig as a matrix (outputs, the rest)."""
        u, v = self.weight_u.clone(), self.weight_v.clone()  # the next forward's power iteration must not reach this one's backward
        return self.weight_orig / (u @ self.weight_orig.flatten(1) @ v)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._power_iteration()
        return F.conv2d(x, self.weight(), self.bias, padding=self.padding)

    def baked(self) -> nn.Conv2d:
        """The plain convolution that this one is in evaluation."""
        weight = self.weight().detach()
        outputs, inputs, kernel, _ = weight.shape
        conv = nn.Conv2d(
            inputs, outputs, kernel, padding=self.padding, bias=self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        conv.weight = nn.Parameter(weight)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone())
        return conv.train(self.training)


def bake_spectral_norm(network: nn.Module) -> None:
    """Replaces, in place, every `SpectralConv2d` by the plain convolution that it is in evaluation. For inference and export."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SpectralConv2d):
                setattr(module, name, child.baked())
