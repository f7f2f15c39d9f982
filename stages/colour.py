"""Colour: a decoded frame of any pixel format, matrix, range and dynamic range becomes 8-bit SDR RGB, by stated formulas.

What a frame says of itself is believed. Where it says nothing: BT.601 whatever its size, as ffmpeg takes it; limited range, but full
for RGB and grey; the primaries of BT.709, but of BT.2020 for HDR. swscale only repacks pixels here: its RGB is 2 to 4 levels too dark,
and its way from BT.709 to BT.601 tints green.

HDR becomes display light by the EOTFs of ITU-R BT.2100 (HLG on a display of 1000 cd/m2, gamma 1.2), and light relative to the reference
white of 203 cd/m2 (BT.2408) is brought to the primaries of BT.709. There each channel stays as it is up to `_KNEE` of that white, and
is bent by ffmpeg's `mobius` above, so that 1000 cd/m2 become the white of SDR. The inverse of the EOTF of BT.1886 (gamma 2.4) gives
the levels: what was SDR before it was put into HDR by BT.2408 comes back as it was up to level 226, and its white as level 242.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from schemas.outcomes import Rejection

_GREY = 128  # what transparency is laid on, as in stills
_REFERENCE_WHITE_NITS, _PEAK_NITS = 203.0, 1000.0
_PEAK = _PEAK_NITS / _REFERENCE_WHITE_NITS
_KNEE = 0.75
_GAMMA = 2.4  # BT.1886
_TOP = 65535
_STRIP_PIXELS = 1 << 16  # what is between the planes and the picture fits into a core's cache
_YCGCO, _BT2020_CL = 8, 10  # matrices of ITU-T H.273 that PyAV has no name for
_BT601 = int(Colorspace.ITU601)
_KR_KB: dict[int, tuple[float, float]] = {
    _BT601: (0.299, 0.114),
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.FCC: (0.30, 0.11),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
    _BT2020_CL: (0.2627, 0.0593),
}
_D65 = (0.3127, 0.3290)
_PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {  # x and y of red, green and blue
    ColorPrimaries.BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
_SUBSAMPLED = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (4, 4): "410"}

Transfer = Literal["sdr", "pq", "hlg"]
_HDR: dict[int, Transfer] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}


@dataclass(frozen=True)
class _Signal:
    """What the numbers of a frame mean; `primaries` are those of BT.709 for all that needs no conversion."""

    matrix: int
    full_range: bool
    transfer: Transfer
    primaries: int

    @property
    def plain(self) -> bool:
        return self.transfer == "sdr" and self.primaries == ColorPrimaries.BT709


_OURS = _Signal(_BT601, False, "sdr", ColorPrimaries.BT709)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3), transparency laid on mid-grey.

    Raises:
        Rejection: decode_error for pixels that nobody can unpack.
    """
    signal = _signal(frame)
    if frame.format.name in ("yuv420p", "yuvj420p") and signal.plain:
        known_to_cv2 = signal == _OURS and not (frame.width | frame.height) & 1
        return cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420) if known_to_cv2 else _from_420(frame, signal)
    packed = frame.format.is_rgb or frame.format.has_palette
    rgb, alpha = _from_packed(frame, signal) if packed else _from_planes(frame, signal)
    return rgb if alpha is None else _on_grey(rgb, alpha)


def i420_square(frame: av.VideoFrame, x0: int, y0: int, side: int, size_px: int) -> np.ndarray | None:
    """A square at an even place of an 8-bit 4:2:0 frame, as our own videos have it: BT.601 in limited range, size_px wide; uint8
    (1.5 size_px, size_px), Y, then U and V of half the size. None for other frames and places.

    Each plane is resized by itself and brought to the other matrix where it is: half the work of the way over RGB, and no chroma is made
    up. What lies beyond black and white stays there.
    """
    signal = _signal(frame)
    if frame.format.name not in ("yuv420p", "yuvj420p") or not signal.plain or (x0 | y0 | side | size_px) & 1:
        return None
    luma, *chroma = (_plane(frame, k, np.uint8) for k in range(3))
    half = slice(y0 // 2, (y0 + side) // 2), slice(x0 // 2, (x0 + side) // 2)
    y, u, v = resize_square(luma[y0 : y0 + side, x0 : x0 + side], size_px), *(resize_square(c[half], size_px // 2) for c in chroma)
    if signal != _OURS:
        (of_y, *of_uv, shift), *rest = _matrix_to_601(signal)
        tint = cv2.addWeighted(u, of_uv[0], v, of_uv[1], shift, dtype=cv2.CV_16S)
        y = cv2.addWeighted(y, of_y, cv2.resize(tint, y.shape, interpolation=cv2.INTER_NEAREST), 1, 0, dtype=cv2.CV_8U)
        u, v = (cv2.addWeighted(u, row[1], v, row[2], row[3]) for row in rest)
    return _pack_i420(y, u, v)


def resize_square(square: np.ndarray, size_px: int) -> np.ndarray:
    """A square picture or plane, uint8 (side, side, ...), in another size."""
    return cv2.resize(square, (size_px, size_px), interpolation=cv2.INTER_AREA if len(square) > size_px else cv2.INTER_CUBIC)


def _pack_i420(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Planes of even size as cv2 and encoders want them, uint8 (1.5 H, W)."""
    height, width = y.shape
    packed = np.empty((height * 3 // 2, width), np.uint8)
    packed[:height] = y
    packed[height:].reshape(2, height // 2, width // 2)[:] = u, v
    return packed


@cache
def _matrix_to_601(signal: _Signal) -> list[list[float]]:
    """(3, 4) from samples Y, U, V of 8 bits to those of BT.601 in limited range. Grey stays grey: U and V do not depend on Y."""
    own, ours = (np.vstack([_matrix(s, bits=8, top=255), [0, 0, 0, 1]]) for s in (signal, _OURS))
    rows: list[list[float]] = (np.linalg.inv(ours) @ own)[:3].tolist()
    return rows


def thumbnail(frame: av.VideoFrame, width: int, height: int, scaler: VideoReformatter | None = None) -> np.ndarray:
    """uint8 BGR (height, width, 3) for those who look for cuts; swscale's colours do for that, but not for HDR, which it leaves flat.

    A `scaler` that serves for a whole video is made ready once; a frame's own costs more than its pixels."""
    if _signal(frame).transfer == "sdr":
        return convert(frame, scaler, width=width, height=height, format="bgr24").to_ndarray()
    small = convert(frame, width=width, height=height, format="gbrp10le" if frame.format.is_rgb else "yuv420p10le")
    return np.ascontiguousarray(to_rgb(small)[..., ::-1])


def convert(frame: av.VideoFrame, scaler: VideoReformatter | None = None, **to: Any) -> av.VideoFrame:
    """`frame.reformat`; Rejection (decode_error) for what swscale cannot convert: pictures a pixel wide, odd formats."""
    try:
        return scaler.reformat(frame, **to) if scaler else frame.reformat(**to)
    except av.FFmpegError as e:
        if e.errno == errno.ENOMEM:
            raise MemoryError(f"no memory to convert a frame of {frame.width} x {frame.height}") from e
        what = f"frames of {frame.width} x {frame.height} in {frame.format.name}"
        raise Rejection("decode_error", f"nobody here can convert {what}: {e.strerror or e}") from e


def _signal(frame: av.VideoFrame) -> _Signal:
    matrix, primaries = int(frame.colorspace), int(frame.color_primaries)
    transfer = _HDR.get(frame.color_trc, "sdr")
    hdr = transfer != "sdr"
    if matrix not in _KR_KB and matrix != _YCGCO:
        matrix = Colorspace.BT2020 if hdr else _BT601
    if primaries not in _PRIMARIES:
        primaries = ColorPrimaries.BT2020 if hdr else ColorPrimaries.BT709
    name = frame.format.name
    full = name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    full |= name.startswith(("gray", "ya", "mono")) and frame.color_range != ColorRange.MPEG
    return _Signal(int(matrix), bool(full), transfer, int(primaries))


# --- from what frames hold to R'G'B'


def _from_420(frame: av.VideoFrame, signal: _Signal) -> np.ndarray:
    """RGB uint8 (H, W, 3) of 8-bit 4:2:0, which most of the web is: every second row, so that chroma is made wider only."""
    y, u, v = (_plane(frame, k, np.uint8) for k in range(3))
    matrix = _matrix(signal, bits=8, top=255)
    u, v = (cv2.merge([c, c]).reshape(len(c), -1) for c in (u, v))
    rgb = np.empty((*y.shape, 3), np.uint8)
    for first in (0, 1)[: len(y)]:
        rows = y[first::2]
        cv2.transform(cv2.merge([rows, u[: len(rows), : y.shape[1]], v[: len(rows), : y.shape[1]]]), matrix, dst=rgb[first::2])
    return rgb


def _rgb_of_yuv(kr: float, kb: float) -> np.ndarray:
    """(3, 3) from Y' in 0..1 and the two colour differences in -0.5..0.5 to R'G'B' (ITU-T H.273)."""
    kg = 1 - kr - kb
    return np.array([[1, 0, 2 * (1 - kr)], [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg], [1, 2 * (1 - kb), 0]])


def _from_planes(frame: av.VideoFrame, signal: _Signal) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB uint8 (H, W, 3) and alpha uint8 (H, W) of what has one plane for Y, and perhaps planes for U, V and alpha."""
    frame = _unpacked(frame)
    bits = frame.format.components[0].bits
    planes = [_plane(frame, k, np.uint8 if bits == 8 else np.dtype("<u2")) for k in range(len(frame.planes))]
    alpha = _to_8_bits(planes.pop(), bits) if len(planes) in (2, 4) else None
    luma, *chroma = planes
    chroma = [_spread(c, luma.shape) for c in chroma] or [np.broadcast_to(np.array(1 << bits - 1, luma.dtype), luma.shape)] * 2
    at_once = bits == 8 and signal.plain
    matrix = _matrix(signal, bits, top=255 if at_once else _TOP)
    rgb = np.empty((*luma.shape, 3), np.uint8)
    for rows in _strips(luma.shape):
        yuv = cv2.merge([np.ascontiguousarray(p[rows]) for p in (luma, *chroma)])
        rgb[rows] = cv2.transform(yuv, matrix) if at_once else _to_sdr(cv2.transform(yuv.astype(np.uint16, copy=False), matrix), signal)
    return rgb, alpha


def _unpacked(frame: av.VideoFrame) -> av.VideoFrame:
    """The same samples, one plane for each component, little-endian."""
    form, components = frame.format, frame.format.components
    bits = components[0].bits
    one_each = sorted(c.plane for c in components) == list(range(len(components)))
    if one_each and not form.is_big_endian and all(p.line_size > 0 for p in frame.planes) and "f32" not in form.name and bits >= 8:
        return frame
    alpha = any(c.is_alpha for c in components)
    if len(components) <= 2:
        name = "gray" if not alpha else "yuva444p"
    else:
        across, down = round(frame.width / components[1].width), round(frame.height / components[1].height)
        name = f"yuv{'a' if alpha else ''}{_SUBSAMPLED.get((across, down), '444')}p"
    if bits > 8:
        name += f"{bits}le"
    if len(components) <= 2:  # swscale takes grey for full range whatever it says; told the same of what it makes, it leaves the numbers
        return convert(frame, format=name, dst_color_range=ColorRange.JPEG)
    return convert(frame, format=name)


def _plane(frame: av.VideoFrame, index: int, dtype: Any) -> np.ndarray:
    plane = frame.planes[index]
    samples = np.frombuffer(plane, dtype)
    return samples.reshape(plane.height, plane.line_size // samples.itemsize)[:, : plane.width]


def _spread(chroma: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Chroma at the luma's size (H, W); what hangs over the edge of an odd size is cut off."""
    height, width = shape
    times = (-(-height // chroma.shape[0]), -(-width // chroma.shape[1]))
    if times == (1, 1):
        return chroma
    size = (chroma.shape[1] * times[1], chroma.shape[0] * times[0])
    return cv2.resize(np.ascontiguousarray(chroma), size, interpolation=cv2.INTER_LINEAR)[:height, :width]


def _matrix(signal: _Signal, bits: int, top: int) -> np.ndarray:
    """float32 (3, 4) from samples Y, U, V of `bits` bits to R'G'B' in 0..`top` (ITU-T H.273)."""
    step = 1 << bits - 8
    ycgco = np.array([[1.0, -1, 1], [1, 1, 0], [1, -1, -1]])
    to_rgb = ycgco if signal.matrix == _YCGCO else _rgb_of_yuv(*_KR_KB[signal.matrix])
    spans = np.full(3, (1 << bits) - 1) if signal.full_range else np.array([219, 224, 224]) * step
    zeros = np.array([0 if signal.full_range else 16 * step, 128 * step, 128 * step])
    linear = top * to_rgb / spans
    return np.column_stack([linear, -linear @ zeros]).astype(np.float32)


def _from_packed(frame: av.VideoFrame, signal: _Signal) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB uint8 (H, W, 3) and alpha uint8 (H, W) of what holds R, G and B, or a palette of them."""
    alpha = frame.format.has_palette or any(c.is_alpha for c in frame.format.components)
    deep = max(c.bits for c in frame.format.components) > 8
    samples = convert(frame, format=("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")).to_ndarray()
    coverage = _to_8_bits(samples[..., 3], 16 if deep else 8) if alpha else None
    if signal.plain:
        return _to_8_bits(samples[..., :3], 16 if deep else 8).copy(), coverage
    rgb = np.empty((*samples.shape[:2], 3), np.uint8)
    for rows in _strips(rgb.shape):
        rgb[rows] = _to_sdr(samples[rows, :, :3].astype(np.uint16) * (1 if deep else _TOP // 255), signal)
    return rgb, coverage


def _strips(shape: tuple[int, ...]) -> list[slice]:
    height = max(1, _STRIP_PIXELS // shape[1])
    return [slice(k, k + height) for k in range(0, shape[0], height)]


def _to_8_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return np.ascontiguousarray(samples)
    return cv2.convertScaleAbs(np.ascontiguousarray(samples), alpha=255 / ((1 << bits) - 1))


def _on_grey(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    cover = alpha[..., None].astype(np.uint16)
    return ((rgb * cover + _GREY * (255 - cover) + 127) // 255).astype(np.uint8)


# --- from R'G'B' of any transfer and primaries to those of SDR


def _to_sdr(rgb: np.ndarray, signal: _Signal) -> np.ndarray:
    """Levels uint8 (H, W, 3) of R'G'B' uint16 (H, W, 3), 65535 at the top."""
    if signal.plain:
        return cv2.convertScaleAbs(rgb, alpha=255 / _TOP)
    light = cv2.LUT(rgb, _light_of_level(signal.transfer))
    gain = _hlg_gain(light) if signal.transfer == "hlg" else None
    light = cv2.transform(light, _to_bt709(signal.primaries))
    if gain is not None:
        light = cv2.multiply(light, cv2.merge([gain, gain, gain]))
    root = cv2.sqrt(cv2.max(light, 0))  # steps that are fine where the levels are dark
    peak = 1.0 if signal.transfer == "sdr" else _PEAK
    steps = cv2.addWeighted(root, _TOP / peak**0.5, root, 0, 0, dtype=cv2.CV_16U)
    return cv2.LUT(steps, _level_of_root(peak))


@cache
def _light_of_level(transfer: Transfer) -> np.ndarray:
    """float32 (65536,): light of each level; 1 is the reference white, but for HLG the white of the scene."""
    level = np.arange(_TOP + 1) / _TOP
    if transfer == "pq":
        return (pq_nits(level) / _REFERENCE_WHITE_NITS).astype(np.float32)
    return (hlg_scene(level) if transfer == "hlg" else level**_GAMMA).astype(np.float32)


def pq_nits(level: np.ndarray) -> np.ndarray:
    """The EOTF of PQ: cd/m2 of levels in 0..1 (ITU-R BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = level ** (1 / m2)
    return 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_scene(level: np.ndarray) -> np.ndarray:
    """The inverse OETF of HLG: light of the scene in 0..1 of levels in 0..1 (ITU-R BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12)


def _hlg_gain(scene: np.ndarray) -> np.ndarray:
    """float32 (H, W): what light (H, W, 3) of the scene is multiplied by on a display of 1000 cd/m2 (the OOTF of BT.2100, gamma 1.2)."""
    kr, kb = _KR_KB[Colorspace.BT2020]
    luminance = cv2.transform(scene, np.array([[kr, 1 - kr - kb, kb]], np.float32))
    return cv2.LUT(cv2.addWeighted(luminance, _TOP, luminance, 0, 0, dtype=cv2.CV_16U), _hlg_gains())


@cache
def _hlg_gains() -> np.ndarray:
    return (_PEAK * (np.arange(_TOP + 1) / _TOP) ** 0.2).astype(np.float32)


@cache
def _to_bt709(primaries: int) -> np.ndarray:
    """float32 (3, 3) from linear light of other primaries to that of BT.709's."""
    return (np.linalg.inv(_xyz(ColorPrimaries.BT709)) @ _xyz(primaries)).astype(np.float32)


def _xyz(primaries: int) -> np.ndarray:
    """(3, 3) from linear RGB of these primaries with a white of D65 to XYZ (SMPTE RP 177)."""
    corners = np.array([(x / y, 1, (1 - x - y) / y) for x, y in _PRIMARIES[primaries]]).T
    white = np.array((_D65[0] / _D65[1], 1, (1 - sum(_D65)) / _D65[1]))
    return corners * np.linalg.solve(corners, white)


@cache
def _level_of_root(peak: float) -> np.ndarray:
    """uint8 (65536,): SDR levels of square roots of light in 0..`peak`."""
    light = (np.arange(_TOP + 1) / _TOP) ** 2 * peak
    return np.rint(255 * tone_map(light, peak) ** (1 / _GAMMA)).astype(np.uint8)


def tone_map(light: np.ndarray, peak: float) -> np.ndarray:
    """Light relative to the reference white, 0..`peak`, into 0..1: as it is up to `_KNEE`, then the curve that goes on at slope 1 and
    reaches 1 at `peak` (ffmpeg's tonemap=mobius)."""
    if peak <= 1:
        return np.minimum(light, 1)
    over = np.maximum(light - _KNEE, 0)
    bend = 1 / (1 - _KNEE) - 1 / (peak - _KNEE)
    return np.minimum(light, _KNEE) + over / (1 + bend * over)
