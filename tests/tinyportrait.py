"""LivePortrait at a width that costs nothing."""

from __future__ import annotations

import torch
from torch import nn

from model.liveportrait import AppearanceConfig, LivePortrait, LivePortraitConfig, MotionConfig
from model.liveportrait_generator import GeneratorConfig
from model.liveportrait_warping import WarpingConfig

TINY = LivePortraitConfig(
    appearance=AppearanceConfig(width=4, volume_channels=3, volume_depth=4, blocks=1),
    motion=MotionConfig(depths=(1, 2), dims=(4, 8)),
    warping=WarpingConfig(
        volume_channels=3, volume_depth=4, out_channels=8, compress=2, hourglass_width=3, hourglass_max=6, hourglass_levels=2
    ),
    generator=GeneratorConfig(in_channels=8, out_channels=4, middle_blocks=2, spade_hidden=6),
)


def lively(seed: int, config: LivePortraitConfig = TINY) -> LivePortrait:
    """Random networks, in evaluation mode, whose pictures follow the keypoints: PyTorch's own initialisation draws the same for all."""
    torch.manual_seed(seed)
    net = LivePortrait(config).eval()
    for name, value in net.named_parameters():
        if value.dim() > 2 and name.endswith("weight"):
            nn.init.kaiming_normal_(value)
        elif name.endswith("conv.bias") or name.endswith("compress.bias"):
            nn.init.zeros_(value)
    with torch.no_grad():
        net.warping.dense_motion_network.mask.weight *= 5
    return net
