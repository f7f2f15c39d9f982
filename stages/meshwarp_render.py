"""One frame of meshwarp: the portrait pulled along by the mesh, hair and background after it, then eyes and mouth on top.

For every pixel of the frame we say which pixel of the portrait it shows. Inside the face that is exact, triangle by triangle
in painter's order; outside it comes from a coarse, blurred map, so that hair and background bend and never tear.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import cv2
import numpy as np

from stages import head
from stages.meshwarp_layers import Eyeball, MouthPaint, b_from_frame, draw_eye, draw_mouth

_COARSE = 4  # px of the frame per cell of the coarse map
_RINGS = ((1.22, 0.18, 0.7), (1.65, 0.45, 0.3))  # hair and ears: times the oval, depth behind it, share of the oval's expression
_OVAL = np.array(head.FACE_OVAL)


@dataclass(frozen=True)
class Appearance:
    """What rendering needs to know of B.

    Attributes:
        image: uint8 RGB (P, P, 3).
        points: (478, 3) px of `image`; `pose` is their pose (T = 1).
        shape: (478, 3) head frame, as in the portrait.
        eyes, mouth: the layers.
    """

    image: np.ndarray
    points: np.ndarray
    pose: head.Pose
    shape: np.ndarray
    eyes: tuple[Eyeball, Eyeball]
    mouth: MouthPaint


@cache
def face_triangles() -> np.ndarray:
    """Triangles int (N, 3) of the mesh, facing the viewer clockwise in the picture; holes at eyes and mouth are filled too."""
    from mediapipe.python.solutions.face_mesh_connections import FACEMESH_TESSELATION

    near: dict[int, set[int]] = {}
    for a, b in FACEMESH_TESSELATION:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    cycles = sorted({tuple(sorted((a, b, c))) for a in near for b in near[a] for c in near[a] & near[b]})
    uses = Counter(edge for a, b, c in cycles for edge in ((a, b), (b, c), (a, c)))
    # a 3-cycle round a point is no face of the mesh: each of its edges has two other faces already
    faces = [(a, b, c) for a, b, c in cycles if min(uses[a, b], uses[b, c], uses[a, c]) < 3]
    for outline in (head.RIGHT_EYE, head.LEFT_EYE, head.LIPS_INNER):
        faces += _fill(outline)
    triangles = np.array(faces)
    flip = _doubled_area(head.canonical()[triangles, :2]) < 0
    triangles[flip] = triangles[flip][:, [0, 2, 1]]
    return triangles


def _fill(outline: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Triangles across a hole, lower rim to upper rim. The outline begins at one corner; the other is half-way round."""
    half = len(outline) // 2
    lower, upper = outline[: half + 1], (outline[0], *outline[:half:-1], outline[half])
    strip = []
    for i in range(half):
        strip += [(lower[i], lower[i + 1], upper[i]), (upper[i], lower[i + 1], upper[i + 1])]
    return [t for t in strip if len(set(t)) == 3]


@cache
def outer_triangles() -> np.ndarray:
    """Triangles int (N, 3) from the border inwards to the oval; points 478 on are the rings and last the border."""
    count = len(_OVAL)
    rings = [_OVAL, *(478 + k * count + np.arange(count) for k in range(len(_RINGS) + 1))]
    strips = []
    for inner, outer in reversed(list(pairwise(rings))):
        after_i, after_o = np.roll(inner, -1), np.roll(outer, -1)
        strips += [np.stack([inner, outer, after_o], 1), np.stack([inner, after_o, after_i], 1)]
    return np.concatenate(strips)


@cache
def _border() -> np.ndarray:
    """The frame's border as seen from its middle in the direction of each oval point, (36, 2) in frame sides; corners are among them."""
    ray = head.canonical()[_OVAL, :2].copy()
    ray /= np.abs(ray).max(1, keepdims=True) * 2
    for corner in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        ray[np.argmin(np.linalg.norm(ray - corner, axis=1))] = corner
    return ray + 0.5


def with_surroundings(points: np.ndarray, pose: head.Pose, shape: np.ndarray, own_shape: np.ndarray, size_px: int) -> np.ndarray:
    """Points (478 + 3 x 36, 3): the face, then rings of hair and ears that turn with the head in depth, then the frame's border."""
    oval, own = shape[_OVAL], own_shape[_OVAL]
    rings = []
    for factor, depth, share in _RINGS:
        ring = own * [factor, factor, 1] + [0, 0, depth]
        rings.append(ring + share * (oval - own))
    around = pose.apply(np.concatenate(rings)[None])[0]
    border = np.concatenate([_border() * size_px - 0.5, np.zeros((len(_OVAL), 1))], 1)
    return np.concatenate([points, around, border])


def render_frame(b: Appearance, points: np.ndarray, pose: head.Pose, shape: np.ndarray, size_px: int) -> np.ndarray:
    """B at points (478, 3) px of the frame, of `shape` at `pose` (T = 1); uint8 RGB (size_px, size_px, 3)."""
    source = with_surroundings(b.points, b.pose, b.shape, b.shape, len(b.image))[:, :2]
    target = with_surroundings(points, pose, shape, b.shape, size_px)
    face = _visible(face_triangles(), target)
    coarse = _coarse_map(source, target[:, :2], np.concatenate([outer_triangles(), face]), size_px)
    where = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    _refine(where, source, target[:, :2], face)
    frame = cv2.remap(b.image, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    back = b_from_frame(b.pose, pose)
    draw_mouth(frame, b.mouth, points, pose)
    for eye in b.eyes:
        draw_eye(frame, eye, points, back)
    return frame


def _visible(triangles: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Those that face the viewer, far ones first."""
    corners = target[triangles]
    facing = _doubled_area(corners) > 0.02
    order = np.argsort(-corners[facing, :, 2].mean(1), kind="stable")
    return triangles[facing][order]


def _doubled_area(corners: np.ndarray) -> np.ndarray:
    a, b = corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _coarse_map(source: np.ndarray, target: np.ndarray, triangles: np.ndarray, size_px: int) -> np.ndarray:
    """Portrait px float32 (cells, cells, 2) for each cell of the frame, everything painted, then blurred."""
    cells = size_px // _COARSE
    in_cells = (target + 0.5) / _COARSE - 0.5
    painted, _ = _paint(source, in_cells, triangles, (0, 0, cells, cells))
    return cv2.GaussianBlur(painted, (0, 0), 2.0, borderType=cv2.BORDER_REPLICATE)


def _refine(where: np.ndarray, source: np.ndarray, target: np.ndarray, face: np.ndarray) -> None:
    """Writes the exact map of the face into `where` (S, S, 2), fading into what is there at the face's edge."""
    size = len(where)
    x0, y0 = np.clip(np.floor(target[_OVAL].min(0)).astype(int) - 1, 0, size - 1)
    x1, y1 = np.clip(np.ceil(target[_OVAL].max(0)).astype(int) + 2, 1, size)
    if x1 <= x0 or y1 <= y0:
        return
    exact, inside = _paint(source, target, face, (x0, y0, x1, y1))
    exact = cv2.blur(exact, (3, 3), borderType=cv2.BORDER_REPLICATE)  # changes nothing but folds, which it keeps from flickering
    width = max(3, round(0.02 * (x1 - x0))) * 2 + 1
    # at the frame's edge the face goes on: only its own edge fades
    core = cv2.erode(inside, np.ones((width, width), np.uint8), borderType=cv2.BORDER_REPLICATE)
    share = cv2.blur(core.astype(np.float32), (width - 2, width - 2), borderType=cv2.BORDER_REPLICATE)[..., None]
    there = where[y0:y1, x0:x1]
    there += share * (exact - there)


def _paint(source: np.ndarray, target: np.ndarray, triangles: np.ndarray, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Paints triangles in order. Portrait px float32 (h, w, 2) and where something was painted uint8 (h, w), over a box of the target."""
    x0, y0, x1, y1 = box
    corners = target[triangles] - [x0, y0]
    ids = np.zeros((y1 - y0, x1 - x0), np.int32)
    fixed = np.round(np.clip(corners, -4096, 4096) * 16).astype(np.int32)
    for i, polygon in enumerate(fixed, 1):
        cv2.fillConvexPoly(ids, polygon, i, cv2.LINE_8, 4)
    maps = np.zeros((len(triangles) + 1, 6), np.float32)
    maps[1:] = _affine_maps(corners, source[triangles]).reshape(-1, 6)
    m = maps[ids]
    x, y = np.arange(x1 - x0, dtype=np.float32), np.arange(y1 - y0, dtype=np.float32)[:, None]
    painted = m[..., 0:2] * x[None, :, None] + m[..., 2:4] * y[..., None] + m[..., 4:6]
    return painted, (ids > 0).astype(np.uint8)


def _affine_maps(corners: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Maps (N, 3, 2), [x y 1] @ map = source, of triangles (N, 3, 2).

    A sliver's map would be far off already half a pixel outside it, where it is still painted: a little ridge keeps it tame.
    """
    middle, goal = corners.mean(1, keepdims=True), source.mean(1, keepdims=True)
    d = corners - middle
    spread = d.swapaxes(1, 2) @ d + 0.1 * np.eye(2)
    slope = np.linalg.inv(spread) @ d.swapaxes(1, 2) @ (source - goal)
    return np.concatenate([slope, goal - middle @ slope], 1)
