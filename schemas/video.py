"""Reading the videos that crosspair wrote: a shard member or an artifact, any window of it, without decoding the rest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np


def decode_video(source: bytes | Path, *, first: int = 0, count: int | None = None, size_px: int | None = None) -> np.ndarray:
    """Frames `first` .. `first + count - 1`, uint8 RGB (T, S, S, 3).

    Seeks to the keyframe before `first` and decodes nothing after the last frame asked for. Decodes on one thread and
    releases the GIL meanwhile, so callers decode several samples in threads.

    Raises:
        ValueError: the data is damaged, has fewer frames than asked for, or its frames are not of the side `size_px`, if that is given.
    """
    in_memory = isinstance(source, bytes)
    options = {"protocol_whitelist": "none" if in_memory else "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2"}
    frames: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), options=options) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            _check_side(stream.codec_context, size_px)  # before a frame is made: a hostile one can be larger than memory
            ticks_per_frame = round(1 / (stream.average_rate * stream.time_base))
            if first:
                container.seek(first * ticks_per_frame, stream=stream, backward=True)
            for frame in container.decode(stream):
                if round(frame.pts / ticks_per_frame) < first:
                    continue
                _check_side(frame, size_px)
                frames.append(cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420))
                if len(frames) == count:
                    break
    except (av.FFmpegError, IndexError, TypeError) as e:
        raise ValueError(f"not a readable crosspair video: {e}") from e
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"video ends after {len(frames)} frames from frame {first} on; {count} were asked for")
    return np.stack(frames)


def _check_side(picture: Any, size_px: int | None) -> None:
    if size_px is not None and (picture.width, picture.height) != (size_px, size_px):
        raise ValueError(f"a video of {picture.width} x {picture.height} px, not of {size_px}")


def resized(frame: np.ndarray, side_px: int) -> np.ndarray:
    """A square frame at the side that a model takes, (side_px, side_px, 3): one rule for training and for use."""
    if frame.shape[:2] == (side_px, side_px):
        return frame
    return cv2.resize(frame, (side_px, side_px), interpolation=cv2.INTER_AREA if frame.shape[0] > side_px else cv2.INTER_CUBIC)
