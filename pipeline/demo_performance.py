"""A made-up performance: how a head moves, blinks and speaks for some seconds, as mesh points and as the sound that goes with them.

Everything follows from a seed and continuous time, so picture and sound agree at any frame rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from stages.head import LEFT_EYE, LIPS_INNER, RIGHT_EYE, canonical, euler_deg, fit_pose, rotation_of

SOUND_HZ = 44_100
_NECK = np.array([0.0, 0.45, 0.45])  # where the head turns, in face heights below and behind the face's middle
_IRISES = ((slice(468, 473), (33, 133)), (slice(473, 478), (362, 263)))
# vowel: jaw (0 closed, 1 wide), rounding (-1 spread, 1 pursed), first three formants in Hz of a low voice
_VOWELS = (
    (1.00, 0.0, (750, 1200, 2500)),
    (0.70, -0.4, (500, 1800, 2500)),
    (0.40, -0.8, (300, 2250, 3000)),
    (0.65, 0.8, (450, 850, 2400)),
    (0.35, 1.0, (330, 800, 2250)),
)


@dataclass(frozen=True)
class Syllable:
    """One opening of the mouth: middle and width of its bump in seconds, and its vowel's place in `_VOWELS`."""

    middle_s: float
    width_s: float
    loudness: float
    vowel: int


@dataclass(frozen=True)
class Performance:
    """What one person does in one clip, as functions of time.

    Attributes:
        seconds: length.
        syllables: what is said.
        blinks_s: middles of the blinks.
        waves: name -> (frequencies in Hz, amplitudes, phases), each (K,): slow movements, scaled to a peak of 1 over the clip.
    """

    seconds: float
    syllables: tuple[Syllable, ...]
    blinks_s: tuple[float, ...]
    waves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def wave(self, name: str, t: np.ndarray) -> np.ndarray:
        """A slow movement in -1..1, (T,), at times `t` in seconds."""
        hz, amplitude, phase = self.waves[name]
        return (amplitude * np.sin(2 * np.pi * hz * t[:, None] + phase)).sum(-1)

    def speech(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Loudness (T,) in 0..1, jaw (T,) in 0..1, rounding (T,) in -1..1 and formants (T, 3) in Hz at times `t`."""
        middle, width, loud = (np.array([getattr(s, f) for s in self.syllables]) for f in ("middle_s", "width_s", "loudness"))
        vowel = [_VOWELS[s.vowel] for s in self.syllables]
        jaw_of, round_of, formants_of = (np.array([v[i] for v in vowel], float) for i in range(3))
        near = np.exp(-0.5 * ((t[:, None] - middle) / (0.25 * width)) ** 2)
        wide = np.exp(-0.5 * ((t[:, None] - middle) / (0.8 * width)) ** 2) + 1e-9  # neighbours colour each other
        share = wide / wide.sum(-1, keepdims=True)
        loudness = np.clip((near * loud * (0.55 + 0.45 * jaw_of)).sum(-1), 0, 1)
        jaw = np.clip((near * loud * jaw_of).sum(-1), 0, 1)
        return loudness, jaw, (share * round_of).sum(-1) * np.clip(wide.max(-1), 0, 1), share @ formants_of

    def lids(self, t: np.ndarray) -> np.ndarray:
        """0 open, 1 closed, (T,): closes in 0.1 s, opens in 0.17 s."""
        closed = np.zeros_like(t)
        for middle in self.blinks_s:
            d = t - middle
            closed = np.maximum(closed, np.exp(-((np.abs(d) / np.where(d < 0, 0.07, 0.12)) ** 2.5)))
        return closed


def compose(seed: int, seconds: float) -> Performance:
    """A performance of `seconds`: phrases of 3 to 5 syllables a second with pauses, a blink every 2 to 4 s, a roaming head."""
    rng = np.random.default_rng([seed, 20_250])
    syllables: list[Syllable] = []
    t = rng.uniform(0.25, 0.5)
    while t < seconds - 0.35:
        for _ in range(rng.integers(4, 8)):
            width = 1 / rng.uniform(3.0, 5.0)
            if t + width > seconds - 0.2:
                break
            syllables.append(Syllable(t + width / 2, width, rng.uniform(0.7, 1.0), int(rng.choice(5, p=(0.3, 0.25, 0.15, 0.2, 0.1)))))
            t += width
        t += rng.uniform(0.35, 0.7)
    blinks, t = [], rng.uniform(0.7, 1.4)
    while t < seconds - 0.15:
        blinks.append(t)
        t += rng.uniform(1.9, 3.2)
    bands = {
        "yaw": 0.28,
        "pitch": 0.35,
        "roll": 0.25,
        "x": 0.2,
        "y": 0.2,
        "near": 0.15,
        "brows": 0.4,
        "gaze_x": 0.45,
        "gaze_y": 0.35,
        "pitch_voice": 0.6,
    }
    return Performance(seconds, tuple(syllables), tuple(blinks), {n: _slow(rng, hz, seconds) for n, hz in bands.items()})


def _slow(rng: np.random.Generator, hz: float, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three sines around `hz`, scaled so that their sum peaks at 1 within the clip."""
    frequency = hz * rng.uniform([0.7, 1.2, 2.0], [1.1, 1.7, 2.6])
    amplitude, phase = np.array([1.0, 0.5, 0.2]), rng.uniform(0, 2 * np.pi, 3)
    t = np.linspace(0, seconds, 512)[:, None]
    return frequency, amplitude / np.abs((amplitude * np.sin(2 * np.pi * frequency * t + phase)).sum(-1)).max(), phase


# --- the picture ------------------------------------------------------------------------------------------------------------


def mesh_points(performance: Performance, neutral: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """The mesh of someone who gives the performance, float32 (T, 478, 3) in px of the picture that `neutral` (478, 3) was seen in.

    The head turns about its neck by up to 12 degrees of yaw, 7 of pitch and 6 of roll from the neutral pose.
    """
    pose = fit_pose(neutral[None].astype(np.float64))
    shape = pose.invert(neutral[None].astype(np.float64))[0]
    t = np.asarray(times_s, np.float64)
    loudness, jaw, rounding, _ = performance.speech(t)
    faces = np.stack(
        [
            _expression(shape, jaw=j, rounding=r, lids=b, brows=e, gaze=g)
            for j, r, b, e, g in zip(
                jaw,
                rounding,
                performance.lids(t),
                np.clip(performance.wave("brows", t), -0.3, 1) * 0.7,
                np.stack([performance.wave("gaze_x", t), 0.5 * performance.wave("gaze_y", t)], -1),
                strict=True,
            )
        ]
    )
    turn = np.stack(
        [12 * performance.wave("yaw", t), 6 * performance.wave("pitch", t) - 1.5 * loudness, 6 * performance.wave("roll", t)], -1
    )
    rotation = rotation_of(euler_deg(pose.rotation) + turn)
    shift = np.stack([0.05 * performance.wave("x", t), 0.03 * performance.wave("y", t), np.zeros_like(t)], -1)
    scale = pose.scale * (1 + 0.02 * performance.wave("near", t))
    pivot = pose.scale[0] * (_NECK @ pose.rotation[0] + shift) + pose.translation[0]
    return (scale[:, None, None] * ((faces - _NECK) @ rotation) + pivot[:, None]).astype(np.float32)


def _expression(shape: np.ndarray, *, jaw: float, rounding: float, lids: float, brows: float, gaze: np.ndarray) -> np.ndarray:
    """The neutral shape (478, 3), in face heights, with an expression; the muscles' weights come from the canonical face."""
    w = _weights()
    out = shape.copy()
    mouth_width = np.linalg.norm(shape[61] - shape[291])
    gap = _gaps(shape, w.upper_lip_at, w.lower_lip_at, w.mouth_line_of)
    drop = 0.30 * mouth_width * jaw
    # the mouth is set, not added to: a person photographed with an open smile can close it
    out[:, 1] += w.below_mouth * (0.75 * drop) - w.lower_lip * 0.5 * gap + w.upper_lip * (0.5 * gap - 0.25 * drop)
    centre = (shape[61] + shape[291]) / 2
    pull = 0.16 * rounding + 0.05 * jaw
    out[:, 0] -= w.mouth * pull * (shape[:, 0] - centre[0])
    out[:, 2] -= w.mouth * 0.02 * max(rounding, 0)
    for eye in w.eyes:
        opening = _gaps(shape, eye.upper_at, eye.lower_at, eye.line_of)
        out[:, 1] += lids * opening * (0.9 * eye.above - 0.12 * eye.below)
    out[:, 1] -= 0.035 * brows * w.brows
    for points, (a, b) in _IRISES:
        out[points, :2] += 0.11 * np.linalg.norm(shape[a] - shape[b]) * gaze
    return out


@dataclass(frozen=True)
class _Lid:
    """One eye: the lid points' indices from corner to corner, and per mesh point how it follows, all (478,)."""

    upper_at: np.ndarray
    lower_at: np.ndarray
    line_of: np.ndarray
    above: np.ndarray
    below: np.ndarray


@dataclass(frozen=True)
class _Weights:
    """How far each of the 478 points follows each muscle."""

    upper_lip_at: np.ndarray
    lower_lip_at: np.ndarray
    mouth_line_of: np.ndarray
    below_mouth: np.ndarray
    lower_lip: np.ndarray
    upper_lip: np.ndarray
    mouth: np.ndarray
    brows: np.ndarray
    eyes: tuple[_Lid, ...]


def _gaps(shape: np.ndarray, upper: np.ndarray, lower: np.ndarray, line_of: np.ndarray) -> np.ndarray:
    """Distance (478,) between two lids or lips where each point of the mesh is; `line_of` is each point's place along them in 0..1."""
    gap = np.clip(shape[lower, 1] - shape[upper, 1], 0, None)
    return np.interp(line_of, np.linspace(0, 1, len(gap)), gap, left=0, right=0)


def _smooth(x: np.ndarray) -> np.ndarray:
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def _bump(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x**2)


def _along(x: np.ndarray, upper: np.ndarray, lower: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Place (478,) of abscissae `x` between the corners of a loop, 0..1 over its vertices; outside, a little beyond."""
    mean_x = (face[upper, 0] + face[lower, 0]) / 2
    place = np.linspace(0, 1, len(mean_x))
    order = np.argsort(mean_x)
    inside = np.interp(x, mean_x[order], place[order])
    return np.where((x < mean_x.min()) | (x > mean_x.max()), -1.0, inside)


@cache
def _weights() -> _Weights:
    face = canonical()
    x, y = face[:, 0], face[:, 1]
    lower, upper = np.array(LIPS_INNER[:11]), np.array([LIPS_INNER[0], *LIPS_INNER[:9:-1]])
    seam_x = (face[upper, 0] + face[lower, 0]) / 2
    seam = np.interp(x, seam_x, (face[upper, 1] + face[lower, 1]) / 2)
    half = seam_x.max()
    across = np.abs(x) / half
    # inside the mouth the lips part at the seam; beyond the corners the cheek stretches instead of tearing
    softness = 0.004 + 0.16 * _smooth((across - 0.75) / 0.6)
    below = _smooth((y - seam) / softness / 2 + 0.5)
    near_mouth = (1 - _smooth((across - 0.7) / 1.2)) * 0.75 + 0.25 * (1 - _smooth((across - 0.9) / 1.8))
    lip_span = np.clip(1 - across**2.5, 0, 1)
    skin = (np.arange(478) < 468).astype(float)
    line_of = _along(x, upper, lower, face)
    return _Weights(
        upper_lip_at=upper,
        lower_lip_at=lower,
        mouth_line_of=line_of,
        below_mouth=below * near_mouth * skin,
        lower_lip=below * _bump((y - seam) / 0.09) * skin,
        upper_lip=(1 - below) * _bump((y - seam) / 0.06) * np.where(lip_span > 0, 1, 0) * skin,
        mouth=_bump(np.hypot(x / 0.17, (y - seam) / 0.13)) * skin,
        brows=_bump((y - face[[105, 334], 1].mean()) / 0.055) * (1 - _smooth((np.abs(x) - 0.3) / 0.12)) * skin,
        eyes=tuple(_lid(face, loop, skin) for loop in (RIGHT_EYE, LEFT_EYE)),
    )


def _lid(face: np.ndarray, loop: tuple[int, ...], skin: np.ndarray) -> _Lid:
    lower, upper = np.array(loop[:9]), np.array([loop[0], *loop[:7:-1]])
    x, y = face[:, 0], face[:, 1]
    low, high = (np.interp(x, face[at, 0][np.argsort(face[at, 0])], face[at, 1][np.argsort(face[at, 0])]) for at in (lower, upper))
    line_of = _along(x, upper, lower, face)
    inside = (line_of >= 0) * skin
    middle = (low + high) / 2
    above = inside * (y < middle) * _bump(np.clip(high - y, 0, None) / 0.022)
    return _Lid(upper, lower, line_of, above, inside * (y >= middle) * _bump(np.clip(y - low, 0, None) / 0.03))


# --- the sound --------------------------------------------------------------------------------------------------------------


def voice(performance: Performance, pitch_hz: float, seed: int) -> np.ndarray:
    """The speech-like sound of the performance: int16 mono (seconds * SOUND_HZ,).

    A sum of harmonics of a gliding pitch, each as loud as a glottal pulse's spectrum (-12 dB an octave) and the vowel's three
    resonances let it be, with a little breath; loudness follows the same syllables as the mouth.
    """
    samples = round(performance.seconds * SOUND_HZ)
    coarse_t = np.arange(0, performance.seconds + 0.01, 0.005)
    loudness, _, _, formants = performance.speech(coarse_t)
    tract = 1.0 + 0.15 * np.clip((pitch_hz - 110) / 100, 0, 1)  # higher voices come from shorter vocal tracts
    pitch = pitch_hz * (1 + 0.12 * performance.wave("pitch_voice", coarse_t) + 0.06 * loudness)
    t = np.arange(samples) / SOUND_HZ
    phase = 2 * np.pi * np.cumsum(np.interp(t, coarse_t, pitch)) / SOUND_HZ
    sound = np.zeros(samples)
    for k in range(1, int(4500 / pitch_hz)):
        hz = k * pitch
        gain = np.ones_like(hz) / k**1.3
        for i, width in enumerate((90, 120, 170)):
            f = formants[:, i] * tract
            gain *= f**2 / np.hypot(f**2 - hz**2, width * hz)  # a resonance's magnitude: 1 far below, f / width at its top
        sound += np.interp(t, coarse_t, gain * loudness) * np.sin(k * phase)
    rng = np.random.default_rng([seed, 44])
    breath = np.convolve(rng.standard_normal(samples), [0.5, 0.0, -0.5], "same")
    sound = sound / np.abs(sound).max() + breath * (0.0015 + 0.012 * np.interp(t, coarse_t, loudness))
    return np.round(np.clip(0.5 * sound, -1, 1) * 32_767).astype(np.int16)
