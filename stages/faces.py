"""Faces: follow one person's face through a shot and cut a stable square around it, once, as the final target video."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from schemas.arrays import decode_arrays, encode_arrays
from schemas.ids import clip_id
from schemas.outcomes import Rejection
from schemas.units import Clip, Shot
from schemas.video import decode_video
from stages.content import Stamp, check_content
from stages.encode import VideoWriter, encode_flac, encode_png
from stages.gates import brightness, face_luma, score, still_frame
from stages.head import crop_square
from stages.ingest import SOUND, TIMING, Timing, frame_map, frames_at_rate, source_rate
from stages.media import check_readable
from stages.mesh import POINTS, FaceMesh
from stages.outputs import Outputs
from stages.sound import SAMPLE_RATE_HZ
from stages.survey import Seen, Survey

TARGET, STILL, AUDIO, TRACK = "target.mp4", "source.png", "audio.flac", "track.npz"


@dataclass(frozen=True, kw_only=True)
class FacesConfig:
    """What changes a clip's pixels or how they are measured."""

    engine: Literal["mediapipe"] = "mediapipe"
    crop_scale: float = 2.2  # crop side / face size, head-room included
    min_clip_s: float = 1.0
    max_clip_s: float = 10.0  # longer tracks become several clips, so that memory has a bound
    survey_every: int = 5  # frames between two looks for all faces in the whole picture
    max_jump: float = 0.35  # face sizes that a face may move in one frame before it counts as another one


class Faces:
    """Shot -> clips."""

    name, version = "faces", 2

    def __init__(self, config: FacesConfig, fps: int, size_px: int) -> None:
        self.config, self.fps, self.size_px = config, fps, size_px
        self._survey = Survey(config.survey_every)
        self._mesh = FaceMesh()
        self._known: tuple[str, Stamp | None] = ("", None)  # the content last checked, and the file's stamp then

    def __call__(self, shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Clip]]:
        """What was measured, and the clips.

        Raises:
            Rejection: too_short, no_face, lost_face.
            ValueError: the file is not the one that was looked through, or changes meanwhile.
        """
        path = out.source(shot.source)
        self._check_content(path, shot.content)
        try:
            return self._clips(shot, out)
        finally:
            self._check_content(path, shot.content)

    def _check_content(self, path: Path, content: str) -> None:
        """A file has many shots; it is read again only when it was touched."""
        check_readable(path)
        known, stamp = self._known
        self._known = content, check_content(path, content, stamp if known == content else None)

    def _clips(self, shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Clip]]:
        timing = Timing.read(out.input(shot.folder, TIMING))
        source_frames = frame_map(timing.times, shot.first_frame, shot.last_frame, self.fps)
        min_frames = round(self.config.min_clip_s * self.fps)
        if len(source_frames) < min_frames:
            raise Rejection("too_short", f"{shot.source.uri}: a shot of {len(source_frames) / self.fps:.2f} s")
        every = self.config.survey_every
        looks = range(0, len(source_frames), every)
        frames = frames_at_rate(out.source(shot.source), timing, source_frames)
        tracks = self._survey((k, f.rgb) for k, f in frames if k % every == 0)
        if not tracks:
            raise Rejection("no_face", f"{shot.source.uri}: no face in {len(looks)} looks", {"looks": len(looks)})
        clips: list[Clip] = []
        free = 0  # output frames from here on belong to no earlier track
        for seen in tracks:
            first, free = max(seen.frames[0] - every + 1, free), min(seen.frames[-1] + every, len(source_frames))
            for a, b in self._spans(first, free, min_frames):
                clips += self._cut(shot, timing, source_frames, a, b, seen, out)
        found = sum(len(seen.frames) for seen in tracks)
        if not clips:
            raise Rejection("lost_face", f"{shot.source.uri}: a face in {found} of {len(looks)} looks, never long enough")
        return {"looks": len(looks), "looks_with_face": found}, clips

    def _spans(self, first: int, stop: int, min_frames: int) -> list[tuple[int, int]]:
        """[first, stop) in equal parts no longer than a clip may be; none when they are too short."""
        pieces = int(np.ceil((stop - first) / (self.config.max_clip_s * self.fps)))
        bounds = np.linspace(first, stop, pieces + 1).astype(int)
        return [(int(a), int(b)) for a, b in itertools.pairwise(bounds) if b - a >= min_frames]

    def _cut(
        self, shot: Shot, timing: Timing, source_frames: np.ndarray, first: int, stop: int, seen: Seen, out: Outputs
    ) -> Iterator[Clip]:
        """Clips of one stretch: a new one begins wherever the mesh lost the face."""
        in_span = [i for i, k in enumerate(seen.frames) if first <= k < stop]
        if not in_span:
            return
        crop = crop_square(np.array(seen.boxes)[in_span], self.config.crop_scale, seen.picture_wh)
        part = source_frames[first:stop]
        names = (f"part-{first + k}.mp4" for k in range(len(part)))
        runs = self._follow(frames_at_rate(out.source(shot.source), timing, part), crop, names, out)
        for name, begin, points, luma in runs:
            if len(points) < round(self.config.min_clip_s * self.fps):
                out.drop(name)
                continue
            start_s = float(timing.times[shot.first_frame]) + (first + begin) / self.fps
            yield self._finish(shot, timing, part[begin : begin + len(points)], start_s, crop, name, points, luma, seen, out)

    def _follow(
        self, frames: Iterator[tuple[int, Any]], crop: tuple[int, int, int], names: Iterator[str], out: Outputs
    ) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
        """Encodes the crop while the mesh holds on to the face: file, first frame, points (T, 478, 3), luma of the face (T,)."""
        self._mesh.reset()
        writer, name, begin = None, "", 0
        points: list[np.ndarray] = []
        lumas: list[float] = []
        for k, frame in frames:
            picture = cut_square(frame.rgb, crop, self.size_px)
            found = self._mesh(picture)
            same = found is not None and (not points or self._near(points[-1], found))
            if writer is not None and not same:
                writer.close()
                yield name, begin, np.stack(points), np.array(lumas)
                writer, points, lumas = None, [], []
            if found is None:
                continue
            if writer is None:
                name, begin = next(names), k
                writer = VideoWriter(out.path(name), self.fps, self.size_px)
            writer.write(picture)
            points.append(found)
            lumas.append(face_luma(picture, found))
        if writer is not None:
            writer.close()
            yield name, begin, np.stack(points), np.array(lumas)

    def _near(self, before: np.ndarray, now: np.ndarray) -> bool:
        size = np.ptp(before[:, 1])
        return float(np.linalg.norm(now[:, :2].mean(0) - before[:, :2].mean(0))) < self.config.max_jump * size

    def _finish(
        self,
        shot: Shot,
        timing: Timing,
        source_frames: np.ndarray,
        start_s: float,
        crop: tuple[int, int, int],
        name: str,
        points: np.ndarray,
        luma: np.ndarray,
        seen: Seen,
        out: Outputs,
    ) -> Clip:
        """The clip's files beside its video, and the clip."""
        first, last = int(source_frames[0]), int(source_frames[-1])
        track = seen.track
        while f"{clip_id(shot.content, first, last, track)}.{TARGET}" in out.digests:
            track += 1  # one source frame is held so long that several clips show nothing else
        clip = clip_id(shot.content, first, last, track)
        files = {part: f"{clip}.{part}" for part in (TARGET, STILL, AUDIO, TRACK)}
        out.path(name).rename(out.path(files[TARGET]))
        out.seal(files[TARGET])
        still = still_frame(points, luma)
        out.write(files[STILL], encode_png(decode_video(out.path(files[TARGET]), first=still, count=1)[0]))
        out.write(files[TRACK], encode_track(points, source_frames))
        others = seen.other_faces(crop)
        has_audio = self._cut_sound(shot, start_s, len(points), files[AUDIO], out)
        return Clip(
            id=clip,
            shot=shot.id,
            source=shot.source,
            content=shot.content,
            track=track,
            first_frame=first,
            last_frame=last,
            source_fps=source_rate(timing.times[shot.first_frame : shot.last_frame + 1]),
            frames=len(points),
            fps=self.fps,
            size_px=self.size_px,
            crop=crop,
            still_frame=still,
            has_audio=has_audio,
            folder=out.folder,
            digests={f: out.digests[f] for f in files.values() if f in out.digests},
            scores={**score(points, crop[2], self.size_px), "brightness": brightness(luma), "other_faces": others},
            still_scores={**score(points[[still]], crop[2], self.size_px), "brightness": float(luma[still]), "other_faces": others},
        )

    def _cut_sound(self, shot: Shot, start_s: float, frames: int, name: str, out: Outputs) -> bool:
        """The clip's sound, as long as its picture to the sample; silence where the source's ends early."""
        if not shot.has_sound:
            return False
        path = out.input(shot.folder, SOUND)
        start = round(start_s * SAMPLE_RATE_HZ)
        wanted = round(frames / self.fps * SAMPLE_RATE_HZ)
        with path.open("rb") as f:
            f.seek(2 * start)
            sound = np.frombuffer(f.read(2 * wanted), "<i2")
        if not len(sound):
            return False
        encode_flac(np.pad(sound, (0, wanted - len(sound))), out.path(name))
        out.seal(name)
        return True


def cut_square(picture: np.ndarray, crop: tuple[int, int, int], size_px: int) -> np.ndarray:
    """The crop (x0, y0, side) of a picture, uint8 RGB (size_px, size_px, 3)."""
    x0, y0, side = crop
    part = picture[y0 : y0 + side, x0 : x0 + side]
    return cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC)


def encode_track(points: np.ndarray, source_frames: np.ndarray) -> bytes:
    """track.npz: mesh points float32 (T, 478, 3) in px of the crop, and the source frame int32 (T,) behind each frame."""
    assert points.shape[1:] == (POINTS, 3), points.shape
    return encode_arrays({"points": points, "source_frames": source_frames})


def read_track(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and source frames of a track.npz."""
    arrays = decode_arrays(path.read_bytes(), what=str(path))
    return arrays["points"], arrays["source_frames"]
