"""From mesh points to outlines of eyes, nose and mouth: what each region takes in, held still where the face is still.

The outlines in a shard are those of the profile `default`. The points they were made of stand beside them in controls.npz, so that
a reader can have another profile without a shard being written again: `with_profile`.
"""

from __future__ import annotations

import numpy as np

from schemas import facemesh as mesh
from schemas.regions import REGIONS, Regions, pad_outlines

# profile -> loops of mesh points in the order of REGIONS
PROFILES: dict[str, tuple[tuple[int, ...], ...]] = {
    "tight": (mesh.LEFT_EYE, mesh.RIGHT_EYE, mesh.NOSE_TIP, mesh.LIPS_OUTER),  # lids, tip and nostrils, lips
    "default": (mesh.LEFT_EYE, mesh.RIGHT_EYE, mesh.NOSE, mesh.LIPS_OUTER),  # lids, the whole nose, lips
    "wide": (mesh.LEFT_EYE_AND_BROW, mesh.RIGHT_EYE_AND_BROW, mesh.NOSE, mesh.MOUTH_AND_SKIN),  # brows and bags, and skin round the lips
}

_RIDGES = {mesh.NOSE: mesh.NOSE_RIDGE, mesh.NOSE_TIP: mesh.NOSE_TIP_RIDGE}
_REACH_FRAMES = 2  # to either side
_SIGMA_FRAMES = 1.0
_JITTER = 0.003  # of the face's height: what the mesh trembles on a face that is still
_MIN_LID_GAP = 0.16  # of the eye's width: what shut lids and their lashes take up


def outlines_of(points: np.ndarray, profile: str = "default") -> np.ndarray:
    """Outlines float32 (T, 4, P, 2) in px from mesh points (T, 478, >=2) of a whole clip; zeros where the points are NaN.

    A shut eye keeps a lens as high as its lashes; the nose of a turned head goes as far as its ridge does.

    Raises:
        ValueError: the profile is none of PROFILES.
    """
    if profile not in PROFILES:
        raise ValueError(f"there is no region profile {profile!r}; there are {', '.join(PROFILES)}")
    found = np.isfinite(points).all((1, 2))
    flat = np.where(found[:, None, None], points, 0)[..., :2].astype(np.float64)
    height = np.maximum(np.ptp(flat[..., 1], axis=1), 1.0)
    loops = [held_still(_loop(flat, loop), found, height) for loop in PROFILES[profile]]
    for loop, lids in zip(PROFILES[profile], loops, strict=True):
        if loop in (mesh.LEFT_EYE, mesh.RIGHT_EYE):
            _part_lids(lids, 1 if loop == mesh.RIGHT_EYE else -1)
    padded = [pad_outlines([loop[t] for loop in loops]) for t in range(len(points))]
    return np.stack(padded) if padded else np.zeros((0, len(REGIONS), max(map(len, loops)), 2), np.float32)


def with_profile(regions: Regions, points: np.ndarray, profile: str) -> Regions:
    """The same clip's regions with what another profile takes in, from `driving_points` of controls.npz; what cannot be seen stays so."""
    if len(points) != len(regions.valid):
        raise ValueError(f"points of {len(points)} frames, regions of {len(regions.valid)}")
    return regions if profile == "default" else Regions(outlines_of(points, profile), regions.valid)


def held_still(outline: np.ndarray, found: np.ndarray, height_px: np.ndarray) -> np.ndarray:
    """An outline (T, P, 2) px without the mesh's tremble, never behind a movement and never across frames without a face.

    Each frame is averaged with the middle of those before and after it, k frames away to either side, so that an even movement stays as
    it is; and the less, the farther that middle lies from it, so that a blink or a closing mouth stays too. `found` is bool (T,),
    `height_px` (T,) the face's height.
    """
    total, weight = outline.copy(), np.ones(len(outline))
    whole = found.copy()
    for k in range(1, min(_REACH_FRAMES, (len(outline) - 1) // 2) + 1):
        whole[k:-k] &= found[: -2 * k] & found[2 * k :]
        middle = (outline[: -2 * k] + outline[2 * k :]) / 2
        away = np.sqrt(((middle - outline[k:-k]) ** 2).sum(-1).mean(-1)) / (_JITTER * height_px[k:-k])
        share = 2 * np.exp(-0.5 * (k / _SIGMA_FRAMES) ** 2 - 0.5 * away**2) * whole[k:-k]
        total[k:-k] += share[:, None, None] * middle
        weight[k:-k] += share
    return total / weight[:, None, None]


def _loop(points: np.ndarray, loop: tuple[int, ...]) -> np.ndarray:
    """A loop's points (T, P, 2) px, new; of a nose, those that its ridge has passed are on the ridge."""
    outline = points[:, list(loop)]
    if loop not in _RIDGES:
        return outline
    ridge = points[:, list(_RIDGES[loop])]
    across = points[:, mesh.LEFT_EYE[0]] - points[:, mesh.RIGHT_EYE[0]]
    # from the top the loop goes down the person's right side and up his left
    outwards = across[:, None] * np.sign(np.arange(len(loop)) - loop.index(2))[:, None]
    passed = ((ridge - outline) * outwards).sum(-1) > 0
    return np.where(passed[..., None], ridge, outline)


def _part_lids(lids: np.ndarray, turn: int) -> None:
    """Moves lids that are nearer to each other than lashes are high apart, in place; (T, 16, 2), as the eyes in facemesh go round.

    `turn` is 1 for the right eye, of which the lower lid is to the right of who looks from the outer corner to the inner, else -1.
    """
    half = lids.shape[1] // 2
    lower, upper = np.arange(1, half), np.arange(lids.shape[1] - 1, half, -1)
    across = lids[:, half] - lids[:, 0]
    width = np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-6)
    down = turn * np.stack([-across[:, 1], across[:, 0]], -1) / width
    gap = ((lids[:, lower] - lids[:, upper]) * down[:, None]).sum(-1)
    least = _MIN_LID_GAP * width * np.sqrt(np.sin(np.pi * lower / half))
    push = np.maximum(least - gap, 0)[..., None] / 2 * down[:, None]
    lids[:, lower] += push
    lids[:, upper] -= push
