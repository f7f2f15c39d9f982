"""Measures: what is heard and seen of one clip, as scores: its sound, whether the lips go with it, each frame's face, the crop's place.

Pure functions of arrays. Every score is a finite float; what cannot be measured has a stated value.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stages.gates import face_luma
from stages.head import face_boxes, face_size, mouth_opening, rigid_weights
from stages.sound import SAMPLE_RATE_HZ
from stages.truth import NOT_MEASURED

SILENCE_DB = -120.0
_FULL_SCALE = 32768.0
_HEARD = 10 ** (-60 / 20)  # of full scale: below it nobody hears anything
_HEARD_WINDOW = SAMPLE_RATE_HZ // 50
_VOICED_WINDOW = SAMPLE_RATE_HZ // 25  # 40 ms: nearly three periods of the lowest voice
_VOICE_HZ = (70, 400)  # the pitch of voices
_VOICED = 0.6  # of an autocorrelation of 1, which what repeats exactly has
_SPEECH_HZ = (300, 3400)  # the telephone's band
_ENVELOPE_HZ, _ENVELOPE_WINDOW = 100, 512
_SYLLABLES_HZ = (2.0, 8.0)
_LEAST_HEARD = 10  # windows of 40 ms: fewer tell nothing
_DEPTH = (0.2, 0.6)  # of the modulation: none, and that of clear speech
_MOUTH_MOVES = 0.02  # an opening that varies less (standard deviation) says nothing
_AT_ONCE = 2048  # windows whose spectra are in memory together
_FACE_PX = 128
_ENDS = (3, 252)  # 0..255: what lies beyond is black, or burnt out
_BORDER = 0.02  # of the source picture's shorter side


def sound_scores(sound: np.ndarray | None, points: np.ndarray, fps: float, max_lag_frames: int = 5) -> dict[str, float]:
    """Scores of a clip's sound, int16 (N,) mono at 16 kHz or None, and of the lips of mesh points (T, 478, 3), frame k shown at k / fps s.

    sound_level_db: RMS in dBFS (a sine of full scale has -3); SILENCE_DB without sound.
    sound_share: share of 20 ms windows louder than -60 dBFS. A silent track is no sound.
    speech_likeness: `speech_likeness`.
    lip_sound_correlation, lip_sound_lag_frames: `lip_sound`.
    """
    heard = np.zeros(0) if sound is None else sound.astype(np.float32) / _FULL_SCALE
    level = float(np.sqrt(np.mean(np.square(heard, dtype=np.float64)))) if len(heard) else 0.0
    share = float(_active(heard, _HEARD_WINDOW).mean()) if len(heard) else 0.0
    r, lag = lip_sound(heard, points, fps, max_lag_frames) if share else (NOT_MEASURED, 0)
    return {
        "sound_level_db": max(SILENCE_DB, float(20 * np.log10(max(level, 1e-9)))),
        "sound_share": share,
        "speech_likeness": speech_likeness(heard) if share else 0.0,
        "lip_sound_correlation": r,
        "lip_sound_lag_frames": float(lag),
    }


def speech_likeness(sound: np.ndarray) -> float:
    """How much a sound (N,), full scale 1, is like one voice that speaks: 0..1, whatever its level.

    The geometric mean of two measures after Scheirer and Slaney (ICASSP 1997), each 0..1:
    - voiced and unvoiced sounds take turns: 4 v (1 - v), v the share of windows that are heard and have a period of a voice's pitch,
      among those heard. Tones and instruments are all period, noise and chords have none, speech has v = 0.4 to 0.7;
    - syllables: the standard deviation of the amplitude in 300..3400 Hz, filtered to 2..8 Hz, over its mean, from 0.2 (0) to 0.6 (1).
    A rapper over a piano comes close to speech, and so may any sound that is now a tone and now a noise; a voice in noise as loud as
    itself goes half way down. 0 where less than 0.4 s is heard, or all lasts less than a second.
    """
    heard = _active(sound, _VOICED_WINDOW)
    if heard.sum() < _LEAST_HEARD:
        return 0.0
    voiced = (_periodicity(sound) > _VOICED)[heard].mean()
    low, high = _DEPTH
    syllables = np.clip((_syllable_depth(sound) - low) / (high - low), 0, 1)
    return float(np.sqrt(4 * voiced * (1 - voiced) * syllables))


def lip_sound(sound: np.ndarray, points: np.ndarray, fps: float, max_lag_frames: int = 5) -> tuple[float, int]:
    """Pearson's r of the speed with which the mouth opens and the amplitude of 300..3400 Hz during each frame, best over lags, and the lag.

    A lag > 0 is a mouth that moves after its sound. Speed, with its sign, since mouths stay open in a smile and for a breath; both
    signals without their mean over the second around (Chandrasekaran et al. 2009 find lips and envelope to go together at 2..7 Hz).
    A weak sign of one clip, good for the mean of many: 8 s of speech came to 0.21 with its own sound, and to 0.12 on average and 0.20
    at most with the same sound 1 to 3 s off; parts of 4 s do not tell the two apart.
    (NOT_MEASURED, 0) where the mouth does not move, or for fewer than 8 frames. Missing sound counts as silence.
    """
    frames = len(points)
    opening = mouth_opening(points)
    if frames < 8 or opening.std() < _MOUTH_MOVES:
        return NOT_MEASURED, 0
    starts = np.round(np.arange(frames) * SAMPLE_RATE_HZ / fps).astype(int)
    length = round(SAMPLE_RATE_HZ / fps)
    amplitude = _speech_band(np.pad(sound, (0, max(0, int(starts[-1]) + length - len(sound)))), starts, length)
    mouth, voice = _without_trend(np.gradient(opening), fps), _without_trend(amplitude, fps)
    most = min(max_lag_frames, frames // 4)
    rs = {k: _pearson(mouth[max(0, k) : frames + min(0, k)], voice[max(0, -k) : frames - max(0, k)]) for k in range(-most, most + 1)}
    lag = max(rs, key=lambda k: (rs[k], -abs(k)))
    return rs[lag], lag


class FacePicture(NamedTuple):
    """One frame's face.

    Attributes:
        luma: mean, 0..255.
        clipped: share of the face box's pixels whose brightest channel is <= 3 (black) or >= 252 (burnt out).
        sharpness: variance of the Laplacian over the variance of luma, of the face at 128 px along its longer side. So it tells of
            detail at 1/128 of the face, whatever the contrast and the picture's resolution: a face that fills fewer pixels, is blurred
            or was enlarged has less; finer detail is not seen; noise counts as detail. Blank pictures have 0, white noise 20.
    """

    luma: float
    clipped: float
    sharpness: float


def picture_scores(picture: np.ndarray, points: np.ndarray) -> FacePicture:
    """Scores of the face with mesh points (478, >=2) in px of a picture uint8 RGB (H, W, 3). All 0 where no pixel shows it."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = np.round(face_boxes(points[None])[0]).astype(int)
    face = np.ascontiguousarray(picture[max(0, y0) : min(height, y1 + 1), max(0, x0) : min(width, x1 + 1)])
    if not face.size:
        return FacePicture(0.0, 0.0, 0.0)
    red, green, blue = cv2.split(face)
    brightest = cv2.max(cv2.max(red, green), blue)
    clipped = 1 - cv2.countNonZero(cv2.inRange(brightest, _ENDS[0] + 1, _ENDS[1] - 1)) / brightest.size
    return FacePicture(face_luma(picture, points), clipped, _sharpness(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)))


def _sharpness(grey: np.ndarray) -> float:
    scale = _FACE_PX / max(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    small = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    variance = float(small.var())
    return float(cv2.Laplacian(small, cv2.CV_32F).var()) / variance if variance > 1 else 0.0


def track_scores(points: np.ndarray, crop: tuple[int, int, int], source_wh: tuple[int, int], size_px: int) -> dict[str, float]:
    """Scores of the face's way through its crop, from mesh points (T, 478, 3) in px of a crop (x0, y0, side) of the source picture.

    crop_jitter: standard deviation of the acceleration of the head's rigid points' middle, in face sizes a frame a frame; 0 for fewer
        than 3 frames.
    headroom: space between the face box and the crop's upper border, in face sizes, median; < 0 where the border cuts the face.
    border_contact: share of frames in which the face box comes nearer to the source picture's border than 2 % of its shorter side.
    """
    boxes = face_boxes(points)
    size = float(np.median(face_size(boxes)))
    middle = points[:, rigid_weights() > 0, :2].mean(1, dtype=np.float64)
    jitter = np.sqrt(np.diff(middle, 2, axis=0).var(0).sum()) / size if len(points) > 2 else 0.0
    (x0, y0, side), (width, height) = crop, source_wh
    in_source = boxes * (side / size_px) + [x0, y0, x0, y0]
    near = _BORDER * min(source_wh)
    touches = (in_source[:, :2] < near).any(1) | (in_source[:, 2:] > [width - near, height - near]).any(1)
    return {"crop_jitter": float(jitter), "headroom": float(np.median(boxes[:, 1])) / size, "border_contact": float(touches.mean())}


def _active(sound: np.ndarray, length: int) -> np.ndarray:
    """Which windows are heard, bool (W,): one after the other, the last one filled up with silence."""
    windows = np.pad(sound, (0, -len(sound) % length)).reshape(-1, length)
    return np.sqrt(np.square(windows).mean(1)) > _HEARD


def _periodicity(sound: np.ndarray) -> np.ndarray:
    """Highest autocorrelation (W,) at periods of a voice's pitch, of windows as `_active` takes them: 1 for what repeats, 0 for none.

    After Boersma 1993: divided by that of the window itself, which falls with the lag. Only 60..1500 Hz counts.
    """
    length = _VOICED_WINDOW
    windows = np.pad(sound, (0, -len(sound) % length)).reshape(-1, length)
    shortest, longest = SAMPLE_RATE_HZ // _VOICE_HZ[1], SAMPLE_RATE_HZ // _VOICE_HZ[0]
    hz = np.fft.rfftfreq(2 * length, 1 / SAMPLE_RATE_HZ)
    falls = 1 - np.arange(shortest, longest + 1) / length
    peaks = []
    for part in _parts(windows):
        spectra = np.abs(np.fft.rfft(part - part.mean(1, keepdims=True), 2 * length)) ** 2
        correlation = np.fft.irfft(spectra * ((hz >= 60) & (hz <= 1500)))
        peaks.append((correlation[:, shortest : longest + 1] / falls).max(1) / np.maximum(correlation[:, 0], 1e-9))
    return np.concatenate(peaks)


def _syllable_depth(sound: np.ndarray) -> float:
    """Standard deviation of the speech band's amplitude within 2..8 Hz over its mean; 0 for what is too short to tell."""
    starts = np.arange(0, len(sound) - _ENVELOPE_WINDOW + 1, SAMPLE_RATE_HZ // _ENVELOPE_HZ)
    if len(starts) < _ENVELOPE_HZ:
        return 0.0
    amplitude = _speech_band(sound, starts, _ENVELOPE_WINDOW)
    spectrum = np.fft.rfft(amplitude - amplitude.mean())
    hz = np.fft.rfftfreq(len(amplitude), 1 / _ENVELOPE_HZ)
    spectrum[(hz < _SYLLABLES_HZ[0]) | (hz > _SYLLABLES_HZ[1])] = 0
    # what hardly reaches into the band, as a hum does, is no speech: its ripple must not count
    least = 0.1 * float(np.sqrt(np.square(sound).mean()))
    return float(np.fft.irfft(spectrum, len(amplitude)).std() / max(float(amplitude.mean()), least))


def _speech_band(sound: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Amplitude (RMS) within 300..3400 Hz of the Hann windows that begin at `starts` (W,)."""
    window = np.hanning(length)
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    band = (hz >= _SPEECH_HZ[0]) & (hz <= _SPEECH_HZ[1])
    windows = np.lib.stride_tricks.sliding_window_view(sound, length)
    power = [(np.abs(np.fft.rfft(windows[s] * window)[:, band]) ** 2).sum(1) for s in _parts(starts)]
    return np.sqrt(2 * np.concatenate(power) / (length * np.square(window).sum()))


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, len(rows) // _AT_ONCE + 1)


def _without_trend(signal: np.ndarray, fps: float) -> np.ndarray:
    """A signal (T,) less its mean over the second around each frame."""
    half = max(1, round(fps / 2))
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    return signal - np.convolve(np.pad(signal, half, mode="edge"), kernel, "valid")


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if min(a.std(), b.std()) > 1e-6 else 0.0
