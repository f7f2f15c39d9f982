"""The demo's people: two public-domain photographs, and people invented by reshaping, mixing and repainting them.

All painting happens on one square canvas, in head units: u to the picture's right, v down, the origin between forehead and chin,
1 = the height of the face. So a recipe reads the same whatever the photograph's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from pipeline.demo_canvas import (
    CANVAS_PX,
    FACE_PX,
    Brush,
    close_mouth,
    detect,
    grid,
    head_units,
    matte,
    noise,
    over,
    photograph,
    polygon,
    push,
    px,
    ramp,
    soft,
)
from stages.head import FACE_OVAL, LEFT_EYE, LIPS_OUTER, RIGHT_EYE

_BROWS = ((70, 63, 105, 66, 107, 55, 65, 52, 53, 46), (300, 293, 334, 296, 336, 285, 295, 282, 283, 276))
_COLLINS = "NASA portrait of Eileen Collins (skimage.data.astronaut)"
_HOPPER = "US Navy portrait of Grace Hopper (matplotlib sample_data/grace_hopper.jpg)"
_PUBLIC_DOMAIN = "public domain (work of the US federal government)"
_DERIVED = "CC0-1.0 (invented person; made from public-domain photographs)"


@dataclass(frozen=True)
class DemoPerson:
    """One identity of the demo.

    Attributes:
        identity: short name for file names and manifests.
        name: as a person would say it.
        invented: nobody looks like this; else a photograph of a real person.
        licence: licence of everything made from this person.
        provenance: which pictures the person was made of, and how.
        voice_hz: mean pitch of the person's synthetic voice.
        image: uint8 RGB (CANVAS_PX, CANVAS_PX, 3), frontal, face upright and in the middle, FACE_PX tall.
        points: float32 (478, 3) face mesh in px of `image`.
    """

    identity: str
    name: str
    invented: bool
    licence: str
    provenance: str
    voice_hz: float
    image: np.ndarray
    points: np.ndarray

    def framed(self, size_px: int, face_px: float) -> tuple[np.ndarray, np.ndarray]:
        """A square picture uint8 RGB (size_px, size_px, 3) with the face `face_px` tall in its middle, and its points (478, 3)."""
        k = face_px / FACE_PX
        matrix = np.array([[k, 0, (size_px - k * CANVAS_PX) / 2], [0, k, (size_px - k * CANVAS_PX) / 2]])
        how = cv2.INTER_AREA if k < 1 else cv2.INTER_CUBIC
        image = cv2.warpAffine(self.image, matrix, (size_px, size_px), flags=how, borderMode=cv2.BORDER_REPLICATE)
        points = self.points.astype(np.float64) * k
        points[:, :2] += matrix[:, 2]
        return image, points.astype(np.float32)

    def still(self, size_px: int = 640) -> np.ndarray:
        """A portrait, uint8 RGB (size_px, size_px, 3), the face 45 % of its height."""
        return self.framed(size_px, 0.45 * size_px)[0]


@dataclass(frozen=True)
class Recipe:
    """How one invented person is made of a photograph. Tones are Lab as OpenCV stores it in 8 bits: L, a, b in 0..255."""

    brushes: tuple[Brush, ...] = ()
    skin: tuple[float, float, float] | None = None
    hair: tuple[float, float, float] | None = None
    cloth: tuple[int, int, int] = (90, 90, 100)  # RGB
    backdrop: tuple[tuple[int, int, int], tuple[int, int, int]] = ((150, 160, 170), (90, 95, 105))  # RGB above, below
    brows: float = 0.0  # opacity of painted brows
    beard: float = 0.0  # opacity of a painted beard
    beard_from_v: float = 0.2
    lips: tuple[int, int, int] | None = None  # RGB
    glasses: tuple[int, int, int] | None = None  # RGB of the frame
    beanie: tuple[int, int, int] | None = None  # RGB
    scarf: tuple[int, int, int] | None = None  # RGB of a headscarf
    iris: tuple[int, int, int] | None = None  # RGB
    trim: tuple[float, float] | None = None  # half width and height above the eyes that the hair is cut to, head units
    mirrored: bool = False
    seed: int = 0


def _backdrop(recipe: Recipe) -> np.ndarray:
    """A studio wall: a vertical gradient, a light spot behind the head, faint clouds."""
    u, v = grid()
    top, bottom = (np.asarray(c, np.float32) for c in recipe.backdrop)
    wall = top + (bottom - top) * ramp(v, -1.6, 1.6)[..., None]
    light = 1 + 0.12 * np.exp(-0.5 * ((u / 0.9) ** 2 + ((v + 0.2) / 0.9) ** 2)) + 0.03 * noise(recipe.seed + 7, 60, 60)
    return wall * light[..., None]


def _clothes(picture: np.ndarray, recipe: Recipe, skin_rgb: np.ndarray) -> np.ndarray:
    """Neck and a knitted top, under the head."""
    u, v = grid()
    width = 0.265 + 0.10 * ramp(v, 0.55, 0.95)
    neck = ramp(np.abs(u) / width, 1.03, 0.97) * ramp(v, 0.1, 0.2)
    shade = 0.58 + 0.28 * ramp(v, 0.5, 0.75) - 0.2 * (u / width) ** 2 + 0.05 * np.exp(-0.5 * ((np.abs(u) - 0.1) / 0.03) ** 2) * (v > 0.6)
    shade = np.clip(shade, 0, None)
    warm = np.stack([shade, shade**1.15, shade**1.25], -1)  # skin in shadow turns redder, not greyer
    picture = over(picture, skin_rgb * warm, neck)
    shoulder = 0.72 + 0.42 * ramp(np.abs(u), 0.25, 1.25) + 1.2 * ramp(np.abs(u), 1.0, 1.6)
    body = ramp(v - shoulder, -0.012, 0.012)
    hole = ramp((u / 0.3) ** 2 + ((v - 0.6) / 0.24) ** 2, 1.0, 1.06)
    rib = 1 + 0.035 * np.sin(u * 150 + 6 * np.sin(v * 3)) + 0.03 * noise(recipe.seed + 1, 1.2, 1.2)
    folds = 1 + 0.1 * noise(recipe.seed + 2, 14, 60) - 0.22 * ramp(np.abs(u), 0.4, 1.2)
    collar = 1 - 0.25 * np.exp(-0.5 * ((np.sqrt((u / 0.3) ** 2 + ((v - 0.6) / 0.24) ** 2) - 1.28) / 0.03) ** 2) * (v < 1.1)
    chin_shadow = 1 - 0.3 * np.exp(-0.5 * ((u / 0.3) ** 2 + ((v - 0.75) / 0.15) ** 2))
    cloth = np.asarray(recipe.cloth, np.float32) * (rib * folds * collar * chin_shadow)[..., None]
    return over(picture, cloth, soft(body * hole, 1.0))


def _head_layer(points: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Opacity of Collins's hair and face, without neck and clothes, float32 in 0..1."""
    u, v = grid()
    oval = head_units(points)[list(FACE_OVAL)]
    face = polygon(oval * [0.965, 0.985], 2.5)
    hair_and_ears = matte("collins") * ramp(v, 0.2, 0.14)  # lower down the space suit's ring begins
    if recipe.trim is not None:
        half_width, above = recipe.trim
        ragged = 1 + 0.006 * noise(recipe.seed + 8, 2, 2) + 0.01 * noise(recipe.seed + 9, 9, 9)
        cut = ramp(np.where(v < -0.2, np.hypot(u / half_width, (v + 0.2) / above), np.abs(u / half_width)) * ragged, 1.01, 0.98)
        hair_and_ears = hair_and_ears * cut
    return np.maximum(face, hair_and_ears)


@cache
def _hair_of_collins() -> np.ndarray:
    """Hair against skin inside Collins's head by two Gaussian colour models, float32 in 0..1."""
    u, v = grid()
    lab = cv2.cvtColor(photograph("collins"), cv2.COLOR_RGB2LAB).astype(np.float32)
    points = detect(photograph("collins"))
    hair_at = (np.abs(u) < 0.45) & (v > -0.85) & (v < -0.55)
    skin_at = (np.abs(u) < 0.3) & (((v > -0.02) & (v < 0.1)) | ((v > 0.3) & (v < 0.42)))
    flat = lab.reshape(-1, 3).astype(np.float64)
    scores = []
    for at in (hair_at, skin_at):
        sample = lab[at].astype(np.float64)
        mean, inverse = sample.mean(0), np.linalg.inv(np.cov(sample.T) + 20 * np.eye(3))
        d = flat - mean
        scores.append(np.einsum("ni,ij,nj->n", d, inverse, d).reshape(lab.shape[:2]))
    hair = ramp(soft(np.sqrt(scores[1]) - np.sqrt(scores[0]), 2.0), -0.8, 0.8)
    core = np.maximum(polygon(head_units(points)[list(FACE_OVAL)] * [0.86, 0.93] + [0, 0.095], 10), ramp(v, 0.1, 0.25) * (np.abs(u) < 0.4))
    return np.maximum(hair, ramp(v, -0.48, -0.56)) * (1 - core)


def _tone(lab: np.ndarray, mask: np.ndarray, target: tuple[float, float, float], contrast: float) -> np.ndarray:
    """Moves the colours under `mask` so that their median becomes `target`; light and shade keep `contrast` of their spread."""
    median = np.median(lab[mask > 0.7], axis=0)
    new = np.asarray(target, np.float32) + (lab - median) * [contrast, 0.8, 0.8]
    return lab + (new - lab) * mask[..., None]


def _repaint(image: np.ndarray, points: np.ndarray, recipe: Recipe, layer: np.ndarray) -> np.ndarray:
    """Skin and hair in new tones, float32 RGB."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    hair = _hair_of_collins()
    at = head_units(points)
    eyes = np.maximum(polygon(at[list(RIGHT_EYE)], 1.5), polygon(at[list(LEFT_EYE)], 1.5))
    skin = (1 - hair) * (1 - eyes)
    new = lab
    if recipe.skin is not None:
        new = _tone(new, skin * (layer > 0.5), recipe.skin, 0.85)
    if recipe.hair is not None:
        toned = _tone(lab, hair * (layer > 0.5), recipe.hair, 0.75 if recipe.hair[0] < 110 else 1.0)
        toned[..., 0] = np.minimum(toned[..., 0], recipe.hair[0] + 55)  # a fringe's rim is half skin, and would glow
        new = new + (toned - new) * hair[..., None]
    return cv2.cvtColor(np.clip(new, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB).astype(np.float32)


def _features(picture: np.ndarray, points: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Brows, beard and lips painted on the face; `picture` is float32 RGB."""
    at = head_units(points)
    u, v = grid()
    lips = polygon(at[list(LIPS_OUTER)], 2.0)
    dark = (45, 32, 26) if recipe.hair is None else tuple(_lab_rgb(recipe.hair) * 0.55)
    hairs = np.clip(0.8 + 0.35 * noise(recipe.seed + 3, 0.7, 1.6), 0, 1.3)
    if recipe.iris is not None:
        for eye, centre, edge in ((RIGHT_EYE, 468, 469), (LEFT_EYE, 473, 474)):
            r = np.hypot(u - at[centre, 0], v - at[centre, 1]) / np.linalg.norm(at[edge] - at[centre])
            disc = ramp(r, 1.05, 0.9) * polygon(at[list(eye)], 1.0)
            light = np.clip(picture.mean(-1, keepdims=True) / 90, 0.4, 2.2)
            picture = over(picture, np.asarray(recipe.iris, np.float32) * light, 0.7 * disc)
    if recipe.brows:
        brow = np.maximum(*(polygon(at[list(ring)], 2.5) for ring in _BROWS))
        picture = over(picture, dark, np.clip(recipe.brows * brow * hairs, 0, 1))
    if recipe.beard:
        jaw = polygon(at[list(FACE_OVAL)] * [0.985, 0.99], 7)
        rim = recipe.beard_from_v - 0.28 * ramp(np.abs(u), 0.24, 0.40)  # the beard climbs towards the ears
        moustache = np.exp(-0.5 * ((u / 0.15) ** 2 + ((v - at[0, 1] + 0.012) / 0.022) ** 2))
        cheeks = ramp(v - rim, -0.03, 0.05) * ramp(np.hypot(u / 0.23, (v - at[14, 1] + 0.01) / 0.095), 0.8, 1.15)
        goatee = np.exp(-0.5 * ((u / 0.1) ** 2 + ((v - 0.36) / 0.07) ** 2))
        beard = jaw * np.clip(np.maximum.reduce([cheeks, moustache, goatee]), 0, 1) * (1 - lips)
        picture = over(picture, dark, np.clip(recipe.beard * beard * hairs, 0, 0.95))
    if recipe.lips is not None:
        grey = picture.mean(-1, keepdims=True) / 140
        picture = over(picture, np.asarray(recipe.lips, np.float32) * np.clip(grey, 0.45, 1.25), 0.6 * lips)
    return picture


def _lab_rgb(lab: tuple[float, float, float]) -> np.ndarray:
    return cv2.cvtColor(np.array([[lab]], np.uint8), cv2.COLOR_LAB2RGB)[0, 0].astype(np.float32)


def _accessories(picture: np.ndarray, points: np.ndarray, recipe: Recipe) -> np.ndarray:
    u, v = grid()
    at = head_units(points)
    if recipe.beanie is not None:
        dome = ramp(np.hypot(u / 0.535, (v + 0.34) / 0.60), 1.02, 0.99) * ramp(v + 0.10 * (u / 0.6) ** 2, -0.33, -0.35)
        band = ramp(v + 0.10 * (u / 0.6) ** 2, -0.56, -0.55)
        knit = 1 + (0.10 - 0.03 * band) * np.sin(np.arctan2(u, v + 1.6) * (150 - 30 * band)) + 0.04 * noise(recipe.seed + 4, 1.5, 1.5)
        light = 1.08 - 0.6 * (u / 0.56) ** 2 - 0.25 * np.exp(-0.5 * ((v + 0.10 * (u / 0.6) ** 2 + 0.57) / 0.015) ** 2) + 0.12 * band
        shadow = np.exp(-0.5 * ((v + 0.10 * (u / 0.6) ** 2 + 0.33) / 0.05) ** 2) * (np.abs(u) < 0.45)
        picture = over(
            picture * (1 - 0.35 * soft(shadow, 4))[..., None], np.asarray(recipe.beanie) * (knit * light)[..., None], soft(dome, 1.2)
        )
    if recipe.scarf is not None:
        picture = _scarf(picture, recipe)
    if recipe.glasses is not None:
        picture = _glasses(picture, at, recipe.glasses)
    return picture


def _scarf(picture: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A headscarf: fabric around the face and over neck and shoulders."""
    assert recipe.scarf is not None
    u, v = grid()
    opening = np.hypot(u / 0.40, (v - 0.045) / 0.475)
    outer = np.minimum(np.hypot(u / 0.60, (v + 0.12) / 0.80), np.hypot(u / (0.52 + 0.5 * ramp(v, 0.35, 1.1)), (v - 0.75) / 0.72))
    fabric = ramp(opening, 0.985, 1.015) * ramp(outer, 1.01, 0.99)
    across = u + 0.25 * (v - 0.4)  # folds hang a little askew
    folds = 0.07 * np.sin(opening * 13 + 3 * across + 1.6 * noise(recipe.seed + 5, 45, 45)) + 0.05 * noise(recipe.seed + 10, 10, 40)
    rim = 0.25 * np.exp(-0.5 * ((opening - 1.0) / 0.05) ** 2) - 0.20 * np.exp(-0.5 * ((opening - 1.17) / 0.04) ** 2)
    light = (
        0.98
        + folds
        - rim
        - 0.35 * (u / 0.9) ** 2
        + 0.02 * noise(recipe.seed + 6, 1, 1)
        - 0.30 * ramp(v, 0.45, 0.7) * np.exp(-((u / 0.35) ** 2))
    )
    shade = 1 - 0.3 * np.exp(-0.5 * ((opening - 1.0) / 0.06) ** 2)  # on the face, next to the cloth
    return over(picture * shade[..., None], np.asarray(recipe.scarf) * light[..., None], soft(fabric, 1.3))


def _glasses(picture: np.ndarray, at: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    frame = np.zeros((CANVAS_PX, CANVAS_PX), np.float32)
    centres = [at[list(eye)].mean(0) + np.array([0, 0.012]) for eye in (RIGHT_EYE, LEFT_EYE)]
    t = np.linspace(0, 2 * np.pi, 90)
    ring = np.stack([np.sign(np.cos(t)) * np.abs(np.cos(t)) ** 0.75 * 0.135, np.sign(np.sin(t)) * np.abs(np.sin(t)) ** 0.75 * 0.105], -1)
    lines = [c + ring for c in centres]
    bridge_u = np.linspace(centres[0][0] + 0.13, centres[1][0] - 0.13, 12)
    lines.append(np.stack([bridge_u, centres[0][1] - 0.03 - 0.015 * np.sin(np.linspace(0, np.pi, 12))], -1))
    lines.extend(np.array([c + np.array([s * 0.13, -0.04]), [s * 0.43, c[1] - 0.035]]) for c, s in zip(centres, (-1, 1), strict=True))
    for line in lines:
        cv2.polylines(frame, [np.round(px(line) * 16).astype(np.int32)], False, 1.0, 5, cv2.LINE_AA, 4)
    shadow = np.roll(soft(frame, 3), 5, axis=0)
    glass = np.maximum(*(polygon(line, 1) for line in lines[:2]))
    picture = over(picture * (1 - 0.25 * shadow)[..., None], (255, 255, 255), 0.05 * glass)
    return over(picture, rgb, soft(frame, 0.8))


# --- people -----------------------------------------------------------------------------------------------------------------


def _invent(recipe: Recipe, photo: np.ndarray | None = None) -> np.ndarray:
    """Collins's head (`photo`: with another face on it), reshaped, repainted and dressed anew; uint8 RGB."""
    image = photograph("collins") if photo is None else photo
    points = detect(image)
    layer = _head_layer(points, recipe)
    image = close_mouth(image, points)
    head = _repaint(image, points, recipe, layer)
    stacked = push(np.dstack([head, 255 * layer]).astype(np.float32), recipe.brushes)
    head, layer = stacked[..., :3], np.clip(stacked[..., 3] / 255, 0, 1)
    points = detect(np.clip(head, 0, 255).astype(np.uint8))
    head = _features(head, points, recipe)
    skin_rgb = np.median(head[(np.hypot(*grid()) < 0.25)], axis=0)
    picture = _clothes(_backdrop(recipe), recipe, skin_rgb)
    if recipe.scarf is not None:  # what shows between jaw and cloth is the cloth's own shadow
        u, v = grid()
        picture = over(picture, np.asarray(recipe.scarf) * 0.3, ramp(np.hypot(u / 0.45, (v - 0.1) / 0.5), 1.0, 0.9))
    picture = _accessories(over(picture, head, layer), points, recipe)
    image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[:, ::-1]) if recipe.mirrored else image


def _transplant(face: str, head: str, share: float) -> np.ndarray:
    """The face of one photograph on the head of the other; the face's shape is `share` the face's own, the rest the head's."""
    from matplotlib.tri import LinearTriInterpolator, Triangulation

    a, b = photograph(face), photograph(head)
    a = close_mouth(a, detect(a))
    pa, pb = detect(a)[:468, :2].astype(np.float64), detect(b)[:468, :2].astype(np.float64)
    inside = np.array([i for i in range(468) if i not in FACE_OVAL])
    want = pb.copy()
    want[inside] += share * (pa - pb)[inside] * 0.9
    y, x = np.mgrid[:CANVAS_PX, :CANVAS_PX]
    mesh = Triangulation(want[:, 0], want[:, 1])
    source_x, source_y = (LinearTriInterpolator(mesh, p)(x, y).filled(0).astype(np.float32) for p in pa.T)
    warped = cv2.remap(a, source_x, source_y, cv2.INTER_CUBIC)
    oval = want[list(FACE_OVAL)]
    mask = polygon(((oval - oval.mean(0)) * [0.9, 0.92] + oval.mean(0) - CANVAS_PX / 2) / FACE_PX, 7)
    return np.rint(over(b.astype(np.float32), _like(warped, b, mask > 0.9), mask)).astype(np.uint8)


def _like(image: np.ndarray, model: np.ndarray, where: np.ndarray) -> np.ndarray:
    """`image` in the light of `model`: mean and spread of its Lab colours under `where` become the model's; float32 RGB."""
    lab, want = (cv2.cvtColor(i, cv2.COLOR_RGB2LAB).astype(np.float32) for i in (image, model))
    spread = np.clip(want[where].std(0) / lab[where].std(0), 0.7, 1.1)
    new = (lab - lab[where].mean(0)) * spread + want[where].mean(0)
    return cv2.cvtColor(np.clip(new, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB).astype(np.float32)


def _officer(recipe: Recipe) -> np.ndarray:
    """Collins's face in Hopper's cap and uniform, in another colour, before a wall; uint8 RGB."""
    image = _transplant("collins", "hopper", 0.7)
    _, v = grid()
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    cloth = cv2.cvtColor(np.array([[recipe.cloth]], np.uint8), cv2.COLOR_RGB2LAB)[0, 0].astype(np.float32)
    dark = soft((lab[..., 0] < 70) & ((v > 0.45) | (v < -0.33)), 2.0)
    lab += (cloth + (lab - np.median(lab[dark > 0.9], axis=0)) * [1, 0.3, 0.3] - lab) * dark[..., None]
    rgb = cv2.cvtColor(np.clip(lab, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    stacked = push(np.dstack([rgb, 255 * matte("hopper") * ramp(v, -1.09, -1.06)]).astype(np.float32), recipe.brushes)
    picture = over(_backdrop(recipe), stacked[..., :3], np.clip(stacked[..., 3] / 255, 0, 1))
    image = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return np.clip(np.rint(_features(image.astype(np.float32), detect(image), recipe)), 0, 255).astype(np.uint8)


_RECIPES = {
    "tomas": Recipe(
        brushes=(
            Brush(0, -0.75, 0.4, 0.15, dv=0.06),  # lower crown
            Brush(0.3, 0.3, 0.14, 0.16, du=0.05),  # wider jaw
            Brush(0, 0.45, 0.2, 0.1, dv=0.035),  # longer chin
            Brush(0, 0.05, 0.1, 0.1, grow_u=1.22, grow_v=1.12),  # larger nose
            Brush(0.21, 0.14, 0.07, 0.06, du=-0.03, dv=0.035),  # no smile
            Brush(0.19, -0.29, 0.16, 0.04, dv=0.03),  # lower brows
            Brush(0.18, -0.2, 0.08, 0.05, grow_v=0.9),  # narrower eyes
        ),
        skin=(178, 143, 147),
        hair=(62, 130, 134),
        cloth=(38, 60, 92),
        backdrop=((188, 190, 185), (120, 122, 122)),
        trim=(0.52, 0.72),
        brows=0.75,
        beard=0.5,
        seed=3,
    ),
    "amara": Recipe(
        brushes=(
            Brush(0, 0.06, 0.1, 0.08, grow_u=1.25),
            Brush(0, 0.16, 0.2, 0.06, grow_v=1.35),  # fuller lips
            Brush(0.19, -0.2, 0.1, 0.08, du=0.025, grow_u=1.1, grow_v=1.15),  # larger eyes, further apart
            Brush(0.2, 0.14, 0.06, 0.05, du=-0.025, dv=0.02),
            Brush(0.35, 0.1, 0.15, 0.15, du=0.035),  # wider cheeks
        ),
        skin=(124, 147, 153),
        hair=(35, 130, 132),
        cloth=(120, 60, 70),
        scarf=(190, 120, 60),
        trim=(0.5, 0.5),
        backdrop=((120, 150, 150), (60, 80, 90)),
        brows=0.6,
        lips=(140, 65, 70),
        iris=(52, 34, 24),
        mirrored=True,
        seed=4,
    ),
    "ines": Recipe(
        brushes=(Brush(0.3, 0.25, 0.15, 0.2, du=-0.02), Brush(0.19, -0.2, 0.1, 0.08, grow_u=1.05, grow_v=1.08)),
        cloth=(70, 16, 28),
        backdrop=((225, 205, 170), (180, 150, 120)),
        brows=0.5,
        hair=(90, 132, 140),
        iris=(60, 90, 70),
        seed=9,
    ),
    "edda": Recipe(
        brushes=(Brush(0.3, 0.3, 0.14, 0.16, du=-0.03), Brush(0, 0.4, 0.2, 0.1, dv=0.03)),
        hair=(165, 128, 131),
        cloth=(110, 90, 130),
        backdrop=((200, 190, 170), (150, 130, 110)),
        seed=5,
    ),
    "bo": Recipe(
        brushes=(
            Brush(0.3, 0.2, 0.16, 0.2, du=0.04),
            Brush(0, 0.45, 0.25, 0.1, dv=-0.05),  # short chin
            Brush(0.18, -0.2, 0.09, 0.07, grow_u=1.15, grow_v=1.22),
            Brush(0, 0.04, 0.1, 0.1, grow_u=0.9, grow_v=0.85),
            Brush(0.2, 0.14, 0.07, 0.06, du=-0.04, dv=0.03),
        ),
        skin=(205, 146, 142),
        hair=(160, 132, 160),
        cloth=(150, 160, 70),
        beanie=(60, 110, 120),
        trim=(0.5, 0.6),
        glasses=(40, 36, 40),
        iris=(70, 100, 130),
        backdrop=((215, 190, 180), (160, 140, 150)),
        seed=6,
    ),
    "ravi": Recipe(
        brushes=(
            Brush(0.38, -0.1, 0.16, 0.3, du=-0.04),  # slim
            Brush(0, 0.45, 0.2, 0.12, dv=0.06),
            Brush(0, 0.0, 0.1, 0.14, grow_u=1.1, grow_v=1.15),
            Brush(0.21, 0.14, 0.07, 0.06, du=-0.045, dv=0.03),
            Brush(0.18, -0.2, 0.1, 0.08, du=-0.015),
        ),
        skin=(140, 142, 152),
        hair=(40, 129, 131),
        cloth=(70, 84, 66),
        backdrop=((140, 120, 150), (80, 70, 100)),
        trim=(0.47, 0.66),
        brows=0.8,
        beard=0.75,
        beard_from_v=0.26,
        iris=(50, 34, 26),
        mirrored=True,
        seed=8,
    ),
}


PERFORMERS = ("collins", "hopper", "tomas", "amara", "ines", "edda")
EXTRAS = ("bo", "ravi")  # appear in portraits only
_ABOUT = {  # name, voice in Hz, source
    "collins": ("Eileen Collins", 205, _COLLINS),
    "hopper": ("Grace Hopper", 175, _HOPPER),
    "tomas": ("Tomas Quill", 112, _COLLINS),
    "amara": ("Amara Wells", 220, _COLLINS),
    "ines": ("Ines Arbor", 190, f"{_COLLINS} and the {_HOPPER}"),
    "edda": ("Edda Marsh", 165, f"{_COLLINS} and the {_HOPPER}"),
    "bo": ("Bo Lind", 230, _COLLINS),
    "ravi": ("Ravi Sand", 120, _COLLINS),
}


@cache
def demo_person(identity: str) -> DemoPerson:
    """One of PERFORMERS or EXTRAS; the same pixels every time. About a second."""
    name, voice_hz, source = _ABOUT[identity]
    recipe = _RECIPES.get(identity)
    if recipe is None:
        image = photograph(identity)
    elif identity == "ines":
        image = _officer(recipe)
    else:
        image = _invent(recipe, _transplant("hopper", "collins", 0.6) if identity == "edda" else None)
    return DemoPerson(
        identity=identity,
        name=name,
        invented=recipe is not None,
        licence=_DERIVED if recipe else _PUBLIC_DOMAIN,
        provenance=f"invented: reshaped and repainted from the {source}" if recipe else source,
        voice_hz=voice_hz,
        image=image,
        points=detect(image),
    )
