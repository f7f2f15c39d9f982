"""Meshwarp's layers: eyeballs that stay rigid under their lids, and the inside of a mouth that a portrait may never have shown.

Both come from B's portrait alone. What the portrait hides is filled in: an iris by its own mirror image, the mouth by a drawing
in B's tones (dark cavity, a band of teeth, a tongue).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stages import head
from stages.meshwarp_plan import INNER_LOWER, INNER_UPPER

_OWN_MOUTH_MIN_GAP = 0.08  # lip gap over mouth width from which the portrait's own teeth are used
_CHEEKS = (50, 280, 205, 425, 101, 330)


@dataclass(frozen=True)
class Eyeball:
    """An eye without lids.

    Attributes:
        patch: uint8 RGB (h, w, 3), what lies behind the lids too.
        iris: iris centre (2,) in px of the patch; `centre` is its index in the mesh, `outline` the lids'.
    """

    patch: np.ndarray
    iris: np.ndarray
    centre: int
    outline: tuple[int, ...]


@dataclass(frozen=True)
class MouthPaint:
    """Colours of a mouth's inside, float32 RGB (3,), and B's own teeth where the portrait shows them.

    Attributes:
        own: uint8 RGB (h, w, 3) or None; `own_alpha` float32 (h, w); `own_anchor` (2,) the upper inner lip's middle in it; `own_pose`
            the head's pose (T = 1) in the picture that it was taken from.
    """

    cavity: np.ndarray
    teeth: np.ndarray
    tongue: np.ndarray
    own: np.ndarray | None
    own_alpha: np.ndarray
    own_anchor: np.ndarray
    own_pose: head.Pose


def take_eyeball(image: np.ndarray, points: np.ndarray, outline: tuple[int, ...], centre: int) -> Eyeball:
    """Lifts an eyeball out of a portrait: iris completed by its mirror, the white continued behind the lids."""
    lids = points[list(outline), :2]
    width = float(np.ptp(lids[:, 0]))
    x0, y0 = np.maximum(np.floor(lids.min(0) - 0.5 * width), 0).astype(int)
    x1, y1 = np.ceil(lids.max(0) + 0.5 * width).astype(int) + 1
    patch = image[y0:y1, x0:x1].copy()
    iris = points[centre, :2] - [x0, y0]
    radius = float(np.linalg.norm(points[centre + 1 : centre + 5, :2] - points[centre, :2], axis=1).mean())
    seen = polygon_mask(lids - [x0, y0], patch.shape[:2])
    edge_x, edge_y = (2 * max(1, round(share * width)) + 1 for share in (0.03, 0.045))
    seen = cv2.erode(seen, np.ones((edge_y, edge_x), np.uint8))  # lashes and the lid's rim are no eyeball
    patch, seen = _mirror_iris(patch, seen, iris, radius)
    filled = cv2.inpaint(patch, (seen < 128).astype(np.uint8), max(2, 0.1 * width), cv2.INPAINT_TELEA)
    return Eyeball(filled, iris, centre, outline)


def _mirror_iris(patch: np.ndarray, seen: np.ndarray, iris: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """An iris is round: what a lid hides of it is what lies opposite."""
    y, x = np.mgrid[: patch.shape[0], : patch.shape[1]].astype(np.float32)
    near = np.hypot(x - iris[0], y - iris[1]) < 1.08 * radius
    trusted = cv2.erode(seen, np.ones((3, 3), np.uint8))
    patch, seen = patch.copy(), seen.copy()
    turned_x, turned_y = (2 * iris[0] - x).astype(np.float32), (2 * iris[1] - y).astype(np.float32)
    for map_x, map_y in ((x, turned_y), (turned_x, turned_y)):
        other = cv2.remap(patch, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        other_seen = cv2.remap(trusted, map_x, map_y, cv2.INTER_NEAREST)
        use = near & (seen < 128) & (other_seen >= 128)
        patch[use], seen[use] = other[use], 255
    return patch, seen


def take_mouth(image: np.ndarray, points: np.ndarray, speaking: tuple[np.ndarray, np.ndarray]) -> MouthPaint:
    """Tones for a mouth's inside from skin and eye whites; B's own from a picture and its points where the mouth is open, or the same."""
    size = max(2, round(0.02 * float(np.ptp(points[:, 1]))))
    cheeks = [
        image[max(y - size, 0) : y + size, max(x - size, 0) : x + size].reshape(-1, 3) for x, y in points[list(_CHEEKS), :2].astype(int)
    ]
    skin = np.median(np.concatenate(cheeks), 0).astype(np.float32)
    eyes = polygon_mask(points[list(head.RIGHT_EYE), :2], image.shape[:2]) | polygon_mask(points[list(head.LEFT_EYE), :2], image.shape[:2])
    white = float(np.percentile(image[eyes > 127].mean(1), 85)) if (eyes > 127).any() else float(skin.mean())
    white = np.clip(1.2 * white, 1.1 * skin.mean(), 245)  # glasses and shadow darken eyes, not teeth
    tint = 0.5 * np.array([1.0, 0.93, 0.88], np.float32) + 0.5 * skin / skin.max()  # lit by what lights the skin
    shown, points = speaking
    gap = float(head.mouth_opening(points[None])[0])
    lips = points[list(INNER_UPPER + INNER_LOWER), :2]
    x0, y0 = np.maximum(np.floor(lips.min(0)) - 8, 0).astype(int)
    x1, y1 = np.ceil(lips.max(0)).astype(int) + 9
    outline = np.concatenate([lips[: len(INNER_UPPER)], lips[len(INNER_UPPER) :][::-1]]) - [x0, y0]
    alpha = cv2.erode(polygon_mask(outline, (y1 - y0, x1 - x0)), np.ones((3, 3), np.uint8)).astype(np.float32) / 255
    return MouthPaint(
        cavity=skin * np.array([0.22, 0.12, 0.12], np.float32),
        teeth=tint * np.float32(white),
        tongue=0.55 * skin * np.array([1.1, 0.62, 0.62], np.float32),
        own=shown[y0:y1, x0:x1] if gap >= _OWN_MOUTH_MIN_GAP else None,
        own_alpha=cv2.GaussianBlur(alpha, (0, 0), 1.2),
        own_anchor=points[13, :2] - [x0, y0],
        own_pose=head.fit_pose(points[None]),
    )


def cover_holes(image: np.ndarray, points: np.ndarray, gap: float) -> np.ndarray:
    """The portrait under the layers: what is left to see when a lid or an open mouth closes is a soft dark line, not an eye or teeth."""
    image = image.copy()
    for outline in (head.RIGHT_EYE, head.LEFT_EYE):
        _cover(image, points[list(outline), :2], 0.55)
    if gap >= _OWN_MOUTH_MIN_GAP:
        _cover(image, points[list(INNER_UPPER + INNER_LOWER[::-1]), :2], 0.8)
    return image


def _cover(image: np.ndarray, outline: np.ndarray, darkness: float) -> None:
    """Continues what surrounds an outline across it, times `darkness` inside; writes into the image."""
    box = _window(outline, len(image), 12)
    assert box is not None
    x0, y0, x1, y1 = box
    patch = image[y0:y1, x0:x1]
    rim = 2 * max(1, round(0.03 * float(np.ptp(outline[:, 0])))) + 1  # the mesh is not exact: no white of the eye may stay behind
    core = polygon_mask(outline - [x0, y0], patch.shape)
    inside = cv2.dilate(core, np.ones((rim, rim), np.uint8))
    filled = cv2.inpaint(patch, (inside > 0).astype(np.uint8), 5, cv2.INPAINT_TELEA)
    image[y0:y1, x0:x1] = filled * (1 - (1 - darkness) * cv2.GaussianBlur(core, (0, 0), 1.0)[..., None] / 255.0)


def polygon_mask(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 mask (h, w), smooth at the edge, of an outline (N, 2) in px."""
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask


def _window(outline: np.ndarray, size: int, margin_px: int) -> tuple[int, int, int, int] | None:
    """Box x0 y0 x1 y1 round an outline, inside the frame; None when nothing of it is."""
    x0, y0 = np.clip(np.floor(outline.min(0)).astype(int) - margin_px, 0, size)
    x1, y1 = np.clip(np.ceil(outline.max(0)).astype(int) + margin_px + 1, 0, size)
    return (int(x0), int(y0), int(x1), int(y1)) if x1 - x0 > 2 and y1 - y0 > 2 else None


def _sample(
    patch: np.ndarray, anchor: np.ndarray, at: np.ndarray, back: np.ndarray, box: tuple[int, int, int, int], border: int
) -> np.ndarray:
    """The patch as it looks in a box of the frame when its `anchor` lies at frame px `at`; `back` (2, 2) takes frame px to patch px."""
    x0, y0, x1, y1 = box
    matrix = np.concatenate([back.T, (anchor - (at - [x0, y0]) @ back)[:, None]], 1)
    return cv2.warpAffine(patch, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)


def b_from_frame(own: head.Pose, pose: head.Pose) -> np.ndarray:
    """The linear map (2, 2) on row vectors from frame px to portrait px, for what lies flat in the face."""
    to_frame = pose.scale[0] * pose.rotation[0, :2, :2]
    to_portrait = own.scale[0] * own.rotation[0, :2, :2]
    return np.linalg.inv(to_frame) @ to_portrait


def draw_eye(frame: np.ndarray, eye: Eyeball, points: np.ndarray, back: np.ndarray) -> None:
    """Draws one eyeball between its lids, into the frame (S, S, 3)."""
    lids = points[list(eye.outline), :2]
    box = _window(lids, len(frame), 3)
    if box is None:
        return
    x0, y0, x1, y1 = box
    ball = _sample(eye.patch, eye.iris, points[eye.centre, :2], back, box, cv2.BORDER_REPLICATE)
    mask = polygon_mask(lids - [x0, y0], ball.shape).astype(np.float32) / 255
    opening = float(mask.sum()) / max(1.0, float(np.ptp(lids[:, 0])) ** 2)  # mean gap in eye widths; open is about 0.2
    strength = np.clip((opening - 0.02) / 0.05, 0, 1)  # what is nearly shut shows the portrait's own lashes
    height = max(1.0, float(np.ptp(lids[:, 1])))
    shade = cv2.GaussianBlur(mask, (0, 0), max(0.8, 0.12 * height))[..., None]  # lids throw a soft shadow on the ball
    lit = ball * (0.55 + 0.45 * np.clip(1.6 * shade - 0.6, 0, 1))
    alpha = strength * cv2.GaussianBlur(mask, (0, 0), 0.7)[..., None]
    there = frame[y0:y1, x0:x1]
    there[:] = there + alpha * (lit - there) + 0.5


def draw_mouth(frame: np.ndarray, paint: MouthPaint, points: np.ndarray, pose: head.Pose) -> None:
    """Draws the inside of the mouth between the inner lips, into the frame (S, S, 3); nothing when they touch."""
    upper, lower = points[list(INNER_UPPER), :2], points[list(INNER_LOWER), :2]
    width = float(np.linalg.norm(points[61, :2] - points[291, :2]))
    gap = float(np.linalg.norm(upper[3:8] - lower[3:8], axis=1).mean()) / max(width, 1.0)
    outline = np.concatenate([upper, lower[::-1]])
    box = _window(outline, len(frame), 2)
    strength = np.clip((gap - 0.02) / 0.03, 0, 1)
    if box is None or strength == 0:
        return
    x0, y0, x1, y1 = box
    inside = _paint_inside(paint, upper, lower, points[[61, 291], :2], pose, box)
    if paint.own is not None:
        back = b_from_frame(paint.own_pose, pose)
        own = _sample(paint.own, paint.own_anchor, points[13, :2], back, box, cv2.BORDER_REPLICATE)
        own_alpha = _sample(paint.own_alpha, paint.own_anchor, points[13, :2], back, box, cv2.BORDER_CONSTANT)[..., None]
        inside += own_alpha * (own - inside)
    mask = polygon_mask(outline - [x0, y0], (y1 - y0, x1 - x0)).astype(np.float32) / 255
    alpha = strength * cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None]
    there = frame[y0:y1, x0:x1]
    there[:] = there + alpha * (inside - there) + 0.5


def _paint_inside(
    paint: MouthPaint, upper: np.ndarray, lower: np.ndarray, corners: np.ndarray, pose: head.Pose, box: tuple[int, int, int, int]
) -> np.ndarray:
    """The drawn inside float32 (h, w, 3): measured in mouth widths from either lip, along the head's own axes."""
    x0, y0, x1, y1 = box
    to_head = np.linalg.inv(pose.scale[0] * pose.rotation[0, :2, :2])
    middle = corners.mean(0)
    rim_up, rim_low = (upper - middle) @ to_head, (lower - middle) @ to_head
    mouth_width = float(np.linalg.norm((corners[1] - corners[0]) @ to_head))
    grid = np.stack(np.meshgrid(np.arange(x0, x1), np.arange(y0, y1)), -1) - middle
    u, v = np.moveaxis(grid @ to_head, -1, 0)
    below = (v - np.interp(u, rim_up[:, 0], rim_up[:, 1])) / mouth_width
    above = (np.interp(u, rim_low[:, 0], rim_low[:, 1]) - v) / mouth_width
    u = u / mouth_width
    inside = np.broadcast_to(paint.cavity, (*u.shape, 3)).astype(np.float32)
    tongue = _step(0.17 - 1.2 * u**2 - above, 0.06) * _step(below - 0.12, 0.08)
    inside += tongue[..., None] * (paint.tongue - inside)
    if paint.own is None:
        teeth = _step(0.15 - 0.5 * u**2 - below, 0.025) * _step(0.43 - np.abs(u), 0.18)
        shade = (0.8 + 0.2 * np.clip(below / 0.06, 0, 1)) * (1 - 2.2 * u**2) * (1 - 0.045 * np.cos(2 * np.pi * u / 0.14) ** 8)
        teeth *= np.float32(np.clip((float((above + below).max()) - 0.05) / 0.12, 0.15, 1))  # barely parted lips keep them in the dark
        inside += teeth[..., None] * (paint.teeth * shade[..., None].astype(np.float32) - inside)
    return inside


def _step(x: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above `width`, smooth between."""
    t = np.clip(x / width, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
