"""A contact sheet for eyes: what the model was shown, what it should have made, and what it made."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from model.codec import LatentCodec
from model.portrait_dit import PortraitDiT, no_text
from model.sampling import SamplerConfig
from model.stream import Window
from model.windows import sample_video

_TILE_PX, _TITLE_PX = 160, 24
_COLUMNS = ("source", "masked driving", "target", "sampled")


def write_sheet(
    path: Path, model: PortraitDiT, codec: LatentCodec, window: Window, *, steps: int, rows: int, seed: int, shift: float
) -> None:
    """PNG with a column for each of `_COLUMNS` and `rows` frames of the window, evenly spaced.

    The window is sampled as the first of a video: with source and driving frames, without previous ones.
    """
    device = next(model.parameters()).device
    source = codec.encode(torch.from_numpy(window.source)[None].to(device))
    driving = codec.encode(torch.from_numpy(window.driving).to(device))[None]
    generator = torch.Generator().manual_seed(seed)
    text = no_text(model.config, 1, device=device)
    latents = sample_video(model, text, source, driving, SamplerConfig(steps=steps, shift=shift), generator=generator)
    sampled = codec.decode(latents[0]).cpu().numpy()
    target = window.target[-len(window.driving) :]
    shown = np.unique(np.linspace(0, len(driving[0]) - 1, rows).round().astype(int))
    tiles = [[_tile(f) for f in (window.source, window.driving[t], target[t], sampled[t])] for t in shown]
    picture = np.concatenate([_titles(), *(np.concatenate(row, axis=1) for row in tiles)])
    _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(png.tobytes())
    partial.replace(path)


def _tile(frame: np.ndarray) -> np.ndarray:
    larger = frame.shape[0] > _TILE_PX
    return cv2.resize(frame, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA if larger else cv2.INTER_NEAREST)


def _titles() -> np.ndarray:
    strip = np.full((_TITLE_PX, _TILE_PX * len(_COLUMNS), 3), 255, np.uint8)
    for i, name in enumerate(_COLUMNS):
        cv2.putText(strip, name, (i * _TILE_PX + 6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
