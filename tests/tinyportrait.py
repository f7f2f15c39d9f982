"""LivePortrait at a width that costs nothing."""

from __future__ import annotations

from model.liveportrait import AppearanceConfig, LivePortraitConfig, MotionConfig
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
