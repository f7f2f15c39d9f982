"""LivePortrait's networks as they run: the same functions of the same weights as `model.liveportrait`, written for ONNX Runtime.

Everything here is exact (equal in float64 to rounding) and made of operators that ONNX Runtime has on the CPU and on CUDA:

- A volume is kept as depth slices (B, D, C, H, W): a 3-D convolution is then a 2-D one with the taps along the depth as channels.
- The features under the candidate flows, each the identity and a constant shift, are resampled axis by axis: three small matrices
  per keypoint. Only the final flow needs a 5-D GridSample.
- A heatmap is an outer product of three gaussians, and the flow is the identity plus the mean shift under the mask.
- What depends on the source alone has a batch of one, whatever the batch of driving frames.

Built of a baked model (`LivePortrait.bake`). With `working` = float16 convolutions are half precision; coordinates, resampling,
the softmax over motions and statistics stay in the precision of the model.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.liveportrait import AppearanceFeatureExtractor
from model.liveportrait_inference_layers import DoubledSliceConv, ManyInputsConv, SliceConv, folded, pick, plain_conv
from model.liveportrait_warping import DenseMotion, Warped, WarpingNetwork, coordinate_grid

# Shape suffixes as in model/liveportrait_warping.py: B driving frames, K keypoints, C channels, D H W depth, rows and columns, X = x, y, z.

_VARIANCE = 0.01  # of the gaussian around a keypoint
_BLOCK = 16  # channels that ONNX Runtime's CPU convolution takes at once; the hourglass is padded to it with zeros


class AppearanceInference(nn.Module):
    """(B, 3, H, W) RGB in 0..1 to the volume (B, C, D, h, w), in the precision of the model."""

    def __init__(self, net: AppearanceFeatureExtractor, working: torch.dtype) -> None:
        super().__init__()
        self.working, self.exact = working, net.second.weight.dtype
        self.depth, channels = net.config.volume_depth, net.config.volume_channels
        same = (1, 1)
        self.first = plain_conv(*folded(net.first.conv, net.first.norm), same)
        down: list[Any] = list(net.down_blocks)
        self.down_blocks = nn.ModuleList(plain_conv(*folded(block.conv, block.norm), same) for block in down)
        rows = torch.arange(channels * self.depth).view(channels, self.depth).T.flatten()  # depth first: slices
        assert net.second.bias is not None
        self.second = plain_conv(net.second.weight[rows], net.second.bias[rows], (0, 0))
        blocks: list[Any] = list(net.resblocks_3d)
        self.norms = nn.ModuleList(copy.deepcopy(block.norm1) for block in blocks)
        self.convs_1 = nn.ModuleList(SliceConv(*folded(block.conv1, block.norm2)) for block in blocks)
        self.convs_2 = nn.ModuleList(SliceConv(block.conv2.weight, block.conv2.bias) for block in blocks)
        self.to(working)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.first(image.to(self.working)))
        for block in self.down_blocks:
            x = F.avg_pool2d(F.relu(block(x)), 2)
        x = self.second(x).unflatten(1, (self.depth, -1))
        for norm, conv_1, conv_2 in zip(self.norms, self.convs_1, self.convs_2, strict=True):
            y = norm(x.flatten(0, 1)[:, :, None])[:, :, 0].unflatten(0, (-1, self.depth))
            x = x + conv_2(F.relu(conv_1(F.relu(y))))
        return x.transpose(1, 2).to(self.exact)


class WarpingInference(nn.Module):
    """The warping network for one source and a batch of driving frames."""

    def __init__(self, net: WarpingNetwork, working: torch.dtype) -> None:
        super().__init__()
        self.dense_motion = DenseMotionInference(net.dense_motion_network, net.config.volume_depth, working)
        self.third = plain_conv(*folded(net.third.conv, net.third.norm), (1, 1)).to(working)
        self.fourth = copy.deepcopy(net.fourth).to(working)
        self.slope, self.working = net.third.slope, working

    def forward(self, volume_1CDHW: Tensor, kp_driving_BKX: Tensor, kp_source_1KX: Tensor) -> Warped:
        deformation, occlusion = self.dense_motion(volume_1CDHW, kp_driving_BKX, kp_source_1KX)
        volume_BCDHW = volume_1CDHW.expand(deformation.shape[0], -1, -1, -1, -1)
        warped = F.grid_sample(volume_BCDHW, deformation, align_corners=False).flatten(1, 2).to(self.working)
        out = self.fourth(F.leaky_relu(self.third(warped), self.slope))
        return Warped(out * occlusion.to(self.working), deformation, occlusion)


class DenseMotionInference(nn.Module):
    """The flow (B, D, H, W, 3) and the occlusion (B, 1, H, W)."""

    def __init__(self, net: DenseMotion, depth: int, working: torch.dtype) -> None:
        super().__init__()
        self.working = working
        weight, bias = folded(net.compress, net.norm)
        self.compress = plain_conv(weight[..., 0], bias, (0, 0))
        motions, features = net.mask.out_channels, self.compress.out_channels
        # the network's order of channels is (heat, features) per motion, the background first; its heat is zero and left out
        every = torch.arange(motions * (features + 1)).view(motions, -1)
        order = [*every[1:, 0].tolist(), *every[1:, 1:].flatten().tolist(), *every[0, 1:].tolist()]
        self.padding = -len(order) % _BLOCK
        order += [-1] * self.padding
        down: list[Any] = list(net.hourglass.encoder.down_blocks)
        up: list[Any] = list(net.hourglass.decoder.up_blocks)
        first, *others = (folded(block.conv, block.norm) for block in down)
        self.down_blocks = nn.ModuleList([SliceConv(pick(first[0], 1, order), first[1]), *(SliceConv(*other) for other in others)])
        self.up_blocks = nn.ModuleList(DoubledSliceConv(*folded(block.conv, block.norm)) for block in up)
        weight, bias = folded(net.hourglass.decoder.conv, net.hourglass.decoder.norm)
        width = len(bias) - every.numel()  # of what comes up; the skip behind it is in the order above
        inputs = [*range(width), *(-1 if i < 0 else width + i for i in order)]
        outputs = [*range(len(bias)), *[-1] * (-len(bias) % _BLOCK)]
        self.last = SliceConv(pick(pick(weight, 1, inputs), 0, outputs), pick(bias, 0, outputs))
        assert net.mask.bias is not None
        self.mask = SliceConv(pick(net.mask.weight, 1, outputs), net.mask.bias)
        for module in chain(self.down_blocks, self.up_blocks, [self.last, self.mask]):
            module.to(working)
        self.occlusion = None
        if net.occlusion is not None:
            assert net.occlusion.bias is not None
            weight = pick(net.occlusion.weight.unflatten(1, (-1, depth)).transpose(1, 2), 2, outputs).flatten(1, 2)
            self.occlusion = ManyInputsConv(weight, net.occlusion.bias).to(working)

    def forward(self, volume_1CDHW: Tensor, kp_driving_BKX: Tensor, kp_source_1KX: Tensor) -> tuple[Tensor, Tensor]:
        shift_BKX = kp_source_1KX - kp_driving_BKX
        feature_1CDHW = F.relu(self.compress(volume_1CDHW.flatten(2, 3))).unflatten(2, volume_1CDHW.shape[2:4])
        moved_BDCHW = shifted(feature_1CDHW, shift_BKX).flatten(2, 3)
        still_1DCHW = shifted(feature_1CDHW, torch.zeros_like(kp_source_1KX[:, :1])).flatten(2, 3)
        still_1DCHW = F.pad(still_1DCHW, (0, 0, 0, 0, 0, self.padding))
        size = volume_1CDHW.shape[-3:]
        heat_BDKHW = heat(kp_driving_BKX, size) - heat(kp_source_1KX, size)
        still_BDCHW = still_1DCHW.expand(heat_BDKHW.shape[0], -1, -1, -1, -1)
        prediction = self._hourglass(torch.cat([heat_BDKHW, moved_BDCHW, still_BDCHW], dim=2).to(self.working))

        mask_BDMHW = self.mask(prediction).to(shift_BKX.dtype).softmax(dim=2)
        shift_B13K = shift_BKX.transpose(1, 2)[:, None]
        mean_BDXHW = (shift_B13K @ mask_BDMHW[:, :, 1:].flatten(3)).unflatten(3, size[1:])
        deformation = mean_BDXHW.permute(0, 1, 3, 4, 2) + coordinate_grid(volume_1CDHW)
        if self.occlusion is None:
            return deformation, torch.ones_like(deformation[:, :1, :, :, 0])
        return deformation, self.occlusion(prediction.flatten(1, 2)).to(shift_BKX.dtype).sigmoid()

    def _hourglass(self, x: Tensor) -> Tensor:
        levels = [x]
        for down in self.down_blocks:
            y = F.relu(down(levels[-1]))
            levels.append(F.avg_pool2d(y.flatten(0, 1), 2).unflatten(0, y.shape[:2]))
        x = levels.pop()
        for up in self.up_blocks:
            x = torch.cat([up(x), levels.pop()], dim=2)
        return F.relu(self.last(x))


def centres(n: int, like: Tensor) -> Tensor:
    """Coordinates of n voxels, the outermost at -1 and 1: (n,)."""
    return torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device)


def shifted(feature_1CDHW: Tensor, shift_BKX: Tensor) -> Tensor:
    """Trilinear samples at the identity plus a constant shift, zeros outside: (B, D, K, C, H, W), as F.grid_sample(align_corners=False).

    Along one axis sample j is at i_j = ((centre_j + shift + 1) n - 1) / 2 and takes voxel i with the weight max(0, 1 - |i_j - i|).
    """

    def weights(axis: int, n: int) -> Tensor:
        at = ((centres(n, shift_BKX) + shift_BKX[..., axis, None] + 1) * n - 1) / 2
        return F.relu(1 - (at[..., None] - torch.arange(n, dtype=at.dtype, device=at.device)).abs())

    c, d, h, w = feature_1CDHW.shape[1:]
    x_BKWW, y_BKHH, z_BKDD = (weights(axis, n) for axis, n in enumerate((w, h, d)))
    f = feature_1CDHW.reshape(1, 1, c * d * h, w) @ x_BKWW.transpose(2, 3)
    f = y_BKHH[:, :, None] @ f.unflatten(2, (c * d, h))
    f = z_BKDD[:, :, None] @ f.unflatten(2, (c, d)).flatten(4)
    return f.permute(0, 3, 1, 2, 4).unflatten(4, (h, w))


def heat(kp_BKX: Tensor, size: torch.Size) -> Tensor:
    """A gaussian around each keypoint, 1 at its centre: (B, D, K, H, W)."""
    z, y, x = (
        (-0.5 / _VARIANCE * (centres(n, kp_BKX) - kp_BKX[..., axis, None]).square()).exp() for axis, n in zip((2, 1, 0), size, strict=True)
    )
    return z.transpose(1, 2)[..., None, None] * (y[..., None] * x[:, :, None])[:, None]
