"""The demo's own footage: people who are seen, turn, blink and speak in time with their sound, and the same bytes every time."""

from __future__ import annotations

import csv
from itertools import combinations, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import demo_canvas, demo_portraits
from pipeline.demo_clips import make_demo_clips, plan_clips
from pipeline.demo_performance import SOUND_HZ, compose, mesh_points, voice
from pipeline.demo_portraits import EXTRAS, PERFORMERS, demo_person
from stages.head import canonical, euler_deg, eye_opening, face_boxes, face_size, fit_pose, mouth_opening
from stages.media import decode
from stages.mesh import FaceDetector, FaceMesh

SECONDS = 1.6
NAMES = ("amara", "ines", "nobody")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert make_demo_clips(folder, seconds=SECONDS, only=NAMES) == folder / "clips.csv"
    return folder


@pytest.fixture(scope="module", params=NAMES[:2])
def seen(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, np.ndarray, float]:
    """A clip's path, the mesh found in it (T, 478, 3), and its frame rate."""
    path = folder / "clips" / f"{request.param}.mp4"
    points, found = FaceMesh().track(f.rgb for f in decode(path))
    assert found.all()
    return path, points, next(c.fps for c in plan_clips() if c.name == request.param)


def sound_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


def loudness(sound: np.ndarray, frames: int, fps: float) -> np.ndarray:
    """Root mean square (T,) of the sound under each frame."""
    edges = np.round(np.arange(frames + 1) * SOUND_HZ / fps).astype(int)
    return np.array([np.sqrt(np.mean(sound[a:b].astype(float) ** 2)) for a, b in pairwise(edges)])


def test_a_face_moves_blinks_and_is_large_enough(seen: tuple[Path, np.ndarray, float]) -> None:
    _, points, fps = seen
    assert len(points) == round(SECONDS * fps)
    assert face_size(face_boxes(points)).min() >= 150
    angles = fit_pose(points).euler_deg
    assert (np.ptp(angles, axis=0) > [5, 2, 2]).all()
    assert np.abs(angles[:, 0]).max() < 20
    eyes = eye_opening(points).mean(-1)
    assert eyes.min() < 0.6 * np.median(eyes)


def test_mouth_and_sound_agree(seen: tuple[Path, np.ndarray, float]) -> None:
    path, points, fps = seen
    mouth = mouth_opening(points)
    assert np.percentile(mouth, 5) < 0.06 and mouth.max() > 0.12
    sound = sound_of(path)
    assert abs(len(sound) / SOUND_HZ - SECONDS) < 0.1
    assert np.corrcoef(mouth, loudness(sound, len(mouth), fps))[0, 1] > 0.6


def test_nobody_is_in_the_cup_of_coffee(folder: Path) -> None:
    frames = [f.rgb for f in decode(folder / "clips" / "nobody.mp4")]
    detector = FaceDetector()
    assert not any(len(detector(f)) for f in frames[::8])
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 2


def test_the_manifests_name_every_file(folder: Path) -> None:
    for name, pattern in (("clips.csv", "clips/*"), ("portraits.csv", "portraits/*")):
        rows = list(csv.DictReader((folder / name).open(encoding="utf-8")))
        assert {r["uri"] for r in rows} == {p.relative_to(folder).as_posix() for p in folder.glob(pattern)}
        assert all(r["licence"] and r["consent"] for r in rows)
        assert all(r["identity"] or "nobody" in r["uri"] for r in rows)


def test_made_again_from_nothing_the_bytes_are_the_same(folder: Path, tmp_path: Path) -> None:
    for made_once in (demo_person, demo_canvas.photograph, demo_canvas.matte, demo_portraits._hair_of_collins):
        made_once.cache_clear()
    make_demo_clips(tmp_path, seconds=SECONDS, only=NAMES)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert [f for f in files if (folder / f).read_bytes() != (tmp_path / f).read_bytes()] == []


def test_people_differ_in_shape_and_picture() -> None:
    people = [demo_person(identity) for identity in PERFORMERS + EXTRAS]
    assert len({p.identity for p in people}) == len(people) == 8
    mesh = FaceMesh(static=True)
    shapes = []
    for person in people:
        still = person.still()
        points = mesh(still)
        assert points is not None and still.shape == (640, 640, 3) and still.dtype == np.uint8
        size = face_size(face_boxes(points[None]))[0]
        assert 0.38 < size / 640 < 0.52
        pose = fit_pose(points[None])
        assert (np.abs(pose.euler_deg[0]) < [4, 21, 4]).all()
        shapes.append(pose.invert(points[None])[0, :468])
    assert min(np.abs(a - b).mean() for a, b in combinations(shapes, 2)) > 0.004
    assert min(np.abs(a.still().astype(int) - b.still()).mean() for a, b in combinations(people, 2)) > 15


def test_a_performance_is_the_same_at_any_rate_and_another_with_another_seed() -> None:
    neutral = canonical() * 300 + [240, 240, 0]
    performance = compose(3, 4.0)
    coarse = mesh_points(performance, neutral, np.arange(8) / 2)
    fine = mesh_points(performance, neutral, np.arange(32) / 8)
    assert np.array_equal(fine[::4], coarse)
    assert not np.allclose(mesh_points(compose(4, 4.0), neutral, np.arange(8) / 2), coarse, atol=3)
    assert 1 <= len(performance.blinks_s) <= 3 and len(performance.syllables) >= 6
    assert np.abs(euler_deg(fit_pose(fine).rotation) - euler_deg(fit_pose(neutral[None]).rotation)).max() < 16


def test_voices_differ_in_pitch() -> None:
    performance = compose(3, 2.0)
    pitches = []
    for hz in (110.0, 220.0):
        spectrum = np.abs(np.fft.rfft(voice(performance, hz, 0).astype(float)))
        low = np.fft.rfftfreq(2 * SOUND_HZ, 1 / SOUND_HZ) < 60
        assert spectrum[low].max() < 0.05 * spectrum.max()
        correlation = np.fft.irfft(spectrum**2)
        lags = slice(SOUND_HZ // 400, SOUND_HZ // 80)
        pitches.append(SOUND_HZ / (lags.start + int(np.argmax(correlation[lags]))))
    assert pitches[0] == pytest.approx(110, rel=0.25) and pitches[1] == pytest.approx(220, rel=0.25)
