"""`crosspair animate`: what the model is shown of a still and of a driving video, by the same stages as training pairs, and the film that
is made of its answers.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import RunConfig, VideoConfig
from pipeline.face_networks import with_face_networks
from pipeline.film import Sound, sound_of, write_film
from schemas.config import parse_config
from schemas.ids import source_id
from schemas.outcomes import Rejection
from schemas.outlines import with_profile
from schemas.regions import Regions, masked_driving, rasterise
from schemas.sample import decode_image
from schemas.store import DiskStore
from schemas.units import Clip, SourceFile
from schemas.video import resized
from stages.encode import encode_png
from stages.faces import TARGET, TRACK, Faces, FacesConfig, read_track
from stages.identity import IdentityConfig
from stages.ingest import TIMING, Ingest, IngestConfig, Timing, frame_map
from stages.media import decode
from stages.outputs import Outputs
from stages.portraits import Portraits
from stages.regions import RegionFinder

if TYPE_CHECKING:
    from model.checkpoint import Recipe
    from pipeline.run import Watcher

_SAMPLER = "sampler."  # before keys of model.sampling.SamplerConfig
_LONGEST_S = 600.0  # what ingest lets a shot be: an animation is of one clip, not of parts with a crop each


@dataclass(frozen=True, kw_only=True)
class AnimateConfig:
    """How the inputs are looked at. As in the run that the model was trained on, where that changed any of it."""

    video: VideoConfig = field(default_factory=VideoConfig)  # fps of what is made; size_px: side at which faces are cut and outlined
    ingest: IngestConfig = field(default_factory=IngestConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)


def animate_config(overrides: Sequence[str], *, fps: int, size_px: int) -> AnimateConfig:
    """From `a.b=c` overrides; rate and size are by default those of the model's shards, and a clip is as long as it comes.

    Raises:
        ValueError: an unknown key or a wrong value.
    """
    defaults = {"video": {"fps": fps, "size_px": size_px}, "faces": {"max_clip_s": _LONGEST_S}}
    config = parse_config(AnimateConfig, defaults, overrides, where="animate")
    if config.faces.engine != "insightface":
        return config
    run = RunConfig(run="", clips="", faces=config.faces, identity=IdentityConfig(from_pack=False))
    return replace(config, faces=with_face_networks(run, Path()).faces)


@dataclass(frozen=True)
class Inputs:
    """What the model is to be shown. Pictures are uint8 RGB (S, S, 3), S the side that it was trained at.

    Attributes:
        source: a still of the person to animate.
        frames, fps: of the driving clip.
        driving: a fresh pass over its frames each time it is called: eyes, nose and mouth, the rest black.
        sound: the clip's; None without.
        span: which part of the driving video the clip is, in words.
    """

    source: np.ndarray
    frames: int
    fps: int
    driving: Callable[[], Iterator[np.ndarray]]
    sound: Sound | None
    span: str


def prepare(source: Path, driving: Path, scratch: Path, config: AnimateConfig, recipe: Recipe) -> Inputs:
    """Takes the still through `portraits`, the video through `ingest`, `faces` and the outlines of `regions`.

    Masks are drawn at the side at which faces are cut, then frames are resized, as the shard stream does. Pictures are never held, only
    the mesh of the clip (6 KB a frame). Scores are not held against gates: they are about what is fit for training.

    Args:
        source: an image file with one face.
        driving: a video file. Of several shots and people the longest clip serves, the first of equal ones.
        scratch: a folder for files on the way, at least as large as the clip.
        config: how to look.
        recipe: what the model was trained with: the side of its frames, and the masks' profile and dilation.

    Raises:
        ValueError: no face in one of them, or no readable file; names the file and what can be done.
    """
    frame_px = recipe.frame_px
    size_px = max(config.video.size_px, frame_px)
    run = DiskStore(scratch)
    still = _portrait(source, Outputs(run, "portraits"), Portraits(config.faces, size_px))
    clip, start_s, clips = _longest_clip(driving, run, config, size_px)
    target = run.root / clip.folder / clip.file(TARGET)
    points, regions = RegionFinder()(frame.rgb for frame in decode(target))
    regions = with_profile(regions, points, recipe.regions)
    stop_s = start_s + clip.frames / clip.fps
    return Inputs(
        source=resized(still, frame_px),
        frames=clip.frames,
        fps=clip.fps,
        driving=lambda: _masked(target, regions, size_px, frame_px, recipe.mask_dilation),
        sound=sound_of(driving, scratch, start_s, stop_s) if clip.has_audio else None,
        span=f"{start_s:.2f} s to {stop_s:.2f} s (frames {clip.first_frame} to {clip.last_frame}) of {driving}"
        + (f", the longest of {clips} clips" if clips > 1 else ""),
    )


def _masked(target: Path, regions: Regions, size_px: int, frame_px: int, mask_dilation: float) -> Iterator[np.ndarray]:
    for frame in decode(target):
        masks = rasterise(regions, frame.index, size_px, dilate_px=mask_dilation * size_px)
        yield resized(masked_driving(frame.rgb, masks), frame_px)


def _file(path: Path) -> SourceFile:
    uri = str(path.absolute())
    return SourceFile(id=source_id(uri), uri=uri, identity="", licence="", consent="")


def _portrait(source: Path, out: Outputs, stage: Portraits) -> np.ndarray:
    try:
        _, (portrait,) = stage(_file(source), out)
    except Rejection as e:
        raise ValueError(f"{e} ({e.reason}); give an image of one person, the face in view and not too small") from e
    return decode_image(out.path(portrait.image).read_bytes())


def _longest_clip(driving: Path, run: DiskStore, config: AnimateConfig, size_px: int) -> tuple[Clip, float, int]:
    """The longest clip of all shots, when it begins, in s of the video's time, and how many there are."""
    out = Outputs(run, "ingest")
    try:
        _, shots = Ingest(config.ingest)(_file(driving), out)
    except Rejection as e:
        raise ValueError(f"{e} ({e.reason}); give a video file") from e
    faces, clips, refusals = Faces(config.faces, config.video.fps, size_px), list[Clip](), dict[str, str]()
    for k, shot in enumerate(shots):
        try:
            clips += faces(shot, Outputs(run, f"faces-{k}"))[1]
        except Rejection as e:
            refusals.setdefault(e.reason, str(e))
    if not clips:
        why = "; ".join(f"{text} ({reason})" for reason, text in refusals.items())
        raise ValueError(
            f"{driving}: no face can be followed for {config.faces.min_clip_s:g} s in any of its {len(shots)} shots: {why}. "
            "Give a video in which one face stays in view, or lower faces.min_clip_s"
        )
    clip = max(clips, key=lambda c: c.frames)  # of equal ones the first
    shot = next(s for s in shots if s.id == clip.shot)
    times = Timing.read(out.path(TIMING)).times
    of_shot = frame_map(times, shot.first_frame, shot.last_frame, clip.fps)
    _, shown = read_track(run.root / clip.folder / clip.file(TRACK))
    begin = next(k for k in np.flatnonzero(of_shot == shown[0]) if np.array_equal(of_shot[k : k + len(shown)], shown))
    return clip, float(times[shot.first_frame]) + int(begin) / clip.fps, len(clips)


@dataclass(frozen=True, kw_only=True)
class Animation:
    """What `crosspair animate` is asked for; see its options."""

    checkpoint: Path
    source: Path
    driving: Path
    out: Path
    seed: int = 0
    base: Path | None = None
    prompt: Path | None = None
    device: str | None = None
    show: bool = False


def animate(job: Animation, overrides: Sequence[str], watcher: Watcher) -> None:
    """One still and one video in, an mp4 out.

    Args:
        job: what of what.
        overrides: `sampler.a=b` for `model.sampling.SamplerConfig`, whose shift is by default the checkpoint's; others for AnimateConfig.
        watcher: is told of every frame.

    Raises:
        ValueError: whatever the user can mend, of checkpoint, inputs or settings.
    """
    from model.animate import Animator  # torch and the networks, for those who ask for them
    from model.checkpoint import find_checkpoint, load_recipe
    from model.sampling import SamplerConfig
    from model.text import read_prompt

    own = [o for o in overrides if not o.startswith(_SAMPLER)]
    sampler = [o.removeprefix(_SAMPLER) for o in overrides if o.startswith(_SAMPLER)]
    recipe = load_recipe(find_checkpoint(job.checkpoint))
    config = animate_config(own, fps=recipe.fps, size_px=recipe.size_px)
    sampling = parse_config(SamplerConfig, {"shift": recipe.shift}, sampler, where="sampler")
    prompt = None if job.prompt is None else read_prompt(job.prompt, recipe.model)
    if prompt is None and sampling.guidance.control_strength != 1:
        raise ValueError("the strength of controls is weighed against a prompt: give a --prompt, or leave --strength at 1")
    if job.out.is_dir():
        raise ValueError(f"--out {job.out}: is a folder; name the mp4 to write")
    video, still = job.out.with_suffix(".driving.mp4"), job.out.with_suffix(".source.png")
    for written in (job.out, video, still):
        if written.resolve() in (job.source.resolve(), job.driving.resolve()):
            raise ValueError(f"--out {job.out}: {written} would be written over, and is what the film is made of; choose another name")
    with _failing_as(job.out), tempfile.TemporaryDirectory(prefix="crosspair-") as name:
        scratch = Path(name)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        watcher.say(f"looking for the faces in {job.source} and {job.driving}")
        shown = prepare(job.source, job.driving, scratch, config, recipe)
        watcher.say(f"driving: {shown.frames} frames, {shown.span}")
        animator = Animator(job.checkpoint, base=job.base, device=job.device)
        if not animator.history:
            watcher.say("this model was not trained with previous frames: windows are made without them, and seams may show")
        label = f"synthetic; crosspair {version('crosspair')} animate, checkpoint {animator.folder.name}, seed {job.seed}"
        if job.show:
            write_film(video, shown.driving(), shown.fps, recipe.frame_px, None, scratch, label=label)
            still.write_bytes(encode_png(shown.source))
        watcher.step("animate", shown.frames)
        frames = _told(animator.frames(shown.source, shown.driving(), sampling, seed=job.seed, prompt=prompt), watcher)
        write_film(job.out, frames, shown.fps, recipe.frame_px, shown.sound, scratch, label=label)


@contextmanager
def _failing_as(out: Path) -> Iterator[None]:
    """What a disk or a slow ffmpeg does, in a sentence."""
    try:
        yield
    except OSError as e:
        raise ValueError(
            f"--out {out}: {e.filename or tempfile.gettempdir()}: {e.strerror or e}; mend that, or choose another place"
        ) from e
    except subprocess.TimeoutExpired as e:
        raise ValueError(f"--out {out}: ffmpeg took longer than {e.timeout:.0f} s") from e


def _told(frames: Iterator[np.ndarray], watcher: Watcher) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame
        watcher.unit("frames", "done", "")
