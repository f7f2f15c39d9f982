"""Outlines are where eyes, nose and mouth are: on faces drawn from known curves, and on real frames by the word of another network;
and an eye that the head hides is invalid."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawnface import DrawnFace, draw

from schemas.outlines import outlines_of
from schemas.regions import REGIONS, Regions, pad_outlines, rasterise
from stages.head import Pose, canonical, crop_square, mirror_map, rotation_of
from stages.media import decode
from stages.mesh import FaceMesh
from stages.regions import RegionFinder, eye_visibility, outline
from stages.stills import read_image

SIZE_PX = 256
DILATE_PX = 0.01 * SIZE_PX  # as the stream does by default
# Dlib's 68 points (an ensemble of regression trees on HOG boxes, trained on hand-annotated photographs of 300-W) of some frames of the
# real clips and images: source frame -> x, y, x, y ... in px of the upright frame. Another method, other annotators, other pictures
# than MediaPipe's; found with dlib 20.0.1 and its shape_predictor_68_face_landmarks.
POINTS_68 = json.loads(Path(__file__).with_name("points68.json").read_text())


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union, and the share of b that is in a, (4,) each, of masks (4, S, S)."""
    both = (a & b).sum((1, 2))
    return both / (a | b).sum((1, 2)), both / b.sum((1, 2))


# --- drawn faces


@pytest.fixture(scope="module")
def drawn() -> tuple[list[DrawnFace], Regions]:
    """Most of a second of a drawn face that sways, speaks and blinks, and what is found."""
    lids = np.array([*[1.0] * 10, 0.5, 0, 0, 0, 0.5, *[1.0] * 6])
    phase = np.linspace(0, 2 * np.pi, len(lids))
    faces = [
        DrawnFace((o, o), 0.18 - 0.18 * np.cos(2 * p), 12 * np.sin(p), 130.0, (128 + 8 * np.sin(p), 112 + 5 * np.cos(p)))
        for o, p in zip(lids.tolist(), phase, strict=True)
    ]
    return faces, RegionFinder()(draw(f, SIZE_PX, k) for k, f in enumerate(faces))[1]


def test_outlines_lie_on_the_curves_that_a_face_was_drawn_from(drawn: tuple[list[DrawnFace], Regions]) -> None:
    faces, found = drawn
    assert found.valid.all()
    pairs = [
        overlap(rasterise(found, k, SIZE_PX, dilate_px=DILATE_PX), rasterise(f.regions(), 0, SIZE_PX, dilate_px=DILATE_PX))
        for k, f in enumerate(faces)
    ]
    alike, covered = (np.array(x) for x in zip(*pairs, strict=True))
    print(alike.mean(0), alike.min(0), covered.mean(0), covered.min(0))
    assert (alike.mean(0) > [0.72, 0.72, 0.85, 0.88]).all()
    assert (covered.mean(0) > [0.84, 0.84, 0.9, 0.9]).all()
    assert (covered.min(0) > [0.7, 0.7, 0.85, 0.85]).all(), "shut eyes and open mouths too"


def test_outlines_follow_the_drawn_mouth_and_lids_without_delay(drawn: tuple[list[DrawnFace], Regions]) -> None:
    faces, found = drawn
    area = np.array([[cv2.contourArea(o) for o in frame] for frame in found.outlines])
    for region, told in ((0, np.array([f.lids[0] for f in faces])), (3, np.array([f.gap for f in faces]))):
        lags = [np.corrcoef(told[2:-2], np.roll(area[:, region], -lag)[2:-2])[0, 1] for lag in (-2, -1, 0, 1, 2)]
        assert int(np.argmax(lags)) == 2 and lags[2] > 0.9, lags


# --- real frames


def real_frames(shared: Path, name: str, wanted: list[int]) -> dict[int, np.ndarray]:
    path = shared / "realdata" / name
    if name.startswith("images/"):
        return {0: read_image(path)}
    return {k: f.rgb for k, f in enumerate(islice(decode(path), max(wanted) + 1)) if k in wanted}


def test_real_faces_have_eyes_and_mouth_where_another_network_sees_them(shared: Path) -> None:
    """Its eye and lip outlines have fewer points and lie a little further in; of the nose it knows base and ridge alone."""
    mesh = FaceMesh(static=True)
    alike, covered, apart = [], [], []
    for name, frames in POINTS_68.items():
        pictures = real_frames(shared, name, [int(k) for k in frames])
        for k, flat in frames.items():
            at, picture = np.array(flat, float).reshape(68, 2), pictures[int(k)]
            x0, y0, side = crop_square(np.r_[at.min(0), at.max(0)][None], 2.4, (picture.shape[1], picture.shape[0]))
            crop = cv2.resize(picture[y0 : y0 + side, x0 : x0 + side], (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)
            points = mesh(crop)
            assert points is not None, name
            at = (at - [x0, y0] + 0.5) * SIZE_PX / side - 0.5
            theirs = [at[42:48], at[36:42], at[[27, 31, 32, 33, 34, 35]], at[48:60]]
            ours, other = (
                rasterise(Regions(o[None], np.ones((1, 4), bool)), 0, SIZE_PX, dilate_px=DILATE_PX)
                for o in (outlines_of(points[None])[0], pad_outlines(theirs))
            )
            both = overlap(ours, other)
            alike.append(both[0])
            covered.append(both[1])
            eyes = np.linalg.norm(theirs[0].mean(0) - theirs[1].mean(0))
            apart.append([np.linalg.norm(np.argwhere(a).mean(0) - np.argwhere(b).mean(0)) / eyes for a, b in zip(ours, other, strict=True)])
    alike, covered, apart = np.array(alike), np.array(covered), np.array(apart)
    print(len(alike), alike.mean(0), covered.mean(0), covered.min(0), apart.mean(0), apart.max(0))
    assert len(alike) >= 20
    assert (alike.mean(0)[[0, 1, 3]] > [0.75, 0.75, 0.85]).all()
    assert (covered.mean(0) > [0.93, 0.92, 0.95, 0.9]).all()
    assert (covered.min(0) > [0.8, 0.75, 0.85, 0.72]).all()
    assert (apart.mean(0) < [0.03, 0.03, 0.06, 0.03]).all(), "of the distance between the eyes"


# --- what can be seen


def turned(yaw_deg: list[float] | np.ndarray, pitch_deg: float = 0.0) -> np.ndarray:
    yaw = np.array(yaw_deg, float)
    n = len(yaw)
    angles = np.stack([yaw, np.full(n, pitch_deg), np.zeros(n)], 1)
    pose = Pose(np.full(n, 100.0), rotation_of(angles), np.full((n, 3), 128.0))
    return pose.apply(canonical()).astype(np.float32)


@pytest.mark.parametrize("upright_deg", [0.0, 40.0, -90.0])
def test_the_far_eye_goes_as_the_head_turns(upright_deg: float) -> None:
    """However the picture is turned."""
    yaw = np.arange(0, 90, 5.0)
    points = turned(yaw).astype(np.float64)
    c, s = np.cos(np.radians(upright_deg)), np.sin(np.radians(upright_deg))
    points[..., :2] = points[..., :2] @ np.array([[c, s], [-s, c]])
    left, right = eye_visibility(points).T
    assert (left[yaw <= 30] == 1).all() and (left[yaw >= 65] < 0.5).all()
    assert (np.diff(left) <= 0).all(), "the nose points to the picture's right, where the left eye is"
    assert (right == 1).all()


def test_what_hides_an_eye_is_the_nose_and_not_an_angle() -> None:
    """Turned by 45 degrees the far eye can be seen; with the head thrown back too, the nose stands before it."""
    assert outline(turned([45.0])).valid.all()
    assert outline(turned([45.0], pitch_deg=30)).valid[0].tolist() == [False, True, True, True]
    assert outline(turned([0.0], pitch_deg=85)).valid[0].tolist() == [False, False, True, True]
    flat = turned([50.0])
    flat[:, :, 2] *= 0.2  # the same picture of something that stands out less hides less
    assert eye_visibility(flat)[0, 0] > eye_visibility(turned([50.0]))[0, 0]


def test_seen_from_behind_nothing_of_the_eyes_is_valid() -> None:
    assert not outline(turned([150.0])).valid[0, :2].any()


def test_mirrored_heads_hide_the_other_eye() -> None:
    points = turned([58.0, 62.0, 40.0, 20.0])
    mirrored = points[:, mirror_map()] * np.array([-1, 1, 1], np.float32) + np.array([256, 0, 0], np.float32)
    np.testing.assert_allclose(eye_visibility(points), eye_visibility(mirrored)[:, ::-1], atol=0.05)


def test_a_closed_eye_is_no_hidden_eye() -> None:
    points = turned(np.linspace(-40, 40, 9))
    for upper, lower in ((159, 145), (158, 153), (160, 144), (161, 163), (157, 154), (386, 374), (385, 380), (387, 373), (384, 381)):
        points[:, upper] = points[:, lower]
    assert outline(points).valid.all()


def test_an_eye_at_the_edge_of_sight_does_not_flicker() -> None:
    yaw = 57 + np.random.default_rng(0).normal(0, 2, 60)
    raw = eye_visibility(turned(yaw))[:, 0] >= 0.5
    changes = [int(np.abs(np.diff(x.astype(int))).sum()) for x in (raw, outline(turned(yaw)).valid[:, 0])]
    assert changes[1] < 0.6 * changes[0]


def test_a_region_outside_the_picture_is_invalid() -> None:
    points = turned([0.0])
    away = points - np.array([points[0, 263, 0] + 10, 0, 0], np.float32)  # the left eye's outer corner is 10 px left of the picture
    assert outline(away, SIZE_PX).valid[0].tolist() == [False, False, False, False]
    half = points - np.array([points[0, 1, 0], 0, 0], np.float32)  # the nose is at its edge
    assert outline(half, SIZE_PX).valid[0, :2].tolist() == [True, False]
    assert outline(away).valid.all(), "unless nobody says how large it is"


def test_no_frames_and_no_face_are_no_regions() -> None:
    points, regions = RegionFinder()(iter(()))
    assert points.shape == (0, 478, 3) and regions.valid.shape == (0, len(REGIONS))
    points, regions = RegionFinder()(iter([np.full((64, 64, 3), 90, np.uint8)] * 2))
    assert np.isnan(points).all() and not regions.valid.any()
