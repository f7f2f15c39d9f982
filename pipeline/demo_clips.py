"""The demo's raw material: short clips with sound of people who move, blink and speak, and portraits, with their manifests.

Everything is made here from the people in `pipeline.demo_portraits`: each one's still is warped by a made-up performance. The clips
differ as raw footage does: frame size, rate, framing, a cut, and one film without anybody in it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from pipeline.demo_performance import SOUND_HZ, compose, mesh_points, voice
from pipeline.demo_portraits import EXTRAS, DemoPerson, demo_person
from stages.encode import encode_png
from stages.meshwarp import MeshWarp, MeshWarpConfig, motion_from_points
from stages.reenact import Portrait

_COLUMNS = ("uri", "identity", "licence", "consent")
_CONSENT = {True: "not needed: invented person", False: "not needed: public-domain photograph of a public figure"}


@dataclass(frozen=True)
class Shot:
    """One stretch without a cut. `face_px`: the face's height; `below_px`: how far the face is below the frame's middle."""

    identity: str
    face_px: int
    below_px: int = 0


@dataclass(frozen=True)
class Clip:
    """One file: its size and rate, and what is seen. Without shots nobody is in it."""

    name: str
    size: tuple[int, int]
    fps: int
    shots: tuple[Shot, ...] = ()


def plan_clips(fps: int = 25, size: tuple[int, int] = (640, 480)) -> tuple[Clip, ...]:
    """Seven clips: six people, one of them with a cut, and nobody. `size` and `fps` are those of a plain clip; the others differ."""
    k = min(size) / 480
    return (
        Clip("collins", (854, 480), fps, (Shot("collins", 215, 10),)),
        Clip("hopper", (640, 480), 30, (Shot("hopper", 260, 15),)),  # close: the photograph is narrow
        Clip("tomas", (720, 720), fps, (Shot("tomas", 270),)),
        Clip("amara", size, 24, (Shot("amara", round(215 * k), 5),)),
        Clip("ines", (480, 640), fps, (Shot("ines", 235),)),
        Clip("edda", size, fps, (Shot("edda", round(185 * k), 20), Shot("edda", round(265 * k), 15))),
        Clip("nobody", size, fps),
    )


def make_demo_clips(
    out: Path,
    *,
    seconds: float = 3.0,
    fps: int = 25,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    only: tuple[str, ...] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Makes the demo's clips and portraits: the same bytes for the same arguments on the same kind of machine.

    Args:
        out: folder; gets clips/*.mp4, clips.csv, portraits/*.png and portraits.csv. The manifests' URIs are relative to it.
        seconds: length of each shot.
        fps: frames per second of most clips.
        size: width and height in px of the plain clips, both even, at least 480, the longer side at most 1.6 times the shorter.
        seed: another seed, another performance.
        only: names of clips; all when empty.
        progress: called as progress(name, clips done, clips in all) after each clip.

    Returns:
        The clips' manifest, clips.csv.
    """
    if min(size) < 480 or max(size) > 1.6 * min(size) or size[0] % 2 or size[1] % 2:
        raise ValueError(f"demo clips need an even width and height of at least 480 px, neither over 1.6 times the other, not {size}")
    unknown = set(only) - {c.name for c in plan_clips()}
    if unknown:
        raise ValueError(f"no such demo clip: {', '.join(sorted(unknown))}")
    clips = [c for c in plan_clips(fps, size) if not only or c.name in only]
    (out / "clips").mkdir(parents=True, exist_ok=True)
    (out / "portraits").mkdir(exist_ok=True)
    engine = MeshWarp(MeshWarpConfig(calibration_rounds=0))  # whatever the head does is right: nobody has to be followed
    rows = []
    for done, clip in enumerate(clips, 1):
        path = out / "clips" / f"{clip.name}.mp4"
        _write_clip(path, clip, engine, seconds, seed)
        rows.append(_row(out, path, demo_person(clip.shots[0].identity) if clip.shots else None))
        if progress:
            progress(clip.name, done, len(clips))
    extras = []
    for person in map(demo_person, EXTRAS):
        path = out / "portraits" / f"{person.identity}.png"
        path.write_bytes(encode_png(person.still()))
        extras.append(_row(out, path, person))
    _write_manifest(out / "portraits.csv", extras)
    return _write_manifest(out / "clips.csv", rows)


def _row(out: Path, path: Path, person: DemoPerson | None) -> tuple[str, str, str, str]:
    uri = path.relative_to(out).as_posix()
    if person is None:
        return uri, "", "CC0-1.0 (skimage.data.coffee, by Rachel Michetti)", "not needed: nobody in it"
    return uri, person.identity, person.licence, _CONSENT[person.invented]


def _write_manifest(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([_COLUMNS, *rows])
    return path


# --- one clip ---------------------------------------------------------------------------------------------------------------


def _write_clip(path: Path, clip: Clip, engine: MeshWarp, seconds: float, seed: int) -> None:
    """Writes beside the path, then moves into place: an interrupted demo leaves no half clip under a good name."""
    # the performance belongs to clip and shot, not to the order in which clips are made
    seeds = [int.from_bytes(clip.name.encode()[:6], "big") + 101 * i + seed for i in range(max(1, len(clip.shots)))]
    unfinished = path.with_suffix(".part")
    sound = _hum(seconds, seeds[0])
    if clip.shots:
        sound = np.concatenate(
            [voice(compose(s, seconds), demo_person(shot.identity).voice_hz, s) for s, shot in zip(seeds, clip.shots, strict=True)]
        )
    with FootageWriter(unfinished, clip.size, clip.fps) as writer:
        for s, shot in zip(seeds, clip.shots, strict=False):
            for frame in _perform(shot, clip, engine, seconds, s):
                writer.write(frame)
        if not clip.shots:
            for frame in _still_life(clip, seconds):
                writer.write(frame)
        writer.write_sound(sound[: round(writer.frames * SOUND_HZ / clip.fps)])
    unfinished.replace(path)


def _perform(shot: Shot, clip: Clip, engine: MeshWarp, seconds: float, seed: int) -> Iterator[np.ndarray]:
    """Frames uint8 RGB (H, W, 3) of one shot: rendered as a square, then cut to the clip's frame."""
    side, (width, height) = max(clip.size), clip.size
    image, neutral = demo_person(shot.identity).framed(side, shot.face_px)
    times_s = np.arange(round(seconds * clip.fps)) / clip.fps
    points = mesh_points(compose(seed, seconds), neutral, times_s)
    x0, y0 = (side - width) // 2, int(np.clip((side - height) // 2 - shot.below_px, 0, side - height))
    grain = np.random.default_rng([seed, 3])
    for frame in engine.render(engine.appearance(Portrait(image, neutral)), motion_from_points(points, clip.fps, side, engine.config)):
        yield _sensor(frame[y0 : y0 + height, x0 : x0 + width], grain)


def _sensor(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A camera's faint noise: without it the still background would be the same pixels in every frame."""
    noise = rng.integers(-2, 3, frame.shape[:2], np.int16)
    return np.clip(frame.astype(np.int16) + noise[..., None], 0, 255).astype(np.uint8)


def _still_life(clip: Clip, seconds: float) -> Iterator[np.ndarray]:
    """A slow move over a cup of coffee: a film without a face, which the pipeline has to turn down."""
    import skimage.data

    cup = skimage.data.coffee()
    height, width = cup.shape[:2]
    frames = round(seconds * clip.fps)
    for i in range(frames):
        k = max(clip.size[0] / width, clip.size[1] / height) * (1.08 + 0.12 * i / frames)
        shift = np.array(clip.size) / 2 - k * np.array([width / 2 + 12 * np.sin(2 * np.pi * i / frames), height / 2])
        matrix = np.array([[k, 0, shift[0]], [0, k, shift[1]]])
        yield cv2.warpAffine(cup, matrix, clip.size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _hum(seconds: float, seed: int) -> np.ndarray:
    """A quiet room, int16 mono (seconds * SOUND_HZ,)."""
    t = np.arange(round(seconds * SOUND_HZ)) / SOUND_HZ
    noise = np.random.default_rng([seed, 5]).standard_normal(len(t))
    return np.round(250 * np.sin(2 * np.pi * 100 * t) + 40 * noise).astype(np.int16)


class FootageWriter:
    """Writes what a camera would: H.264 and AAC in an mp4, but the same bytes for the same frames and samples.

    Frames are uint8 RGB (H, W, 3) with even sides. Use as a context manager; write the sound last.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"})
        video = self._container.add_stream("libx264", rate=fps)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1  # x264's slices, and so its pixels, depend on the number of threads
        video.codec_context.colorspace, video.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        video.options = {"preset": "veryfast", "crf": "19", "g": "50", "flags": "+bitexact", "x264-params": "cpu-independent=1"}
        audio = self._container.add_stream("aac", rate=SOUND_HZ, layout="mono", options={"flags": "+bitexact", "b": "96000"})
        audio.codec_context.thread_count = 1
        self._video, self._audio, self._tick, self.frames = video, audio, Fraction(1, fps), 0

    def write(self, rgb: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts, frame.time_base = self.frames, self._tick
        frame.colorspace, frame.color_range = Colorspace.ITU601, ColorRange.MPEG
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    def write_sound(self, sound: np.ndarray) -> None:
        """int16 mono samples at SOUND_HZ, from the first frame on."""
        for start in range(0, len(sound), 1024):
            planar = (sound[start : start + 1024].astype(np.float32) / 32_768).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SOUND_HZ, start, Fraction(1, SOUND_HZ)
            self._container.mux(self._audio.encode(frame))
        self._container.mux(self._audio.encode(None))

    def __enter__(self) -> FootageWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None and self.frames:
            self._container.mux(self._video.encode(None))
        self._container.close()
