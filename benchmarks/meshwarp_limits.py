"""Draws the pictures of docs/meshwarp.md: what meshwarp can and cannot do, on invented people of the demo.

python -m benchmarks.meshwarp_limits docs
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from pipeline.demo_portraits import demo_person
from stages import head
from stages.meshwarp import MeshWarp, motion_from_points
from stages.meshwarp_plan import set_mouth
from stages.reenact import Portrait

SIZE_PX, FACE_PX = 384, 190
PERFORMER, PEOPLE = "tomas", ("bo", "ravi")
YAWS_DEG = (0, 10, 20, 30, 40)
_LIPS = [*head.LIPS_OUTER, *head.LIPS_INNER]
_HOLD = 7  # frames that each thing is held for; the middle one is shown


def performer() -> tuple[np.ndarray, head.Pose]:
    """The shape (478, 3) and pose (T = 1) of a performer who keeps still."""
    _, points = demo_person(PERFORMER).framed(SIZE_PX, FACE_PX)
    pose = head.fit_pose(points[None].astype(np.float64))
    return pose.invert(points[None].astype(np.float64))[0], pose


def turned() -> np.ndarray:
    """Points (T, 478, 3) of a head that turns from one of YAWS_DEG to the next and waits there."""
    shape, pose = performer()
    ways = [np.r_[np.linspace(a, b, 2 * _HOLD)[:-1], np.full(_HOLD, b)] for a, b in zip((YAWS_DEG[0], *YAWS_DEG), YAWS_DEG, strict=False)]
    yaw = np.concatenate(ways)
    many = head.Pose(*(np.repeat(v, len(yaw), 0) for v in (pose.scale, pose.rotation, pose.translation)))
    rotation = head.rotation_of(np.stack([yaw, 0 * yaw, 0 * yaw], 1))
    return head.Pose(many.scale, rotation, many.translation).apply(shape)


def faces() -> np.ndarray:
    """Points (T, 478, 3): closed mouth, hardly open, open, wide open, pucker; eyes to the side, half shut, shut, a wink."""
    shape, pose = performer()
    shapes = [set_mouth(shape[None], np.array([gap]))[0] for gap in (0.0, 0.05, 0.2, 0.45, 0.02)]
    shapes[4][_LIPS, 0] *= 0.62
    upper, lower = (
        ((246, 161, 160, 159, 158, 157, 173), (466, 388, 387, 386, 385, 384, 398)),
        (
            (7, 163, 144, 145, 153, 154, 155),
            (249, 390, 373, 374, 380, 381, 382),
        ),
    )
    aside = shapes[0].copy()
    aside[468:478, 0] += 0.15 * np.linalg.norm(shape[33] - shape[133])
    shapes.append(aside)
    for shares in ((0.5, 0.5), (1.0, 1.0), (1.0, 0.0)):
        lids = shapes[0].copy()
        for side, share in enumerate(shares):
            a, b = list(upper[side]), list(lower[side])
            lids[a] += share * (lids[b] - lids[a])
        shapes.append(lids)
    every = np.repeat(np.stack(shapes), _HOLD, 0)
    every = np.concatenate([np.repeat(shapes[0][None], _HOLD, 0), every])
    return head.Pose(*(np.repeat(v, len(every), 0) for v in (pose.scale, pose.rotation, pose.translation))).apply(every)


def rendered(name: str, points: np.ndarray) -> list[np.ndarray]:
    engine = MeshWarp()
    b = engine.appearance(Portrait(*demo_person(name).framed(SIZE_PX, FACE_PX)))
    return list(engine.render(b, motion_from_points(points.astype(np.float32), 25.0, SIZE_PX)))


def write(path: Path, rows: list[list[np.ndarray]], tile: int) -> None:
    small = [np.concatenate([cv2.resize(t, (tile, tile), interpolation=cv2.INTER_AREA) for t in row], 1) for row in rows]
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(small), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ok
    path.write_bytes(data.tobytes())


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    turns, acts = turned(), faces()
    step = 3 * _HOLD - 1
    at = [k * step + step - _HOLD // 2 - 1 for k in range(len(YAWS_DEG))]
    write(folder / "meshwarp-turns.jpg", [[rendered(name, turns)[k] for k in at] for name in PEOPLE], 160)
    middle, half = SIZE_PX // 2, FACE_PX // 2
    window = slice(middle - half, middle + half)
    every = {name: rendered(name, acts) for name in PEOPLE}
    moments = [_HOLD * k + _HOLD // 2 for k in range(1, 10)]
    write(folder / "meshwarp-faces.jpg", [[every[name][k][window, window] for k in moments] for name in PEOPLE], 110)


if __name__ == "__main__":
    main()
