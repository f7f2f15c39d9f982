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
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks.realpairs import BINS, HELD_OUT, TUNED, Performed, Prepared, spread
from schemas.video import decode_video
from stages import head
from stages.encode import VideoWriter, encode_png
from stages.facenet import FaceNet
from stages.faces import TARGET
from stages.likeness import likeness_scores, look
from stages.mesh import FaceMesh
from stages.meshwarp import MeshWarp
from stages.reenact import ClipView, Portrait, read_portrait, read_speaking
from stages.truth import NOT_MEASURED, score

_EVERY = 6  # frames between two that the identity network looks at


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
        out = self._prepared.outputs("")
        portrait = replace(read_portrait(pair.portrait, out), speaking=read_speaking(pair.portrait, out))
        begun = time.process_time()
        motion = self._engine.motion(ClipView(no_frames, points, clip.fps, clip.size_px))
        frames = list(self._engine.render(self._engine.appearance(portrait), motion))
        ms = 1000 * (time.process_time() - begun) / len(frames)
        driving = encoded(frames, clip.fps, clip.size_px)
        seen, _ = self._mesh.track(driving)
        target = decode_video(out.input(clip.folder, clip.file(TARGET)), first=pair.first, count=len(points))
        target_seen, _ = self._mesh.track(target)
        scores = {
            "yaw_apart_deg": pair.yaw_apart_deg,
            **score(points, seen),
            # how A shakes when looked at in the same way: from this frame on, and encoded
            "jitter_ratio": score(target_seen, seen)["jitter_ratio"],
            **self._likeness(target, points, driving, seen, portrait),
            "target_mouth_std": float(head.mouth_opening(points).std()),
            "ms_per_frame": ms,
        }
        return Measured(pair, scores, driving, seen)

    def _likeness(
        self, target: np.ndarray, points: np.ndarray, driving: np.ndarray, seen: np.ndarray, portrait: Portrait
    ) -> dict[str, float]:
        at = [k for k in range(0, len(driving), _EVERY) if np.isfinite(seen[k]).all()]
        b = look(portrait.image, portrait.points, self._identity)
        out = {k: look(driving[k], seen[k], self._identity) for k in at}
        return likeness_scores(out, {k: look(target[k], points[k], self._identity) for k in at}, b)


def encoded(frames: list[np.ndarray], fps: int, size_px: int) -> np.ndarray:
    """The frames as a reader of the sample gets them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "driving.mp4"
        with VideoWriter(path, fps, size_px) as writer:
            for frame in frames:
                writer.write(frame)
        return decode_video(path)


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
    *(("yaw_apart_deg", "apart", 1), ("pose_error_deg", "pose", 2), ("pose_error_p95_deg", "p95", 2), ("mouth_correlation", "mouth", 3)),
    *(("mouth_error", "m.err", 3), ("eye_correlation", "eyes", 3), ("eye_error", "e.err", 3), ("gaze_correlation", "gaze", 3)),
    *(("gaze_error", "g.err", 3), ("jitter_ratio", "jitter", 2), ("csim_appearance", "csim B", 2), ("csim_performer", "csim A", 2)),
    *(("target_likeness", "like A", 2), ("size_ratio", "size", 3), ("centre_offset", "centre", 3), ("lost_frames", "lost", 2)),
    ("ms_per_frame", "ms", 1),
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
    parser.add_argument("--only", type=int, nargs="*", help="numbers of pairs, from 1")
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
        for k, pair in enumerate(prepared.pairs(people, args.frames, args.per_bin), 1):
            if args.only and k not in args.only:
                continue
            one = judge(pair)
            names.append(pair.name)
            rows.append(one.scores)
            print(f"{pair.name[:44]:44s} {line(one.scores)}", flush=True)
            if args.sheets:
                args.sheets.mkdir(parents=True, exist_ok=True)
                (args.sheets / f"{k:02d}.png").write_bytes(encode_png(sheet(prepared, one)))
    for low, high in BINS:
        inside = [r for r in rows if low <= r["yaw_apart_deg"] < high]
        print(f"{low:.0f} to {high:.0f} degrees, {len(inside)} pairs, mean / median / least / most")
        for name, short, _ in _COLUMNS:
            print(f"  {short:8s}{spread(r[name] for r in inside if r[name] != NOT_MEASURED)}")
    if args.json:
        args.json.write_text(json.dumps(dict(zip(names, rows, strict=True)), indent=1))


if __name__ == "__main__":
    main()
