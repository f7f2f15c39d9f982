"""Media out: files that are the same bytes for the same pictures and sound on any machine."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from stages.sound import SAMPLE_RATE_HZ


def encode_png(image: np.ndarray) -> bytes:
    """A PNG; with runs of equal bytes instead of the search for repeats, faces come as small in a third of the time."""
    how = [
        cv2.IMWRITE_PNG_COMPRESSION,
        6,
        cv2.IMWRITE_PNG_STRATEGY,
        cv2.IMWRITE_PNG_STRATEGY_RLE,
    ]
    ok, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), how)
    assert ok
    return data.tobytes()


class VideoWriter:
    """Writes H.264 that is the same bytes for the same frames on any machine (the settings are part of the sample format).

    Frames are uint8 RGB (size, size, 3) with an even side. Use as a context manager; nothing is left open after an error.
    """

    def __init__(self, path: Path, fps: int, size_px: int) -> None:
        options = {"fflags": "+bitexact", "movflags": "+faststart"}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        stream = self._container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size_px
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, fps)
        context.thread_count = 1  # x264's slices, and so its pixels, depend on the number of threads
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        stream.options = {
            "preset": "veryfast",
            "crf": "16",
            "g": "12",
            "bf": "0",
            "tune": "fastdecode",
            "flags": "+bitexact",
            "x264-params": "cpu-independent=1",
        }
        self._stream, self.frames = stream, 0

    def write(self, rgb: np.ndarray) -> None:
        self.write_i420(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420))

    def write_i420(self, planes: np.ndarray) -> None:
        """A frame as uint8 (1.5 size, size): Y, then U and V of half the size, BT.601 in limited range."""
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = self.frames
        frame.time_base = self._stream.codec_context.time_base
        frame.colorspace, frame.color_range = Colorspace.ITU601, ColorRange.MPEG
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def close(self) -> None:
        """Ends the file."""
        if self.frames:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()
        else:
            self._container.close()


def encode_flac(sound: np.ndarray, path: Path) -> None:
    """Writes int16 mono samples at 16 kHz."""
    with av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", options={"flags": "+bitexact"})
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        for part in [*fifo.read_many(4096), fifo.read()]:
            if part is not None:
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
