"""LivePortrait's generator G: warped features to a picture, each normalisation steered by those features (SPADE, Park et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait_layers import SpectralConv2d


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Widths; by default the official ones."""

    in_channels: int = 256  # of the warped features; the middle blocks are twice as wide
    out_channels: int = 64  # before the last convolution
    middle_blocks: int = 6
    spade_hidden: int = 128
    upscale: int = 2  # after the two doublings, by pixel shuffle


class SpadeGenerator(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        wide, features, hidden = 2 * config.in_channels, config.in_channels, config.spade_hidden
        self.fc = nn.Conv2d(features, wide, 3, padding=1)
        for name in self._middle_names():
            self.add_module(name, SpadeBlock(wide, wide, features, hidden))
        self.up_0 = SpadeBlock(wide, features, features, hidden)
        self.up_1 = SpadeBlock(features, config.out_channels, features, hidden)
        self.conv_img = nn.Sequential(nn.Conv2d(config.out_channels, 3 * config.upscale**2, 3, padding=1), nn.PixelShuffle(config.upscale))

    def _middle_names(self) -> list[str]:
        return [f"G_middle_{i}" for i in range(self.config.middle_blocks)]  # the checkpoint's names: no list of modules there

    def forward(self, feature: Tensor) -> Tensor:
        """RGB (B, 3, 4 upscale H, 4 upscale W) in 0..1 of warped features (B, in_channels, H, W)."""
        x = self.fc(feature)
        for name in self._middle_names():
            x = self.get_submodule(name)(x, feature)
        x = self.up_0(F.interpolate(x, scale_factor=2, mode="nearest"), feature)
        x = self.up_1(F.interpolate(x, scale_factor=2, mode="nearest"), feature)
        return self.conv_img(F.leaky_relu(x, 0.2)).sigmoid()


class SpadeBlock(nn.Module):
    """A residual block; the shortcut is learned where the width changes."""

    def __init__(self, inputs: int, outputs: int, features: int, hidden: int) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.conv_0 = SpectralConv2d(inputs, middle, 3)
        self.conv_1 = SpectralConv2d(middle, outputs, 3)
        self.norm_0 = Spade(inputs, features, hidden)
        self.norm_1 = Spade(middle, features, hidden)
        self.conv_s = self.norm_s = None
        if inputs != outputs:
            self.conv_s = SpectralConv2d(inputs, outputs, 1, bias=False)
            self.norm_s = Spade(inputs, features, hidden)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W); `feature` of any size."""
        shortcut = x if self.conv_s is None or self.norm_s is None else self.conv_s(self.norm_s(x, feature))
        x = self.conv_0(F.leaky_relu(self.norm_0(x, feature), 0.2))
        x = self.conv_1(F.leaky_relu(self.norm_1(x, feature), 0.2))
        return shortcut + x


class Spade(nn.Module):
    """Instance norm whose scale and offset vary over the picture: norm(x) * (1 + gamma(feature)) + beta(feature)."""

    def __init__(self, channels: int, features: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(features, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        shared = self.mlp_shared(F.interpolate(feature, size=x.shape[-2:], mode="nearest"))
        return F.instance_norm(x) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)
