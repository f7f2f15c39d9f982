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
from schemas.outcomes import ACCEPTED, Rejection, Verdict
from schemas.units import Clip, Shot
from schemas.video import decode_video
from stages.content import Stamp, check_content
from stages.head import crop_square, eye_opening, face_boxes, face_size, fit_pose, mouth_opening
from stages.ingest import SOUND, TIMING, Timing, frame_map, frames_at_rate, source_rate
from stages.media import SAMPLE_RATE_HZ, VideoWriter, check_readable, encode_flac, encode_png
from stages.mesh import POINTS, FaceDetector, FaceMesh
from stages.outputs import Outputs

TARGET, STILL, AUDIO, TRACK = "target.mp4", "source.png", "audio.flac", "track.npz"
Track = list[tuple[int, np.ndarray]]  # output frame and box (4,), in order of time


@dataclass(frozen=True, kw_only=True)
class FacesConfig:
    """What changes a clip's pixels or how they are measured."""

    engine: Literal["mediapipe"] = "mediapipe"
    crop_scale: float = 2.2  # crop side / face size, head-room included
    min_clip_s: float = 1.0
    max_clip_s: float = 10.0  # longer tracks become several clips, so that memory has a bound
    survey_every: int = 5  # frames between two looks for all faces in the whole picture
    max_jump: float = 0.35  # face sizes that a face may move in one frame before it counts as another one


@dataclass(frozen=True, kw_only=True)
class FaceGates:
    """Thresholds on stored scores: changing one measures nothing again."""

    min_face_px: int = 96  # longer side of the face in the source, median over the clip
    min_crop_scale: float = 1.15  # crop side / face size, where the frame's border leaves no more
    max_upscale: float = 3.0  # size_px / crop side in the source
    max_yaw_deg: float = 50.0
    max_pitch_deg: float = 40.0
    max_roll_deg: float = 45.0
    max_other_faces: float = 0.1  # share of looks with a second face of comparable size in the crop
    min_brightness: float = 16.0  # luma of the face, 0..255, in its darkest frames (2nd percentile)


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
        self._check_content(shot)
        try:
            return self._clips(shot, out)
        finally:
            self._check_content(shot)

    def _check_content(self, shot: Shot) -> None:
        """A file has many shots; it is read again only when it was touched."""
        path = Path(shot.source.uri)
        check_readable(path)
        content, stamp = self._known
        self._known = shot.content, check_content(path, shot.content, stamp if content == shot.content else None)

    def _clips(self, shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Clip]]:
        timing = Timing.read(out.root / shot.folder / TIMING)
        source_frames = frame_map(timing.times, shot.first_frame, shot.last_frame, self.fps)
        min_frames = round(self.config.min_clip_s * self.fps)
        if len(source_frames) < min_frames:
            raise Rejection("too_short", f"{shot.source.uri}: a shot of {len(source_frames) / self.fps:.2f} s")
        every = self.config.survey_every
        looks = range(0, len(source_frames), every)
        frames = frames_at_rate(Path(shot.source.uri), timing, source_frames)
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
        runs = self._follow(frames_at_rate(Path(shot.source.uri), timing, part), crop, names, out)
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
                writer.__exit__(None)
                yield name, begin, np.stack(points), np.array(lumas)
                writer, points, lumas = None, [], []
            if found is None:
                continue
            if writer is None:
                name, begin = next(names), k
                writer = VideoWriter(out.path(name), self.fps, self.size_px).__enter__()
            writer.write(picture)
            points.append(found)
            lumas.append(face_luma(picture, found))
        if writer is not None:
            writer.__exit__(None)
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
        path = out.root / shot.folder / SOUND
        if not path.is_file():
            return False
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


@dataclass
class Seen:
    """One face's track through a shot: at output frame `frames[i]` its mesh box `boxes[i]`, and the boxes of all other faces.

    `track` counts the tracks of a shot in order of time.
    """

    track: int
    frames: list[int]
    boxes: list[np.ndarray]
    others: list[np.ndarray]
    picture_wh: tuple[int, int]

    def other_faces(self, crop: tuple[int, int, int]) -> float:
        """Share of looks with another face, at least half as large as the main one, whose middle lies in the crop."""
        x0, y0, side = crop
        hits = 0
        for box, others in zip(self.boxes, self.others, strict=True):
            middle = (others[:, :2] + others[:, 2:]) / 2
            inside = ((middle >= [x0, y0]) & (middle <= [x0 + side, y0 + side])).all(1)
            hits += bool((inside & (face_size(others) >= 0.5 * face_size(box[None]))).any())
        return hits / len(self.boxes)


class Survey:
    """Looks for all faces at every n-th frame and follows the one that is largest for longest, and others while it is away."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._detector = FaceDetector()
        self._mesh = FaceMesh(static=True)

    def __call__(self, pictures: Iterator[tuple[int, np.ndarray]]) -> list[Seen]:
        """Tracks that do not overlap in time, in its order.

        `pictures`: number and uint8 RGB (H, W, 3) of every n-th output frame; the mesh box tells the face's size, as everywhere.
        A face that is gone for two looks in a row, or another one in its place, is another track.
        """
        tracks: list[Track] = []
        all_boxes: dict[int, np.ndarray] = {}
        wh = (0, 0)
        for k, picture in pictures:
            wh = picture.shape[1::-1]
            all_boxes[k] = self.look(picture)
            for box in all_boxes[k]:
                near = [t for t in tracks if k - t[-1][0] <= 2 * self._every and t[-1][0] < k and overlap(t[-1][1], box) > 0.3]
                if near:
                    max(near, key=lambda t: overlap(t[-1][1], box)).append((k, box))
                else:
                    tracks.append([(k, box)])
        seen = []
        for number, track in enumerate(one_at_a_time(tracks)):
            others = [all_boxes[k][(all_boxes[k] != box).any(1)] for k, box in track]
            seen.append(Seen(number, [k for k, _ in track], [b for _, b in track], others, wh))
        return seen

    def look(self, picture: np.ndarray) -> np.ndarray:
        """Mesh boxes float64 (N, 4) of all faces that the mesh fits, largest first."""
        boxes = []
        for found in self._detector(picture):
            points = self.mesh_near(picture, found)
            if points is not None:
                boxes.append(face_boxes(points[None])[0].astype(np.float64))
        kept: list[np.ndarray] = []
        for box in sorted(boxes, key=lambda b: -float(face_size(b[None])[0])):
            if all(overlap(box, b) < 0.5 for b in kept):  # two detections of one face end in one mesh
                kept.append(box)
        return np.array(kept).reshape(-1, 4)

    def mesh_near(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        """Mesh (478, 3) in px of the picture, of the face in a detection box (4,)."""
        height, width = picture.shape[:2]
        side = 2.0 * max(box[2] - box[0], box[3] - box[1])
        cx, cy = (box[:2] + box[2:]) / 2
        x0, x1 = int(max(cx - side / 2, 0)), int(min(cx + side / 2, width))
        y0, y1 = int(max(cy - side / 2, 0)), int(min(cy + side / 2, height))
        if min(x1 - x0, y1 - y0) < 16:
            return None
        points = self._mesh(picture[y0:y1, x0:x1])
        return None if points is None else points + np.array([x0, y0, 0], np.float32)


def one_at_a_time(tracks: list[Track]) -> list[Track]:
    """The tracks largest for longest of those that overlap in time, in order of time."""
    chosen: list[Track] = []
    for track in sorted(tracks, key=lambda t: -sum(float(face_size(box[None])[0]) for _, box in t)):
        if all(track[-1][0] < other[0][0] or other[-1][0] < track[0][0] for other in chosen):
            chosen.append(track)
    return sorted(chosen, key=lambda t: t[0][0])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    wh = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - np.prod(wh)
    return float(np.prod(wh) / union) if union > 0 else 0.0


def cut_square(picture: np.ndarray, crop: tuple[int, int, int], size_px: int) -> np.ndarray:
    """The crop (x0, y0, side) of a picture, uint8 RGB (size_px, size_px, 3)."""
    x0, y0, side = crop
    part = picture[y0 : y0 + side, x0 : x0 + side]
    return cv2.resize(part, (size_px, size_px), interpolation=cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC)


def still_frame(points: np.ndarray, luma: np.ndarray) -> int:
    """The frame (of T) that serves best as a still: frontal, mouth closed, eyes open, lit as the clip mostly is."""
    yaw, pitch, _ = np.abs(fit_pose(points).euler_deg).T
    eyes = eye_opening(points).mean(1)
    shut = np.clip(np.median(eyes) - eyes, 0, None)
    dark = np.clip(1 - luma / max(float(np.median(luma)), 1.0), 0, None)
    return int(np.argmin(yaw / 20 + pitch / 20 + 3 * mouth_opening(points) + 5 * shut + 5 * dark))


def score(points: np.ndarray, crop_side: int, size_px: int) -> dict[str, float]:
    """Scores of a clip from its mesh points (T, 478, 3) in px of the crop; angles in degrees, sizes in px of the source."""
    face_px = float(np.median(face_size(face_boxes(points)))) * crop_side / size_px
    angles = fit_pose(points).euler_deg
    extreme = np.percentile(np.abs(angles), 95, axis=0)
    return {
        "face_px": face_px,
        "crop_scale": crop_side / face_px,
        "upscale": size_px / crop_side,
        "yaw_deg": float(np.median(angles[:, 0])),
        "pitch_deg": float(np.median(angles[:, 1])),
        "roll_deg": float(np.median(angles[:, 2])),
        "yaw_extreme_deg": float(extreme[0]),
        "pitch_extreme_deg": float(extreme[1]),
        "roll_extreme_deg": float(extreme[2]),
        "mouth_activity": float(mouth_opening(points).std()),
        "eye_activity": float(eye_opening(points).mean(1).std()),
    }


def decide(scores: dict[str, float], gates: FaceGates) -> Verdict:
    """Accepts or names the first gate that the scores fail."""
    checks = (
        ("face_too_small", scores["face_px"] < gates.min_face_px),
        ("several_faces", scores["other_faces"] > gates.max_other_faces),
        ("head_tilted", scores["roll_extreme_deg"] > gates.max_roll_deg),
        ("head_turned", scores["yaw_extreme_deg"] > gates.max_yaw_deg or scores["pitch_extreme_deg"] > gates.max_pitch_deg),
        ("face_fills_frame", scores["crop_scale"] < gates.min_crop_scale),
        ("upscaled", scores["upscale"] > gates.max_upscale),
        ("too_dark", scores["brightness"] < gates.min_brightness),
    )
    return next((Verdict(False, reason) for reason, failed in checks if failed), ACCEPTED)


def encode_track(points: np.ndarray, source_frames: np.ndarray) -> bytes:
    """track.npz: mesh points float32 (T, 478, 3) in px of the crop, and the source frame int32 (T,) behind each frame."""
    assert points.shape[1:] == (POINTS, 3), points.shape
    return encode_arrays({"points": points, "source_frames": source_frames})


def read_track(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and source frames of a track.npz."""
    arrays = decode_arrays(path.read_bytes(), what=str(path))
    return arrays["points"], arrays["source_frames"]


def brightness(luma: np.ndarray) -> float:
    """Of a clip, from its faces' luma (T,): that of the darkest frames, where a fade begins or ends; one frame may err."""
    return float(np.percentile(luma, 2))


def face_luma(picture: np.ndarray, points: np.ndarray) -> float:
    """Mean luma of the face's box, 0..255."""
    x0, y0, x1, y1 = np.clip(face_boxes(points[None])[0], 0, len(picture) - 1).astype(int)
    part = picture[y0 : y1 + 1 : 4, x0 : x1 + 1 : 4]
    return float(part.reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114])
