"""Reenact: make the portrait of B perform the motion of clip A, frame for frame, in A's crop frame."""

from __future__ import annotations

import importlib.metadata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from schemas.ids import pair_id
from schemas.motion import Motion
from schemas.sample import decode_image
from schemas.units import Clip, Driving, Pair, Performance, PortraitUnit
from stages.encode import VideoWriter
from stages.faces import TARGET, TRACK, read_track
from stages.media import decode
from stages.outputs import Outputs

_APPEARANCES_KEPT = 16  # per worker


@dataclass(frozen=True)
class Portrait:
    """A still of B.

    Attributes:
        image: uint8 RGB (S, S, 3), cropped by the crop rule.
        points: float32 (478, 3) face mesh in px of `image`.
    """

    image: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class ClipView:
    """What an engine may see of clip A.

    Attributes:
        frames: a fresh pass over the target's frames each time it is called, uint8 RGB (S, S, 3).
        points: float32 (T, 478, 3) face mesh of the target in px; every frame has a face.
        fps: frames per second.
        size_px: S.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    points: np.ndarray
    fps: float
    size_px: int


class Reenactor(Protocol):
    """An engine: how B is made to move like A. One object per worker; loads what it needs once.

    Geometry, for every engine: motion is absolute, the driving frames live in A's crop frame, B's head centre follows A's and B's
    head is as large as A's, so that `stages.head.head_square` of the driving video equals the target's within 2 %.
    No pixel of A is in the output.
    """

    name: str
    version: int
    ran_on: str  # cpu or cuda, for the record

    def appearance(self, portrait: Portrait) -> Any:
        """Once per identity. Raises schemas.outcomes.Rejection for a portrait it cannot use."""

    def motion(self, clip: ClipView) -> Motion:
        """Once per clip: a template that serves every appearance."""

    def render(self, appearance: Any, motion: Motion) -> Iterator[np.ndarray]:
        """T frames, uint8 RGB (size_px, size_px, 3), streamed: memory does not grow with T beyond the template."""


MOTION, DRIVING = "motion.npz", "driving.mp4"


class MotionStage:
    """Clip -> motion template, once for all appearances; and the pairs that waited for it."""

    name = "motion"

    def __init__(self, engine: Reenactor) -> None:
        self._engine = engine
        self.version = engine.version

    def __call__(self, performance: Performance, out: Outputs) -> tuple[dict[str, Any], list[Pair]]:
        """Writes motion.npz."""
        clip = performance.clip
        motion = self._engine.motion(view_of(clip, out))
        out.write(MOTION, motion.encode())
        pairs = [Pair(id=pair_id(clip.id, p.id), clip=clip, portrait=p, motion_folder=out.folder) for p in performance.portraits]
        return {"frames": clip.frames, "ran_on": self._engine.ran_on}, pairs


class Reenact:
    """Pair -> driving video."""

    name = "reenact"

    def __init__(self, engine: Reenactor, fingerprint: str) -> None:
        self._engine, self._fingerprint = engine, fingerprint
        self.version = engine.version
        self._appearances: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, pair: Pair, out: Outputs) -> tuple[dict[str, Any], list[Driving]]:
        """Renders and encodes, one frame in hand at a time. The rendered length must be the target's."""
        motion = Motion.decode(out.input(pair.motion_folder, MOTION).read_bytes(), what=f"motion of clip {pair.clip.id}")
        frames = self._engine.render(self._appearance(pair.portrait, out), motion)
        with VideoWriter(out.path(DRIVING), pair.clip.fps, pair.clip.size_px) as writer:
            for frame in frames:
                writer.write(frame)
        assert writer.frames == pair.clip.frames, f"{self._engine.name} rendered {writer.frames} of {pair.clip.frames} frames"
        out.seal(DRIVING)
        driving = Driving(
            id=pair.id,
            pair=pair,
            folder=out.folder,
            digests=dict(out.digests),
            generator=self._engine.name,
            generator_version=self._engine.version,
            fingerprint=self._fingerprint,
            crosspair_version=_own_version(),
        )
        return {"frames": writer.frames, "ran_on": self._engine.ran_on}, [driving]

    def _appearance(self, portrait: PortraitUnit, out: Outputs) -> Any:
        """Computed once per identity and worker, and kept while it is in use."""
        if portrait.id not in self._appearances:
            if len(self._appearances) == _APPEARANCES_KEPT:
                self._appearances.popitem(last=False)
            self._appearances[portrait.id] = self._engine.appearance(read_portrait(portrait, out))
        self._appearances.move_to_end(portrait.id)
        return self._appearances[portrait.id]


def _own_version() -> str:
    """Of crosspair; "" where it runs without being installed."""
    try:
        return importlib.metadata.version("crosspair")
    except importlib.metadata.PackageNotFoundError:
        return ""


def view_of(clip: Clip, out: Outputs) -> ClipView:
    points, _ = read_track(out.input(clip.folder, clip.file(TRACK)))
    target = out.input(clip.folder, clip.file(TARGET))
    return ClipView(frames=lambda: (f.rgb for f in decode(target)), points=points, fps=clip.fps, size_px=clip.size_px)


def read_portrait(portrait: PortraitUnit, out: Outputs) -> Portrait:
    points, _ = read_track(out.input(portrait.folder, portrait.track))
    return Portrait(decode_image(out.input(portrait.folder, portrait.image).read_bytes()), points[portrait.frame])
