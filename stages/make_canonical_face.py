"""Makes canonical_face.npz: a symmetric, frontal mean of MediaPipe detections on two public-domain photographs.

Run once by hand (`python -m stages.make_canonical_face`); the wheel carries the mesh's edges but no canonical shape.
The photographs (NASA's Eileen Collins, the US Navy's Grace Hopper) come with scikit-image and matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import skimage.data
from scipy.optimize import linear_sum_assignment

from schemas.arrays import encode_arrays
from stages.mesh import FaceMesh
from stages.stills import read_image

_FOREHEAD, _CHIN, _RIGHT_TEMPLE, _LEFT_TEMPLE = 10, 152, 234, 454


def align(shape: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`shape` moved, turned and scaled onto `reference` (Umeyama 1991), both (N, 3)."""
    a, b = shape - shape.mean(0), reference - reference.mean(0)
    u, s, vt = np.linalg.svd(a.T @ b)
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    return (s * sign).sum() / (a**2).sum() * a @ rotation + reference.mean(0)


def upright(shape: np.ndarray) -> np.ndarray:
    """Centred, face plane vertical (forehead and chin equally deep), temple to temple along x, face height 1."""
    shape = shape - shape.mean(0)
    height = shape[_CHIN] - shape[_FOREHEAD]
    across = shape[_LEFT_TEMPLE] - shape[_RIGHT_TEMPLE]
    x = across / np.linalg.norm(across)
    y = height - (height @ x) * x
    y /= np.linalg.norm(y)
    shape = shape @ np.stack([x, y, np.cross(x, y)], axis=1)
    return shape / (shape[:, 1].max() - shape[:, 1].min())


def main() -> None:
    mesh = FaceMesh(static=True)
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photos = [skimage.data.astronaut(), read_image(hopper)]
    plain: list[np.ndarray] = []
    mirrored: list[np.ndarray] = []
    for photo in photos:
        points = mesh(photo)
        assert points is not None
        (x0, y0), (x1, y1) = points[:, :2].min(0), points[:, :2].max(0)
        for scale in np.linspace(1.6, 2.6, 11):
            side, (cx, cy) = scale * (y1 - y0), ((x0 + x1) / 2, (y0 + y1) / 2)
            matrix = np.array([[512 / side, 0, 256 - cx * 512 / side], [0, 512 / side, 256 - cy * 512 / side]])
            crop = cv2.warpAffine(photo, matrix, (512, 512), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
            for picture, shapes in ((crop, plain), (np.ascontiguousarray(crop[:, ::-1]), mirrored)):
                found = mesh(picture)
                assert found is not None
                shapes.append(upright(found.astype(np.float64)))
    mean = upright(np.mean([align(s, plain[0]) for s in plain], axis=0))
    mean_mirrored = upright(np.mean([align(s, mirrored[0]) for s in mirrored], axis=0))
    flipped = mean * [-1, 1, 1]
    # point i of a picture is point mirror[i] of its mirror image
    distance = np.linalg.norm(flipped[:, None] - align(mean_mirrored, mean)[None], axis=-1)
    mirror = linear_sum_assignment(distance)[1]
    assert (mirror[mirror] == np.arange(len(mirror))).all()
    symmetric = upright((mean + align(flipped[mirror], mean)) / 2)
    path = Path(__file__).with_name("canonical_face.npz")
    path.write_bytes(encode_arrays({"points": symmetric.astype(np.float32), "mirror": mirror.astype(np.int16)}))
    print(path, symmetric.min(0), symmetric.max(0))


if __name__ == "__main__":
    main()
