"""Small clips of two public-domain faces that move in the plane, with a tone: enough for MediaPipe, quick to make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

import av
import cv2
import matplotlib
import numpy as np
import skimage.data

Who = Literal["astronaut", "hopper", "astronaut_mirrored"]
_FACES = {"astronaut": (224.0, 122.0, 120.0), "hopper": (262.0, 210.0, 240.0)}  # centre x, y and height in the photograph
AUDIO_HZ = 16_000


@cache
def photograph(who: str) -> np.ndarray:
    """uint8 RGB (H, W, 3)."""
    if who == "astronaut":
        return np.asarray(skimage.data.astronaut())
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))


def moving_face(who: Who = "astronaut", frames: int = 32, wh: tuple[int, int] = (320, 320), face_px: float = 120.0) -> Iterator[np.ndarray]:
    """Frames uint8 RGB of a still face that sways, nods in the plane and comes nearer."""
    name = who.removesuffix("_mirrored")
    cx, cy, height = _FACES[name]
    for k in range(frames):
        phase = 2 * np.pi * k / 40
        scale = face_px / height * (1 + 0.06 * np.sin(phase))
        matrix = cv2.getRotationMatrix2D((cx, cy), 6 * np.sin(phase), scale)
        matrix[:, 2] += np.array([wh[0] / 2 + 10 * np.sin(phase), wh[1] / 2 + 6 * np.cos(phase)]) - (cx, cy)
        picture = cv2.warpAffine(photograph(name), matrix, wh, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        yield picture[:, ::-1].copy() if who.endswith("_mirrored") else picture


def noise(frames: int, wh: tuple[int, int] = (320, 320), seed: int = 0) -> Iterator[np.ndarray]:
    """Frames without a face: coarse coloured noise that drifts slowly."""
    field = np.random.default_rng(seed).integers(60, 200, (12, 12, 3), np.uint8)
    for k in range(frames):
        yield np.roll(cv2.resize(field, wh, interpolation=cv2.INTER_CUBIC), k, axis=1)


def tone(seconds: float) -> np.ndarray:
    """A 440 Hz tone, int16 at 16 kHz."""
    return (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * AUDIO_HZ)) / AUDIO_HZ)).astype(np.int16)


def click(at_s: float, seconds: float) -> np.ndarray:
    """Silence with 20 ms of loud noise at `at_s`, int16 at 16 kHz."""
    sound = np.zeros(round(seconds * AUDIO_HZ), np.int16)
    a = round(at_s * AUDIO_HZ)
    sound[a : a + 320] = np.random.default_rng(0).integers(-30000, 30000, 320)
    return sound


def write_clip(
    path: Path,
    pictures: Iterable[np.ndarray],
    fps: int = 25,
    *,
    sound: np.ndarray | None = None,
    sound_from_s: float = 0.0,
    times_ms: Iterable[int] | None = None,
    container: str = "mp4",
    faststart: bool = False,
) -> Path:
    """Encodes frames, shown every 1 / fps s or at `times_ms`, with sound that begins `sound_from_s` after them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = iter(times_ms) if times_ms is not None else None
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", format=container, options=options) as out:
        video = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "14", "g": "12", "bf": "0"})
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.thread_count = 1
        audio = out.add_stream("aac", rate=AUDIO_HZ, layout="mono") if sound is not None else None
        video.pix_fmt = "yuv420p"
        for k, picture in enumerate(pictures):
            if k == 0:
                video.height, video.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = next(times) if times is not None else round(1000 * k / fps)
            frame.time_base = Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None and sound is not None:
            for first in range(0, len(sound), 1024):
                part = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], format="s16", layout="mono")
                part.sample_rate, part.pts, part.time_base = AUDIO_HZ, first + round(sound_from_s * AUDIO_HZ), Fraction(1, AUDIO_HZ)
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path


def face_clip(path: Path, who: Who = "astronaut", frames: int = 32, fps: int = 25, *, sound: bool = True, face_px: float = 120.0) -> Path:
    """A face that moves for `frames` frames, with a tone."""
    return write_clip(path, moving_face(who, frames, face_px=face_px), fps, sound=tone(frames / fps) if sound else None)
