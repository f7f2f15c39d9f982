"""Ingest: look through one source file once; where it is cut, when each frame is shown, and its sound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from schemas.arrays import decode_arrays, encode_arrays
from schemas.ids import shot_id
from schemas.outcomes import Rejection
from schemas.units import Shot, SourceFile
from stages.colour import thumbnail
from stages.content import check_content, read_content
from stages.media import DISORDER_S, SourceFrame, check_bounds, check_readable, decode
from stages.outputs import Outputs
from stages.sound import extract_sound

TIMING, SOUND = "timing.npz", "sound.s16"
_THUMB_PX = 96  # cuts are seen as well in small pictures
_MAX_THUMB_PX = 16 * _THUMB_PX  # a picture one pixel wide would become a tower
_MAX_GAP_S = 2.0  # a frame that stays longer is the last one of its shot
_MAX_PAUSE_S = 10.0  # a clock that jumps farther is another clock; ffmpeg takes it so too
_UNKNOWN_PAUSE_S = 3.0  # what is put for such a jump: longer than a gap within a shot
_MAX_SHOT_S = 600.0  # longer ones are cut, so that the work of one unit has a bound


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    cut_ratio: float = 3.0  # a cut changes the picture this many times as much as its neighbours do
    cut_min_change: float = 15.0  # and by at least this much (mean HSV difference, 0..255)
    min_shot_frames: int = 5
    max_frame_pixels: int = 36_000_000
    max_frames: int = 500_000


class Ingest:
    """Source file -> shots."""

    name, version = "ingest", 5

    def __init__(self, config: IngestConfig) -> None:
        self.config = config

    def __call__(self, source: SourceFile, out: Outputs) -> tuple[dict[str, Any], list[Shot]]:
        """What was measured, and the shots. Raises Rejection for input that is none, ValueError if it changes meanwhile."""
        path = out.source(source)
        check_readable(path)
        content, stamp = read_content(path)
        try:
            pts, shown_s, cuts, size = self._look_through(path)
            times, jumps, sound_until_s = settle_times(shown_s)
            # half the time: else the unit's own watchdog comes first, and nobody learns that it was ffmpeg that hung
            has_audio = extract_sound(path, out.path(SOUND), sound_until_s + 1.0, timeout_s=out.seconds / 2)
        finally:
            check_content(path, content, stamp)
        out.write(TIMING, encode_arrays({"pts": pts, "times": times}))
        if has_audio:
            out.seal(SOUND)
        else:
            out.drop(SOUND)
        bounds = shot_bounds(times, {*cuts, *jumps})
        shots = [
            Shot(
                id=shot_id(source.id, content, a, b - 1),
                source=source,
                content=content,
                first_frame=a,
                last_frame=b - 1,
                folder=out.folder,
                has_sound=has_audio,
            )
            for a, b in itertools.pairwise(bounds)
        ]
        data = {
            "content": content,
            "size_bytes": stamp.size_bytes,
            "mtime_ns": stamp.mtime_ns,
            "frames": len(times),
            "duration_s": float(times[-1] - times[0]),
            "fps": source_rate(times),
            "width": size[0],
            "height": size[1],
            "has_audio": has_audio,
        }
        return data, shots

    def _look_through(self, path: Path) -> tuple[np.ndarray, np.ndarray, list[int], tuple[int, int]]:
        """Time stamps int64 (N,), the same in s float64 (N,), first frames of all shots but the first, and the upright (width, height)."""
        config = self.config
        detector = AdaptiveDetector(config.cut_ratio, min_scene_len=config.min_shot_frames, min_content_val=config.cut_min_change)
        pts: list[int] = []
        times: list[float] = []
        cuts: list[int] = []
        size, scaler = (0, 0), VideoReformatter()
        check_bounds(path, max_pixels=config.max_frame_pixels, max_frames=config.max_frames)
        for frame in decode(path, rough=True):
            raw = frame.raw
            if raw.width * raw.height > config.max_frame_pixels:
                raise Rejection("frame_too_large", f"{path}: frames are {raw.width} x {raw.height}")
            if frame.index >= config.max_frames:
                raise Rejection("too_many_frames", f"{path}: more than {config.max_frames} frames")
            if frame.index == 0:
                size, stored = frame.rgb.shape[1::-1], (raw.width, raw.height)
            elif (raw.width, raw.height) != stored:
                raise Rejection("frame_size_changes", f"{path}: {stored} becomes {(raw.width, raw.height)} at frame {frame.index}")
            pts.append(frame.pts)
            times.append(frame.time_s)
            height = min(_MAX_THUMB_PX, max(2, round(_THUMB_PX * raw.height / raw.width)))
            thumb = thumbnail(raw, _THUMB_PX, height, scaler)
            cuts += [c.frame_num for c in detector.process_frame(FrameTimecode(frame.index, 25.0), thumb)]
        return np.array(pts, np.int64), np.array(times), cuts, size


def settle_times(shown_s: np.ndarray) -> tuple[np.ndarray, list[int], float]:
    """Times (N,) in s that never run backwards, the frames before which they jump, and until when sound lies at these times.

    `shown_s` (N,) are time stamps in the order of frames. A little disorder (B-frames in AVI) is sorted away. Where stamps
    jump back or far ahead, as in files joined by `cat` or after a broken clock, nobody knows how long the pause was: it becomes
    `_UNKNOWN_PAUSE_S`, and sound is known up to there only, since ffmpeg settles the sound's stamps by rules of its own.
    """
    jumps, latest = [], shown_s[0]
    for k, shown in enumerate(shown_s):
        if -DISORDER_S <= shown - latest <= _MAX_GAP_S:
            latest = max(latest, shown)
        else:
            jumps.append(k)
            latest = shown
    parts: list[np.ndarray] = []
    shift, sound_until_s = 0.0, np.inf
    for part in np.split(shown_s, jumps):
        times = np.sort(part) + shift
        if parts and not 0 <= times[0] - parts[-1][-1] <= _MAX_PAUSE_S:
            sound_until_s = min(sound_until_s, parts[-1][-1])
            back = parts[-1][-1] + _UNKNOWN_PAUSE_S - times[0]
            shift, times = shift + back, times + back
        parts.append(times)
    settled = np.concatenate(parts)
    return settled, jumps, float(min(sound_until_s, settled[-1]))


def shot_bounds(times: np.ndarray, cuts: set[int]) -> list[int]:
    """First frames of all shots, and the number of frames: shots begin at `cuts`, and within longer ones than `_MAX_SHOT_S`."""
    bounds = sorted({0, *cuts, len(times)})
    for first, stop in itertools.pairwise(bounds.copy()):
        shown = times[first:stop] - times[first]
        pieces = int(shown[-1] // _MAX_SHOT_S) + 1
        bounds += (first + np.searchsorted(shown, shown[-1] * np.arange(1, pieces) / pieces)).tolist()
    return sorted(set(bounds))


def source_rate(times: np.ndarray) -> float:
    """Mean frames per second of frame times (N,) in s, pauses left out; 0 for a single frame."""
    gaps = np.diff(times)
    gaps = gaps[gaps <= _MAX_GAP_S]
    return float(len(gaps) / gaps.sum()) if gaps.sum() > 0 else 0.0


def frame_map(times: np.ndarray, first: int, last: int, fps: int) -> np.ndarray:
    """Which source frame is on screen at each output frame: int32 (T,), source frames counted from 0.

    Output frame k shows the source frame displayed k / fps after the shot's first frame. Rate conversion drops or repeats
    frames; this map is stored with the clip, so none is dropped unrecorded. T has a bound: within a shot no frame stays for
    longer than `_MAX_GAP_S`, and no shot lasts longer than `_MAX_SHOT_S`.
    """
    shown = times[first : last + 1]
    gaps = np.diff(shown)
    duration = shown[-1] - shown[0] + (np.median(gaps) if len(gaps) else 1 / fps)
    slack = 1e-3  # containers round time stamps to a millisecond
    ticks = np.arange(int((duration + 2 * slack) * fps)) / fps
    return (first + np.searchsorted(shown - shown[0], ticks + slack, side="right") - 1).astype(np.int32)


@dataclass(frozen=True)
class Timing:
    """When the frames of a source are shown: `pts` int64 (N,) in stream ticks, -1 without; `times` float64 (N,) in s."""

    pts: np.ndarray
    times: np.ndarray

    @staticmethod
    def read(path: Path) -> Timing:
        arrays = decode_arrays(path.read_bytes(), what=str(path))
        return Timing(arrays["pts"], arrays["times"])


def frames_at_rate(path: Path, timing: Timing, source_frames: np.ndarray) -> Iterator[tuple[int, SourceFrame]]:
    """Output frame number and decoded source frame for a stretch of a frame map (T,); repeats yield the same object again.

    Raises:
        Rejection: decode_error when the file ends before the stretch does.
    """
    first, last = int(source_frames[0]), int(source_frames[-1])
    pts = timing.pts
    can_seek = first > 0 and pts[first] >= 0 and np.count_nonzero(pts == pts[first]) == 1
    k = 0
    for frame in decode(path, start_pts=int(pts[first]) if can_seek else None, start_index=first):
        while k < len(source_frames) and source_frames[k] == frame.index:
            yield k, frame
            k += 1
        if frame.index >= last:
            return
    raise Rejection("decode_error", f"{path}: ends before frame {last}, which it had when it was looked through")
