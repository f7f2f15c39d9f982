"""Colour: what was encoded without loss comes out as it went in, whatever the tags, depth, range and dynamic range."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.colour import hlg_scene, i420_square, pq_nits, resize_square, thumbnail, to_rgb, tone_map
from stages.media import SourceFrame, decode

UNTAGGED, LIMITED, FULL = 0, 1, 2
BT709, NO_MATRIX, FCC, PAL, NTSC, SMPTE240M, YCGCO, BT2020 = 1, 2, 4, 5, 6, 7, 8, 9  # also primaries, where they have the same names
PQ, HLG, DISPLAY_P3 = 16, 18, 12
KR_KB = {BT709: (0.2126, 0.0722), FCC: (0.30, 0.11), SMPTE240M: (0.212, 0.087), BT2020: (0.2627, 0.0593)}
PATCHES = np.array([*product((0, 255), repeat=3), (224, 172, 150), (141, 85, 60), (40, 24, 18), (128, 128, 128), *np.eye(3) * 130 + 60])
PATCH_PX = 16
KNEE_LEVEL = 226


def codes(rgb: np.ndarray, matrix: int, bits: int, full: bool) -> np.ndarray:
    """Samples (..., 3) of R'G'B' levels in 0..255 by the definitions of ITU-T H.273, written the other way round than in the stage."""
    kr, kb = KR_KB.get(matrix, (0.299, 0.114))
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    if matrix == YCGCO:
        y, u, v = (r + 2 * g + b) / 4, (2 * g - r - b) / 4, (r - b) / 2
    step, top = 1 << bits - 8, (1 << bits) - 1
    if full:
        return np.stack([top * y, top * u + 128 * step, top * v + 128 * step], -1).round().clip(0, top).astype(int)
    return (np.stack([219 * y + 16, 224 * u + 128, 224 * v + 128], -1) * step).round().astype(int)


def frame_of(planes: list[np.ndarray], pix_fmt: str, **tags: int) -> av.VideoFrame:
    """A frame whose planes hold these samples; the first gives its size."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, samples in zip(frame.planes, planes, strict=True):
        dtype = np.dtype("u1" if frame.format.components[0].bits == 8 else ">u2" if frame.format.is_big_endian else "<u2")
        rows = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
        rows[:, : samples.shape[1]] = samples
        plane.update(rows.tobytes())
    for name, value in tags.items():
        setattr(frame, name, value)
    return frame


def patches(rgb: np.ndarray, pix_fmt: str, matrix: int, color_range: int = LIMITED, **tags: int) -> av.VideoFrame:
    """A row of flat squares of colours (N, 3), 0..255."""
    form = av.VideoFormat(pix_fmt, PATCH_PX * len(rgb), PATCH_PX)
    full = color_range == FULL or (color_range == UNTAGGED and pix_fmt.startswith("gray"))
    samples = codes(rgb, matrix, form.components[0].bits, full)
    shapes = [(c.height, c.width) for c in form.components if not c.is_alpha]
    planes = [np.broadcast_to(samples[:, k].repeat(w // len(rgb)), (h, w)) for k, (h, w) in enumerate(shapes)]
    return frame_of(planes, pix_fmt, colorspace=matrix, color_range=color_range, **tags)


def middles(picture: np.ndarray) -> np.ndarray:
    """Colours int (N, 3) of the squares."""
    return picture[PATCH_PX // 2, PATCH_PX // 2 :: PATCH_PX].astype(int)


def through_a_file(path: Path, frame: av.VideoFrame, codec: str, **options: str) -> np.ndarray:
    """`frame` encoded with its tags, and decoded as the stages do it."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(stream.codec_context, tag, getattr(frame, tag))
        for k in range(3):
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return next(iter(decode(path))).rgb


_LOSSLESS = [("libx264", {"crf": "0", "preset": "ultrafast"}), ("ffv1", {})]


@pytest.mark.parametrize(("codec", "options"), _LOSSLESS, ids=["x264", "ffv1"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize("matrix", [NO_MATRIX, PAL, NTSC, BT709, SMPTE240M, BT2020])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_colours_come_out_as_they_went_in(
    tmp_path: Path, codec: str, options: dict[str, str], pix_fmt: str, matrix: int, color_range: int
) -> None:
    frame = patches(PATCHES, pix_fmt, matrix, color_range)
    got = middles(through_a_file(tmp_path / "a.mkv", frame, codec, **options))
    assert np.abs(got - PATCHES).max() <= (2 if pix_fmt.endswith("p") else 1), got


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "yuv422p12le"])
@pytest.mark.parametrize("matrix", [BT709, FCC, YCGCO, BT2020])
def test_no_channel_is_tinted(pix_fmt: str, matrix: int) -> None:
    """8 bits of Y, U and V cannot hold every colour, but what they lose has no direction."""
    rgb = np.random.default_rng(0).integers(0, 256, (3000, 3))
    error = middles(to_rgb(patches(rgb, pix_fmt, matrix, FULL if pix_fmt.startswith("yuvj") else LIMITED))) - rgb
    assert np.abs(error).max() <= 2 and np.abs(error.mean(0)).max() < 0.15, error.mean(0)


def test_the_common_case_is_cv2s_own() -> None:
    y, u, v = (np.random.default_rng(0).integers(0, 256, shape) for shape in [(66, 98), (33, 49), (33, 49)])
    for matrix in (NO_MATRIX, PAL, NTSC):
        frame = frame_of([y, u, v], "yuv420p", colorspace=matrix, color_range=UNTAGGED)
        np.testing.assert_array_equal(to_rgb(frame), cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([BT709, NO_MATRIX]), st.sampled_from([LIMITED, FULL]))
def test_every_pixel_of_any_size_is_kept(width: int, height: int, matrix: int, color_range: int) -> None:
    """Each takes the chroma of the 2 x 2 pixels that it is one of, the last row and column of odd sizes too."""
    rng = np.random.default_rng(width * 41 + height)
    half = ((height + 1) // 2, (width + 1) // 2)
    y, u, v = rng.integers(90, 160, (height, width)), rng.integers(110, 146, half), rng.integers(110, 146, half)
    got = to_rgb(frame_of([y, u, v], "yuv420p", colorspace=matrix, color_range=color_range))
    assert got.shape == (height, width, 3)
    back = codes(got.astype(float), matrix, 8, color_range == FULL)
    want = np.dstack([y, *(c.repeat(2, 0).repeat(2, 1)[:height, :width] for c in (u, v))])
    assert np.abs(back - want).max() <= 1


_SAME_SAMPLES = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yuv411p": "yuv411p",
    "yuv440p": "yuv440p",
    "yuv420p10be": "yuv420p10le",
    "p010le": "yuv420p10le",
    "bgr0": "rgb24",
    "gbrp": "rgb24",
    "gbrp10le": "rgb24",
}


@pytest.mark.parametrize("pix_fmt", _SAME_SAMPLES)
def test_other_ways_to_lay_out_the_samples_change_no_colour(pix_fmt: str) -> None:
    """Made of frames whose colours are known, by swscale, which here only moves samples."""
    if _SAME_SAMPLES[pix_fmt] == "rgb24":
        row = PATCHES.astype(np.uint8).repeat(PATCH_PX, 0)
        frame = av.VideoFrame.from_ndarray(np.tile(row, (PATCH_PX, 1, 1)), format="rgb24").reformat(format=pix_fmt)
    else:
        frame = patches(PATCHES, _SAME_SAMPLES[pix_fmt], BT709).reformat(format=pix_fmt)
    frame.colorspace = BT709
    assert np.abs(middles(to_rgb(frame)) - PATCHES).max() <= 2


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "gray12le", "gray16le"])
@pytest.mark.parametrize("color_range", [UNTAGGED, LIMITED, FULL])
def test_grey_has_the_range_it_says(tmp_path: Path, pix_fmt: str, color_range: int) -> None:
    greys = np.array([0, 1, 77, 128, 254, 255])[:, None].repeat(3, 1)
    frame = patches(greys, pix_fmt, NO_MATRIX, color_range)
    assert np.abs(middles(to_rgb(frame)) - greys).max() <= 1
    if pix_fmt in ("gray", "gray10le"):
        assert np.abs(middles(through_a_file(tmp_path / "a.mkv", frame, "ffv1")) - greys).max() <= 1


def test_what_is_given_out_is_no_window_on_the_decoders_memory() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9, np.uint8), format="rgb24")
    to_rgb(frame)[:] = 200
    assert (to_rgb(frame) == 9).all()


@given(st.sampled_from(["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "rgb24", "yuva420p"]), st.integers(0, 1 << 30))
def test_a_part_is_a_part_of_the_whole(pix_fmt: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(16, 60, 2)
    form = av.VideoFormat(pix_fmt, width, height)
    top = 1 << form.components[0].bits
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane in frame.planes:
        samples = rng.integers(0, top, plane.buffer_size // (1 if top == 256 else 2)).astype(np.uint8 if top == 256 else "<u2")
        plane.update(samples.tobytes())
    frame.colorspace = rng.choice([BT709, NO_MATRIX])
    x0, y0 = rng.integers(0, width), rng.integers(0, height)
    side = rng.integers(1, min(width - x0, height - y0) + 1)
    part = SourceFrame(0, -1, 0.0, frame).square(int(x0), int(y0), int(side))
    np.testing.assert_array_equal(part, to_rgb(frame)[y0 : y0 + side, x0 : x0 + side])


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
@pytest.mark.parametrize("matrix", [NO_MATRIX, PAL, BT709, FCC, SMPTE240M, YCGCO])
@pytest.mark.parametrize("size_px", [48, 96, 160])
def test_the_short_way_to_our_own_planes_gives_the_colours_of_the_long_one(pix_fmt: str, matrix: int, size_px: int) -> None:
    """Smaller, as large, larger; colours that all matrices can show, and change slowly, as chroma does."""
    small = np.random.default_rng(0).integers(70, 186, (4, 4, 3)).astype(np.float32)
    rgb = cv2.resize(small, (96, 96), interpolation=cv2.INTER_CUBIC).clip(40, 215)
    y, u, v = np.moveaxis(codes(rgb, matrix, 8, pix_fmt == "yuvj420p"), -1, 0)
    planes = [
        np.rint(p).astype(int) for p in (y, *(cv2.resize(c.astype(np.float32), (48, 48), interpolation=cv2.INTER_AREA) for c in (u, v)))
    ]
    frame = frame_of(planes, pix_fmt, colorspace=matrix, color_range=FULL if pix_fmt == "yuvj420p" else LIMITED)
    packed = i420_square(frame, 0, 0, 96, size_px)
    assert packed is not None and packed.shape == (size_px * 3 // 2, size_px)
    error = cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_I420).astype(float) - resize_square(to_rgb(frame), size_px)
    assert np.abs(error).mean() < 2.5 and np.abs(error.mean((0, 1))).max() < 0.5, (np.abs(error).mean(), error.mean((0, 1)))


def test_there_is_no_short_way_for_what_is_not_as_ours() -> None:
    grey = [np.full(s, 128) for s in [(32, 32), (16, 16), (16, 16)]]
    plain = frame_of(grey, "yuv420p", colorspace=NO_MATRIX, color_range=LIMITED)
    assert i420_square(plain, 2, 2, 20, 16) is not None
    assert i420_square(plain, 1, 2, 20, 16) is i420_square(plain, 2, 2, 19, 16) is None
    full = [np.full((32, 32), 128)] * 3
    assert i420_square(frame_of(full, "yuv444p", colorspace=NO_MATRIX, color_range=LIMITED), 2, 2, 20, 16) is None


# --- transparency


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "slack"),
    [
        ("a.mkv", "ffv1", "yuva420p", 2),
        ("a.mkv", "ffv1", "yuva444p10le", 2),
        ("a.mov", "qtrle", "argb", 1),
        ("a.mov", "png", "rgba", 1),
        ("a.mov", "png", "rgba64be", 1),
        ("a.mov", "prores_ks", "yuva444p10le", 4),
        ("a.webm", "libvpx-vp9", "yuva420p", 4),
        ("a.webm", "libvpx", "yuva420p", 6),
    ],
)
def test_transparency_is_laid_on_mid_grey(tmp_path: Path, name: str, codec: str, pix_fmt: str, slack: int) -> None:
    """A row of squares, from nothing to all of their colour."""
    alpha = np.array([0, 64, 128, 255]).repeat(32)
    rgba = np.empty((64, 128, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = (200, 60, 90), alpha
    if pix_fmt.startswith("yuva"):
        deep = pix_fmt.endswith("10le")
        y, u, v = codes(np.array([200, 60, 90]), NO_MATRIX, 10 if deep else 8, False)
        halves = (64, 128) if "444" in pix_fmt else (32, 64)
        shade = np.tile(alpha * 1023 // 255 if deep else alpha, (64, 1))
        frame = frame_of([np.full((64, 128), y), np.full(halves, u), np.full(halves, v), shade], pix_fmt, color_range=LIMITED)
    else:
        frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pix_fmt)
    options = {"crf": "4", "auto-alt-ref": "0"} if codec.startswith("libvpx") else {}
    got = through_a_file(tmp_path / name, frame, codec, **options)[32, 16::32].astype(int)
    want = 128 + (np.array([200, 60, 90]) - 128) * np.array([0, 64, 128, 255])[:, None] / 255
    assert np.abs(got - want).max() <= slack, got


@pytest.mark.parametrize("pix_fmt", ["ya8", "ya16be"])
def test_grey_with_transparency_keeps_its_levels(pix_fmt: str) -> None:
    rgba = np.array([(g, g, g, a) for g in (0, 60, 255) for a in (0, 128, 255)], np.uint8).repeat(4, 0)
    frame = av.VideoFrame.from_ndarray(np.tile(rgba, (16, 1, 1)), format="rgba").reformat(format=pix_fmt, dst_color_range=FULL)
    want = 128 + (rgba[:, :3].astype(float) - 128) * rgba[:, 3:] / 255
    assert np.abs(to_rgb(frame)[8] - want).max() <= 2


# --- HDR

_BT2020_OF_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087


def hdr_of(nits: np.ndarray, transfer: int) -> np.ndarray:
    """R'G'B' of light (..., 3) of BT.2020 in cd/m2, in levels 0..255: the inverse EOTFs of BT.2100."""
    if transfer == PQ:
        y = (nits / 10_000) ** 0.1593017578125
        return 255 * ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    display = nits / 1000
    luminance = (display @ [0.2627, 0.6780, 0.0593])[..., None]
    scene = display * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    return 255 * np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


def in_hdr(rgb: np.ndarray) -> np.ndarray:
    """Light of SDR levels in HDR, display-referred: the white at 203 cd/m2 (BT.2408, BT.1886)."""
    return 203 * (rgb / 255) ** 2.4 @ _BT2020_OF_BT709.T


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(("pix_fmt", "color_range"), [("yuv420p10le", LIMITED), ("yuv444p12le", LIMITED), ("yuv420p10le", FULL)])
def test_what_was_sdr_comes_back_out_of_hdr(tmp_path: Path, transfer: int, pix_fmt: str, color_range: int) -> None:
    rng = np.random.default_rng(1)
    rgb = rng.integers(12, KNEE_LEVEL, (60, 3))
    if "10" in pix_fmt:  # 10 bits do not hold what little red is left of a bright cyan after the step from BT.2020 to BT.709
        rgb = (rgb.mean(1, keepdims=True) + rng.integers(-35, 35, (60, 3))).round().clip(12, KNEE_LEVEL)
    rgb[:2] = (224, 172, 150), (141, 85, 60)
    tags = {"color_trc": transfer, "color_primaries": BT2020}
    frame = patches(hdr_of(in_hdr(rgb), transfer), pix_fmt, BT2020, color_range, **tags)
    got = middles(through_a_file(tmp_path / "a.mkv", frame, "ffv1"))
    assert np.abs(got - rgb).max() <= 3 and np.abs((got - rgb).mean(0)).max() < 0.5, np.abs(got - rgb).max(0)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_white_is_near_white_and_the_peak_is_the_top(transfer: int) -> None:
    nits = np.array([0, 203, 400, 1000, 1000 if transfer == HLG else 4000])[:, None].repeat(3, 1)
    frame = patches(hdr_of(nits, transfer), "yuv420p10le", NO_MATRIX, color_trc=transfer)
    got = middles(to_rgb(frame))
    assert (np.ptp(got, axis=1) <= 1).all()
    assert got[0].max() == 0 and abs(got[1, 1] - 242) <= 1 and 244 < got[2, 1] <= 252 and got[3:].min() >= 254


def test_the_curves_go_through_the_points_of_the_recommendations() -> None:
    """BT.2408, table 1: reference white is 58 % PQ, 75 % HLG; 1000 cd/m2 are 75 % PQ."""
    np.testing.assert_allclose(pq_nits(np.array([0, 0.5807, 0.7518, 1.0])), [0, 203, 1000, 10_000], rtol=2e-3)
    np.testing.assert_allclose(1000 * hlg_scene(np.array([0, 0.5, 0.75, 1.0])) ** 1.2, [0, 50.7, 203, 1000], rtol=2e-3)


@given(st.floats(1.01, 50), st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_the_tone_map_rises_from_the_identity_to_the_top(peak: float, shares: list[float]) -> None:
    light = peak * np.sort(shares)
    mapped = tone_map(light, peak)
    assert (np.diff(mapped) >= -1e-12).all() and (mapped <= light + 1e-12).all() and mapped.max() <= 1 + 1e-12
    np.testing.assert_array_equal(mapped[light <= 0.75], light[light <= 0.75])
    assert tone_map(np.array([peak]), peak)[0] == pytest.approx(1)


@pytest.mark.parametrize("primaries", [BT2020, DISPLAY_P3])
def test_wide_primaries_are_brought_to_those_of_bt709(primaries: int) -> None:
    """P3's matrix is the published one from sRGB to Display P3."""
    wide = {BT2020: _BT2020_OF_BT709, DISPLAY_P3: np.array([[0.8225, 0.1774, 0], [0.0332, 0.9669, 0], [0.0171, 0.0724, 0.9108]])}[primaries]
    rgb = np.random.default_rng(2).integers(10, 256, (40, 3))
    levels = 255 * ((rgb / 255) ** 2.4 @ wide.T) ** (1 / 2.4)
    got = middles(to_rgb(patches(levels, "yuv444p10le", BT709, color_primaries=primaries)))
    assert np.abs(got - rgb).max() <= 3


def test_cuts_are_looked_for_in_sdr() -> None:
    rgb = np.array([(30, 40, 50), (200, 190, 180)])
    frame = patches(hdr_of(in_hdr(rgb), PQ), "yuv420p10le", BT2020, color_trc=PQ, color_primaries=BT2020)
    small = thumbnail(frame, 8, 4)
    assert small.shape == (4, 8, 3) and small.dtype == np.uint8
    assert np.abs(small[2, [1, 6]].astype(int) - rgb[:, ::-1]).max() <= 4
