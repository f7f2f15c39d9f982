"""LivePortrait's networks (arXiv 2407.03168): appearance F, motion M, warping W, generator G, and three small MLPs over keypoints.

Parameter names and shapes are those of the published checkpoints, so weights travel in both directions. The networks train as they
stand: what inference and export need (spectral norm baked, batches of fixed size) is done to them elsewhere.

    volume = appearance(source)                               once per identity
    motion = motion(frame) -> keypoints (schemas/keypoints)   once per driving frame
    picture = generator(warping(volume, x_d, x_s).out)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait_generator import GeneratorConfig, SpadeGenerator
from model.liveportrait_layers import ConvNorm, bake_spectral_norm
from model.liveportrait_warping import WarpingConfig, WarpingNetwork
from schemas.keypoints import ANGLE_BINS


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig:
    """Widths; by default the official ones."""

    width: int = 64  # of the first convolution; doubles with each halving of the picture, up to volume_channels * volume_depth
    halvings: int = 2
    volume_channels: int = 32
    volume_depth: int = 16
    blocks: int = 6


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Widths; by default the official ones (ConvNeXtV2-tiny)."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    keypoints: int = 21


@dataclass(frozen=True, kw_only=True)
class LivePortraitConfig:
    """All networks of one model; by default the official widths. The MLPs are given by the sizes of their layers, input first."""

    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    warping: WarpingConfig = field(default_factory=WarpingConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    stitching: tuple[int, ...] = (126, 128, 128, 64, 65)
    lip: tuple[int, ...] = (65, 128, 128, 64, 63)
    eye: tuple[int, ...] = (66, 256, 256, 128, 128, 64, 63)

    def __post_init__(self) -> None:
        a, w, k = self.appearance, self.warping, self.motion.keypoints
        must_agree = {
            "volume (channels, depth) of appearance and warping": (
                (a.volume_channels, a.volume_depth),
                (w.volume_channels, w.volume_depth),
            ),
            "channels from warping to generator": (w.out_channels, self.generator.in_channels),
            "keypoints of motion and warping": (k, w.keypoints),
            "input and output of stitching": ((self.stitching[0], self.stitching[-1]), (6 * k, 3 * k + 2)),
            "input and output of lip": ((self.lip[0], self.lip[-1]), (3 * k + 2, 3 * k)),
            "input and output of eye": ((self.eye[0], self.eye[-1]), (3 * k + 3, 3 * k)),
        }
        for what, (one, other) in must_agree.items():
            if one != other:
                raise ValueError(f"{what} do not fit together: {one} and {other}")


OFFICIAL = LivePortraitConfig()


class LivePortrait(nn.Module):
    """The networks of one model, side by side."""

    def __init__(self, config: LivePortraitConfig) -> None:
        super().__init__()
        self.config = config
        self.appearance = AppearanceFeatureExtractor(config.appearance)
        self.motion = MotionExtractor(config.motion)
        self.warping = WarpingNetwork(config.warping)
        self.generator = SpadeGenerator(config.generator)
        self.stitching = KeypointMLP(config.stitching)
        self.lip = KeypointMLP(config.lip)
        self.eye = KeypointMLP(config.eye)

    def bake(self) -> LivePortrait:
        """For inference, in place: evaluation mode, no gradients, spectral norm folded into the weights. The checkpoint's keys are lost."""
        bake_spectral_norm(self)
        return self.eval().requires_grad_(False)


class AppearanceFeatureExtractor(nn.Module):
    """F: a picture to a volume of features, which the warping network can turn."""

    def __init__(self, config: AppearanceConfig) -> None:
        super().__init__()
        self.config = config
        flat = config.volume_channels * config.volume_depth
        widths = [config.width, *(min(flat, config.width << i) for i in range(1, config.halvings + 1))]
        self.first = ConvNorm(2, 3, config.width)
        self.down_blocks = nn.ModuleList(ConvNorm(2, i, o) for i, o in pairwise(widths))
        self.second = nn.Conv2d(widths[-1], flat, 1)
        self.resblocks_3d = nn.Sequential()
        for i in range(config.blocks):
            self.resblocks_3d.add_module(f"3dr{i}", VolumeBlock(config.volume_channels))

    def forward(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..1 to (B, volume_channels, volume_depth, H / 2^halvings, W / 2^halvings)."""
        x = self.first(image)
        for block in self.down_blocks:
            x = F.avg_pool2d(block(x), 2)
        volume = self.second(x).unflatten(1, (self.config.volume_channels, self.config.volume_depth))
        return self.resblocks_3d(volume)


class VolumeBlock(nn.Module):
    """A residual block over a volume, normalised before each convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class MotionOutput(NamedTuple):
    """What M says of a head; `schemas.keypoints` makes points of it. Angles are (B, 66) logits, `t` (B, 3), `scale` (B, 1),
    `exp` and `kp` (B, 3 K): x, y, z of a keypoint beside each other."""

    pitch: Tensor
    yaw: Tensor
    roll: Tensor
    t: Tensor
    exp: Tensor
    scale: Tensor
    kp: Tensor


class MotionExtractor(nn.Module):
    """M: head pose, expression and canonical keypoints of a picture."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = ConvNeXtV2(config)

    def forward(self, image: Tensor) -> MotionOutput:
        """(B, 3, H, W) RGB in 0..1."""
        return self.detector(image)


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2 (arXiv 2301.00808) with one linear head per quantity."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        dims, last = config.dims, config.dims[-1]
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), ChannelNorm(dims[0], eps=1e-6))
        between = [nn.Sequential(ChannelNorm(i, eps=1e-6), nn.Conv2d(i, o, 2, stride=2)) for i, o in pairwise(dims)]
        self.downsample_layers = nn.ModuleList([stem, *between])
        blocks = zip(dims, config.depths, strict=True)
        self.stages = nn.ModuleList(nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth))) for dim, depth in blocks)
        self.norm = nn.LayerNorm(last, eps=1e-6)
        self.fc_kp, self.fc_exp = nn.Linear(last, 3 * config.keypoints), nn.Linear(last, 3 * config.keypoints)
        self.fc_scale, self.fc_t = nn.Linear(last, 1), nn.Linear(last, 3)
        self.fc_pitch, self.fc_yaw, self.fc_roll = (nn.Linear(last, ANGLE_BINS) for _ in range(3))

    def forward(self, x: Tensor) -> MotionOutput:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        x = self.norm(x.mean([-2, -1]))
        return MotionOutput(
            pitch=self.fc_pitch(x),
            yaw=self.fc_yaw(x),
            roll=self.fc_roll(x),
            t=self.fc_t(x),
            exp=self.fc_exp(x),
            scale=self.fc_scale(x),
            kp=self.fc_kp(x),
        )


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = ResponseNorm(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(F.gelu(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation over (B, H, W, C): channels that answer more than the average are let through."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(dim=(1, 2), keepdim=True)
        relative = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * relative) + self.beta + x


class KeypointMLP(nn.Module):
    """Stitching: (B, x_s and x_d) to offsets of all keypoints and a common shift in x and y. Retargeting of lips or eyes: (B, x_s and
    ratios of openings) to offsets."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)
