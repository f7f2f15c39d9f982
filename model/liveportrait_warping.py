"""LivePortrait's warping network W: from keypoints to a dense flow of the appearance volume, and the warped features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait_layers import ConvNorm

# Shape suffixes: B driving frames, K keypoints, M = K + 1 motions (the background first), C channels, D H W depth, rows and columns of the
# volume, X = 3: x, y, z, each -1..1 across the volume.

_VARIANCE = 0.01  # of the gaussian around a keypoint


@dataclass(frozen=True, kw_only=True)
class WarpingConfig:
    """Widths; by default the official ones."""

    keypoints: int = 21
    volume_channels: int = 32
    volume_depth: int = 16
    out_channels: int = 256
    compress: int = 4  # channels of the volume that the flow is estimated from
    hourglass_width: int = 32  # doubles with each of the levels, up to hourglass_max
    hourglass_max: int = 1024
    hourglass_levels: int = 5
    occlusion: bool = True


class Warped(NamedTuple):
    """`out` (B, out_channels, H, W); `deformation` (B, D, H, W, 3), where in the source volume each voxel comes from;
    `occlusion` (B, 1, H, W) in 0..1, ones where the network has no such head."""

    out: Tensor
    deformation: Tensor
    occlusion: Tensor


class WarpingNetwork(nn.Module):
    def __init__(self, config: WarpingConfig) -> None:
        super().__init__()
        self.config = config
        self.dense_motion_network = DenseMotion(config)
        self.third = ConvNorm(2, config.volume_channels * config.volume_depth, config.out_channels, slope=0.01)
        self.fourth = nn.Conv2d(config.out_channels, config.out_channels, 1)

    def forward(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Warped:
        """Features of the source, moved to where the driving keypoints are.

        Args:
            feature_3d: appearance volume (B or 1, C, D, H, W).
            kp_driving: (B, K, 3), x right, y down.
            kp_source: (B or 1, K, 3).
        """
        b = kp_driving.shape[0]
        volume_BCDHW = feature_3d.expand(b, -1, -1, -1, -1)
        deformation, occlusion = self.dense_motion_network(volume_BCDHW, kp_driving, kp_source.expand(b, -1, -1))
        warped = F.grid_sample(volume_BCDHW, deformation, align_corners=False)
        out = self.fourth(self.third(warped.flatten(1, 2))) * occlusion
        return Warped(out, deformation, occlusion)


class DenseMotion(nn.Module):
    """One candidate flow per keypoint and one for the background; an hourglass says how much of each holds where."""

    def __init__(self, config: WarpingConfig) -> None:
        super().__init__()
        motions = config.keypoints + 1
        self.compress = nn.Conv3d(config.volume_channels, config.compress, 1)
        self.norm = nn.BatchNorm3d(config.compress)
        self.hourglass = Hourglass(motions * (config.compress + 1), config)
        width = self.hourglass.out_channels
        self.mask = nn.Conv3d(width, motions, 7, padding=3)
        self.occlusion = nn.Conv2d(width * config.volume_depth, 1, 7, padding=3) if config.occlusion else None

    def forward(self, volume_BCDHW: Tensor, kp_driving_BKX: Tensor, kp_source_BKX: Tensor) -> tuple[Tensor, Tensor]:
        """The flow (B, D, H, W, 3) and the occlusion (B, 1, H, W)."""
        grid_DHWX = coordinate_grid(volume_BCDHW)
        motions_BMDHWX = self._candidates(grid_DHWX, kp_driving_BKX, kp_source_BKX)
        feature = F.relu(self.norm(self.compress(volume_BCDHW)))
        deformed_BMCDHW = self._deform(feature, motions_BMDHWX)
        heat_BM1DHW = self._heat(grid_DHWX, kp_driving_BKX, kp_source_BKX)

        prediction = self.hourglass(torch.cat([heat_BM1DHW, deformed_BMCDHW], dim=2).flatten(1, 2))
        mask_BMDHW = self.mask(prediction).softmax(dim=1)
        deformation = (mask_BMDHW[..., None] * motions_BMDHWX).sum(dim=1)
        if self.occlusion is None:
            return deformation, torch.ones_like(prediction[:, :1, 0])
        return deformation, self.occlusion(prediction.flatten(1, 2)).sigmoid()

    @staticmethod
    def _candidates(grid_DHWX: Tensor, kp_driving_BKX: Tensor, kp_source_BKX: Tensor) -> Tensor:
        """The background stays; everything moves as keypoint k does. (B, M, D, H, W, 3)."""
        shift_BKX = kp_source_BKX - kp_driving_BKX
        shift_BMX = F.pad(shift_BKX, (0, 0, 1, 0))
        return grid_DHWX + shift_BMX[:, :, None, None, None]

    @staticmethod
    def _deform(feature_BCDHW: Tensor, motions_BMDHWX: Tensor) -> Tensor:
        """The features under each candidate flow, (B, M, C, D, H, W).

        The grid's corners are voxel centres but the sampler takes them for voxel edges (align_corners=False): the published weights
        were trained with this mismatch.
        """
        b, m = motions_BMDHWX.shape[:2]
        repeated = feature_BCDHW[:, None].expand(-1, m, -1, -1, -1, -1).flatten(0, 1)
        return F.grid_sample(repeated, motions_BMDHWX.flatten(0, 1), align_corners=False).unflatten(0, (b, m))

    @staticmethod
    def _heat(grid_DHWX: Tensor, kp_driving_BKX: Tensor, kp_source_BKX: Tensor) -> Tensor:
        """A gaussian where keypoint k goes minus one where it was, nothing for the background: (B, M, 1, D, H, W)."""

        def gaussian(kp_BKX: Tensor) -> Tensor:
            distance = (grid_DHWX - kp_BKX[:, :, None, None, None]).square().sum(-1)
            return (-0.5 * distance / _VARIANCE).exp()

        heat_BKDHW = gaussian(kp_driving_BKX) - gaussian(kp_source_BKX)
        return F.pad(heat_BKDHW, (0, 0, 0, 0, 0, 0, 1, 0))[:, :, None]


class Hourglass(nn.Module):
    """A U-Net over the volume that halves rows and columns, never the depth."""

    def __init__(self, inputs: int, config: WarpingConfig) -> None:
        super().__init__()
        widths = [min(config.hourglass_max, config.hourglass_width << i) for i in range(config.hourglass_levels + 1)]
        self.encoder = HourglassEncoder(inputs, widths)
        self.decoder = HourglassDecoder(inputs, widths)
        self.out_channels = inputs + widths[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class HourglassEncoder(nn.Module):
    def __init__(self, inputs: int, widths: list[int]) -> None:
        super().__init__()
        pairs = zip([inputs, *widths[1:]], widths[1:], strict=False)
        self.down_blocks = nn.ModuleList(ConvNorm(3, i, o) for i, o in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and the output of each level."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(F.avg_pool3d(block(levels[-1]), (1, 2, 2)))
        return levels


class HourglassDecoder(nn.Module):
    def __init__(self, inputs: int, widths: list[int]) -> None:
        super().__init__()
        deepest = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            ConvNorm(3, widths[i] * (1 if i == deepest else 2), widths[i - 1])  # twice: what comes up and what the encoder left
            for i in range(deepest, 0, -1)
        )
        self.conv = nn.Conv3d(widths[0] + inputs, widths[0] + inputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(widths[0] + inputs)

    def forward(self, levels: list[Tensor]) -> Tensor:
        x, *skips = reversed(levels)
        for block, skip in zip(self.up_blocks, skips, strict=True):
            x = block(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))
            x = torch.cat([x, skip], dim=1)
        return F.relu(self.norm(self.conv(x)))


def coordinate_grid(volume: Tensor) -> Tensor:
    """Position (x, y, z) of each voxel of a volume (..., D, H, W), the outermost centres at -1 and 1: (D, H, W, 3)."""
    z, y, x = (torch.linspace(-1, 1, n, dtype=volume.dtype, device=volume.device) for n in volume.shape[-3:])
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
