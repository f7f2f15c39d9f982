"""Where pictures lie in the base's position table (paper, section 3.3): side by side along a diagonal; what lies outside is not kept."""

from __future__ import annotations

from enum import Enum

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from torch import Tensor

from model.portrait_config import PortraitConfig


class Slot(Enum):
    """Where a picture's tokens lie in the base's position table: shifted by so many frame heights and widths from the middle."""

    SOURCE = (-1, -1)
    VIDEO = (0, 0)  # the noisy frames and, unless they have a slot of their own, the frames before them
    DRIVING = (1, 1)
    HISTORY = (1, -1)


def slot_corner(config: PortraitConfig, rows: int, columns: int, slot: Slot) -> tuple[int, int]:
    """First row and column, in the table that is kept, of a frame of so many tokens. Slots do not overlap.

    Raises:
        ValueError: frames so large that three do not fit side by side.
    """
    side, longer = config.table_side, max(rows, columns)
    if 3 * longer > config.position_grid:
        whole = config.position_grid
        raise ValueError(f"frames of {rows} x {columns} tokens: three do not fit side by side into a position table of side {whole}")
    if 3 * longer > side:
        raise ValueError(
            f"frames of {rows} x {columns} tokens: three do not fit side by side into the {side} x {side} that were kept of the position "
            f"table; load the base with `frame_tokens` of {longer} or more"
        )
    down, right = slot.value
    return (side - rows) // 2 + down * rows, (side - columns) // 2 + right * columns  # the base puts a picture in the middle


def position_table(config: PortraitConfig) -> Tensor:
    """The middle of the table that diffusers computes for the whole grid, float32 (1, side^2, D)."""
    grid, side = config.position_grid, config.table_side
    at = torch.arange(side, dtype=torch.float32) + (grid - side) // 2
    at = at / (grid / (config.sample_size // config.patch))
    columns_rows = torch.stack(torch.meshgrid(at, at, indexing="xy"))[:, None]
    return get_2d_sincos_pos_embed_from_grid(config.width, columns_rows, output_type="pt").float()[None]


def cut_positions(base: SD3Transformer2DModel, side: int) -> None:
    """Keeps the middle of the position table, a square of `side` tokens; the model's config says so, so it saves and loads as it is."""
    embed, whole = base.pos_embed, base.config.pos_embed_max_size
    if side == whole:
        return
    first = (whole - side) // 2
    table = embed.pos_embed.view(whole, whole, -1)[first : first + side, first : first + side]
    embed.pos_embed = table.reshape(1, side * side, -1).clone()
    embed.pos_embed_max_size = side
    base.register_to_config(pos_embed_max_size=side)
