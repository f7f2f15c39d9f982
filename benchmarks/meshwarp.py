"""How well meshwarp follows: real clips drive portraits of real people, the encoded driving video is looked at again and compared.

    CROSSPAIR_SHARED=<folder that holds realdata/ and models/> python -m benchmarks.meshwarp
        [--people tuned|held-out] [--size 256] [--frames 60] [--per-bin 8] [--cache FOLDER] [--sheets FOLDER] [--json FILE]

Clips and portraits are those that the gates of a run accept; what is prepared is kept in the cache. Pairs are dealt by how far the span's
head and the portrait's are turned apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.realpairs import BINS, HELD_OUT, TUNED, Performed, Prepared, spread
from schemas.video import decode_video
from stages import head
from stages.encode import VideoWriter, encode_png
from stages.facealign import align, five_points
from stages.facenet import FaceNet
from stages.faces import TARGET
from stages.mesh import FaceMesh
from stages.meshwarp import MeshWarp
from stages.meshwarp_plan import gaze_of
from stages.quality import NOT_MEASURED, correlation, score
from stages.reenact import ClipView, Portrait, read_portrait

_EVERY = 6  # frames between two that the identity network looks at
_GAZE_MOVES = 0.015


@dataclass(frozen=True)
class Measured:
    """One pair: what it was, what it scored, and the frames for a sheet."""

    pair: Performed
    scores: dict[str, float]
    driving: np.ndarray
    seen: np.ndarray


def no_frames() -> Iterator[np.ndarray]:
    raise AssertionError("meshwarp asked for A's frames")


class Judge:
    """Renders pairs with one engine and scores the encoded frames."""

    def __init__(self, prepared: Prepared, engine: MeshWarp, identity: FaceNet) -> None:
        self._prepared, self._engine, self._identity = prepared, engine, identity
        self._mesh = FaceMesh()

    def __call__(self, pair: Performed) -> Measured:
        clip = pair.clip
        points = self._prepared.points(clip)[pair.first : pair.stop]
        portrait = read_portrait(pair.portrait, self._prepared.outputs(""))
        begun = time.process_time()
        motion = self._engine.motion(ClipView(no_frames, points, clip.fps, clip.size_px))
        frames = list(self._engine.render(self._engine.appearance(portrait), motion))
        ms = 1000 * (time.process_time() - begun) / len(frames)
        driving = encoded(frames, clip.fps, clip.size_px)
        seen, found = self._mesh.track(driving)
        target = decode_video(self._prepared.outputs("").input(clip.folder, clip.file(TARGET)), first=pair.first, count=len(points))
        scores = {
            "yaw_apart_deg": pair.yaw_apart_deg,
            **score(points, seen),
            **more_scores(points[found], seen[found]),
            **self._likeness(target, points, driving, seen, portrait),
            "ms_per_frame": ms,
        }
        return Measured(pair, scores, driving, seen)

    def _likeness(
        self, target: np.ndarray, points: np.ndarray, driving: np.ndarray, seen: np.ndarray, portrait: Portrait
    ) -> dict[str, float]:
        at = [k for k in range(0, len(driving), _EVERY) if np.isfinite(seen[k]).all()]
        b = self._identity(align(portrait.image, five_points(portrait.points)))
        out = np.stack([self._identity(align(driving[k], five_points(seen[k]))) for k in at])
        a = np.stack([self._identity(align(target[k], five_points(points[k]))) for k in at])
        return {"csim_b": float((out @ b).mean()), "csim_a": float((out * a).sum(1).mean()), "csim_ab": float((a @ b).mean())}


def encoded(frames: list[np.ndarray], fps: int, size_px: int) -> np.ndarray:
    """The frames as a reader of the sample gets them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "driving.mp4"
        with VideoWriter(path, fps, size_px) as writer:
            for frame in frames:
                writer.write(frame)
        return decode_video(path)


def more_scores(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    error = head.angle_between_deg(head.fit_pose(a).rotation, head.fit_pose(b).rotation)
    ea, eb = head.fit_pose(a).euler_deg, head.fit_pose(b).euler_deg
    gaze_a, gaze_b = (gaze_of(head.fit_pose(p).invert(p)).mean(1) for p in (a, b))
    eyes_a, eyes_b = head.eye_opening(a), head.eye_opening(b)
    return {
        "pose_p95_deg": float(np.percentile(error, 95)),
        **{f"bias_{n}": float(np.mean(eb[:, i] - ea[:, i])) for i, n in enumerate(("yaw", "pitch", "roll"))},
        "mouth_error": float(np.abs(head.mouth_opening(a) - head.mouth_opening(b)).mean()),
        "mouth_std": float(head.mouth_opening(a).std()),
        "eye_std": float(eyes_a.mean(1).std()),
        "eye_ratio": float(eyes_b.mean(1).std() / max(eyes_a.mean(1).std(), 1e-6)),
        "gaze_x": correlation(gaze_a[:, 0], gaze_b[:, 0]) if gaze_a[:, 0].std() > _GAZE_MOVES else NOT_MEASURED,
        "gaze_y": correlation(gaze_a[:, 1], gaze_b[:, 1]) if gaze_a[:, 1].std() > _GAZE_MOVES else NOT_MEASURED,
        "gaze_std": float(gaze_a[:, 0].std()),
        "jitter": jitter(b) / jitter(a),
    }


def jitter(points: np.ndarray) -> float:
    """Mean length of the points' second difference in face sizes."""
    xy = points[..., :2].astype(np.float64) / float(np.median(head.face_size(head.face_boxes(points))))
    return float(np.linalg.norm(xy[2:] - 2 * xy[1:-1] + xy[:-2], axis=-1).mean())


def sheet(prepared: Prepared, one: Measured, columns: int = 7) -> np.ndarray:
    """A over B at `columns` moments, below them the eyes and the mouth of both, enlarged."""
    pair, clip = one.pair, one.pair.clip
    target = decode_video(prepared.outputs("").input(clip.folder, clip.file(TARGET)), first=pair.first, count=len(one.driving))
    points = prepared.points(clip)[pair.first : pair.stop]
    at = np.linspace(0, len(target) - 1, columns).astype(int)
    at[1] = int(head.mouth_opening(points).argmax())
    at[2] = int(head.eye_opening(points).mean(1).argmin())
    columns_ = []
    for k in at:
        tiles = [cv2.resize(v[k], (256, 256), interpolation=cv2.INTER_AREA) for v in (target, one.driving)]
        for v, p in ((target, points), (one.driving, one.seen)):
            tiles += [closeup(v[k], p[k], [*head.LEFT_EYE, *head.RIGHT_EYE], 96), closeup(v[k], p[k], head.LIPS_OUTER, 128)]
        columns_.append(np.concatenate(tiles))
    return np.concatenate(columns_, 1)


def closeup(frame: np.ndarray, points: np.ndarray, outline: list[int] | tuple[int, ...], height: int) -> np.ndarray:
    if not np.isfinite(points).all():
        return np.zeros((height, 256, 3), np.uint8)
    xy = points[list(outline), :2]
    half = 0.75 * float(np.ptp(xy[:, 0]))
    zoom, middle = 128 / half, xy.mean(0)
    matrix = np.array([[zoom, 0, 128 - zoom * middle[0]], [0, zoom, height / 2 - zoom * middle[1]]])
    return np.asarray(cv2.warpAffine(frame, matrix, (256, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


_COLUMNS = (
    *(("yaw_apart_deg", "dyaw", 1), ("pose_error_deg", "pose", 2), ("pose_p95_deg", "p95", 2), ("mouth_correlation", "mouth", 3)),
    *(("mouth_error", "m.err", 3), ("eye_correlation", "eyes", 3), ("gaze_x", "gaze", 3), ("gaze_y", "gazey", 2), ("jitter", "jit", 2)),
    *(("csim_b", "B", 2), ("csim_a", "A", 2), ("csim_ab", "A-B", 2), ("size_ratio", "size", 3), ("centre_offset", "centre", 3)),
    *(("lost_frames", "lost", 2), ("ms_per_frame", "ms", 1)),
)


def line(scores: dict[str, float]) -> str:
    return " ".join(f"{'-':>6s}" if scores[n] == NOT_MEASURED else f"{scores[n]:6.{digits}f}" for n, _, digits in _COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", choices=("tuned", "held-out"), default="tuned")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--per-bin", type=int, default=8)
    parser.add_argument("--cache", type=Path, help="what is prepared stays here")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if "CROSSPAIR_SHARED" not in os.environ:
        sys.exit("set CROSSPAIR_SHARED to the folder that holds realdata/ and models/")
    shared = Path(os.environ["CROSSPAIR_SHARED"])
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Prepared(shared / "realdata", args.cache or Path(scratch), args.size)
        judge = Judge(prepared, MeshWarp(), FaceNet(shared / "models" / "faceid" / "MobileFaceNet.onnx", "imagenet"))
        people = TUNED if args.people == "tuned" else HELD_OUT
        print(f"{'':44s} {' '.join(f'{short:>6s}' for _, short, _ in _COLUMNS)}")
        names: list[str] = []
        rows: list[dict[str, float]] = []
        for pair in prepared.pairs(people, args.frames, args.per_bin):
            one = judge(pair)
            names.append(pair.name)
            rows.append(one.scores)
            print(f"{pair.name[:44]:44s} {line(one.scores)}", flush=True)
            if args.sheets:
                args.sheets.mkdir(parents=True, exist_ok=True)
                (args.sheets / f"{len(rows):02d}.png").write_bytes(encode_png(sheet(prepared, one)))
    for low, high in BINS:
        inside = [r for r in rows if low <= r["yaw_apart_deg"] < high]
        print(f"{low:.0f} to {high:.0f} degrees, {len(inside)} pairs, mean / median / least / most")
        for name, short, _ in _COLUMNS:
            print(f"  {short:8s}{spread(r[name] for r in inside if r[name] != NOT_MEASURED)}")
    if args.json:
        args.json.write_text(json.dumps(dict(zip(names, rows, strict=True)), indent=1))


if __name__ == "__main__":
    main()
