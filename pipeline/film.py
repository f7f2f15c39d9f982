"""Film: frames and a driving video's own sound, as an mp4 that is there whole or not at all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import numpy as np

from stages.encode import VideoWriter
from stages.sound import extract_sound

_SOUND_HZ, _TIMEOUT_S = 48_000, 600.0


@dataclass(frozen=True)
class Sound:
    """Raw int16 stereo at `_SOUND_HZ`, of which the part from `start_s` on, `seconds` long, belongs to the film."""

    path: Path
    start_s: float
    seconds: float


def sound_of(video: Path, scratch: Path, start_s: float, stop_s: float) -> Sound | None:
    """A stretch of a video's sound as it is, and not at the rate that pairs keep it at; None without."""
    path = scratch / "sound.s16"
    found = extract_sound(video, path, stop_s + 1.0, timeout_s=_TIMEOUT_S, rate_hz=_SOUND_HZ, channels=2)
    return Sound(path, start_s, stop_s - start_s) if found else None


def write_film(path: Path, frames: Iterable[np.ndarray], fps: int, size_px: int, sound: Sound | None, scratch: Path, *, label: str) -> None:
    """Writes an mp4, whole or not at all: H.264 frames, and the sound as AAC where there is any. `path` may be there already.
    `label` becomes the film's comment, which players show.

    Raises:
        ValueError: ffmpeg cannot write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    silent, partial = scratch / "silent.mp4", path.with_name(f".{path.name}.partial")
    with VideoWriter(silent, fps, size_px) as writer:
        for frame in frames:
            writer.write(frame)
    streams = [ffmpeg.input(f"file:{silent}").video]
    if sound is not None:
        raw = ffmpeg.input(f"file:{sound.path}", format="s16le", ar=_SOUND_HZ, ac=2, ss=sound.start_s, t=sound.seconds)
        streams.append(raw.audio.filter("apad", whole_dur=sound.seconds))  # a sound that ends early ends in silence
    how = {"vcodec": "copy", "acodec": "aac", "b:a": "160k", "format": "mp4", "movflags": "+faststart", "fflags": "+bitexact"}
    how["metadata"] = f"comment={label}"
    film = ffmpeg.output(*streams, f"file:{partial.absolute()}", **how).global_args("-nostdin", "-loglevel", "error", "-y")
    command = film.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
        partial.replace(path)
    except subprocess.CalledProcessError as e:
        raise ValueError(f"{path}: cannot be written: {e.stderr.decode(errors='replace').strip()}") from e
    except subprocess.TimeoutExpired as e:
        raise ValueError(f"{path}: cannot be written: ffmpeg took longer than {_TIMEOUT_S:.0f} s") from e
    finally:
        partial.unlink(missing_ok=True)
