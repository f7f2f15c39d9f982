"""A clip is one person's: people spliced at a cut that nobody marked, people who cross, and one hidden behind another; an identity
network that crosspair did not use for it is the judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faceclips import write_clip
from test_faces import as_one_shot

from schemas.store import DiskStore
from schemas.units import Clip
from schemas.video import decode_video
from stages.facealign import align, five_points
from stages.facenet import FaceNet
from stages.faces import TARGET, TRACK, Faces, FacesConfig, read_track
from stages.media import decode
from stages.mesh import FaceDetector, FaceMesh
from stages.outputs import Outputs

PEOPLE = ("lp_d0.mp4", "sadtalker_WDA_KatieHill_000.mp4", "pyfeat_single_face.mp4", "media3_sample.mp4", "lp_d3.mp4")
ALIKE = (PEOPLE[1], PEOPLE[4])  # these two, at the cut, more than any others
TILE, FACE_PX = 240, 110.0


def quick(cases: Iterable[tuple[Any, Any]], most: int) -> list[Any]:
    """All cases; those after the first `most` are slow tests."""
    return [case if i < most else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


@pytest.fixture(scope="module")
def network(shared: Path) -> FaceNet:
    return FaceNet(shared / "models" / "faceid" / "MobileFaceNet.onnx", "imagenet")


@cache
def person(path: Path, frames: int = 64) -> list[np.ndarray]:
    """Tiles (TILE, TILE, 3) with a face of one size in the middle; to and fro where the clip is shorter."""
    pictures = [f.rgb for f in islice(decode(path), frames)]
    x0, y0, x1, y1 = FaceDetector()(pictures[0])[0]
    scale = FACE_PX / (1.25 * (y1 - y0))  # the detector's box is shorter than the face
    matrix = np.array([[scale, 0, TILE / 2 - scale * (x0 + x1) / 2], [0, scale, TILE / 2 - scale * (y0 + y1) / 2]])
    tiles = [
        cv2.warpAffine(cv2.GaussianBlur(p, (0, 0), max(0.3, 0.4 / scale)), matrix, (TILE, TILE), borderMode=cv2.BORDER_REPLICATE)
        for p in pictures
    ]
    return (tiles + tiles[-2:0:-1])[:frames] if len(tiles) < frames else tiles


def reference(tiles: list[np.ndarray], network: FaceNet) -> np.ndarray:
    mesh = FaceMesh(static=True)
    found = [(t, p) for t in tiles[::8] if (p := mesh(t)) is not None]
    return np.mean([network(align(t, five_points(p))) for t, p in found], axis=0)


def clips_of(path: Path, root: Path) -> list[Clip]:
    stage = Faces(FacesConfig(everyone=True, min_clip_s=0.4), 25, 192)
    clips: list[Clip] = stage(as_one_shot(path, root), Outputs(DiskStore(root), f"faces/{path.stem}"))[1]
    return clips


def who_is_in(clip: Clip, root: Path, network: FaceNet, people: list[np.ndarray]) -> set[int]:
    """Which of the people some frame shows, by the network: those that it knows from the others clearly."""
    pictures = decode_video(root / clip.folder / clip.file(TARGET))
    points, _ = read_track(root / clip.folder / clip.file(TRACK))
    seen = set()
    for picture, mesh in zip(pictures, points, strict=True):
        alike = np.array(people) @ network(align(picture, five_points(mesh)))
        order = np.argsort(-alike)
        if alike[order[0]] > 0.3 and alike[order[0]] - alike[order[1]] > 0.15:
            seen.add(int(order[0]))
    return seen


def over(canvas: np.ndarray, tile: np.ndarray, x: float) -> None:
    """Lays the head of a tile, an upright ellipse, on a canvas as high as the tile, with its middle at x."""
    mask = np.zeros((TILE, TILE), np.uint8)
    cv2.ellipse(mask, (TILE // 2, TILE // 2), (75, 100), 0, 0, 360, 1, -1)
    left = round(x - TILE / 2)
    a, b = max(left, 0), min(left + TILE, canvas.shape[1])
    part = slice(a - left, b - left)
    canvas[:, a:b] = np.where(mask[:, part, None] > 0, tile[:, part], canvas[:, a:b])


def scene(behind: list[np.ndarray], before: list[np.ndarray], ways: Iterator[tuple[float, float]]) -> Iterator[np.ndarray]:
    for back, front, (x_back, x_front) in zip(behind, before, ways, strict=False):
        canvas = np.full((TILE, 560, 3), 90, np.uint8)
        over(canvas, back, x_back)
        over(canvas, front, x_front)
        yield canvas


@pytest.mark.parametrize(("a", "b"), quick([ALIKE, *(c for c in combinations(PEOPLE, 2) if c != ALIKE)], 4))
def test_two_people_spliced_at_an_unmarked_cut_are_two_clips(shared: Path, network: FaceNet, tmp_path: Path, a: str, b: str) -> None:
    both = [person(shared / "realdata" / "clips" / name) for name in (a, b)]
    path = write_clip(tmp_path / "a.mp4", [*both[0][:24], *both[1][:24]])
    known = [reference(tiles, network) for tiles in both]
    shown = [who_is_in(clip, tmp_path, network, known) for clip in clips_of(path, tmp_path)]
    assert sorted(map(sorted, shown)) == [[0], [1]]


@pytest.mark.parametrize(("a", "b"), quick([(0, 1), (4, 2), (2, 3), (3, 1)], 2))
def test_two_people_who_cross_are_never_in_one_clip(shared: Path, network: FaceNet, tmp_path: Path, a: int, b: int) -> None:
    both = [person(shared / "realdata" / "clips" / PEOPLE[i]) for i in (a, b)]
    ways = ((130 + 5.0 * k, 430 - 5.0 * k) for k in range(60))
    path = write_clip(tmp_path / "a.mp4", scene(*both, ways))
    known = [reference(tiles, network) for tiles in both]
    shown = [who_is_in(clip, tmp_path, network, known) for clip in clips_of(path, tmp_path)]
    assert all(len(people) <= 1 for people in shown), shown
    assert {0} in shown and {1} in shown


@pytest.mark.parametrize(("a", "b"), quick([(1, 0), (3, 2), (2, 4), (0, 3)], 2))
def test_one_who_is_hidden_behind_another_is_never_in_the_others_clip(
    shared: Path, network: FaceNet, tmp_path: Path, a: int, b: int
) -> None:
    both = [person(shared / "realdata" / "clips" / PEOPLE[i]) for i in (a, b)]
    comes = [*np.linspace(500, 150, 24), *[150.0] * 12, *np.linspace(150, 430, 24)]
    path = write_clip(tmp_path / "a.mp4", scene(*both, ((150.0, x) for x in comes)))
    known = [reference(tiles, network) for tiles in both]
    shown = [who_is_in(clip, tmp_path, network, known) for clip in clips_of(path, tmp_path)]
    assert all(len(people) <= 1 for people in shown), shown
    assert {1} in shown
