"""The leak probe: how well A can be told from the masked driving pixels of a pair, beyond what A's motion must tell.

The driving frames show B with A's motion. If pixels of A got in, what flickers in A's footage frame by frame (light, lids, teeth,
grain) flickers in the driving frames too. So for each pair:

1. Each region is laid over one still face by the mesh (stages.aligned): shape and place are gone.
2. What geometry draws is taken out: a single frame of the same footage is warped to the mesh of every frame (its *ghost*), and what can
   be said by the ghost (pixel by pixel, and by its main movements), by time and by the place in the group of pictures is subtracted. So
   is what stays the same in all frames: most of that is B.
3. What is left of the driving frames is correlated with what is left of A's frames, frame by frame.

A's motion is in the driving video by design, and no mesh tells all of it, so that correlation is not 0 without a leak. The control sees
geometry only: a *puppet*, one driving frame moved by A's mesh alone and looked at afresh, goes through the same probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from schemas.regions import REGIONS
from schemas.video import decode_video
from stages import head
from stages.aligned import aligned
from stages.encode import VideoWriter
from stages.mesh import FaceMesh
from stages.meshwarp import MeshWarp, MeshWarpConfig, motion_from_points
from stages.meshwarp_render import render_frame
from stages.reenact import Portrait

ALL = "all regions"
MIN_FRAMES = 24
_KEYFRAMES = 12  # a group of pictures: both videos of a sample are sharpest at its beginning
_MOST_MOVEMENTS = 15  # of a ghost that are taken out
_NEAR_FRAMES = 6  # frames that are nearer in time than this resemble each other
_MOST_STRANGERS = 4
_MOST_FLIPS = 4096
_FEWEST_PERFORMERS = 6  # 2 of whose 64 parts lie outside all others


@dataclass(frozen=True)
class Footage:
    """What geometry leaves unsaid of T frames: region -> float32 (T, N)."""

    left: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.left[REGIONS[0]])


@dataclass(frozen=True)
class Case:
    """One pair. `target`, `driving` and `puppet` are of the same frames; `real` is B's own footage, where B performs too."""

    performer: str
    appearance: str
    target: Footage
    driving: Footage
    puppet: Footage
    real: Footage | None = None


@dataclass(frozen=True)
class Figure:
    """What the probe finds in one region over a set of pairs.

    Attributes:
        driving, puppet: mean correlation with A's frames, -1..1, of the driving pixels and of the control.
        low, high: the control's 95 % confidence interval over performers; NaN for fewer than six.
        real: the same of B's real footage; NaN where no B performs.
        p: of the driving pixels telling no more of A than the control does, by swapping the two per performer.
        told, told_puppet, told_real: how often A's frames correlate better than frames of others, or of A at other times: 0.5 is chance.
    """

    region: str
    driving: float
    puppet: float
    low: float
    high: float
    real: float
    p: float
    told: float
    told_puppet: float
    told_real: float


def look(frames: np.ndarray, points: np.ndarray) -> Footage:
    """Footage of frames uint8 RGB (T, S, S, 3) with mesh points (T, 478, 3), all finite.

    Raises schemas.outcomes.Rejection when the face leaves the picture.
    """
    looks = MeshWarp(MeshWarpConfig(calibration_rounds=0)).appearance(_still(frames, points)).looks
    pose = head.fit_pose(points)
    shapes, at = pose.invert(points.astype(np.float64)), points.astype(np.float64)
    rows, ghosts = [], []
    for t, frame in enumerate(frames):
        one = head.Pose(pose.scale[t : t + 1], pose.rotation[t : t + 1], pose.translation[t : t + 1])
        rows.append(aligned(frame, points[t]))
        ghosts.append(aligned(render_frame(looks, at[t], one, shapes[t], frame.shape[0]), points[t]))
    return Footage({name: unsaid(np.stack([r[name] for r in rows]), np.stack([g[name] for g in ghosts])) for name in REGIONS})


def puppet(driving: np.ndarray, points: np.ndarray, target_points: np.ndarray, fps: int) -> tuple[np.ndarray, np.ndarray]:
    """The control's frames (T, S, S, 3) and its mesh points (T, 478, 3), NaN where no face was found.

    One of the `driving` frames, with mesh `points`, is moved by A's `target_points` (T, 478, 3); of their frames it sees nothing. It is
    coded as driving videos are: an encoder blurs what moves, and A's footage moves alike.
    """
    size_px = driving.shape[1]
    engine = MeshWarp(MeshWarpConfig(calibration_rounds=0))
    motion = motion_from_points(target_points, fps, size_px, engine.config)
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "puppet.mp4"
        with VideoWriter(path, fps, size_px) as writer:
            for frame in engine.render(engine.appearance(_still(driving, points)), motion):
                writer.write(frame)
        frames = decode_video(path)
    return frames, FaceMesh().track(iter(frames))[0]


def _still(frames: np.ndarray, points: np.ndarray) -> Portrait:
    """The frame that shows most of a face: eyes and mouth rather open, towards the camera."""
    eyes, mouth = head.eye_opening(points).mean(1), head.mouth_opening(points)
    far = [np.abs(x - np.percentile(x, 70)) / (x.std() + 1e-6) for x in (eyes, mouth)]
    best = int((far[0] + far[1] / 3 + np.abs(head.fit_pose(points).euler_deg).sum(1) / 60).argmin())
    return Portrait(frames[best], points[best])


def probe(cases: Sequence[Case], *, seed: int = 0) -> list[Figure]:
    """A figure for each region, and one for all together.

    Raises:
        ValueError: no cases, or one with fewer than MIN_FRAMES frames.
    """
    if not cases or min(len(c.target) for c in cases) < MIN_FRAMES:
        raise ValueError(f"the leak probe needs at least one pair, and {MIN_FRAMES} frames of each")
    rng = np.random.default_rng(seed)
    performers = {c.performer: c.target for c in cases}
    rows = np.full((len(cases), 3, len(REGIONS) + 1, 2), np.nan)  # driving, puppet, real; regions and all; correlation, told
    for i, case in enumerate(cases):
        strangers = [t for who, t in performers.items() if who not in (case.performer, case.appearance)][:_MOST_STRANGERS]
        for k, footage in enumerate((case.driving, case.puppet, case.real)):
            if footage is not None and len(footage) >= MIN_FRAMES:
                rows[i, k] = _tell(footage, case.target, strangers)
    # pairs of one performer are one observation: they share what is compared with
    people = np.array([c.performer for c in cases])
    means = np.stack([_mean(rows[people == who]) for who in sorted(set(people))])
    return [_figure(name, means[:, :, r], rng) for r, name in enumerate((*REGIONS, ALL))]


def _figure(name: str, means: np.ndarray, rng: np.random.Generator) -> Figure:
    """From what was found of each performer, (P, 3, 2)."""
    low, high = _interval(means[:, 1, 0], rng)
    (driving, told), (control, told_puppet), (real, told_real) = _mean(means).tolist()
    p = _flip_test(means[:, 0, 0] - means[:, 1, 0], rng)
    return Figure(name, driving, control, low, high, real, p, told, told_puppet, told_real)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    there = np.isfinite(rows)
    return np.where(there.any(0), np.where(there, rows, 0).sum(0) / np.maximum(there.sum(0), 1), np.nan)


def _interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % of the means of parts of the values (P,): all parts while they are few (Hartigan 1969, "Using subsample values as typical
    values"). Right where values lie alike on both sides of the truth, as the flip test is; a bootstrap of few is too narrow. Fewer than
    _FEWEST_PERFORMERS have no such interval: NaN."""
    if len(values) < _FEWEST_PERFORMERS:
        return float("nan"), float("nan")
    if 2 ** len(values) <= _MOST_FLIPS:
        parts = np.array(list(product((0, 1), repeat=len(values))))[1:]
    else:
        parts = rng.integers(0, 2, (_MOST_FLIPS - 1, len(values)))
        parts = parts[parts.any(1)]
    means = np.sort(parts @ values / parts.sum(1))
    cut = max(1, (len(means) + 1) // 40)
    return float(means[cut - 1]), float(means[-cut])


def _flip_test(excess: np.ndarray, rng: np.random.Generator) -> float:
    """One-sided p of a mean above 0 under flips of sign, (P,): all of them while they are few."""
    if 2 ** len(excess) <= _MOST_FLIPS:
        signs = np.array(list(product((1, -1), repeat=len(excess))))
        return float((signs @ excess >= excess.sum() - 1e-12).mean())
    signs = rng.choice([1, -1], (_MOST_FLIPS - 1, len(excess)))
    return float((1 + (signs @ excess >= excess.sum() - 1e-12).sum()) / _MOST_FLIPS)


def _tell(footage: Footage, target: Footage, strangers: Sequence[Footage]) -> np.ndarray:
    """Of each region, and of all: the correlation of what is left of the footage with what is left of A's frames, and how often it is
    above what A's frames at other times and others' frames give; (regions + 1, 2)."""
    frames = min(len(footage), len(target))
    own = _by_lag(footage, target, frames)
    others = [own[:, _NEAR_FRAMES : frames - _NEAR_FRAMES + 1], *(_by_lag(footage, s, min(frames, len(s))) for s in strangers)]
    return np.stack([own[:, 0], (np.concatenate(others, 1) < own[:, :1]).mean(1)], 1)


def _by_lag(a: Footage, b: Footage, frames: int) -> np.ndarray:
    """Correlations of what is left of both, b turned round in time by 0, 1, ... frames: (regions + 1, frames), the last row their mean."""
    k = np.arange(frames)
    rows = []
    for name in REGIONS:
        x, y = a.left[name][:frames], b.left[name][:frames]
        products = x @ y.T / np.sqrt((x**2).sum() * (y**2).sum() + 1e-12)
        rows.append(products[k[:, None], (k[:, None] + k) % frames].sum(0))
    return np.stack([*rows, np.mean(rows, 0)])


def unsaid(patches: np.ndarray, ghost: np.ndarray) -> np.ndarray:
    """What is left of patches (T, N) when all is subtracted that fits their ghost (T, N), time, and the group of pictures; float32."""
    k = np.arange(len(patches))
    group = (k % _KEYFRAMES) / (_KEYFRAMES - 1) - 0.5
    time = np.stack([np.ones(len(k)), k / len(k) - 0.5, k % _KEYFRAMES == 0, group])
    # without each frame's mean: a lamp, or exposure, is nobody's looks
    patches, ghost = (x.astype(np.float64) - x.mean(1, keepdims=True) for x in (patches, ghost))
    basis, _ = np.linalg.qr(np.concatenate([time, _movements(ghost, min(_MOST_MOVEMENTS, len(k) // 8))]).T)
    left, drawn = (x - basis @ (basis.T @ x) for x in (patches, ghost))
    share = (left * drawn).sum(0) / ((drawn**2).sum(0) + 1e-3)
    return np.asarray(left - share * drawn, np.float32)


def _movements(patches: np.ndarray, count: int) -> np.ndarray:
    """How patches (T, N) change in time, the most important first: (count, T)."""
    centred = patches - patches.mean(0)
    return np.asarray(np.linalg.eigh(centred @ centred.T)[1][:, ::-1][:, :count].T)
