"""Pictures for eyes: what the model was shown, what it should have made, and what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import torch

from model.codec import LatentCodec
from model.controls import Text
from model.portrait_dit import PortraitDiT
from model.sampling import SamplerConfig
from model.stream import Window
from model.windows import sample_video

_TILE_PX, _TITLE_PX = 160, 24
_COLUMNS = ("source", "masked driving", "target", "sampled")


def sample_shown(
    model: PortraitDiT,
    codec: LatentCodec,
    window: Window,
    text: Text,
    *,
    steps: int,
    seed: int,
    shift: float,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> np.ndarray:
    """The window's frames as the model makes them, uint8 RGB (F, S, S, 3): the first of a video, without previous ones.

    All workers of a model that is sharded must ask at the same time, for the same.
    """
    device = next(model.parameters()).device
    source = codec.encode(torch.from_numpy(window.source)[None].to(device))
    driving = codec.encode(torch.from_numpy(window.driving).to(device))[None]
    config = SamplerConfig(steps=steps, shift=shift, precision=precision)
    latents = sample_video(model, text, source, driving, config, generator=torch.Generator().manual_seed(seed))
    sampled: np.ndarray = codec.decode(latents[0]).cpu().numpy()
    return sampled


def sheet(window: Window, sampled: np.ndarray, *, rows: int) -> np.ndarray:
    """A column for each of `_COLUMNS` and `rows` frames of the window, evenly spaced; uint8 RGB."""
    shown = np.unique(np.linspace(0, len(sampled) - 1, rows).round().astype(int))
    return np.concatenate([_titles(), *(_row(window, sampled, t) for t in shown)])


def write_png(path: Path, picture: np.ndarray) -> None:
    _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(png.tobytes())
    partial.replace(path)


def write_film(path: Path, window: Window, sampled: np.ndarray, fps: int) -> None:
    """The same columns with all frames, as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    with av.open(str(partial), "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=fps)
        video.pix_fmt, video.options = "yuv420p", {"crf": "16"}
        video.height, video.width = _TITLE_PX + _TILE_PX, len(_COLUMNS) * _TILE_PX
        for t in range(len(sampled)):
            picture = np.concatenate([_titles(), _row(window, sampled, t)])
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode())
    partial.replace(path)


def _row(window: Window, sampled: np.ndarray, t: int) -> np.ndarray:
    target = window.target[-len(window.driving) :]
    return np.concatenate([_tile(f) for f in (window.source, window.driving[t], target[t], sampled[t])], axis=1)


def _tile(frame: np.ndarray) -> np.ndarray:
    larger = frame.shape[0] > _TILE_PX
    return cv2.resize(frame, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA if larger else cv2.INTER_NEAREST)


def _titles() -> np.ndarray:
    strip = np.full((_TITLE_PX, _TILE_PX * len(_COLUMNS), 3), 255, np.uint8)
    for i, name in enumerate(_COLUMNS):
        cv2.putText(strip, name, (i * _TILE_PX + 6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
