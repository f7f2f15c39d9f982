"""Real clips driven onto real portraits by meshwarp, small and short, and faults planted into the driving videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from faceclips import write_clip

from schemas.ids import pair_id, source_id
from schemas.store import DiskStore
from schemas.units import Clip, Driving, Performance, PortraitUnit, SourceFile
from schemas.video import decode_video
from stages.encode import VideoWriter
from stages.faces import TARGET, Faces, FacesConfig
from stages.ingest import Ingest, IngestConfig
from stages.media import decode
from stages.meshwarp import MeshWarp
from stages.outputs import Outputs
from stages.portraits import Portraits
from stages.reenact import DRIVING, MotionStage, Reenact

SIZE_PX, FPS = 256, 25


class Studio:
    """Makes pairs below `root`, as the stages of a run do."""

    def __init__(self, root: Path, shared: Path) -> None:
        self.root, self._real, engine = root, shared / "realdata", MeshWarp()
        self._ingest, self._faces, self._portraits = (
            Ingest(IngestConfig()),
            Faces(FacesConfig(), FPS, SIZE_PX),
            Portraits(FacesConfig(), SIZE_PX),
        )
        self._motion, self._reenact = MotionStage(engine), Reenact(engine, "f" * 20)

    def out(self, folder: str) -> Outputs:
        return Outputs(DiskStore(self.root), folder)

    def clip(self, name: str, first: int, frames: int) -> Clip:
        """Frames of a real clip, by the beginning of its name; the longest clip that comes of them."""
        path = next(p for p in sorted((self._real / "clips").iterdir()) if p.name.startswith(name))
        cut = write_clip(self.root / "sources" / f"{name}-{first}.mp4", (f.rgb for f in islice(decode(path), first, first + frames)), FPS)
        (shot,) = self._ingest(_source(cut, name), self.out(f"ingest/{name}-{first}"))[1]
        return max(self._faces(shot, self.out(f"faces/{name}-{first}"))[1], key=lambda c: c.frames)

    def portrait(self, name: str) -> PortraitUnit:
        path = next(p for p in sorted((self._real / "images").iterdir()) if p.name.startswith(name))
        (portrait,) = self._portraits(_source(path, name), self.out(f"portraits/{name}"))[1]
        return portrait

    def driving(self, clip: Clip, portrait: PortraitUnit) -> Driving:
        """The portrait, driven by the clip."""
        name = pair_id(clip.id, portrait.id)
        (pair,) = self._motion(Performance(id=clip.id, clip=clip, portraits=[portrait]), self.out(f"motion/{name}"))[1]
        (driving,) = self._reenact(pair, self.out(f"reenact/{name}"))[1]
        return driving

    def target_frames(self, driving: Driving) -> np.ndarray:
        clip = driving.pair.clip
        return decode_video(self.root / clip.folder / clip.file(TARGET))

    def frames(self, driving: Driving) -> np.ndarray:
        return decode_video(self.root / driving.folder / DRIVING)

    def with_frames(self, driving: Driving, name: str, frames: Iterable[np.ndarray]) -> Driving:
        """The same pair with other frames, encoded again."""
        out = self.out(f"{driving.folder}-{name}")
        with VideoWriter(out.path(DRIVING), FPS, SIZE_PX) as writer:
            for frame in frames:
                writer.write(np.ascontiguousarray(frame))
        out.seal(DRIVING)
        return replace(driving, folder=out.folder, digests=dict(out.digests))


def _source(path: Path, name: str) -> SourceFile:
    return SourceFile(id=source_id(str(path)), uri=str(path), identity=name, licence="", consent="")


def shifted(frames: np.ndarray, by: int) -> np.ndarray:
    """Late by so many frames, or early; the first frame, or the last one, stands meanwhile."""
    return frames[np.clip(np.arange(len(frames)) - by, 0, len(frames) - 1)]


def frozen(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[len(frames) // 2][None], len(frames), 0)


def mirrored(frames: np.ndarray) -> np.ndarray:
    return frames[:, :, ::-1]


def as_long_as(frames: np.ndarray, length: int) -> np.ndarray:
    """Cut off, or played to and fro."""
    return np.concatenate([frames, frames[::-1]] * (1 + length // len(frames)))[:length]


def jittering(frames: np.ndarray, px: int = 2) -> np.ndarray:
    """Each frame moved by up to so many px in both directions."""
    moves = np.random.default_rng(0).integers(-px, px + 1, (len(frames), 2))
    padded = np.pad(frames, ((0, 0), (px, px), (px, px), (0, 0)), mode="edge")
    size = frames.shape[1]
    return np.stack([frame[px + y : px + y + size, px + x : px + x + size] for frame, (y, x) in zip(padded, moves.tolist(), strict=True)])


def with_black_block(frames: np.ndarray, corner: tuple[int, int], side: int = 40, first: int = 0) -> np.ndarray:
    """A black square from frame `first` on."""
    frames = frames.copy()
    x, y = corner
    frames[first:, y : y + side, x : x + side] = 0
    return frames
