"""The leak probe over a pair set: the same few samples each time, and the figures that stages.leak finds in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from schemas.ids import digest
from schemas.outcomes import Rejection
from schemas.sample import CONTROLS, DRIVING, TARGET, decode_controls, read_index, read_members
from schemas.store import Place, Store, open_store
from schemas.video import decode_video
from stages.leak import MIN_FRAMES, Case, Figure, Footage, look, probe, puppet

_VERSION = 2  # of the figures: others are measured again
_MAX_SIDE_PX = 256  # larger frames are made smaller: a face is looked at 110 px high


@dataclass(frozen=True, kw_only=True)
class LeakConfig:
    samples: int = 16  # at most, of as many performers as there are
    frames: int = 96  # of each, from its beginning
    seed: int = 0


@dataclass(frozen=True)
class Leak:
    """What the probe finds in a pair set. `figures` are empty where no sample can be looked at."""

    samples: int
    performers: int
    figures: list[Figure]


def leak_of(folder: Place, config: LeakConfig | None = None) -> Leak:
    """Looks for A in the driving frames of the pair set in `folder` (RUN/shards/SET); some seconds a sample.

    Samples that are too short, or in which a face leaves the picture, are passed over.

    Raises:
        ValueError: no index, or a damaged sample.
    """
    config = config or LeakConfig()
    store = open_store(folder)
    rows = read_index(store).to_pylist()
    return _leak(store, rows, _chosen(rows, config), config)


def kept_leak(root: Store, name: str, config: LeakConfig | None = None) -> Leak:
    """`leak_of` the set RUN/shards/`name`, kept in RUN/report until other samples are to be looked at."""
    config = config or LeakConfig()
    store = root.sub(f"shards/{name}")
    rows = read_index(store).to_pylist()
    chosen = _chosen(rows, config)
    key = digest("leak", _VERSION, config.frames, config.seed, *(r["digest"] for r in chosen))
    file = f"report/leak-{name}.json"
    try:
        known: dict[str, Any] = json.loads(root.read(file))
        if known["key"] == key:
            return Leak(known["samples"], known["performers"], [Figure(**f) for f in known["figures"]])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # never measured, or not by this version
    leak = _leak(store, rows, chosen, config)
    root.write(file, json.dumps({"key": key, **asdict(leak)}, indent=1).encode())
    return leak


def _chosen(rows: list[dict[str, Any]], config: LeakConfig) -> list[dict[str, Any]]:
    """One sample of each performer, then a second of each, and so on, in an order that the seed gives."""
    drawn = sorted((r for r in rows if r["frames"] >= MIN_FRAMES), key=lambda r: digest("leak", config.seed, r["sample"]))
    turn: Counter[str] = Counter()
    rounds = []
    for place, row in enumerate(drawn):
        rounds.append((turn[row["performer"]], place))
        turn[row["performer"]] += 1
    return [drawn[place] for _, place in sorted(rounds)[: config.samples]]


def _leak(store: Store, rows: list[dict[str, Any]], chosen: list[dict[str, Any]], config: LeakConfig) -> Leak:
    performed = {r["performer"]: r for r in reversed(sorted(rows, key=lambda r: r["sample"])) if r["frames"] >= MIN_FRAMES}

    known: dict[tuple[str, bytes], Footage] = {}

    def own(clip: str, at: np.ndarray, frames: np.ndarray, points: np.ndarray) -> Footage:
        """What is left of a clip's frames `at`, looked at once, however many samples have the clip as their target."""
        key = clip, at.tobytes()
        if key not in known:
            known[key] = look(frames[at], points[at])
        return known[key]

    @cache
    def real_footage(performer: str) -> Footage | None:
        """Somebody's own, where he performs."""
        try:
            if (row := performed.get(performer)) is None:
                return None
            frames, points = _frames(store, row, TARGET, config.frames)
            return own(row["clip"], np.arange(len(frames)), frames, points)
        except Rejection:
            return None

    cases = [c for r in chosen if (c := _case(store, r, own, real_footage(r["appearance"]), config.frames))]
    return Leak(len(cases), len({c.performer for c in cases}), probe(cases, seed=config.seed) if cases else [])


def _case(
    store: Store, row: dict[str, Any], own: Callable[[str, np.ndarray, np.ndarray, np.ndarray], Footage], real: Footage | None, frames: int
) -> Case | None:
    """None for a sample that cannot be looked at: too few frames with a face, or a face that leaves the picture."""
    target, target_points = _frames(store, row, TARGET, frames)
    driving, points = _frames(store, row, DRIVING, frames)
    seen = np.isfinite(points).all((1, 2))
    if seen.sum() < MIN_FRAMES:
        return None
    try:
        moved, moved_points = puppet(driving[seen], points[seen], target_points[seen], row["fps"])
        found = np.isfinite(moved_points).all((1, 2))
        if found.sum() < MIN_FRAMES:
            return None
        at = np.flatnonzero(seen)[found]
        return Case(
            performer=row["performer"],
            appearance=row["appearance"],
            target=own(row["clip"], at, target, target_points),
            driving=look(driving[at], points[at]),
            puppet=look(moved[found], moved_points[found]),
            real=real,
        )
    except Rejection:
        return None


def _frames(store: Store, row: dict[str, Any], member: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first frames of a sample's video, uint8 RGB (T, S, S, 3), not too large, and their mesh points (T, 478, 3)."""
    members = read_members(store, row, (member, CONTROLS))
    count = min(most, row["frames"])
    points = decode_controls(members[CONTROLS])["target_points" if member == TARGET else "driving_points"][:count]
    frames = decode_video(members[member], count=count)
    side = frames.shape[1]
    if side > _MAX_SIDE_PX:
        share = _MAX_SIDE_PX / side
        frames = np.stack([cv2.resize(f, (_MAX_SIDE_PX, _MAX_SIDE_PX), interpolation=cv2.INTER_AREA) for f in frames])
        points = points * share + np.array([(share - 1) / 2, (share - 1) / 2, 0])
    return frames, points.astype(np.float32)
