"""Faces: follow one person's face through a shot and cut a stable square around it, once, as the final target video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from schemas.arrays import decode_arrays, encode_arrays
from schemas.ids import clip_id, sha256_of
from schemas.outcomes import Rejection
from schemas.units import Clip, Shot
from schemas.video import decode_video
from stages.content import Stamp, check_content
from stages.encode import encode_flac, encode_png
from stages.follow import Follower, Piece
from stages.gates import brightness, score, still_frame
from stages.head import crop_square
from stages.ingest import SOUND, TIMING, Timing, frame_map, source_rate
from stages.measures import picture_scores, sound_scores, track_scores
from stages.media import check_readable
from stages.mesh import POINTS
from stages.outputs import Outputs
from stages.shotframes import ShotFrames
from stages.sound import SAMPLE_RATE_HZ
from stages.survey import Survey, other_faces
from stages.tracks import Face, Track, follow, one_at_a_time, stretches

TARGET, STILL, AUDIO, TRACK = "target.mp4", "source.png", "audio.flac", "track.npz"
TRACKS = "tracks.npz"  # of the whole shot


@dataclass(frozen=True, kw_only=True)
class FacesConfig:
    """What changes a clip's pixels or how they are measured."""

    engine: Literal["mediapipe", "insightface"] = "mediapipe"  # which finds faces; the mesh is MediaPipe's with both
    pack: str = ""  # folder of InsightFace's pack that you bring, with det_10g.onnx; nothing is downloaded
    digest: str = ""  # sha256 of that file: a pin; the run fills in that of the file that it uses, and a worker opens no other
    crop_scale: float = 2.2  # crop side / face size, head-room included
    min_clip_s: float = 1.0
    max_clip_s: float = 10.0  # longer tracks become several clips, so that memory has a bound
    survey_every: int = 12  # frames between two looks for all faces, and for hands, in the whole picture
    min_track_px: int = 64  # tracks whose face is smaller in the source are not cut
    everyone: bool = False  # clips of all who are there at once, not only of the largest; all of a file have its identity in the manifest
    max_jump: float = 0.35  # face sizes that a face may move in one frame before it counts as another one
    min_likeness: float = 0.62  # of a face to itself one frame before, -1..1; below it is another one
    max_hidden: float = 0.2  # share of the mouth, or of an eye, that a hand may cover

    def __post_init__(self) -> None:
        if not 0 < self.min_clip_s <= self.max_clip_s:
            raise ValueError("faces.min_clip_s must be above 0, and faces.max_clip_s not below it")
        if self.engine == "insightface" and not self.pack:
            raise ValueError("faces.pack: the engine insightface needs a folder with det_10g.onnx; `crosspair models list` says where from")

    def survey(self) -> Survey:
        """Raises ValueError for a detector's file that is not the one that the run began with."""
        if self.engine == "mediapipe":
            return Survey()
        from stages.scrfd import PACK_FILE, ScrfdDetector

        path = Path(self.pack) / PACK_FILE
        if (found := sha256_of(path)) != self.digest:
            raise ValueError(f"{path}: sha256 is {found}; the run began with {self.digest}")
        scrfd = ScrfdDetector(path)
        return Survey(lambda picture: scrfd(picture)[0])


class Faces:
    """Shot -> clips."""

    name, version = "faces", 4

    def __init__(self, config: FacesConfig, fps: int, size_px: int) -> None:
        self.config, self.fps, self.size_px = config, fps, size_px
        self._every = min(config.survey_every, max(1, round(config.min_clip_s * fps)))  # so that no clip is too short for a look
        self._survey = config.survey()
        self._follower = Follower(fps, size_px, config.max_jump, config.min_likeness)
        self._known: tuple[str, Stamp | None] = ("", None)  # the content last checked, and the file's stamp then

    def __call__(self, shot: Shot, out: Outputs) -> tuple[dict[str, Any], list[Clip]]:
        """What was measured, and the clips.

        Raises:
            Rejection: too_short, no_face, face_too_small, face_hidden, lost_face.
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
        every = self._every
        frames = ShotFrames(out.source(shot.source), timing, source_frames)
        looks, picture_wh = self._look(frames.all())
        tracks = follow(looks.items(), every)
        if not tracks:
            raise Rejection("no_face", f"{shot.source.uri}: no face in {len(looks)} looks", {"looks": len(looks)})
        large = [t for t in tracks if t.size_px >= self.config.min_track_px]
        if not large:
            size = max(t.size_px for t in tracks)
            raise Rejection("face_too_small", f"{shot.source.uri}: no face larger than {size:.0f} px", {"face_px": size})
        clips: list[Clip] = []
        free = 0  # output frames from here on belong to no earlier track
        chosen = large if self.config.everyone else one_at_a_time(large)
        for track in chosen:
            for begin, stop in self._stretches(track, self.config.max_hidden, len(source_frames)):
                first = begin if self.config.everyone else max(begin, free)
                for a, b in self._spans(first, stop, min_frames):
                    clips += self._cut(shot, timing, frames, a, b, track, looks, picture_wh, out)
                free = max(free, stop)
        if not clips:
            found = sum(bool(faces) for faces in looks.values())
            what = f"{shot.source.uri}: a face in {found} of {len(looks)} looks"
            if any(self._only_hands_stand_between(track, len(source_frames), min_frames) for track in chosen):
                raise Rejection("face_hidden", f"{what}, never long enough without a hand before it")
            raise Rejection("lost_face", f"{what}, never long enough")
        out.write(TRACKS, encode_tracks(tracks))
        return {"looks": len(looks), "tracks": len(tracks), "tracks_too_small": len(tracks) - len(large)}, clips

    def _stretches(self, track: Track, max_hidden: float, stop: int) -> list[tuple[int, int]]:
        """`stretches`; of two tracks that follow each other none takes frames of the other's, also where all are cut at once."""
        every = self._every
        seen_last = track.frames[-1] + every >= stop  # nobody was looked for after that, so what follows is nobody else's
        shared = (every - 1) // 2 if self.config.everyone else every - 1
        return stretches(track, max_hidden, shared, every - 1 if seen_last else shared, stop)

    def _only_hands_stand_between(self, track: Track, stop: int, min_frames: int) -> bool:
        """Whether the track would have been long enough without hands."""
        with_hands, without = (self._stretches(track, most, stop) for most in (np.inf, self.config.max_hidden))
        return max(b - a for a, b in with_hands) >= min_frames > max((b - a for a, b in without), default=0)

    def _look(self, frames: Iterator[tuple[int, Any]]) -> tuple[dict[int, list[Face]], tuple[int, int]]:
        """All faces at every n-th output frame, and the picture's width and height."""
        wh = (0, 0)

        def pictures() -> Iterator[tuple[int, np.ndarray]]:
            nonlocal wh
            for k, frame in frames:
                if k % self._every == 0:
                    wh = frame.rgb.shape[1::-1]
                    yield k, frame.rgb

        return dict(self._survey(pictures())), wh

    def _spans(self, first: int, stop: int, min_frames: int) -> list[tuple[int, int]]:
        """[first, stop) in equal parts no longer than a clip may be, or, where those would be too short, in parts as long as it may be."""
        longest = max(min_frames, int(self.config.max_clip_s * self.fps))
        pieces = int(np.ceil((stop - first) / longest))
        bounds = np.linspace(first, stop, pieces + 1).astype(int)
        if min(np.diff(bounds), default=0) < min_frames:
            bounds = np.arange(first, stop + 1, longest)
        return [(int(a), int(b)) for a, b in pairwise(bounds) if b - a >= min_frames]

    def _cut(
        self,
        shot: Shot,
        timing: Timing,
        frames: ShotFrames,
        first: int,
        stop: int,
        track: Track,
        looks: dict[int, list[Face]],
        picture_wh: tuple[int, int],
        out: Outputs,
    ) -> Iterator[Clip]:
        """Clips of one stretch of a track: a new one begins wherever the face was lost."""
        boxes = [face.box for k, face in zip(track.frames, track.faces, strict=True) if first <= k < stop]
        if not boxes:
            return
        crop = crop_square(np.array(boxes), self.config.crop_scale, picture_wh)
        part = frames.source_frames[first:stop]
        names = (f"part-{track.number}-{first + k}.mp4" for k in range(len(part)))
        for piece in self._follower(frames.stretch(first, stop), first, crop, track, looks, names, out):
            begin = first + piece.first
            seen = [(k, f) for k, f in zip(track.frames, track.faces, strict=True) if begin <= k < begin + len(piece.points)]
            if not seen or len(piece.points) < round(self.config.min_clip_s * self.fps):  # nobody saw whose face it is, or too short
                out.drop(piece.name)
                continue
            others = [(f.box, np.array([o.box for o in looks[k] if o is not f]).reshape(-1, 4)) for k, f in seen]
            known = {"other_faces": other_faces(others, crop), "hidden": max(f.hidden for _, f in seen)}
            start_s = float(timing.times[shot.first_frame]) + begin / self.fps
            shown = part[piece.first : piece.first + len(piece.points)]
            yield self._finish(shot, timing, shown, start_s, crop, piece, track.number, known, picture_wh, out)

    def _finish(
        self,
        shot: Shot,
        timing: Timing,
        source_frames: np.ndarray,
        start_s: float,
        crop: tuple[int, int, int],
        piece: Piece,
        track: int,
        known: dict[str, float],
        picture_wh: tuple[int, int],
        out: Outputs,
    ) -> Clip:
        """The clip's files beside its video, and the clip."""
        first, last = int(source_frames[0]), int(source_frames[-1])
        while f"{clip_id(shot.content, first, last, track)}.{TARGET}" in out.digests:
            track += 1  # one source frame is held so long that several clips show nothing else
        clip = clip_id(shot.content, first, last, track)
        files = {part: f"{clip}.{part}" for part in (TARGET, STILL, AUDIO, TRACK)}
        out.path(piece.name).rename(out.path(files[TARGET]))
        out.seal(files[TARGET])
        points = np.stack(piece.points)
        luma = np.array(piece.luma)
        clipped, sharpness = (np.array([getattr(p, name) for p in piece.pictures]) for name in ("clipped", "sharpness"))
        still = still_frame(points, luma)
        picture = decode_video(out.path(files[TARGET]), first=still, count=1)[0]
        out.write(files[STILL], encode_png(picture))
        details = {"luma": luma, "likeness": np.array(piece.likeness)}
        out.write(files[TRACK], encode_track(points, source_frames, details))
        sound = self._cut_sound(shot, start_s, len(points), files[AUDIO], out)
        iris = float(np.percentile(piece.iris, 75))  # eyes are shut now and then
        scores = {
            **score(points, crop[2], self.size_px),
            **track_scores(points, crop, picture_wh, self.size_px),
            **sound_scores(sound, points, self.fps),
            **known,
            "brightness": brightness(luma),
            "clipped": float(np.median(clipped)),
            "sharpness": float(np.median(sharpness)),
            "min_likeness": float(min(piece.likeness)),
            "iris_contrast": iris,
        }
        shown = picture_scores(picture, points[still])
        still_scores = {
            **score(points[[still]], crop[2], self.size_px),
            **track_scores(points[[still]], crop, picture_wh, self.size_px),
            **known,
            "brightness": float(luma[still]),
            "clipped": shown.clipped,
            "sharpness": shown.sharpness,
            "iris_contrast": iris,
        }
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
            has_audio=sound is not None,
            folder=out.folder,
            digests={f: out.digests[f] for f in files.values() if f in out.digests},
            scores=scores,
            still_scores=still_scores,
        )

    def _cut_sound(self, shot: Shot, start_s: float, frames: int, name: str, out: Outputs) -> np.ndarray | None:
        """The clip's sound, int16 (N,), as long as its picture to the sample; silence where the source's ends early."""
        if not shot.has_sound:
            return None
        path = out.input(shot.folder, SOUND)
        start = round(start_s * SAMPLE_RATE_HZ)
        wanted = round(frames / self.fps * SAMPLE_RATE_HZ)
        with path.open("rb") as f:
            f.seek(2 * start)
            sound = np.frombuffer(f.read(2 * wanted), "<i2")
        if not len(sound):
            return None
        sound = np.pad(sound, (0, wanted - len(sound)))
        encode_flac(sound, out.path(name))
        out.seal(name)
        return sound


def encode_track(points: np.ndarray, source_frames: np.ndarray, details: dict[str, np.ndarray] | None = None) -> bytes:
    """track.npz: mesh points float32 (T, 478, 3) in px of the crop, the source frame int32 (T,) behind each frame, scores (T,) by name."""
    assert points.shape[1:] == (POINTS, 3), points.shape
    scores = {name: values.astype(np.float32) for name, values in (details or {}).items()}
    return encode_arrays({"points": points, "source_frames": source_frames, **scores}, deflate=False)  # it would save a tenth


def encode_tracks(tracks: Sequence[Track]) -> bytes:
    """tracks.npz: all faces that were seen in a shot, one row each, sorted by track and time.

    track, frame: int32 (N,), output frames of the shot; box: float32 (N, 4), mesh box in px of the upright source; hidden: float32 (N,).
    """
    rows = [(t.number, k, f) for t in tracks for k, f in zip(t.frames, t.faces, strict=True)]
    return encode_arrays(
        {
            "track": np.array([number for number, _, _ in rows], np.int32),
            "frame": np.array([k for _, k, _ in rows], np.int32),
            "box": np.array([f.box for _, _, f in rows], np.float32),
            "hidden": np.array([f.hidden for _, _, f in rows], np.float32),
        }
    )


def read_track(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and source frames of a track.npz."""
    arrays = decode_arrays(path.read_bytes(), what=str(path))
    return arrays["points"], arrays["source_frames"]
