"""Measures: speech is told from other sounds, lips from still mouths, sharp faces from blurred ones; nothing is ever NaN."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from faceclips import photograph
from hypothesis import given
from hypothesis import strategies as st

from stages.head import Pose, canonical, rotation_of
from stages.measures import SILENCE_DB, lip_sound, picture_scores, sound_scores, speech_likeness, track_scores
from stages.media import decode
from stages.mesh import FaceMesh
from stages.sound import SAMPLE_RATE_HZ, extract_sound
from stages.truth import NOT_MEASURED

FPS = 25
CLIPS = Path("realdata") / "clips"
SPEECH, SONG, CARTOON = "sadtalker_WDA_KatieHill_000.mp4", "face_recognition_short_hamilton_clip.mp4", "pyfeat_no_face.mp4"


def seconds(duration_s: float) -> np.ndarray:
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def pcm(sound: np.ndarray) -> np.ndarray:
    return (np.clip(sound, -1, 1) * 32767).astype(np.int16)


def talking_head(opening: np.ndarray) -> np.ndarray:
    """Mesh points float32 (T, 478, 3) of a frontal head whose lips are `opening` (T,) mouth widths apart; it sways a little."""
    frames = len(opening)
    shape = np.repeat(canonical()[None], frames, 0)
    width = np.linalg.norm(shape[0, 61] - shape[0, 291])
    shape[:, [87, 14, 317]] = shape[:, [82, 13, 312]]
    shape[:, [87, 14, 317], 1] += (opening * width)[:, None]
    sway = np.sin(np.arange(frames) / 9)
    places = np.stack([128 + 5 * sway, 128 + 0 * sway, 0 * sway], -1)
    return Pose(np.full(frames, 110.0), rotation_of(np.stack([5 * sway, 0 * sway, 0 * sway], -1)), places).apply(shape).astype(np.float32)


def still_head(frames: int = 50) -> np.ndarray:
    return talking_head(np.zeros(frames))


@pytest.fixture(scope="module")
def heard(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Sounds of real clips, int16."""
    out = tmp_path_factory.mktemp("sound") / "sound.s16"
    sounds = {}
    for name in (SPEECH, SONG, CARTOON):
        assert extract_sound(shared / CLIPS / name, out, 60.0, timeout_s=60.0)
        sounds[name] = np.fromfile(out, "<i2")
    return sounds


def test_silence_and_no_sound_are_the_same_and_nothing_is_nan() -> None:
    none = sound_scores(None, still_head(), FPS)
    assert none == {
        "sound_level_db": SILENCE_DB,
        "sound_share": 0.0,
        "speech_likeness": 0.0,
        "lip_sound_correlation": NOT_MEASURED,
        "lip_sound_lag_frames": 0.0,
    }
    assert sound_scores(np.zeros(32_000, np.int16), still_head(), FPS) == none
    assert sound_scores(np.zeros(0, np.int16), still_head(), FPS) == none


def test_level_and_share_are_those_of_a_sine_that_lasts_half_the_time() -> None:
    sound = pcm(0.5 * np.sin(2 * np.pi * 400 * seconds(2)))
    sound[SAMPLE_RATE_HZ:] = 0
    scores = sound_scores(sound, still_head(), FPS)
    assert scores["sound_level_db"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2) / np.sqrt(2)), abs=0.01)
    assert scores["sound_share"] == 0.5
    assert sound_scores(np.full(SAMPLE_RATE_HZ, 20, np.int16), still_head(), FPS)["sound_share"] == 0.0  # -64 dBFS


@given(st.integers(0, 40_000), st.floats(0, 2), st.integers(0, 9), st.integers(1, 60), st.sampled_from([12.0, 25.0, 29.97]))
def test_any_sound_and_any_length_give_finite_scores(samples: int, level: float, seed: int, frames: int, fps: float) -> None:
    rng = np.random.default_rng(seed)
    scores = sound_scores(pcm(level * rng.normal(size=samples)), talking_head(rng.uniform(0, 0.3, frames)), fps)
    assert np.isfinite(list(scores.values())).all() and all(type(v) is float for v in scores.values())
    assert 0 <= scores["sound_share"] <= 1 and 0 <= scores["speech_likeness"] <= 1
    r = scores["lip_sound_correlation"]
    assert r == NOT_MEASURED or -1 <= r <= 1


def test_tones_noises_and_beats_are_no_speech() -> None:
    t, rng = seconds(4), np.random.default_rng(0)
    syllables = (1 + np.sin(2 * np.pi * 4 * t)) / 2
    tone, noise = np.sin(2 * np.pi * 200 * t), 0.3 * rng.normal(size=len(t))
    hum = np.sin(2 * np.pi * 50 * t) + 0.3 * np.sin(2 * np.pi * 150 * t)
    for sound in (tone, noise, hum, tone * syllables, noise * syllables):
        assert speech_likeness(0.3 * sound) < 0.1
    deep = np.sin(2 * np.pi * 75 * t) + np.sin(2 * np.pi * 450 * t) + 4 * noise  # hoarse, and only three periods in a window
    for voice in (tone, deep):
        turns = np.where(t % 0.25 < 0.125, voice, noise * (t % 0.25 < 0.2))  # a buzz, a hiss and a pause, four times a second
        assert speech_likeness(0.1 * turns) > 0.6
    assert speech_likeness(np.where(t < 0.3, 0.3 * turns, 0)) == 0  # too little to tell


def test_what_no_ear_tells_from_silence_has_no_correlation() -> None:
    wavering = talking_head(0.1 + 0.1 * np.sin(np.arange(50)))
    assert sound_scores(np.full(2 * SAMPLE_RATE_HZ, 9000, np.int16), wavering, FPS)["lip_sound_correlation"] == pytest.approx(0, abs=0.2)
    assert lip_sound(np.zeros(2 * SAMPLE_RATE_HZ), wavering, FPS) == (0, 0)


def test_speech_is_likest_speech(heard: dict[str, np.ndarray]) -> None:
    likeness = {name: speech_likeness(sound / 32768) for name, sound in heard.items()}
    assert likeness[SPEECH] > 0.85
    assert likeness[SPEECH] > likeness[SONG] + 0.1 > likeness[CARTOON] + 0.1
    quiet = sound_scores(pcm(heard[SPEECH] / 32768 / 10), still_head(200), FPS)
    assert quiet["speech_likeness"] == pytest.approx(likeness[SPEECH], abs=0.05)


@given(st.integers(-4, 4), st.integers(0, 5))
def test_the_lag_of_lips_that_open_where_the_sound_swells_is_found(lag: int, seed: int) -> None:
    frames = 150
    opening = 0.1 + 0.1 * np.convolve(np.random.default_rng(seed).uniform(-1, 1, frames + 2), np.ones(3) / 3, "valid")
    opens = np.clip(np.gradient(opening), 0, None) / 0.1
    loud = np.repeat(np.roll(opens, -lag), SAMPLE_RATE_HZ // FPS)  # the mouth comes `lag` frames after the sound
    sound = loud * np.sin(2 * np.pi * 1000 * np.arange(len(loud)) / SAMPLE_RATE_HZ)
    r, found = lip_sound(sound, talking_head(opening), FPS)
    assert found == lag and r > 0.7


def test_a_mouth_that_does_not_move_is_not_measured() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * SAMPLE_RATE_HZ)
    assert lip_sound(noise, still_head(), FPS) == (NOT_MEASURED, 0)
    assert lip_sound(noise, talking_head(0.1 + 0.1 * np.sin(np.arange(50))), FPS)[0] > NOT_MEASURED


def test_lips_go_with_their_own_sound(shared: Path, heard: dict[str, np.ndarray]) -> None:
    mesh = FaceMesh()
    points, found = mesh.track(frame.rgb for frame in islice(decode(shared / CLIPS / SPEECH), 200))
    assert found.all()
    own, lag = lip_sound(heard[SPEECH] / 32768, points, FPS)
    shifted = [lip_sound(np.roll(heard[SPEECH], s * SAMPLE_RATE_HZ) / 32768, points, FPS)[0] for s in (-3, -2, -1, 1, 2, 3)]
    assert own > max(shifted) and own > np.mean(shifted) + 0.05, (own, shifted)
    assert abs(lag) < 5  # at an end the best would lie outside


def astronaut(size_px: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A face uint8 RGB and points around it: what `picture_scores` asks of a mesh is its box."""
    face = cv2.resize(photograph("astronaut")[60:220, 150:310], (size_px, size_px), interpolation=cv2.INTER_AREA)
    return face, (canonical() + 0.5) * 0.8 * size_px + 0.1 * size_px


def test_sharpness_falls_with_blur_not_with_contrast_or_size() -> None:
    face, points = astronaut()
    sharp = picture_scores(face, points).sharpness
    blurred = [picture_scores(cv2.GaussianBlur(face, (0, 0), sigma), points).sharpness for sigma in (1.5, 3, 6)]
    assert sharp > 1.5 * blurred[0] > 3 * blurred[1] > 6 * blurred[2] > 0
    assert picture_scores((0.4 * face + 80).astype(np.uint8), points).sharpness == pytest.approx(sharp, rel=0.05)
    twice = cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC)
    assert picture_scores(twice, 2 * points).sharpness == pytest.approx(sharp, rel=0.15)
    small = cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)
    assert picture_scores(small, points / 4).sharpness < 0.5 * sharp


def test_burnt_and_black_pixels_are_counted_within_the_face_only() -> None:
    face, points = astronaut()
    calm = np.full_like(face, 128)
    assert picture_scores(calm, points) == pytest.approx((128, 0, 0))
    calm[:, :128, 0] = 255  # one channel suffices
    assert picture_scores(calm, points).clipped == pytest.approx(0.5, abs=0.05)
    calm[:] = 128
    calm[:20] = 0  # above the face box, which begins at 26
    assert picture_scores(calm, points).clipped == 0
    calm[:, :, 1:] = 0
    calm[:, :, 0] = 2
    assert picture_scores(calm, points).clipped == 1
    assert picture_scores(face, points - 1000) == (0, 0, 0)


def test_a_shaking_crop_jitters_and_a_gliding_one_does_not() -> None:
    still, frames = np.repeat(still_head(1), 60, 0), np.arange(60)
    offset = np.zeros((60, 1, 3), np.float32)
    offset[:, 0, 0] = 0.5 * frames
    assert track_scores(still + offset, (0, 0, 256), (256, 256), 256)["crop_jitter"] == pytest.approx(0, abs=1e-5)
    offset[:, 0, 0] = np.where(frames % 2, 1.0, -1.0)  # of px; the acceleration is 4 px, up and down
    size = np.ptp(still[0, :, 1])
    assert track_scores(still + offset, (0, 0, 256), (256, 256), 256)["crop_jitter"] == pytest.approx(4 / size, rel=0.01)
    assert track_scores(still[:2], (0, 0, 256), (256, 256), 256)["crop_jitter"] == 0


@given(st.floats(-40, 40), st.floats(-40, 40), st.floats(0.5, 3))
def test_track_scores_follow_the_face_not_the_pixels(dx: float, dy: float, scale: float) -> None:
    points = talking_head(0.1 + 0.1 * np.sin(np.arange(30)))
    here = track_scores(points, (0, 0, 256), (2000, 2000), 256)
    moved = track_scores(points + np.array([dx, dy, 0], np.float32), (0, 0, 256), (2000, 2000), 256)
    larger = track_scores(points * scale, (0, 0, 256), (2000, 2000), 256)
    size = np.ptp(points[0, :, 1])
    assert here["headroom"] == pytest.approx(points[0, :, 1].min() / size, abs=0.02)
    assert moved["headroom"] == pytest.approx(here["headroom"] + dy / size, abs=0.02)
    assert moved["crop_jitter"] == pytest.approx(here["crop_jitter"], abs=1e-3)
    assert larger["headroom"] == pytest.approx(here["headroom"], abs=1e-3)
    assert larger["crop_jitter"] == pytest.approx(here["crop_jitter"], abs=1e-3)


def test_a_face_at_the_border_of_the_source_is_seen_through_the_crop() -> None:
    points = still_head(20)  # face 73..183 of 256 px across, more or less
    inside = (300, 200, 512)
    assert track_scores(points, inside, (1280, 720), 256)["border_contact"] == 0
    left, right = points[:, :, 0].min(), points[:, :, 0].max()
    at_left = (-round(2 * left) + 10, 100, 512)  # the box begins 10 px from the border; 2 % of 720 are 14
    assert track_scores(points, at_left, (1280, 720), 256)["border_contact"] > 0
    at_right = (1280 - round(2 * right) - 10, 100, 512)
    assert track_scores(points, at_right, (1280, 720), 256)["border_contact"] > 0
    assert track_scores(points, at_right, (1400, 720), 256)["border_contact"] == 0
    half = np.concatenate([points[:10], points[:10] - np.array([0, 300, 0], np.float32)])
    assert track_scores(half, inside, (1280, 720), 256)["border_contact"] == 0.5
